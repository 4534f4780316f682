"""Sources that people have reported elsewhere, as ``bugs/make_inputs.py`` of the shared data makes them."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchdet.errors import BatchdetError, SourceError, SpecError
from batchdet.job import Run, run_job
from batchdet.plan import plan_job
from batchdet.results.open import open_results
from batchdet.results.verify import verify
from batchdet.source.inventory import list_inventory
from batchdet.spec import SourceSpec
from tests.unit.source.corpus import read_all, write_tar
from tests.without_ray import job, without_ray

JPEG = b"\xff\xd8 a photograph"


@pytest.fixture(scope="module")
def bugs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lists, tables, folders and shards among the inputs."""
    script = shared / "bugs/make_inputs.py"
    if not script.is_file():
        pytest.skip(f"{script}: not here")
    folder = tmp_path_factory.mktemp("bugs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), str(shared), str(folder)])
        patch.syspath_prepend(str(script.parent))
        made = runpy.run_path(str(script), run_name="made")
    assert made
    return folder


def _run(source: Path | str, out: Path, **source_: Any) -> tuple[Run, list[dict[str, Any]]]:
    with without_ray():
        run = run_job(job(source, out, source_=source_))
    verify(str(out)).raise_problems()
    return run, open_results(str(out)).sql("SELECT * FROM images ORDER BY uri").to_arrow_table().to_pylist()


@pytest.mark.parametrize(
    ("case", "source_", "images", "column", "values"),
    [
        ("lists/l1_headerless.csv", {}, 3, "member", ["img/1.jpg", "img/2.jpg", "img/3.jpg"]),
        ("lists/l2_semicolons.csv", {}, 2, "source_label", ["cat", "dog"]),
        ("lists/l3_long_ids.csv", {}, 2, "photo_id", ["12345678901234567890", "12345678901234567891"]),
        ("lists/l3_long_ids.csv", {"id_column": "photo_id"}, 2, "member", [f"1234567890123456789{i}" for i in (0, 1)]),
        ("lists/l4_pandas_index.csv", {}, 2, "column_1", [0, 1]),
        ("lists/l5_file_uris.txt", {}, 2, "error_code", [None, None]),
        ("parquet/p1_string_view.parquet", {}, 3, "caption", ["a", "b", "c"]),
        ("parquet/p2_drift", {}, 6, "id", [1, 2, 3, 2**40, 2, 3]),
        ("folders/f1", {}, 6, "error_code", [None] * 6),
        ("folders/f1_only", {}, 3, "error_code", [None] * 3),
        ("folders/f2", {"format": "folder"}, 3, "member", ["3f2a1", "3f2a2", "3f2a3"]),
        ("shards/t1_macos.tar", {}, 2, "json", ['{"k": 1}'] * 2),
    ],
)  # fmt: skip
def test_reported_sources_are_labelled(
    bugs: Path, tmp_path: Path, case: str, source_: dict[str, Any], images: int, column: str, values: list[Any]
) -> None:
    run, rows = _run(bugs / case, tmp_path / "out", **source_)
    assert (run.images_ok, run.images_failed) == (images, 0)
    assert [row[column] for row in rows] == values


def test_reported_sources_that_are_refused(bugs: Path) -> None:
    for case, code in (("lists/l6_base64.jsonl", "source.base64"), ("folders/f2", "source.no_images")):
        with pytest.raises(SourceError) as caught:
            list_inventory(SourceSpec(uri=str(bugs / case)))
        assert caught.value.code == code


def _photographs(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(JPEG + name.encode())


@pytest.mark.parametrize(
    ("text", "members", "columns"),
    [
        ("img/1.jpg,5\nimg/2.jpg,6\n", ["img/1.jpg", "img/2.jpg"], {"column_2": [5, 6]}),
        ("5\timg/1.jpg\n6\timg/2.jpg\n", ["img/1.jpg", "img/2.jpg"], {"column_1": [5, 6]}),
        ("cat;img/1.jpg\ndog;img/2.jpg\n", ["img/1.jpg", "img/2.jpg"], {"column_1": ["cat", "dog"]}),
        ("img/a.b\nimg/1.jpg\n", ["img/a.b", "img/1.jpg"], {}),  # an existing file, whatever its extension
        ("s3://b/k\ns3://b/l\n", ["s3://b/k", "s3://b/l"], {}),
        ("img/a;b.jpg\nimg/1.jpg\n", ["img/a;b.jpg", "img/1.jpg"], {}),
        ("uri|n\nimg/1.jpg|1\n", ["img/1.jpg"], {"n": [1]}),
        ("uri;price,eur\nimg/1.jpg;5\n", ["img/1.jpg"], {"price,eur": [5]}),
        ('"uri","a\nb"\nimg/1.jpg,x\n', ["img/1.jpg"], {"a\nb": ["x"]}),
        ("uri,n", [], {"n": []}),
        ("sep=;\r\nuri;n\r\nimg/1.jpg;1\r\n", ["img/1.jpg"], {"n": [1]}),
        (
            'uri,size\nimg/1.jpg,5" wide\nimg/2.jpg,"6"" wide"\n',
            ["img/1.jpg", "img/2.jpg"],
            {"size": ['5" wide', '6" wide']},
        ),
    ],
)
def test_first_lines(tmp_path: Path, text: str, members: list[str], columns: dict[str, list[Any]]) -> None:
    _photographs(tmp_path, "img/1.jpg", "img/2.jpg", "img/a.b", "img/a;b.jpg")
    (tmp_path / "l.csv").write_text(text)
    listed = list_inventory(SourceSpec(uri=str(tmp_path / "l.csv")))
    assert listed.objects["member"].to_pylist() == members
    assert listed.objects.select(listed.carried.names).to_pydict() == columns


@pytest.mark.parametrize("text", ["img/1.jpg,masks/1.png\n", "some/key\nother/key\n"])
def test_first_lines_that_are_not_certain(tmp_path: Path, text: str) -> None:
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(SourceError) as caught:
        list_inventory(SourceSpec(uri=str(tmp_path / "l.csv")))
    assert (caught.value.code, caught.value.key) == ("source.header", f"{tmp_path}/l.csv:1")


@pytest.mark.parametrize("separator", [",", ";", "|", "\t"])
@pytest.mark.parametrize("values", ['"cat|dog', '"cat|"dog', '"a \\"cat\\" b"|dog', 'dog|"cat""'])
def test_a_quotation_mark_that_is_not_closed_swallows_no_image(tmp_path: Path, values: str, separator: str) -> None:
    rows = [f"img/{n}.jpg{separator}{value}" for n, value in enumerate(values.split("|"))]
    (tmp_path / "l.csv").write_text("\n".join([f"uri{separator}text", *rows]))
    with pytest.raises(SourceError) as caught:
        list_inventory(SourceSpec(uri=str(tmp_path / "l.csv")))
    line = 3 if values.startswith("dog") else 2
    assert (caught.value.code, caught.value.key) == ("source.quotes", f"{tmp_path}/l.csv:{line}")


def test_lines_of_a_list_may_end_as_on_old_macs(tmp_path: Path) -> None:
    _photographs(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "l.txt").write_bytes(b"1.jpg\r2.jpg\r")
    assert read_all(tmp_path / "l.txt").members == ["1.jpg", "2.jpg"]


def test_names_are_taken_as_they_are_listed(tmp_path: Path) -> None:
    names = ["img/ends in a space.jpg ", " begins.jpg", "q?versionId=abc.jpg", "100%.jpg", "a%20b.jpg", "u\u2028v.jpg"]
    _photographs(tmp_path, *names)
    (tmp_path / "l.txt").write_text("\r\n".join([*names, f"file://localhost{tmp_path}/100%25.jpg"]))
    got = read_all(tmp_path / "l.txt")
    assert got.codes == [None] * 7
    assert got.members[:6] == names


def test_an_endless_name_is_shown_in_part(tmp_path: Path) -> None:
    _photographs(tmp_path, "1.jpg")
    (tmp_path / "l.txt").write_text("1.jpg\n" + "x" * 100_000 + "\n" + "x" * 100_000 + "y")
    got = read_all(tmp_path / "l.txt")
    assert got.codes == [None, "refused_uri", "refused_uri"]
    assert all(len(str(value)) < 500 for row in got.rows for value in row.values())


def test_a_file_name_that_is_no_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(JPEG)
    with open(bytes(tmp_path) + b"/\xff.jpg", "wb") as file:
        file.write(JPEG)
    got = read_all(tmp_path)
    assert got.codes == [None, "unreadable"]
    assert "UTF-8" in got.rows[1]["error_message"]


def test_folders_in_the_path_are_columns(tmp_path: Path) -> None:
    for split, year in (("train", "2023"), ("val", "2024")):
        folder = tmp_path / f"in/split={split}/year={year}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"image": [JPEG], "year_text": [year]}), folder / "p0.parquet")
    _, rows = _run(tmp_path / "in", tmp_path / "out")
    assert [(row["split"], row["year"]) for row in rows] == [("train", 2023), ("val", 2024)]
    assert list_inventory(SourceSpec(uri=str(tmp_path / "in"), columns=("split",))).carried.names == ["split"]


def test_the_path_in_a_struct_and_a_column_of_that_name_are_two(tmp_path: Path) -> None:
    table = {"image": pa.array([{"bytes": JPEG, "path": "inner"}]), "image.path": ["outer"]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    (row,) = read_all(tmp_path).rows
    assert (row["image_path"], row["image.path"]) == ("inner", "outer")


@pytest.mark.parametrize("type_", [pa.dictionary(pa.int32(), pa.binary()), pa.binary(len(JPEG))])
def test_encoded_and_fixed_size_images(tmp_path: Path, type_: pa.DataType) -> None:
    plain = pa.array([JPEG, JPEG])
    images = plain.dictionary_encode() if pa.types.is_dictionary(type_) else plain.cast(type_)
    pq.write_table(pa.table({"picture": images}), tmp_path / "a.parquet")
    assert read_all(tmp_path, image_column="picture").data == [JPEG, JPEG]


def test_lists_of_images_are_refused_with_what_to_do(tmp_path: Path) -> None:
    pq.write_table(pa.table({"images": pa.array([[JPEG, JPEG]]), "n": [1]}), tmp_path / "a.parquet")
    for source in (SourceSpec(uri=str(tmp_path)), SourceSpec(uri=str(tmp_path), image_column="images")):
        with pytest.raises(SourceError, match="one row for each image") as caught:
            list_inventory(source)
        assert caught.value.code == "source.image_column"


def test_a_json_array_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "l.jsonl").write_text('[{"uri": "a.jpg"}]')
    with pytest.raises(SourceError, match="jq") as caught:
        list_inventory(SourceSpec(uri=str(tmp_path / "l.jsonl")))
    assert caught.value.code == "source.list"


def test_folders_with_signs_of_globs_name_members_below_themselves(tmp_path: Path) -> None:
    folder = tmp_path / "x [1] 100% #a?b*c it's"
    _photographs(folder, "d/1.jpg")
    got = read_all(folder)
    assert (got.members, got.inventory.root) == (["d/1.jpg"], str(folder))


def test_an_output_inside_a_source_is_never_read(tmp_path: Path) -> None:
    _photographs(tmp_path, "in/1.jpg")
    _run(tmp_path / "in", tmp_path / "all/out")
    _photographs(tmp_path, "all/images/part-1.jpg", "all/_batch2/2.jpg")
    run, rows = _run(tmp_path / "all", tmp_path / "second")
    assert [row["member"] for row in rows] == ["_batch2/2.jpg", "images/part-1.jpg"]
    assert run.measured["passed_over"]["of outputs of batchdet"] >= 5


def test_members_passed_over_are_in_stats_and_json(tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpg", "a.json", "b.json", "._c.jpg"]
    write_tar(tmp_path / "s.tar", [(name, JPEG) for name in names])
    run, _ = _run(tmp_path / "s.tar", tmp_path / "out")
    assert run.measured["members_passed_over"] == {".json with no image next to it": 2, "AppleDouble": 1}


@pytest.mark.parametrize(
    ("column", "value", "code"),
    [
        ("km/h", "50", "output.partition_name"),
        ("a=b", "50", "output.partition_name"),
        ("_x", "50", "output.partition_name"),
        ("city", "x" * 300, "output.partition_value"),
        ("city", "\u6771" * 90, "output.partition_value"),
    ],
)
def test_partitions_that_cannot_be_written_or_read_are_found_in_the_plan(
    tmp_path: Path, column: str, value: str, code: str
) -> None:
    _photographs(tmp_path, "1.jpg")
    (tmp_path / "l.csv").write_text(f"uri,{column}\n1.jpg,{value}\n")
    with pytest.raises(SpecError) as caught:
        plan_job(job(tmp_path / "l.csv", tmp_path / "out", output_={"partition_by": [column]}))
    assert caught.value.code == code
    assert str(caught.value.key).startswith("output.partition_by")


def test_long_partition_values_of_sidecars_are_cut_and_stay_apart(tmp_path: Path) -> None:
    members = [(f"{i}.jpg", JPEG) for i in range(2)] + [(f"{i}.txt", b"x" * 300 + str(i).encode()) for i in range(2)]
    write_tar(tmp_path / "s.tar", sorted(members))
    with without_ray():
        run = run_job(job(tmp_path / "s.tar", tmp_path / "out", output_={"partition_by": ["txt"]}))
    assert (run.images_ok, len(run.manifest.images)) == (2, 2)
    values = run.results().sql("SELECT DISTINCT txt FROM images").fetchall()
    assert len(values) == 2
    assert all(len(value) < 256 for (value,) in values)


def test_a_column_that_is_text_from_some_night_on_is_read_as_text(tmp_path: Path) -> None:
    _photographs(tmp_path, "1.jpg", "2.jpg")
    for name, code in (("1", "8"), ("2", "007")):
        (tmp_path / "lists").mkdir(exist_ok=True)
        (tmp_path / f"lists/{name}.csv").write_text(f"uri,code\n../{name}.jpg,{code}\n")
        source_ = {"format": "uri_list", "allow": [str(tmp_path)]}
        _, rows = _run(f"{tmp_path}/lists/{name}.csv", tmp_path / "out", **source_)
    assert sorted(str(row["code"]) for row in rows) == ["007", "8"]
    assert sorted(open_results(str(tmp_path / "out")).images().to_arrow(["code"])["code"].to_pylist()) == ["007", "8"]


def test_a_contradiction_between_files_ends_the_plan(tmp_path: Path) -> None:
    for name, values in (("a", [1]), ("b", ["x"])):
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": [JPEG], "n": values}), tmp_path / f"in/{name}.parquet")
    with pytest.raises(BatchdetError, match=r"b\.parquet.*a\.parquet") as caught:
        plan_job(job(tmp_path / "in", tmp_path / "out"))
    assert caught.value.code == "source.types_differ"
