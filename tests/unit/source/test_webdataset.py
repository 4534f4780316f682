import gzip
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from batchdet.source.inventory import list_inventory, plan_shards
from batchdet.source.reader import read_segments
from batchdet.spec import SourceSpec
from tests.unit.source.corpus import END, image, padded, raw_header, read_all, tar_bytes, tar_member, write_tar


@pytest.mark.parametrize("packed", [False, True])
def test_members_names_and_bytes(tmp_path: Path, packed: bool) -> None:
    names = ["./a.jpg", "sub/b.PNG", "ü.webp", "x" * 180 + ".jpeg", "sub/c.d.tiff"]
    write_tar(tmp_path / "s.tar", [(name, image(i)) for i, name in enumerate(names)], packed)
    got = read_all(tmp_path / "s.tar")
    assert got.members == names
    assert got.data == [image(i) for i in range(5)]
    uri = str(tmp_path / "s.tar")
    assert got.rows[1] == {
        "uri": f"{uri}#sub/b.PNG", "shard_uri": uri, "member": "sub/b.PNG", "position": 1, "size_bytes": 200,
        "error_code": None, "error_message": None, "json": None, "txt": None,
    }  # fmt: skip


def test_other_members_are_passed_over(tmp_path: Path) -> None:
    names = ["a.cls", "a.jpg", "._a.jpg", ".hidden.png", "README", "b.png"]
    write_tar(tmp_path / "s.tar", [(name, image(0)) for name in names])
    got = read_all(tmp_path / "s.tar", segment_rows=1)
    assert got.members == ["a.jpg", "b.png"]
    assert got.passed_over == {".cls": 1, "AppleDouble": 1, "hidden": 1, "without extension": 1}


def test_sidecars_before_and_behind(tmp_path: Path) -> None:
    members = [
        ("d/a.json", b'{"n": 1}'), ("d/a.jpg", b"A"), ("d/a.txt", "größe".encode()),
        ("d/b.jpg", b"B"), ("d/b.mask.png", b"M"), ("d/b.json", b"{}"),
        ("e/b.jpg", b"C"), ("e/c.txt", b"of another"),
    ]  # fmt: skip
    write_tar(tmp_path / "s.tar", members)
    got = read_all(tmp_path / "s.tar", segment_rows=1)
    assert [(r["member"], r["json"], r["txt"]) for r in got.rows] == [
        ("d/a.jpg", '{"n": 1}', "größe"),
        ("d/b.jpg", "{}", None),
        ("d/b.mask.png", "{}", None),
        ("e/b.jpg", None, None),
    ]


def test_columns_narrow_the_sidecars(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [("a.json", b"{}"), ("a.jpg", b"A"), ("a.txt", b"t")])
    got = read_all(tmp_path / "s.tar", columns=("txt",))
    assert got.inventory.carried.names == ["txt"]
    assert got.rows[0]["txt"] == "t"


def test_huge_sidecar_is_not_carried(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [("a.json", bytes(2 << 20)), ("a.jpg", b"A")])
    got = read_all(tmp_path / "s.tar")
    assert got.rows[0]["json"] is None
    assert got.passed_over == {".json above 1048576 bytes": 1}


def test_empty_archive_is_one_empty_segment(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [])
    got = read_all(tmp_path / "s.tar")
    assert [(s.segment_index, s.last, s.members.num_rows) for s in got.segments] == [(0, True, 0)]
    assert got.segments[0].members.schema.names[-2:] == ["json", "txt"]


@pytest.mark.acceptance("S2")
def test_duplicates_fail_and_keep_their_names_apart(tmp_path: Path) -> None:
    names = ["a.jpg", "a.jpg", "b.jpg", "a.jpg", "a.jpg#3"]
    write_tar(tmp_path / "s.tar", [(name, image(i)) for i, name in enumerate(names[:4])])
    got = read_all(tmp_path / "s.tar")
    assert got.members == ["a.jpg", "a.jpg#1", "b.jpg", "a.jpg#3"]
    assert got.codes == [None, "duplicate_member", None, "duplicate_member"]


UNSAFE = {
    "symlink": (tar_member("a.jpg", type_=tarfile.SYMTYPE, link="/etc/passwd"), "symbolic link"),
    "hardlink": (tar_member("a.jpg", type_=tarfile.LNKTYPE, link="ok.jpg"), "hard link"),
    "fifo": (tar_member("a.jpg", type_=tarfile.FIFOTYPE), "FIFO"),
    "device": (tar_member("a.jpg", type_=tarfile.CHRTYPE), "device"),
    "block device": (tar_member("a.jpg", type_=tarfile.BLKTYPE), "device"),
    "parent": (tar_member("../a.jpg", b"x"), "'..'"),
    "parent inside": (tar_member("a/../../b.jpg", b"x"), "'..'"),
    "backslash parent": (tar_member("a\\..\\b.jpg", b"x"), "'..'"),
    "absolute": (tar_member("/etc/a.jpg", b"x"), "absolute"),
    "drive": (tar_member("C:\\a.jpg", b"x"), "absolute"),
}


@pytest.mark.parametrize("kind", UNSAFE)
@pytest.mark.acceptance("S2")
def test_unsafe_members_fail_alone(tmp_path: Path, kind: str) -> None:
    member, text = UNSAFE[kind]
    write_tar(tmp_path / "s.tar", [("ok.jpg", b"1"), member, ("ok2.jpg", b"2")])
    before = sorted(os.listdir(tmp_path))
    got = read_all(tmp_path / "s.tar")
    assert got.codes == [None, "unsafe_member", None]
    assert text in got.rows[1]["error_message"]
    assert got.data == [b"1", None, b"2"]
    assert sorted(os.listdir(tmp_path)) == before


def _pax(records: dict[bytes, bytes]) -> bytes:
    body = b""
    for key, value in records.items():
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest)
        while len(b"%d" % length) + len(rest) != length:
            length = len(b"%d" % length) + len(rest)
        body += b"%d" % length + rest
    return raw_header(b"pax", len(body), b"x") + padded(body)


@pytest.mark.acceptance("S2")
def test_nul_and_bytes_that_are_no_utf8_in_names(tmp_path: Path) -> None:
    archive = (
        _pax({b"path": b"a\0b.jpg"}) + raw_header(b"x.jpg", 1) + padded(b"1")
        + raw_header(b"\xff\xfe.jpg", 1) + padded(b"2")
        + raw_header(b"ok.jpg", 1) + padded(b"3") + END
    )  # fmt: skip
    (tmp_path / "s.tar").write_bytes(archive)
    got = read_all(tmp_path / "s.tar")
    assert got.members == ["a\\x00b.jpg", "\\xff\\xfe.jpg", "ok.jpg"]
    assert got.codes == ["unsafe_member", "unsafe_member", None]


@pytest.mark.acceptance("S2")
def test_sparse_members_fail_and_neighbours_are_found(tmp_path: Path) -> None:
    old = bytearray(raw_header(b"old.jpg", 512, b"S"))
    old[257:265] = b"ustar  \0"
    old[386 + 96] = 1  # isextended
    old[483:495] = b"%011o\0" % (1 << 32)
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old)
    pax = _pax({b"GNU.sparse.major": b"1", b"GNU.sparse.name": b"pax.jpg", b"GNU.sparse.realsize": b"9" * 15})
    archive = bytes(old) + bytes(512) + bytes(512) + pax + raw_header(b"x", 3) + padded(b"123")
    (tmp_path / "s.tar").write_bytes(archive + raw_header(b"ok.jpg", 1) + padded(b"3") + END)
    got = read_all(tmp_path / "s.tar")
    assert got.members == ["old.jpg", "pax.jpg", "ok.jpg"]
    assert got.codes == ["unsafe_member", "unsafe_member", None]


def test_pax_size_and_global_header_count(tmp_path: Path) -> None:
    records = _pax({b"size": b"3", b"path": b"real.jpg"})
    globals_ = bytearray(_pax({b"comment": b"x"}))
    globals_[156:157] = b"g"
    globals_[148:156] = b" " * 8
    globals_[148:156] = b"%06o\0 " % sum(globals_[:512])
    archive = bytes(globals_) + records + raw_header(b"x.jpg", 0) + padded(b"abc") + raw_header(b"b.jpg", 1)
    (tmp_path / "s.tar").write_bytes(archive + padded(b"z") + END)
    got = read_all(tmp_path / "s.tar")
    assert got.by_member == {"real.jpg": b"abc", "b.jpg": b"z"}


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_in_every_dialect(tmp_path: Path, format_: int) -> None:
    name = "/".join(["d" * 40] * 3) + "/" + "n" * 60 + ".jpg"
    (tmp_path / "s.tar").write_bytes(tar_bytes([(name, b"1"), ("b.jpg", b"2")], format_))
    assert read_all(tmp_path / "s.tar").by_member == {name: b"1", "b.jpg": b"2"}


@pytest.mark.acceptance("S3")
def test_too_large_is_passed_over(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [("a.jpg", b"1"), ("big.jpg", bytes(5000)), ("b.jpg", b"2")])
    got = read_all(tmp_path / "s.tar", max_image_bytes=4999)
    assert got.codes == [None, "too_large", None]
    assert "source.max_image_bytes is 4999" in got.rows[1]["error_message"]
    assert got.rows[1]["size_bytes"] == 5000


@pytest.mark.parametrize("type_", [b"0", b"L", b"x", b"K", b"g"])
@pytest.mark.parametrize("size", [1 << 40, 1 << 62, -1024])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.acceptance("S3")
def test_declared_sizes_allocate_nothing(tmp_path: Path, type_: bytes, size: int, packed: bool) -> None:
    data = raw_header(b"ok.jpg", 1) + padded(b"1") + raw_header(b"huge.jpg", size, type_) + bytes(5 << 20)
    (tmp_path / "s.tar").write_bytes(gzip.compress(data, 1) if packed else data)
    tracemalloc.start()
    try:
        got = read_all(tmp_path / "s.tar")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20
    assert got.codes[0] is None
    assert got.codes[-1] in {"shard_truncated", "shard_corrupt"}


@pytest.mark.parametrize("packed", [False, True])
def test_archive_that_ends_in_a_member(tmp_path: Path, packed: bool) -> None:
    data = tar_bytes([(f"{i}.jpg", os.urandom(5000)) for i in range(4)])
    data = gzip.compress(data) if packed else data
    (tmp_path / "s.tar").write_bytes(data[: len(data) * 6 // 10])
    got = read_all(tmp_path / "s.tar")
    good = [row["member"] for row in got.rows if row["error_code"] is None]
    assert good == [f"{i}.jpg" for i in range(len(good))]
    assert good
    assert got.members[-1] == f"#{len(good)}"
    assert got.codes[-1] == "shard_truncated"
    assert got.segments[-1].last


def test_archive_without_its_end_marker_is_whole(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(raw_header(b"a.jpg", 600) + padded(bytes(600)))
    assert read_all(tmp_path / "s.tar").codes == [None]
    (tmp_path / "s.tar").write_bytes(raw_header(b"a.jpg", 600) + bytes(600))
    assert read_all(tmp_path / "s.tar").codes == [None]


@pytest.mark.parametrize("packed", [False, True])
def test_archive_with_garbage_in_the_middle(tmp_path: Path, packed: bool) -> None:
    data = bytearray(tar_bytes([(f"{i}.jpg", os.urandom(5000)) for i in range(4)], tarfile.USTAR_FORMAT))
    data[2 * 5632 : 2 * 5632 + 512] = os.urandom(512)
    (tmp_path / "s.tar").write_bytes(gzip.compress(bytes(data)) if packed else bytes(data))
    got = read_all(tmp_path / "s.tar")
    assert got.codes == [None, None, "shard_corrupt"]


def test_gzip_with_a_flipped_bit(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(tar_bytes([(f"{i}.jpg", os.urandom(50000)) for i in range(4)])))
    data[-5] ^= 1  # the checksum
    (tmp_path / "s.tar").write_bytes(bytes(data))
    got = read_all(tmp_path / "s.tar")
    assert got.codes == [None] * 4 + ["shard_corrupt"]
    assert "CRC" in got.rows[4]["error_message"]


@pytest.mark.parametrize("cut_bytes", [1, 4, 8, 9, 30])
def test_gzip_that_ends_behind_the_end_marker(tmp_path: Path, cut_bytes: int) -> None:
    data = gzip.compress(tar_bytes([("a.jpg", os.urandom(5000))]) + bytes(200_000))
    (tmp_path / "s.tar").write_bytes(data[:-cut_bytes])
    assert read_all(tmp_path / "s.tar").codes == [None, "shard_truncated"]


def test_gzip_with_something_behind_it(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(gzip.compress(tar_bytes([("a.jpg", b"1")])) + b"garbage")
    assert read_all(tmp_path / "s.tar").codes == [None, "shard_corrupt"]
    (tmp_path / "s.tar").write_bytes(gzip.compress(tar_bytes([("a.jpg", b"1")])) + bytes(700))
    assert read_all(tmp_path / "s.tar").codes == [None]


@pytest.mark.parametrize("packed", ["", "each", "all"])
def test_archives_one_behind_the_other_are_read_as_one(tmp_path: Path, packed: str) -> None:
    parts = [tar_bytes([(f"{i}.jpg", image(i)), (f"{i}.txt", b"t")]) for i in range(3)]
    assert all(len(part) == tarfile.RECORDSIZE for part in parts)
    data = b"".join(gzip.compress(part) if packed == "each" else part for part in parts)
    (tmp_path / "s.tar").write_bytes(gzip.compress(data) if packed == "all" else data)
    got = read_all(tmp_path / "s.tar")
    assert got.by_member == {f"{i}.jpg": image(i) for i in range(3)}
    assert [r["txt"] for r in got.rows] == ["t"] * 3


def test_one_block_of_zeros_is_no_end(tmp_path: Path) -> None:
    parts = [raw_header(f"{i}.jpg".encode(), 1) + padded(b"%d" % i) for i in range(2)]
    (tmp_path / "s.tar").write_bytes(parts[0] + bytes(512) + parts[1] + bytes(100))
    assert read_all(tmp_path / "s.tar").codes == [None, None, "shard_truncated"]
    (tmp_path / "s.tar").write_bytes(parts[0] + bytes(512) + parts[1] + bytes(512) + bytes(100))
    assert read_all(tmp_path / "s.tar").codes == [None, None]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("garbage", [b"x", b"garbage" * 400, bytes(100) + b"x", bytes(5000) + b"x" * 512])
def test_garbage_behind_the_end_is_one_failed_row(tmp_path: Path, garbage: bytes, packed: bool) -> None:
    data = tar_bytes([("a.jpg", b"1"), ("b.jpg", b"2")]) + garbage
    (tmp_path / "s.tar").write_bytes(gzip.compress(data) if packed else data)
    got = read_all(tmp_path / "s.tar")
    assert [(r["member"], r["error_code"]) for r in got.rows] == [
        ("a.jpg", None),
        ("b.jpg", None),
        ("#2", "shard_corrupt"),
    ]
    assert "behind the end" in got.rows[2]["error_message"]


def test_an_extended_header_before_zeros_is_cut(tmp_path: Path) -> None:
    first = tar_bytes([("a.jpg", b"1")])
    (tmp_path / "s.tar").write_bytes(first + _pax({b"path": b"b.jpg"}) + bytes(512) + first)
    assert read_all(tmp_path / "s.tar").codes == [None, "shard_truncated"]


def test_zeros_behind_the_end_fill_no_memory(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar_bytes([("a.jpg", b"1")]) + bytes(32 << 20) + tar_bytes([("b.jpg", b"2")]))
    tracemalloc.start()
    try:
        assert read_all(tmp_path / "s.tar").members == ["a.jpg", "b.jpg"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_gzip_is_found_by_its_bytes_not_its_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar.gz", [("a.jpg", b"A")], packed=False)
    write_tar(tmp_path / "b.tar", [("b.jpg", b"B")], packed=True)
    assert read_all(tmp_path).by_member == {"a.jpg": b"A", "b.jpg": b"B"}


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"PK\x03\x04" + bytes(2000), b"\x1f\x8bgarbage" * 9]
)
def test_not_an_archive_is_one_failed_row(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(content)
    write_tar(tmp_path / "t.tar", [("a.jpg", b"A")])
    got = read_all(tmp_path)
    assert [(r["member"], r["error_code"]) for r in got.rows] == [("#0", "shard_corrupt"), ("a.jpg", None)]


@pytest.mark.acceptance("S3")
def test_gzip_bomb_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchdet.source.stream._BOMB_BYTES", 1 << 20)
    write_tar(tmp_path / "s.tar", [("a.jpg", b"A"), ("zeros.bin", bytes(50 << 20)), ("b.jpg", b"B")], packed=True)
    got = read_all(tmp_path / "s.tar")
    assert got.codes == [None, "shard_corrupt"]
    assert "expands more than" in got.rows[1]["error_message"]


def test_shard_that_vanished_or_changed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("a.jpg", b"A")])
    source = SourceSpec(uri=str(tmp_path))
    inventory = list_inventory(source)
    (shard,) = plan_shards(inventory)

    def row() -> tuple[str, str]:
        (segment,) = read_segments(shard, source, inventory.carried, 10, 1000)
        assert segment.last
        (found,) = segment.members.to_pylist()
        return found["member"], found["error_code"]

    os.utime(path, (1, 1))
    assert row() == ("", "shard_unreadable")
    write_tar(path, [("a.jpg", bytes(50000))])
    assert row() == ("", "shard_unreadable")
    path.unlink()
    assert row() == ("", "shard_unreadable")
    assert list(read_segments(shard, source, inventory.carried, 10, 1000, frozenset({0}))) == []


def test_a_sample_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [(f"key.{i}.jpg", bytes(1 << 20)) for i in range(80)])
    source = SourceSpec(uri=str(tmp_path))
    inventory = list_inventory(source)
    tracemalloc.start()
    try:
        count = sum(
            s.members.num_rows
            for shard in plan_shards(inventory)
            for s in read_segments(shard, source, inventory.carried, 4, 1 << 30)
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 80
    assert peak < 76 << 20
