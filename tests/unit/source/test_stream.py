import gzip
import io
import os
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from batchdet import storage
from batchdet.source import stream as streams
from batchdet.source.range_file import RangeFile, check_unchanged
from batchdet.source.stream import (
    BlockStream,
    GzipStream,
    LocalStream,
    StreamCorrupt,
    StreamTruncated,
    open_stream,
)
from batchdet.storage import SizeMismatch, StorageError, StoredObject, TransientError
from tests.clock import stop_the_clock

DATA = os.urandom(10_000)


@pytest.fixture(autouse=True)
def _fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_the_clock(monkeypatch)


@pytest.fixture
def stored() -> StoredObject:
    fs = fsspec.filesystem("memory")
    fs.pipe("/stream-test/x", DATA)
    return StoredObject("memory://stream-test/x", len(DATA), "")


@pytest.mark.parametrize("block", [1, 7, 4096, 10_000, 20_000])
def test_blocks_give_the_bytes_in_order(stored: StoredObject, block: int) -> None:
    stream = BlockStream(RangeFile(stored), max(block, 64))
    got = [stream.read(100), stream.read(0), stream.read(5000)]
    assert stream.skip(1000) == 1000
    assert not stream.is_complete()
    got += [stream.read(100_000), stream.read(1)]
    assert got == [DATA[:100], b"", DATA[100:5100], DATA[6100:], b""]
    assert stream.skip(5) == 0
    assert stream.is_complete()
    stream.close()


def _break(monkeypatch: pytest.MonkeyPatch, failures: int, short: bool) -> list[tuple[int, int]]:
    """Let the first reads fail, or answer with half of what was asked for."""
    real = MemoryFileSystem.cat_file
    asked: list[tuple[int, int]] = []

    def cat_file(self: MemoryFileSystem, path: str, start: int, end: int) -> bytes:
        asked.append((start, end))
        data: bytes = real(self, path, start=start, end=end)
        if len(asked) <= failures:
            if short:
                return data[: len(data) // 2]
            raise TransientError("503")
        return data

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return asked


@pytest.mark.parametrize("short", [False, True])
def test_passing_failures_are_tried_again(stored: StoredObject, monkeypatch: pytest.MonkeyPatch, short: bool) -> None:
    asked = _break(monkeypatch, 3, short)
    assert RangeFile(stored).read() == DATA
    assert len(asked) == 4


def test_body_that_stays_short_ends_the_stream(stored: StoredObject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _break(monkeypatch, 100, True)
    stream = BlockStream(RangeFile(stored), 4096)
    assert stream.read(20_000) == DATA[:2048]
    assert not stream.is_complete()
    assert all(start == 0 for start, _ in asked[:4])
    stream.close()


def test_store_that_stays_down_is_an_error(stored: StoredObject, monkeypatch: pytest.MonkeyPatch) -> None:
    _break(monkeypatch, 100, False)
    with pytest.raises(StorageError, match="503"):
        RangeFile(stored).read(10)


def test_range_file_seeks(stored: StoredObject) -> None:
    with RangeFile(stored) as file:
        assert file.seekable()
        assert file.readable()
        assert file.seek(-10, io.SEEK_END) == len(DATA) - 10
        assert file.read() == DATA[-10:]
        file.seek(5)
        buffer = bytearray(20)
        assert file.readinto(buffer) == 20
        assert bytes(buffer) == DATA[5:25]
        assert file.seek(5, io.SEEK_CUR) == 30
        assert file.tell() == 30
        assert file.read(0) == b""


def test_local_stream(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    listed = storage.stat(str(tmp_path / "x"))
    stream = LocalStream(storage.LocalFile(listed), len(DATA))
    assert stream.read(10) == DATA[:10]
    assert stream.skip(90) == 90
    assert stream.read(1 << 60) == DATA[100:]
    assert stream.is_complete()
    assert stream.skip(1) == 0
    stream.close()
    short = LocalStream(storage.LocalFile(listed), len(DATA) + 1)
    short.skip(1 << 60)
    assert not short.is_complete()
    short.close()


def test_gzip_of_several_members_and_errors(tmp_path: Path) -> None:
    packed = gzip.compress(DATA[:5000]) + gzip.compress(DATA[5000:])

    def unpack(data: bytes) -> bytes:
        (tmp_path / "x").write_bytes(data)
        stream = open_stream(storage.stat(str(tmp_path / "x")))
        assert isinstance(stream, GzipStream)
        try:
            return stream.read(100) + DATA[100:200] * (stream.skip(100) // 100) + stream.read(1 << 20)
        finally:
            stream.close()

    assert unpack(packed) == DATA
    with pytest.raises(StreamTruncated):
        unpack(packed[:-20])
    with pytest.raises(StreamCorrupt):
        unpack(packed[:3000] + b"\xff" * 3000 + packed[6000:])


def test_gzip_that_expands_beyond_all_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_BOMB_BYTES", 1 << 20)
    (tmp_path / "x").write_bytes(gzip.compress(bytes(8 << 20)))
    stream = open_stream(storage.stat(str(tmp_path / "x")))
    with pytest.raises(StreamCorrupt, match="expands more than 100 times"):
        stream.skip(8 << 20)
    stream.close()


def test_object_is_compared_with_its_listing(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    listed = storage.stat(str(tmp_path / "x"))
    assert check_unchanged(listed) == listed
    assert check_unchanged(StoredObject(listed.uri, -1, "")).size_bytes == 3
    with pytest.raises(SizeMismatch, match="3 bytes now, 4 were listed"):
        check_unchanged(StoredObject(listed.uri, 4, ""))
    with pytest.raises(StorageError, match="changed since it was listed"):
        check_unchanged(StoredObject(listed.uri, 3, "mtime:1.0"))
    with pytest.raises(storage.NotFound):
        check_unchanged(StoredObject(f"{tmp_path}/y", 3, ""))
    with pytest.raises(StorageError, match="cannot read"):
        check_unchanged(StoredObject(f"{tmp_path}/\0", 3, ""))
