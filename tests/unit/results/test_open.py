"""Opening results: committed runs only, the newest row of each image, the same rows in every tool."""

import os

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from batchdet import storage
from batchdet.errors import OutputError, SpecError
from batchdet.records.schema import DETECTIONS, IMAGES
from batchdet.results.open import open_results, readable, reason
from batchdet.results.query import query
from batchdet.results.tables import partition_values
from batchdet.results.verify import inspect_output

FIRST, SECOND = "20261122-100000-aaaa", "20261123-100000-bbbb"


def keys(table):
    return sorted(zip(table["run_id"].to_pylist(), table["image_id"].to_pylist(), strict=True))


def ordered(detections):
    return detections.sort_by([(name, "ascending") for name in ("image_id", "run_id", "detection_index")])


def test_one_run_gives_its_rows_and_its_partition(output, make_images):
    output.add_run(FIRST, make_images(25))
    results = open_results(output.uri)
    images, detections = results.images().to_arrow(), results.detections().to_arrow()
    assert images.schema.names == [*IMAGES.names, "run_date"]
    assert detections.schema.names == [*DETECTIONS.names, "run_date"]
    assert images.schema.field("run_date").type == pa.string()
    assert set(images["run_date"].to_pylist()) == {"2026-11-22"}
    assert images.num_rows == 25
    assert detections.num_rows == sum(images["detection_count"].to_pylist())
    assert [f.type for f in images.schema][:-1] == [f.type for f in IMAGES]
    assert results.manifest.run_id == FIRST
    assert results.sql("SELECT DISTINCT typeof(run_date) FROM images").fetchall() == [("VARCHAR",)]


def test_the_newest_run_of_each_image_wins(output, make_images):
    old, new = make_images(20, seed=1), make_images(12, seed=2, first=12)
    output.add_run(FIRST, old)
    output.add_run(SECOND, new)
    results = open_results(output.uri)
    images, detections = results.images().to_arrow(), results.detections().to_arrow()
    rows = dict(zip(images["member"].to_pylist(), images["run_id"].to_pylist(), strict=True))
    assert rows == {f"{n:04d}.jpg": (FIRST if n < 12 else SECOND) for n in range(24)}
    assert set(keys(detections)) <= set(keys(images))
    assert detections.num_rows == sum(images["detection_count"].to_pylist())
    assert results.hides_rows
    assert results.images().to_dataset().count_rows() == 24

    assert results.sql("FROM all_images").to_arrow_table().num_rows == 32


def test_runs_without_a_shard_in_common_hide_nothing(output, make_images):
    output.add_run(FIRST, make_images(9), shard_uri="s3://b/0.tar")
    output.add_run(SECOND, make_images(9), shard_uri="s3://b/1.tar")
    results = open_results(output.uri)
    assert results.images().to_arrow().num_rows == 18
    assert not results.hides_rows


def rows_of(output, **kwargs):
    """Return (run, member) of each image and of each detection's image, sorted."""
    results = open_results(output.uri, **kwargs)
    images = results.images().to_arrow(["run_id", "image_id", "member"]).to_pylist()
    names = {(one["run_id"], one["image_id"]): (one["run_id"], one["member"]) for one in images}
    found = {names[key] for key in keys(results.detections().to_arrow())}
    return sorted(names.values()), sorted(found)


@pytest.mark.parametrize("shard", ["s3://b/0.tar", "s3://b/0.parquet"])
def test_a_replaced_shard_leaves_no_image_that_it_lost(output, fake_image, shard):
    box = ((0, 0.5, 1, 2, 3, 4),)
    output.add_run(FIRST, [fake_image(name, box) for name in ("kept.jpg", "lost.jpg")], shard_uri=shard)
    output.add_run(SECOND, [fake_image("kept.jpg", box), fake_image("new.jpg")], shard_uri=shard)
    images, found = rows_of(output)
    assert images == [(SECOND, "kept.jpg"), (SECOND, "new.jpg")]
    assert found == [(SECOND, "kept.jpg")]
    assert open_results(output.uri).hides_rows
    assert open_results(output.uri).sql("FROM all_images").to_arrow_table().num_rows == 4
    assert rows_of(output, run=FIRST)[0] == [(FIRST, "kept.jpg"), (FIRST, "lost.jpg")]


@pytest.mark.parametrize(
    ("shard", "broken_at", "code"), [("/d/0.tar", "#1", "shard_truncated"), ("/d/0.parquet", "", "shard_corrupt")]
)
def test_a_repaired_shard_leaves_no_failure(output, fake_image, shard, broken_at, code):
    output.add_run(FIRST, [fake_image("0.jpg"), fake_image(broken_at, error_code=code)], shard_uri=shard)
    output.add_run(SECOND, [fake_image("0.jpg"), fake_image("1.jpg")], shard_uri=shard)
    assert rows_of(output)[0] == [(SECOND, "0.jpg"), (SECOND, "1.jpg")]
    assert open_results(output.uri).sql("FROM images WHERE status = 'failed'").fetchall() == []


def test_another_shard_of_the_same_run_stays(output, fake_image, make_images):
    third = "20261124-100000-cccc"
    output.add_run(FIRST, [fake_image("0.jpg")], shard_uri="/d/0.tar")
    output.add_run(SECOND, [fake_image("9.jpg")], shard_uri="/d/1.tar")
    output.add_run(third, [fake_image("1.jpg")], shard_uri="/d/0.tar")
    assert rows_of(output)[0] == [(SECOND, "9.jpg"), (third, "1.jpg")]


def test_an_image_of_a_folder_or_list_stands_for_itself(output, fake_image):
    for folder in ("/photos", "/lists/all#1.csv"):
        output.add_run(FIRST, [fake_image(name) for name in ("#1.jpg", "old.jpg", "both.jpg")], shard_uri=folder)
        output.add_run(SECOND, [fake_image(name) for name in ("both.jpg", "new.jpg")], shard_uri=folder)
        expected = [(FIRST, "#1.jpg"), (FIRST, "old.jpg"), (SECOND, "both.jpg"), (SECOND, "new.jpg")]
        assert rows_of(output)[0] == expected


def test_one_run_is_not_searched_for_older_rows(output, make_images):
    output.add_run(FIRST, make_images(5), shard_uri="/d/0.tar")
    output.add_run(SECOND, make_images(5), shard_uri="/d/0.tar")
    tables = "SELECT table_name FROM duckdb_tables()"
    assert open_results(output.uri).sql(tables).fetchall() == [("superseded",)]
    assert open_results(output.uri, run=FIRST).sql(tables).fetchall() == []


def test_one_run_can_be_chosen(output, make_images):
    output.add_run(FIRST, make_images(20))
    output.add_run(SECOND, make_images(12, first=12))
    chosen = open_results(output.uri, run=FIRST)
    assert set(chosen.images().to_arrow()["run_id"].to_pylist()) == {FIRST}
    assert chosen.images().to_arrow().num_rows == 20
    assert [m.run_id for m in open_results(output.uri).runs] == [FIRST, SECOND]


def test_what_no_manifest_lists_is_not_seen(output, make_images):
    output.add_run(FIRST, make_images(20))
    output.add_run(SECOND, make_images(30, first=20), commit=False)
    stray = output.folder / "images" / "run_date=2026-11-22" / "part-stray.parquet"
    stray.write_bytes(b"half a file")
    results = open_results(output.uri)
    assert results.images().to_arrow().num_rows == 20
    assert results.images().to_dataset().count_rows() == 20
    assert results.sql("SELECT count(*) FROM images").fetchall() == [(20,)]


@pytest.mark.parametrize("other", [True, False])
def test_every_tool_sees_the_same_rows(output, make_images, other):
    output.add_run(FIRST, make_images(20), fingerprint="0" * 64 if other else "f" * 64)
    output.add_run(SECOND, make_images(12, seed=3, first=12))
    view = open_results(output.uri).detections()
    arrow = ordered(view.to_arrow())
    assert ordered(view.to_dataset().to_table().select(arrow.schema.names)) == arrow
    keys = ["image_id", "run_id", "detection_index"]
    pd.testing.assert_frame_equal(view.to_pandas().sort_values(keys, ignore_index=True), arrow.to_pandas())
    assert view.to_duckdb().aggregate("count(*), sum(class_id)").fetchall() == [
        (arrow.num_rows, sum(arrow["class_id"].to_pylist()))
    ]


def test_columns_can_be_chosen(output, make_images):
    output.add_run(FIRST, make_images(8))
    view = open_results(output.uri).images()
    assert view.to_arrow(["member", "run_date"]).schema.names == ["member", "run_date"]
    assert list(view.to_pandas(["uri"]).columns) == ["uri"]


def test_a_relation_outlives_the_results(output, make_images):
    output.add_run(FIRST, make_images(8))
    relation = open_results(output.uri).images().to_duckdb()
    assert relation.filter("status = 'failed'").aggregate("count(*)").fetchall() == [(1,)]


def test_runs_with_other_columns_and_partitions_fit_together(output, fake_image):
    carried = (("camera", "north side"), ("lens", 7))
    output.add_run(FIRST, [fake_image("a.jpg", ((1, 0.5, 1, 2, 3, 4),), carried=carried)], partition_by=("camera",))
    output.add_run(SECOND, [fake_image("b.jpg", ((2, 0.5, 1, 2, 3, 4),), carried=(("weather", "rain"),))])
    results = open_results(output.uri)
    rows = {row["member"]: row for row in results.images().to_arrow().to_pylist()}
    assert (rows["a.jpg"]["camera"], rows["a.jpg"]["lens"], rows["a.jpg"]["run_date"]) == ("north side", 7, None)
    assert (rows["b.jpg"]["camera"], rows["b.jpg"]["lens"], rows["b.jpg"]["run_date"]) == (None, None, "2026-11-23")
    assert rows["b.jpg"]["weather"] == "rain"
    plain = results.images().to_dataset().to_table().select(results.images().schema.names)
    assert sorted(plain.to_pylist(), key=str) == sorted(rows.values(), key=str)
    labels = dict(zip(*results.detections().to_arrow(["camera", "label"]).to_pydict().values(), strict=True))
    assert labels == {"north side": "dog", None: "person"}


def test_partition_values_of_every_kind(output, fake_image):
    values = ["north side", "a/b", "50%", "é", "", None, "2026-01-01", "007", "it's"]
    images = [fake_image(f"{n}.jpg", carried=(("camera", v),)) for n, v in enumerate(values)]
    output.add_run(FIRST, images, partition_by=("camera", "run_date"))
    view = open_results(output.uri).images()
    for table in (view.to_arrow(), view.to_dataset().to_table()):
        rows = dict(zip(table["member"].to_pylist(), table["camera"].to_pylist(), strict=True))
        assert rows == {f"{n}.jpg": v for n, v in enumerate(values)}
    found = view.to_dataset().to_table(filter=ds.field("camera") == "007")
    assert found["member"].to_pylist() == ["7.jpg"]
    assert view.to_duckdb().filter("camera IS NULL").select("member").fetchall() == [("5.jpg",)]


def test_columns_that_do_not_fit_together_are_told(output, fake_image):
    output.add_run(FIRST, [fake_image("a.jpg", carried=(("lens", 7),))])
    output.add_run(SECOND, [fake_image("b.jpg", carried=(("lens", [1]),))])
    with pytest.raises(OutputError, match=r"different types.*lens.*--run"):
        open_results(output.uri).images().to_arrow()
    assert open_results(output.uri, run=SECOND).images().to_arrow(["lens"]).to_pydict() == {"lens": [[1]]}


@pytest.mark.parametrize(
    ("first", "second", "want"), [(7, "007", ["7", "007"]), (7, 1.5, [7.0, 1.5]), (True, "x", None)]
)
def test_columns_of_two_types_hold_what_each_run_wrote(output, fake_image, first, second, want):
    output.add_run(FIRST, [fake_image("a.jpg", carried=(("lens", first),))])
    output.add_run(SECOND, [fake_image("b.jpg", carried=(("lens", second),))])
    view = open_results(output.uri).images()
    for table in (view.to_arrow(), view.to_dataset().to_table()):
        rows = dict(zip(table["member"].to_pylist(), table["lens"].to_pylist(), strict=True))
        assert [rows["a.jpg"], rows["b.jpg"]] == (want or ["true", "x"])


@pytest.mark.parametrize("folder", ["a=b/run_date=1999/out", "we[ird]*?", "it's", "ümlaut und leer"])
def test_an_output_with_an_awkward_path_is_read(output, make_images, tmp_path, folder):
    if "[" in folder:
        output.folder = tmp_path / "weird"  # what DuckDB would read in its stead
        output.add_run(FIRST, make_images(5))
    output.folder = tmp_path / folder
    output.uri = str(output.folder)
    output.add_run(FIRST, make_images(9))
    results = open_results(output.uri)
    assert results.images().to_arrow().schema.names == [*IMAGES.names, "run_date"]
    assert set(results.images().to_arrow()["run_date"].to_pylist()) == {"2026-11-22"}
    assert results.images().to_arrow().num_rows == 9
    assert results.images().to_arrow() == results.images().to_dataset().to_table().select(results.images().schema.names)


def test_a_run_without_detections_has_an_empty_table(output, fake_image):
    output.add_run(FIRST, [fake_image("a.jpg"), fake_image("b.jpg", error_code="empty")])
    view = open_results(output.uri).detections()
    assert view.to_arrow().num_rows == 0
    assert view.to_arrow().schema.names == [*DETECTIONS.names, "run_date"]
    assert view.to_pandas().empty


def test_no_partitions(output, make_images):
    output.add_run(FIRST, make_images(9), partition_by=())
    assert open_results(output.uri).images().to_arrow().schema.names == IMAGES.names


def test_other_storage_than_local_files(output, make_images, tmp_path):
    output.add_run(FIRST, make_images(20))
    output.add_run(SECOND, make_images(12, first=12))
    fs, _ = storage.filesystem("memory://")
    root = f"memory://opened-{os.getpid()}-{tmp_path.name}"
    for one in storage.find_all(output.uri):
        with storage.open_read(one.uri) as file:
            storage.write_bytes(root + one.uri.removeprefix(output.uri), file.read())
    try:
        here, there = open_results(output.uri), open_results(root)
        assert ordered(there.detections().to_arrow()) == ordered(here.detections().to_arrow())
        assert (
            open_results(root, run=FIRST).images().to_dataset().to_table(filter=ds.field("position") < 3).num_rows == 3
        )
    finally:
        fs.rm(root.removeprefix("memory:/"), recursive=True)


def test_a_real_s3_server(output, make_images, s3):
    output.add_run(FIRST, make_images(20))
    output.add_run(SECOND, make_images(12, seed=2, first=12))
    root = f"{s3.bucket('opened')}/labels/of/{os.getpid()}"
    for one in storage.find_all(output.uri):
        storage.write_bytes(root + one.uri.removeprefix(output.uri), storage.read_bytes(one.uri))
    here, there = open_results(output.uri), open_results(root)
    assert ordered(there.detections().to_arrow()) == ordered(here.detections().to_arrow())
    assert there.images().to_dataset().count_rows() == 24
    assert open_results(root).sql("SELECT count(*) FROM all_images").fetchall()[0][0] == 32
    assert query(root, "SELECT count(*) AS n FROM images").to_pylist() == [{"n": 24}]
    with pytest.raises(SpecError, match="disabled by configuration"):
        query(root, f"SELECT * FROM read_text('{root}/_batchdet/runs/{FIRST}/spec.yaml')")
    assert inspect_output(root).problems == []
    with pytest.raises(OutputError, match="no results here"):
        open_results("s3://there-is-no-such-bucket/labels")


def test_no_output_is_one_sentence(tmp_path):
    with pytest.raises(OutputError, match="no results here"):
        open_results(str(tmp_path / "nothing"))


def test_an_uncommitted_run_is_one_sentence(output, make_images):
    output.add_run(FIRST, make_images(3), commit=False)
    with pytest.raises(OutputError, match=f"run {FIRST} is not committed"):
        open_results(output.uri)


def test_an_unknown_run_lists_the_known_ones(output, make_images):
    output.add_run(FIRST, make_images(3))
    with pytest.raises(OutputError, match=rf"no committed run 'yesterday'; there are: {FIRST}"):
        open_results(output.uri, run="yesterday")


def test_a_missing_part_file_is_named(output, make_images):
    manifest = output.add_run(FIRST, make_images(25))
    (output.folder / manifest.images[0].path).unlink()
    with pytest.raises(OutputError, match=r"part-.*-00000\.parquet"):
        open_results(output.uri).images().to_arrow()


def test_a_damaged_part_file_is_told(output, make_images):
    manifest = output.add_run(FIRST, make_images(25))
    for part in manifest.images:
        (output.folder / part.path).write_bytes(b"not parquet at all, but long enough")
    with pytest.raises(OutputError, match="verify"):
        open_results(output.uri).images().to_arrow()
    (output.folder / manifest.detections[-1].path).write_bytes(b"not parquet at all, but long enough")
    with pytest.raises(OutputError, match="verify"):
        open_results(output.uri).detections().to_arrow()


def test_partition_values_are_unquoted():
    path = "images/run_date=2026-11-23/camera=north%20side%2F1/lens=__HIVE_DEFAULT_PARTITION__/part-0.parquet"
    assert partition_values(path) == {"run_date": "2026-11-23", "camera": "north side/1", "lens": None}


def test_mistakes_in_sql_stay_duckdbs(output):
    with pytest.raises(duckdb.Error) as caught, readable("out"):
        duckdb.sql("SELECT nothing FROM nowhere")
    assert "\n" not in reason(caught.value)


class TestPlainGlob:
    """The tables need no batchdet to be read."""

    def test_duckdb(self, output, make_images):
        manifest = output.add_run(FIRST, make_images(40))
        glob = f"{output.uri}/detections/**/*.parquet"
        rows = duckdb.sql(f"SELECT count(*), any_value(run_date)::VARCHAR FROM read_parquet('{glob}')").fetchall()
        assert rows == [(sum(p.rows for p in manifest.detections), "2026-11-22")]

    def test_pandas(self, output, make_images):
        manifest = output.add_run(FIRST, make_images(40))
        frame = pd.read_parquet(f"{output.uri}/detections")
        assert len(frame) == sum(p.rows for p in manifest.detections)
        assert set(frame["run_date"].astype(str)) == {"2026-11-22"}

    def test_pyarrow(self, output, make_images):
        manifest = output.add_run(FIRST, make_images(40))
        for table in (pq.read_table(f"{output.uri}/detections"), ds.dataset(f"{output.uri}/detections").to_table()):
            assert table.num_rows == sum(p.rows for p in manifest.detections)
