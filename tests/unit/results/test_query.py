"""Queries: the output's own tables, and nothing else (ACCEPTANCE S14 to S16)."""

import json

import pyarrow as pa
import pytest
from rich.console import Console

from batchdet.errors import OutputError, SpecError
from batchdet.results.query import escape, query, render_table, to_csv, to_json

FIRST, SECOND = "20261122-100000-aaaa", "20261123-100000-bbbb"


def printed(table, max_rows=10, width=100):
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as capture:
        render_table(table, max_rows, console)
    return capture.get()


@pytest.fixture
def filled(output, make_images):
    output.add_run(FIRST, make_images(20))
    output.add_run(SECOND, make_images(12, first=12))
    return output


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT * FROM images", 24),
        ("FROM runs", 2),
        ("WITH d AS (SELECT label, count(*) AS n FROM detections GROUP BY ALL) SELECT * FROM d ORDER BY n", 3),
        ("SELECT i.member, d.label FROM detections d JOIN images i USING (image_id) LIMIT 4", 4),
        ("VALUES (1), (2)", 2),
        ("DESCRIBE images", 15),
        ("SUMMARIZE runs", 10),
        ("EXPLAIN SELECT count(*) FROM detections", 1),
        ("explain analyze SELECT count(*) FROM detections", 1),
        ("SELECT 1;", 1),
        ("-- a comment\nSELECT 1 -- another", 1),
    ],
)
def test_reading_works(filled, sql, rows):
    assert query(filled.uri, sql).num_rows == rows


def test_runs_have_one_row_each(filled):
    first = query(filled.uri, "SELECT * FROM runs ORDER BY run_id").to_pylist()[0]
    assert (first["run_id"], first["name"], first["images_listed"], first["images_failed"]) == (FIRST, "fake", 20, 2)


def test_a_run_can_be_chosen(filled):
    assert query(filled.uri, "SELECT count(*) AS n FROM images", run=FIRST).to_pylist() == [{"n": 20}]
    assert query(filled.uri, "SELECT count(*) AS n FROM all_images").to_pylist() == [{"n": 32}]


@pytest.mark.parametrize("rows", [0, 1, 5, 30])
def test_reading_stops_after_enough_rows(filled, rows):
    assert query(filled.uri, "FROM images", max_rows=rows).num_rows == min(rows, 24)


@pytest.mark.parametrize(
    "sql",
    [  # without USE_TMP_FILE false, DuckDB's own check of allowed_paths would hide a hole in ours
        "COPY images TO '{outside}'",
        "COPY (SELECT 1) TO '{part}' (FORMAT csv, USE_TMP_FILE false)",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{part}' (FORMAT csv, USE_TMP_FILE false)",
        "explain  analyze\tcopy (select 1) to '{part}' (format csv, use_tmp_file false)",
        "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{part}' (FORMAT csv, USE_TMP_FILE false)",
        "/* hidden */ EXPLAIN ANALYZE COPY (SELECT 1) TO '{part}' (FORMAT csv, USE_TMP_FILE false)",
        "-- hidden\nEXPLAIN ANALYZE COPY (SELECT 1) TO '{part}' (FORMAT csv, USE_TMP_FILE false)",
        "EXPLAIN EXPLAIN ANALYZE COPY (SELECT 1) TO '{part}' (FORMAT csv, USE_TMP_FILE false)",
        "SELECT 1; COPY (SELECT 1) TO '{part}' (FORMAT csv, USE_TMP_FILE false)",
        "EXPLAIN SELECT 1; COPY (SELECT 1) TO '{part}' (FORMAT csv, USE_TMP_FILE false)",
        "EXPORT DATABASE '{outside}'",
        "ATTACH '{outside}'",
        "ATTACH '{part}' AS p",
        "INSTALL httpfs",
        "LOAD httpfs",
        "PRAGMA version",
        "SET threads = 1",
        "RESET enable_external_access",
        "SET enable_external_access = true",
        "CALL enable_logging()",
        "SELECT * FROM enable_logging(storage = 'file', storage_config = {{'path': '{outside}'}})",
        "CREATE TABLE t AS SELECT 1",
        "INSERT INTO runs VALUES (1)",
        "DROP VIEW images",
        "CREATE SECRET (TYPE s3, KEY_ID 'x', SECRET 'y')",
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM '{secret}'",
        "SELECT * FROM read_blob('/proc/self/environ')",
        "SELECT * FROM read_parquet('s3://bucket/x.parquet')",
        "SELECT * FROM read_text('https://127.0.0.1/')",
        "SELECT * FROM glob('{folder}/*')",
        "SELECT * FROM parquet_metadata('{secret}')",
        "SELECT * FROM sniff_csv('{secret}')",
        "SELECT * FROM query('COPY images TO ''{outside}''')",
        "SELECT getenv('HOME')",
        "SELECT * FROM duckdb_secrets()",
        "SELECT * FROM local_variable_of_this_test",
        "",
        ";",
    ],
)
@pytest.mark.acceptance("S15")
def test_everything_else_is_refused_and_the_tables_stay_whole(filled, tmp_path, sql):
    local_variable_of_this_test = pa.table({"a": [1]})
    assert local_variable_of_this_test.num_rows == 1
    secret = tmp_path / "secret.txt"
    secret.write_text("a,b\n1,2\n")
    part = next(iter(sorted((filled.folder / "images").rglob("*.parquet"))))
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    names = {"outside": tmp_path / "outside", "part": part, "secret": secret, "folder": tmp_path}
    with pytest.raises(SpecError) as caught:
        query(filled.uri, sql.format(**names))
    assert "\n" not in caught.value.message
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before
    assert query(filled.uri, "SELECT count(*) AS n FROM images").to_pylist() == [{"n": 24}]


@pytest.mark.acceptance("S14")
def test_metacharacters_in_data_and_paths_are_data(output, fake_image):
    label = "x'; DROP VIEW images; --"
    carried = (("camera", "a' OR 1=1 --"),)
    images = [fake_image("b'\"\\.jpg", ((0, 0.5, 1, 2, 3, 4),), carried=carried)]
    output.add_run(FIRST, images, labels=[label], shard_uri="/data/it's")
    (row,) = query(output.uri, "SELECT label, uri, camera FROM detections JOIN images USING (image_id)").to_pylist()
    assert row == {"label": label, "uri": "/data/it's/b'\"\\.jpg", "camera": "a' OR 1=1 --"}


def test_a_wrong_column_names_the_candidates(filled):
    with pytest.raises(SpecError, match=r'"lable" not found.*"label"'):
        query(filled.uri, "SELECT lable FROM detections")


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT FROM WHERE", "SELECT 'x"])
def test_a_syntax_error_is_one_sentence(filled, sql):
    with pytest.raises(SpecError, match="query: Parser Error") as caught:
        query(filled.uri, sql)
    assert "\n" not in caught.value.message


def test_an_error_while_running_is_the_statements(filled):
    with pytest.raises(SpecError, match="Could not convert"):
        query(filled.uri, "SELECT CAST(member AS INTEGER) FROM images")


def test_a_damaged_table_is_the_outputs(filled):
    for part in (filled.folder / "images").rglob("*.parquet"):
        part.write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(OutputError, match="verify"):
        query(filled.uri, "SELECT count(*), sum(position) FROM images")


class TestRender:
    """Results on a terminal."""

    def test_numbers_stand_right_and_text_left(self):
        text = printed(pa.table({"label": ["car", "person"], "n": [5, 12345]}))
        assert [line.rstrip() for line in text.splitlines() if "car" in line or "person" in line] == [
            " car          5",
            " person   12345",
        ]
        assert "(2 rows)" in text

    def test_more_rows_than_shown(self):
        text = printed(pa.table({"n": list(range(20))}), max_rows=3)
        assert "first 3 rows; there are more" in text
        assert "19" not in text

    def test_no_rows(self):
        assert "(0 rows)" in printed(pa.table({"n": pa.array([], pa.int64())}))

    def test_values(self):
        score = pa.array([0.9], pa.float32())
        text = printed(pa.table({"score": score, "none": pa.array([None], pa.string()), "all": [[1, 2]]}))
        assert "0.9 " in text
        assert "0.899" not in text
        assert "NULL" in text
        assert "[1, 2]" in text

    def test_more_columns_than_the_terminal_holds(self):
        table = pa.table({f"column_{n}": [f"value {n} " + "x" * 30] for n in range(12)})
        text = printed(table, width=80)
        assert "row 1" in text
        assert "column_11  value 11 " + "x" * 30 in text

    @pytest.mark.parametrize(
        "evil", ["\x1b[31mred", "\x1b]0;title\x07", "a\rb", "a\nb", "\x9b2J", "\u202egpj.exe", "\x7f"]
    )
    @pytest.mark.acceptance("S16")
    def test_control_characters_are_escaped(self, evil):
        text = printed(pa.table({evil: [evil]}))
        assert not set(text) & set("\x1b\x07\r\x9b\u202e\x7f")
        assert text.count("\n") == printed(pa.table({"good": ["good"]})).count("\n")

    def test_markup_is_text(self):
        assert "[red]car[/red]" in printed(pa.table({"[b]label": ["[red]car[/red]"]}))

    def test_plans_keep_their_lines(self, filled):
        assert len(printed(query(filled.uri, "EXPLAIN FROM images")).splitlines()) > 5


def test_escape_leaves_ordinary_text_alone():
    assert escape("Fußgänger 行人 [x]") == "Fußgänger 行人 [x]"
    assert escape("a\tb\udcff") == "a\\tb\\udcff"


def test_json_is_plain(filled):
    sql = (
        "SELECT label, max(score) AS score, DATE '2026-11-23' AS day, 'nan'::FLOAT AS odd FROM detections GROUP BY ALL"
    )
    rows = json.loads(to_json(query(filled.uri, sql)))
    assert len(rows) == 3
    assert {row["day"] for row in rows} == {"2026-11-23"}
    assert {row["odd"] for row in rows} == {None}


@pytest.mark.acceptance("S16")
def test_csv_holds_no_formula_and_no_control_character():
    table = pa.table({"label": ["=cmd()", "a,b", "\x1b[2J", None, "-1"], "n": [-1, 2, 3, 4, 5]})
    assert to_csv(table).splitlines() == ["label,n", "'=cmd(),-1", '"a,b",2', "\\x1b[2J,3", ",4", "'-1,5"]


def test_columns_of_one_name_are_all_kept(output, make_images):
    output.add_run(FIRST, make_images(4))
    sql = "SELECT 1 AS n, 2 AS n, 3 AS n_1, 4 AS n"
    found = query(output.uri, sql)
    assert found.to_pylist() == [{"n": 1, "n_2": 2, "n_1": 3, "n_3": 4}]
    assert query(output.uri, sql, max_rows=1).schema.names == found.schema.names
    pairs = query(
        output.uri, "SELECT a.label, b.label FROM detections a JOIN detections b USING (image_id)", max_rows=3
    )
    assert pairs.schema.names == ["label", "label_1"]
    assert json.loads(to_json(pairs))[0].keys() == {"label", "label_1"}


def test_numbers_in_lists_are_printed_as_short_as_others(output, make_images):
    output.add_run(FIRST, make_images(4))
    table = query(output.uri, "SELECT [0.1::FLOAT, NULL] AS l, {'a': 0.1::FLOAT} AS s, MAP {'m': [1e20]} AS m")
    console = Console(width=100, no_color=True, force_terminal=False)
    with console.capture() as capture:
        render_table(table, 3, console)
    assert "[0.1, None]   {'a': 0.1}   [('m', [1e+20])]" in capture.get()
