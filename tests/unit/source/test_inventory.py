import hashlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchdet.errors import MissingExtra, SourceError
from batchdet.source.inventory import Inventory, list_inventory, plan_shards
from batchdet.spec import SourceSpec
from tests.unit.source.corpus import write_tar


def _list(path: Path | str, **spec: object) -> Inventory:
    return list_inventory(SourceSpec(uri=str(path), **spec))  # type: ignore[arg-type]


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


@pytest.mark.parametrize(
    ("names", "uri", "want"),
    [
        (["a.tar", "b.tar.gz", "c.TGZ", "index.json"], "", "webdataset"),
        (["a.parquet", "b.pq", "_metadata"], "", "parquet"),
        (["a.jpg", "a.txt", "list.csv"], "", "folder"),
        (["a.tar", "b.jpg"], "/*.tar", "webdataset"),
        (["l.csv", "a.jpg"], "/l.csv", "uri_list"),
        (["l.txt"], "/l.txt", "uri_list"),
        (["a.csv", "b.csv"], "/*.csv", "uri_list"),
        (["a.jpg"], "/a.jpg", "folder"),
    ],
)
def test_auto_decides_by_what_is_listed(tmp_path: Path, names: list[str], uri: str, want: str) -> None:
    _touch(tmp_path, *names)
    for name in names:
        if name.endswith(("parquet", "pq")):
            pq.write_table(pa.table({"image": [b"1"]}), tmp_path / name)
        if name.endswith((".csv", ".txt")):
            (tmp_path / name).write_text("url\na.jpg\n")
    assert _list(f"{tmp_path}{uri}").format == want


@pytest.mark.parametrize(
    ("names", "uri", "match"),
    [
        ([], "", r"source\.uri: .* is an empty folder"),
        ([], "/*.tar", r"source\.uri: .*\*\.tar matches no file"),
        (["a.tar"], "/xyz.csv", r"source\.uri: .*xyz\.csv does not exist; .* holds a\.tar"),
        (["images.tar"], "/image.tar", r"source\.uri: .*image\.tar does not exist; did you mean 'images\.tar'\?"),
        ([], "/no/where", r"does not exist; check the path \(.*/no does not exist either"),
        (
            ["a.tar", "b.parquet"],
            "",
            r"source\.format: .* holds 1 tar shard and 1 Parquet file; write source\.format: webdataset or parquet, ",
        ),
        (
            ["cover.jpg", *[f"{i}.tar" for i in range(5)]],
            "",
            r"source\.format: .* holds 1 image and 5 tar shards; write source\.format: folder or webdataset, ",
        ),
        (
            ["a.jpg", "b.png", "c.parquet"],
            "/*",
            r"source\.format: .* holds 2 images and 1 Parquet file; write source\.format: folder or parquet, ",
        ),
        (
            ["a.jpg", "b.tar", "c.parquet"],
            "",
            r"holds 1 image, 1 tar shard and 1 Parquet file; write source\.format: folder, webdataset or parquet, ",
        ),
        (["a.json", "b.md", "c.md"], "", r"source\.uri: .* holds 2 \.md, 1 \.json and no images"),
        (["a.mp4", "b.mp4", "c.txt"], "", r"holds 2 \.mp4, 1 \.txt and no images, .*; videos are not read"),
        (["a.txt", "b.json"], "", r"holds .* and no images, .*; if one of them is a list of images, name that file"),
        (["l.csv", "m.csv"], "", r"source\.uri: .* holds 2 \.csv.* write source\.format: uri_list"),
        (["photo.dat"], "/photo.dat", r"source\.format: .* holds 1 \.dat"),
        (["noext"], "", r"1 without extension and no images, .* write source\.format: folder"),
        (["a.zip"], "/a.zip", r"holds 1 \.zip and no images, .*; unpack"),
        (["a.tar.bz2", "b.tar.xz"], "", r"only tar\.gz is read"),
        (["a.feather"], "/a.feather", r"as Parquet"),
        (["a.json"], "/a.json", r"one JSON object with a uri on each line"),
        (["_SUCCESS", ".x.jpg"], "", r"holds nothing but 1 hidden, 1 beginning with _; it should"),
    ],
)
def test_what_cannot_be_listed_is_one_clear_sentence(tmp_path: Path, names: list[str], uri: str, match: str) -> None:
    _touch(tmp_path, *names)
    with pytest.raises(SourceError, match=match) as caught:
        _list(f"{tmp_path}{uri}")
    assert "\n" not in caught.value.message


def test_format_that_finds_nothing_names_what_is_there(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg", "b.jpg", "c.json")
    with pytest.raises(SourceError, match=r"holds no tar shards \(tar, tar\.gz, tgz\) but 2 \.jpg, 1 \.json"):
        _list(tmp_path, format="webdataset")
    with pytest.raises(SourceError, match=r"holds no images .* but 1 \.json"):
        _list(f"{tmp_path}/c*", format="folder")


@pytest.mark.parametrize(
    ("names", "parts", "want"),
    [
        (["a.jpg", "b.PSD", "c.psd", "d.txt", "e"], {}, {".psd": 2, ".txt": 1, "without extension": 1}),
        (["a.jpg", "b.png"], {}, {}),
        (["a.tar", "a.idx"], {}, {".idx": 1}),
        (["a.jpg", "b.tar"], {"format": "webdataset"}, {".jpg": 1}),
        (["a.jpg", ".b.jpg", "c/.d/e.jpg", "_SUCCESS", "_x/y.txt"], {}, {"hidden": 2, "beginning with _": 2}),
        (
            ["a.jpg", "out/_batchdet/runs/R/spec.yaml", "out/_SUCCESS", "out/images/run_date=1/part-R-0.parquet"],
            {},
            {"of outputs of batchdet": 3},
        ),
    ],
)
def test_what_is_passed_over_is_said(tmp_path: Path, names: list[str], parts: dict[str, Any], want: str) -> None:
    _touch(tmp_path, *names)
    listed = _list(tmp_path, **parts)
    assert listed.passed_over == want
    assert listed.keep(np.zeros(listed.objects.num_rows, bool)).objects.num_rows == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir(mode=0)
    with pytest.raises(SourceError, match="permission denied"):
        _list(tmp_path / "x")


def test_unknown_scheme_and_missing_package() -> None:
    with pytest.raises(SourceError, match=r"source\.uri: s4://b: 's4' is no known scheme; use a path, s3://"):
        _list("s4://b")
    with pytest.raises(
        MissingExtra, match=r"source\.uri: gs://b/x: the scheme 'gs' needs a package: pip install gcsfs"
    ):
        _list("gs://b/x")


def test_a_folder_carries_no_columns(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg")
    with pytest.raises(SourceError, match=r"source\.columns: a folder of images carries no columns"):
        _list(tmp_path, columns=("label",))
    write_tar(tmp_path / "s.tar", [])
    with pytest.raises(SourceError, match=r"source\.columns: a WebDataset source has no column 'jsn'; did you mean"):
        _list(tmp_path / "s.tar", columns=("jsn",))


def test_objects_are_sorted_and_tar_is_not_opened(tmp_path: Path) -> None:
    _touch(tmp_path, "b.tar", "a.tar", "c/a.tar")
    inventory = _list(tmp_path)
    assert inventory.objects["uri"].to_pylist() == [f"{tmp_path}/{n}" for n in ("a.tar", "b.tar", "c/a.tar")]
    assert inventory.objects["size_bytes"].to_pylist() == [1, 1, 1]
    assert all(etag.startswith("mtime:") for etag in inventory.objects["etag"].to_pylist())
    assert inventory.objects.schema == pa.schema([("uri", "string"), ("size_bytes", "int64"), ("etag", "string")])


@pytest.mark.parametrize("kind", ["folder", "list", "parquet"])
def test_write_and_read_give_the_same(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "in"
    _touch(source / "img", "a.jpg", "b.jpg")
    (source / "l.jsonl").write_text('{"url": "a.jpg", "tags": ["x"], "n": null}\n{"url": "b.jpg", "tags": [], "n": 3}')
    pq.write_table(pa.table({"image": [b"1"], "t": pa.array([1], pa.timestamp("ms", "UTC"))}), source / "p.parquet")
    before = _list({"folder": source / "img", "list": source / "l.jsonl", "parquet": source / "p.parquet"}[kind])
    before.write(str(tmp_path / "out" / "inventory.parquet"))
    after = Inventory.read(str(tmp_path / "out" / "inventory.parquet"))
    assert (after.format, after.root, after.digest) == (before.format, before.root, before.digest)
    assert after.objects.equals(before.objects)
    assert after.objects.schema.equals(before.objects.schema)
    assert after.carried.equals(before.carried)
    assert [s.shard_id for s in plan_shards(after)] == [s.shard_id for s in plan_shards(before)]


def test_reading_something_else_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match="no inventory"):
        Inventory.read(str(tmp_path / "x.parquet"))
    (tmp_path / "x.parquet").write_bytes(b"no")
    with pytest.raises(SourceError, match="not a Parquet file"):
        Inventory.read(str(tmp_path / "x.parquet"))


def test_digest_changes_with_objects_only(tmp_path: Path) -> None:
    _touch(tmp_path, "a.tar", "b.tar")
    first = _list(tmp_path).digest
    assert len(bytes.fromhex(first)) == hashlib.sha256().digest_size
    assert _list(f"{tmp_path}/*.tar").digest == first
    os.utime(tmp_path / "a.tar", (1, 1))
    changed = _list(tmp_path).digest
    assert changed != first
    _touch(tmp_path, "c.tar")
    assert _list(tmp_path).digest not in {first, changed}


def test_digest_of_a_list_changes_with_its_columns(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("url,n\na.jpg,1\n")
    first = _list(tmp_path / "l.csv").digest
    (tmp_path / "l.csv").write_text("url,n\na.jpg,2\n")
    assert _list(tmp_path / "l.csv").digest != first


def test_without_drops_what_is_known_and_keeps_the_order(tmp_path: Path) -> None:
    _touch(tmp_path, *[f"{i}.tar" for i in range(6)])
    before = _list(tmp_path)
    os.utime(tmp_path / "2.tar", (1, 1))
    (tmp_path / "4.tar").write_bytes(b"longer")
    _touch(tmp_path, "9.tar")
    after = _list(tmp_path)
    left = after.without(before.objects)
    assert [Path(u).name for u in left.objects["uri"].to_pylist()] == ["2.tar", "4.tar", "9.tar"]
    assert left.objects.schema == after.objects.schema
    assert after.without(after.objects).objects.num_rows == 0
    assert len(plan_shards(after.without(after.objects))) == 0
    assert after.without(after.objects.slice(0, 0)).objects.equals(after.objects)
    assert after.without(after.to_table()).objects.num_rows == 0


def test_entries_of_lists_in_different_folders_are_different(tmp_path: Path) -> None:
    _touch(tmp_path, "one/a.jpg", "two/a.jpg")
    for folder in ("one", "two"):
        (tmp_path / folder / "l.txt").write_text("a.jpg\n")
    one, two = _list(tmp_path / "one/l.txt"), _list(tmp_path / "two/l.txt")
    assert two.without(one.objects).objects.num_rows == 1
    assert two.without(two.objects).objects.num_rows == 0


def test_a_format_that_is_written_chooses_among_kinds(tmp_path: Path) -> None:
    _touch(tmp_path, "cover.jpg", "a.tar", "b.tar")
    for format_, count in [("webdataset", 2), ("folder", 1)]:
        assert _list(tmp_path, format=format_).objects.num_rows == count


def _entries(inventory: Inventory) -> list[tuple[str, str]]:
    objects = inventory.objects
    return [(Path(u).name, m) for u, m in zip(objects["uri"].to_pylist(), objects["member"].to_pylist(), strict=True)]


def test_entries_of_a_list_are_known_by_list_name_and_uri(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("url,key\na.jpg,1\nb.jpg,2\n,3\n")
    before = _list(tmp_path / "l.csv", id_column="key")
    # a known URI under a new name, a known name with a new URI, and empty rows
    (tmp_path / "l.csv").write_text("url,key\na.jpg,1\na.jpg,7\nc.jpg,2\n,3\n,8\n,\n")
    after = _list(tmp_path / "l.csv", id_column="key")
    left = after.without(before.objects)
    assert _entries(left) == [("a.jpg", "7"), ("c.jpg", "2"), ("", "8"), ("", "#5")]
    assert left.objects["error_code"].to_pylist() == [None, None, "null_image", "null_image"]
    assert left.objects.schema == after.objects.schema
    (tmp_path / "m.csv").write_text("url,key\na.jpg,1\n")
    assert _entries(_list(tmp_path / "m.csv", id_column="key").without(before.objects)) == [("a.jpg", "1")]


def test_nulls_in_keys_are_equal() -> None:
    schema = pa.schema([("uri", "string"), ("size_bytes", "int64"), ("etag", "string")])
    objects = pa.table({"uri": ["a", "b"], "size_bytes": [None, 1], "etag": [None, None]}, schema=schema)
    inventory = Inventory("folder", "r", objects, pa.schema([]))
    assert inventory.without(objects).objects.num_rows == 0
    listed = {"list_uri": ["l", "l"], "member": ["#0", "#1"], "uri": [None, None], "size_bytes": [-1, -1]}
    entries = pa.table({**listed, "etag": ["", ""], "error_code": ["null_image"] * 2}, schema=pa.schema(
        [("list_uri", "string"), ("member", "string"), *schema, ("error_code", "string")]))  # fmt: skip
    inventory = Inventory("uri_list", "l", entries, pa.schema([]))
    assert inventory.without(entries.slice(0, 1)).objects["member"].to_pylist() == ["#1"]


def test_objects_and_entries_of_lists_know_nothing_of_each_other(tmp_path: Path) -> None:
    _touch(tmp_path, "a.tar")
    (tmp_path / "l.csv").write_text("url\na.jpg\n")
    shards, entries = _list(f"{tmp_path}/*.tar"), _list(tmp_path / "l.csv")
    assert shards.without(entries.objects).objects.equals(shards.objects)
    assert entries.without(shards.objects).objects.equals(entries.objects)


def test_a_hundred_thousand_shards_are_planned_in_seconds() -> None:
    count = 100_000
    objects = pa.table(
        {
            "uri": [f"s3://bucket/shards/{i:08d}.tar" for i in range(count)],
            "size_bytes": pa.array(range(count), pa.int64()),
            "etag": [f"{i:032x}" for i in range(count)],
        }
    )
    inventory = Inventory("webdataset", "s3://bucket/shards", objects, pa.schema([]))
    start = time.perf_counter()
    plan = plan_shards(inventory)
    ids = {shard.shard_id for shard in plan}
    assert len(ids) == len(plan) == count
    assert inventory.without(objects.slice(1)).objects.num_rows == 1
    assert len(inventory.digest) == 64
    left = inventory.without(objects.filter(pa.array([i % 3 == 0 for i in range(count)])))
    assert left.objects["size_bytes"].to_pylist() == [i for i in range(count) if i % 3]
    assert time.perf_counter() - start < 20


def test_of_several_inventories_the_first_that_holds_an_object_is_named(tmp_path: Path) -> None:
    _touch(tmp_path, "a.tar", "b.tar", "c.tar", "d.tar")
    whole = _list(tmp_path)
    objects = whole.objects
    entries = pa.table({"uri": ["x"], "size_bytes": [1], "etag": [""], "list_uri": ["l"], "member": ["m"]})
    assert whole.first_holder([entries, objects.slice(2, 1), objects.slice(0, 3)]).tolist() == [2, 2, 1, -1]
    assert whole.first_holder([]).tolist() == whole.first_holder([entries]).tolist() == [-1] * 4
    changed = objects.set_column(2, "etag", pa.array(["new"] * 4))
    assert not whole.held_by(changed).any()
    assert whole.shares_places_with(changed)
    assert not whole.shares_places_with(entries)
