import os
from pathlib import Path

import pytest

from batchdet.source.inventory import list_inventory, plan_shards
from batchdet.source.reader import read_segments
from batchdet.spec import SourceSpec
from tests.unit.source.corpus import image, read_all, write_tar


def _write(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image(i, 100 + i))


def test_images_by_extension_in_any_case_and_depth(tmp_path: Path) -> None:
    good = ["a.JPG", "b/c.png", "b/d.Tif", "_DSC0001.JPG", "_rejected/e.jpg", "ü [1].webp", "z::http:x.gif"]
    _write(tmp_path, *good, "_SUCCESS", "x.json", ".hidden.jpg", ".git/x.jpg", "_tmp/y", "labels.txt", "no_extension")
    got = read_all(tmp_path)
    assert sorted(got.members) == sorted(good)
    assert got.by_member == {name: image(i, 100 + i) for i, name in enumerate(good)}
    assert got.rows[0]["shard_uri"] == str(tmp_path)
    assert got.rows[0]["uri"] == f"{tmp_path}/{got.members[0]}"
    assert got.inventory.carried.names == []


def test_slices_do_not_change_names(tmp_path: Path) -> None:
    _write(tmp_path, *[f"{i:03d}.jpg" for i in range(25)])
    whole, sliced = read_all(tmp_path), read_all(tmp_path, slice_rows=7, segment_rows=3)
    assert whole.rows == sliced.rows
    assert whole.data == sliced.data
    assert [r["position"] for r in sliced.rows] == list(range(25))
    assert len({s.shard_id for s in sliced.segments}) == 4


@pytest.mark.parametrize("glob", ["*/*.jpg", "**/*.jpg", "a*/*.jpg"])
def test_globs_name_members_below_their_root(tmp_path: Path, glob: str) -> None:
    _write(tmp_path, "a/1.jpg", "a/2.png")
    got = read_all(f"{tmp_path}/{glob}")
    assert got.members == ["a/1.jpg"]
    assert got.inventory.root == str(tmp_path)


def test_glob_that_names_an_extension_counts_whatever_it_matches(tmp_path: Path) -> None:
    _write(tmp_path, "a.dat", "b.dat", "c.jpg")
    assert read_all(f"{tmp_path}/*.dat", format="folder").members == ["a.dat", "b.dat"]
    assert read_all(f"{tmp_path}/*").members == ["c.jpg"]


def test_one_image(tmp_path: Path) -> None:
    _write(tmp_path, "sub/a[1].jpg", "sub/b.jpg")
    got = read_all(tmp_path / "sub/a[1].jpg")
    assert got.members == ["a[1].jpg"]
    assert got.inventory.root == f"{tmp_path}/sub"


def test_image_that_changes_or_vanishes_between_listing_and_reading(tmp_path: Path) -> None:
    _write(tmp_path, *[f"{i}.jpg" for i in range(6)])
    source = SourceSpec(uri=str(tmp_path))
    inventory = list_inventory(source)
    (tmp_path / "1.jpg").write_bytes(b"shorter")
    (tmp_path / "2.jpg").write_bytes(bytes(100000))
    (tmp_path / "3.jpg").unlink()
    os.utime(tmp_path / "4.jpg", (1, 1))
    (shard,) = plan_shards(inventory)
    (segment,) = read_segments(shard, source, inventory.carried, 100, 1 << 30)
    codes = segment.members["error_code"].to_pylist()
    assert codes == [None, "size_mismatch", "size_mismatch", "unreadable", "unreadable", None]
    assert [d is None for d in segment.data] == [False, True, True, True, True, False]


def test_photographs_of_kinds_that_are_not_read_count(tmp_path: Path) -> None:
    _write(tmp_path / "in", "a.jpg", "b.HEIC", "c.avif", "d.psd")
    assert read_all(tmp_path / "in").members == ["a.jpg", "b.HEIC", "c.avif"]
    write_tar(tmp_path / "a.tar", [(name, image(1)) for name in ("a.jpg", "a.txt", "b.heif", "c.jxl", "d.jp2")])
    assert read_all(tmp_path / "a.tar").members == ["a.jpg", "b.heif", "c.jxl", "d.jp2"]


def test_link_to_an_image_is_one_and_a_link_to_nothing_a_failed_row(tmp_path: Path) -> None:
    _write(tmp_path, "in/a.jpg", "elsewhere/b.jpg", "elsewhere/sub/c.jpg")
    for name, target in [("b.jpg", "elsewhere/b.jpg"), ("sub", "elsewhere/sub"), ("d.jpg", "nowhere.jpg")]:
        (tmp_path / "in" / name).symlink_to(tmp_path / target)
    got = read_all(tmp_path / "in")
    assert dict(zip(got.members, got.codes, strict=True)) == {
        "a.jpg": None, "b.jpg": None, "d.jpg": "unreadable", "sub/c.jpg": None,
    }  # fmt: skip
    assert got.by_member["b.jpg"] == image(1, 101)
    assert got.by_member["sub/c.jpg"] == image(2, 102)


def test_unreadable_image(tmp_path: Path) -> None:
    _write(tmp_path, "a.jpg", "b.jpg")
    source = SourceSpec(uri=str(tmp_path))
    inventory = list_inventory(source)
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "a.jpg").mkdir()
    (shard,) = plan_shards(inventory)
    (segment,) = read_segments(shard, source, inventory.carried, 100, 1 << 30)
    assert segment.members["error_code"].to_pylist() == ["unreadable", None]


def test_empty_and_too_large_images(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(bytes(1001))
    got = read_all(tmp_path, max_image_bytes=1000)
    assert got.codes == [None, "too_large"]
    assert got.data[0] == b""


def test_segments_that_are_done_are_not_read(tmp_path: Path) -> None:
    _write(tmp_path, *[f"{i}.jpg" for i in range(6)])
    source = SourceSpec(uri=str(tmp_path))
    inventory = list_inventory(source)
    (shard,) = plan_shards(inventory)
    for i in range(4):
        (tmp_path / f"{i}.jpg").unlink()
    (segment,) = read_segments(shard, source, inventory.carried, 2, 1 << 30, frozenset({0, 1}))
    assert (segment.segment_index, segment.last) == (2, True)
    assert segment.members["error_code"].to_pylist() == [None, None]


def test_name_that_is_no_utf8_is_one_failed_row(tmp_path: Path) -> None:
    _write(tmp_path, "a.jpg")
    try:
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg"))).write_bytes(b"x")
    except OSError:
        pytest.skip("the file system refuses such names")
    assert sorted(c or "" for c in read_all(tmp_path).codes) == ["", "unreadable"]
