from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchdet.errors import SourceError
from batchdet.source.inventory import list_inventory, plan_shards
from batchdet.source.reader import read_segments
from batchdet.spec import SourceSpec
from tests.unit.source.corpus import image, read_all

IMAGES = [image(i, 1000) for i in range(20)]


def _write(path: Path, columns: dict[str, Any], row_group_size: int = 7) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


@pytest.mark.parametrize("type_", [pa.binary(), pa.large_binary()])
def test_binary_column(tmp_path: Path, type_: pa.DataType) -> None:
    path = _write(tmp_path / "a.parquet", {"id": range(20), "jpg": pa.array(IMAGES, type_), "label": ["x"] * 20})
    got = read_all(tmp_path, segment_rows=3)
    assert got.data == IMAGES
    assert got.members == [str(i) for i in range(20)]
    assert [r["position"] for r in got.rows] == list(range(20))
    assert got.rows[4]["uri"] == f"{path}#4"
    assert got.rows[4]["shard_uri"] == str(path)
    assert got.rows[4]["size_bytes"] == 1000
    assert (got.rows[4]["id"], got.rows[4]["source_label"]) == (4, "x")


def test_hugging_face_struct(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img/linked.jpg").write_bytes(b"LINKED")
    values = [
        {"bytes": IMAGES[0], "path": "a.jpg"}, {"bytes": None, "path": "img/linked.jpg"},
        {"bytes": None, "path": "/etc/passwd"}, {"bytes": None, "path": None}, None,
        {"bytes": b"", "path": ""}, {"bytes": None, "path": "http://127.0.0.1:1/x.jpg"},
        {"bytes": None, "path": "img/missing.jpg"},
    ]  # fmt: skip
    _write(tmp_path / "a.parquet", {"image": values, "n": range(8)}, 3)
    got = read_all(tmp_path / "a.parquet")
    assert got.data == [IMAGES[0], b"LINKED", None, None, None, b"", None, None]
    want = [None, None, "null_image", "null_image", "null_image", None, "null_image", "unreadable"]
    assert got.codes == want
    assert [r["image_path"] for r in got.rows][:3] == ["a.jpg", "img/linked.jpg", "/etc/passwd"]
    assert [r["n"] for r in got.rows] == list(range(8))
    assert got.rows[1]["size_bytes"] == 6


def test_image_path_is_renamed_and_narrowed(tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", {"image": [{"bytes": b"1", "path": "p"}], "image_path": ["mine"], "x": [1]})
    assert read_all(tmp_path).inventory.carried.names == ["image_path", "x", "source_image_path"]
    assert read_all(tmp_path, columns=("x",)).inventory.carried.names == ["x"]
    _write(tmp_path / "a.parquet", {"image": [{"bytes": b"1", "path": "p"}], "x": [1]})
    got = read_all(tmp_path, columns=("image_path",))
    assert got.inventory.carried.names == ["image_path"]
    assert got.rows[0]["image_path"] == "p"


def test_id_column_names_images_and_finds_duplicates(tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", {"image": IMAGES[:4], "key": ["a", "b", "a", None]})
    got = read_all(tmp_path, id_column="key")
    assert got.members == ["a", "b", "a#2", "#3"]
    assert got.codes == [None, None, "duplicate_member", None]
    with pytest.raises(SourceError, match=r"source\.id_column: .* has no column 'kye'; did you mean 'key'"):
        read_all(tmp_path, id_column="kye")


def test_null_and_too_large_images(tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", {"image": pa.array([b"1", None, bytes(500), b"2"], pa.binary())})
    got = read_all(tmp_path, max_image_bytes=499)
    assert got.codes == [None, "null_image", "too_large", None]


def test_types_of_carried_columns_survive(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "image": pa.array([b"1", b"2"], pa.binary()),
        "when": pa.array([1, 2], pa.timestamp("us", "UTC")),
        "tags": pa.array([["a"], None], pa.list_(pa.string())),
        "kind": pa.array(["x", "y"]).dictionary_encode(),
        "box": pa.array([{"x": 1.5}, {"x": None}]),
        "nothing": pa.nulls(2),
        "score": pa.array([0.5, 1.5]),
    }
    _write(tmp_path / "a.parquet", columns)
    got = read_all(tmp_path, segment_rows=1)
    types = {f.name: f.type for f in got.segments[0].members.schema}
    assert types["when"] == pa.timestamp("us", "UTC")
    assert types["tags"].value_type == pa.string()
    assert types["kind"] == pa.string()
    assert types["nothing"] == pa.string()
    assert [r["kind"] for r in got.rows] == ["x", "y"]
    assert [r["source_score"] for r in got.rows] == [0.5, 1.5]
    assert got.inventory.carried.names == ["when", "tags", "kind", "box", "nothing", "source_score"]


def test_files_whose_columns_differ(tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", {"image": [b"1"], "n": pa.array([1], pa.int64()), "s": ["x"]})
    _write(tmp_path / "b.parquet", {"s": ["y"], "image": [b"2"]})
    _write(tmp_path / "c.parquet", {"image": [b"3"], "n": pa.array([7], pa.int8()), "more": [1]})
    _write(tmp_path / "f.parquet", {"picture": [1]})
    got = read_all(tmp_path)
    assert [r["n"] for r in got.rows[:3]] == [1, None, 7]
    assert [r["s"] for r in got.rows[:3]] == ["x", "y", None]
    assert [r["more"] for r in got.rows[:3]] == [None, None, 1]
    assert got.codes == [None, None, None, "shard_corrupt"]


@pytest.mark.parametrize(
    ("first", "second", "want"),
    [
        (pa.array([1], pa.int32()), pa.array([2**40]), pa.int64()),
        (pa.nulls(1), pa.array(["x"]), pa.string()),
        (pa.array(["x"]), pa.nulls(1), pa.string()),
        (pa.array([1]), pa.array([0.5]), pa.float64()),
        (pa.array([1], pa.uint64()), pa.array([-1]), pa.decimal128(20, 0)),
        (pa.array(["x"], pa.string_view()), pa.array(["y"], pa.large_string()), pa.large_string()),
        (pa.array([{"a": 1}]), pa.array([{"b": "x"}]), pa.struct([("a", pa.int64()), ("b", pa.string())])),
        (pa.array([1]), pa.array(["x"]), None),
        (pa.array([1]), pa.array([[1]]), None),
        (pa.array([2**60 + 1]), pa.array([0.5]), None),
        (pa.array([True]), pa.array([1]), None),
    ],
)
def test_types_of_files_are_unified_or_both_files_are_named(
    tmp_path: Path, first: pa.Array, second: pa.Array, want: pa.DataType | None
) -> None:
    for name, column in (("a", first), ("b", second)):
        _write(tmp_path / f"{name}.parquet", {"image": [b"1"], "x": column})
    if want is None:
        with pytest.raises(SourceError, match=r"'x'.*b\.parquet.*a\.parquet") as caught:
            list_inventory(SourceSpec(uri=str(tmp_path)))
        assert (caught.value.code, caught.value.key) == ("source.types_differ", "x")
        return
    got = read_all(tmp_path)
    assert got.codes == [None, None]
    assert got.inventory.carried.field("x").type == want
    values = [value for column in (first, second) for value in column.to_pylist()]
    found = [row["x"] for row in got.rows]
    assert [v if not isinstance(v, dict) else {k: w for k, w in v.items() if w is not None} for v in found] == values


@pytest.mark.parametrize(
    ("columns", "want"),
    [
        ({"a": [b"1"]}, "a"),
        ({"thumb": [b"1"], "image": [b"1"]}, "image"),
        ({"url": ["x"], "JPG": [b"1"]}, "JPG"),
        ({"x": [{"bytes": b"1", "path": "p"}], "caption": ["t"]}, "x"),
        ({"x": [b"1"], "y": [b"1"]}, r"2 columns of .* could hold the images \(x, y\); name one"),
        ({"md5": [b"1"], "url": ["x"]}, r"\(md5, url\)"),
        ({"n": [1], "caption": ["t"]}, r"no column of .* \(it has n, caption\)"),
    ],
)
def test_image_column_is_found_or_asked_for(tmp_path: Path, columns: dict[str, Any], want: str) -> None:
    _write(tmp_path / "a.parquet", columns)
    if want in columns:
        assert read_all(tmp_path).codes == [None]
    else:
        with pytest.raises(SourceError, match=f"source.image_column: .*{want}"):
            read_all(tmp_path)


def test_columns_that_do_not_exist_or_do_not_fit(tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", {"image": [b"1"], "caption": ["t"], "n": [1]})
    with pytest.raises(SourceError, match=r"source\.columns: .*no column 'captoin'; did you mean 'caption'\?"):
        read_all(tmp_path, columns=("captoin",))
    with pytest.raises(SourceError, match=r"source\.columns: 'image' is the image itself"):
        read_all(tmp_path, columns=("image",))
    with pytest.raises(SourceError, match=r"source\.image_column: .*did you mean 'image'\?"):
        read_all(tmp_path, image_column="imgae")
    with pytest.raises(SourceError, match=r"column 'n' of .* is int64; it should be binary"):
        read_all(tmp_path, image_column="n")


def test_repeated_column_names_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([[b"1"], [1], [2]], names=["image", "n", "n"]), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="2 columns named 'n'"):
        read_all(tmp_path)


def test_one_corrupt_file_among_others(tmp_path: Path) -> None:
    good = _write(tmp_path / "b.parquet", {"image": IMAGES})
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is not it PAR1")
    (tmp_path / "c.parquet").write_bytes(good.read_bytes()[:-100])
    (tmp_path / "d.parquet").write_bytes(b"")
    got = read_all(tmp_path)
    assert got.codes == ["shard_corrupt", *[None] * 20, "shard_corrupt", "shard_corrupt"]
    assert got.members[0] == ""
    good.unlink()
    with pytest.raises(SourceError, match=r"no Parquet file can be read; .*a\.parquet"):
        read_all(tmp_path)


def test_corrupt_row_group_fails_its_own_rows(tmp_path: Path) -> None:
    images = [np.random.default_rng(i).bytes(2000) for i in range(21)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": images}), path, row_group_size=7, compression="zstd", use_dictionary=False)
    group = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = group.data_page_offset
    data[start : start + 200] = b"\xff" * 200
    path.write_bytes(bytes(data))
    got = read_all(path, segment_rows=5)
    assert got.codes == [None] * 7 + ["shard_corrupt"] * 7 + [None] * 7
    assert got.members == [str(i) for i in range(21)]
    assert got.data[14:] == images[14:]


def test_no_rows(tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", {"image": pa.array([], pa.binary()), "n": pa.array([], pa.int32())})
    got = read_all(tmp_path)
    assert [(s.last, s.members.num_rows) for s in got.segments] == [(True, 0)]


def test_no_more_than_footers_is_read_to_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(10):
        _write(tmp_path / f"{i}.parquet", {"image": [b"1"]})
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    monkeypatch.setattr(pq.ParquetFile, "read", None)
    assert list_inventory(SourceSpec(uri=str(tmp_path))).objects.num_rows == 10


def test_done_segments_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "a.parquet", {"image": IMAGES}, 5)
    source = SourceSpec(uri=str(tmp_path))
    inventory = list_inventory(source)
    (shard,) = plan_shards(inventory)
    groups: list[int] = []
    real = pq.ParquetFile.iter_batches

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        groups.extend(kwargs["row_groups"])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    segments = list(read_segments(shard, source, inventory.carried, 5, 1 << 30, frozenset({0, 1, 3})))
    assert [(s.segment_index, s.last) for s in segments] == [(2, False)]
    assert groups == [2]
    assert [bytes(d) for d in segments[0].data] == IMAGES[10:15]


def test_bytes_limit_uses_the_mean_of_a_row_group(tmp_path: Path) -> None:
    images = [np.random.default_rng(i).bytes(10_000) for i in range(20)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", compression="none", use_dictionary=False)
    got = read_all(tmp_path, segment_bytes=51_000)
    assert [s.members.num_rows for s in got.segments] == [5, 5, 5, 5]
    assert got.data == images


@pytest.mark.parametrize("segment_rows", [1, 100, 256, 600])
def test_row_groups_of_several_batches(tmp_path: Path, segment_rows: int) -> None:
    images = [image(i, 8) for i in range(1000)]
    _write(tmp_path / "a.parquet", {"image": images, "n": range(1000)}, 600)
    got = read_all(tmp_path, segment_rows=segment_rows)
    assert got.data == images
    assert [r["n"] for r in got.rows] == list(range(1000))
