"""Local files that fail for a while, or are overwritten while they are read."""

import errno
import io
import itertools
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchdet import storage
from batchdet.records.schema import SHARD_CODES
from batchdet.records.segment import Segment
from batchdet.source.inventory import list_inventory
from batchdet.source.reader import read_segments
from batchdet.source.shards import Shard, plan_shards
from batchdet.spec import SourceSpec
from batchdet.storage import LocalFile, StorageError, TransientError
from batchdet.storage.failure import FULL, LASTING, may_pass
from tests.clock import stop_the_clock

ROWS = 12
_PASSING = sorted(set(errno.errorcode) - LASTING)


def image(mark: bytes, row: int) -> bytes:
    return b"\xff\xd8" + mark + bytes([row]) * 20_000


def write_tar(path: Path, mark: bytes) -> None:
    """Write a tar in place: the file keeps its inode."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for row in range(ROWS):
            info = tarfile.TarInfo(f"{row:03d}.jpg")
            info.size = len(image(mark, row))
            tar.addfile(info, io.BytesIO(image(mark, row)))
    path.write_bytes(sink.getvalue())


def write_parquet(path: Path, mark: bytes) -> None:
    sink = io.BytesIO()
    table = pa.table({"image": pa.array([image(mark, row) for row in range(ROWS)], pa.binary())})
    pq.write_table(table, sink, row_group_size=2, compression="none", use_dictionary=False)
    path.write_bytes(sink.getvalue())


FORMATS: dict[str, Callable[[Path, bytes], None]] = {"tar": write_tar, "parquet": write_parquet}


def shard_of(path: Path) -> tuple[Shard, SourceSpec, pa.Schema]:
    source = SourceSpec(uri=str(path))
    listed = list_inventory(source)
    return plan_shards(listed)[0], source, listed.carried


def rows_of(segment: Segment) -> list[tuple[bytes | None, str | None]]:
    """Say of each row by which writer its image is, and its error code."""
    codes = segment.members["error_code"].to_pylist()
    return [(bytes(d)[2:3] if d is not None else None, code) for d, code in zip(segment.data, codes, strict=True)]


@pytest.mark.acceptance("R42")
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("keeps_times", [False, True])
def test_a_shard_that_is_overwritten_while_it_is_read(tmp_path: Path, kind: str, at: int, keeps_times: bool) -> None:
    path = tmp_path / f"x.{kind}"
    FORMATS[kind](path, b"A")
    shard, source, carried = shard_of(path)
    times = path.stat()
    found: list[Segment] = []
    for segment in read_segments(shard, source, carried, 2, 1 << 30):
        found.append(segment)
        if segment.segment_index == at - 1:
            FORMATS[kind](path, b"B")
            if keeps_times:
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    rows = [row for segment in found for row in rows_of(segment)]
    assert (b"B", None) not in rows, "new rows count as those of the listing"
    if at == 0:
        assert rows == [(b"A", None)] * ROWS
        return
    *good, last = rows
    assert good == [(b"A", None)] * len(good)
    assert 2 * at <= len(good) <= 2 * at + 2
    assert last == (None, "shard_unreadable")
    assert last[1] in SHARD_CODES
    assert [segment.last for segment in found] == [False] * (len(found) - 1) + [True]
    positions = [position for segment in found for position in segment.members["position"].to_pylist()]
    assert positions == list(range(len(rows)))


@pytest.mark.acceptance("R42")
@pytest.mark.parametrize("kind", FORMATS)
def test_each_reader_of_a_shard_looks_for_itself(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    FORMATS[kind](path, b"A")
    shard, source, carried = shard_of(path)
    first = list(itertools.islice(read_segments(shard, source, carried, 2, 1 << 30), 2))
    FORMATS[kind](path, b"B")
    later = list(read_segments(shard, source, carried, 2, 1 << 30, frozenset({1, 2, 3, 4, 5})))
    assert [rows_of(segment) for segment in first] == [[(b"A", None)] * 2] * 2
    assert [rows_of(segment) for segment in later] == [[(None, "shard_unreadable")]]


@pytest.mark.parametrize("kind", FORMATS)
def test_times_that_change_without_the_content_change_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    FORMATS[kind](path, b"A")
    shard, source, carried = shard_of(path)
    rows = []
    for n, segment in enumerate(read_segments(shard, source, carried, 2, 1 << 30)):
        rows += rows_of(segment)
        path.chmod(0o600 + n)
        os.link(path, tmp_path / f"link-{n}")
    assert rows == [(b"A", None)] * ROWS


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_takes_the_name_changes_nothing_for_who_reads_the_old_one(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    FORMATS[kind](path, b"A")
    shard, source, carried = shard_of(path)
    rows = []
    for segment in read_segments(shard, source, carried, 2, 1 << 30):
        rows += rows_of(segment)
        if segment.segment_index == 1:
            FORMATS[kind](tmp_path / "new", b"B")
            (tmp_path / "new").replace(path)
    assert rows == [(b"A", None)] * ROWS


@pytest.mark.acceptance("R42")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_no_read_that_passes_the_check_holds_what_was_written_later(tmp_path: Path, seed: int) -> None:
    """Random reads, writes of the same size, times set back, and checks."""
    choice = random.Random(seed)
    path = tmp_path / f"{seed}"
    path.write_bytes(b"A" * 1000)
    listed = storage.stat(str(path))
    times = path.stat()
    read: list[bytes] = []
    with LocalFile(listed) as file:
        for _ in range(8):
            step = choice.choice(["read", "read", "write", "times", "rights", "check"])
            if step == "read":
                start = choice.randrange(1000)
                read.append(file.fetch(start, start + choice.randrange(1, 200)))
            elif step == "write":
                with path.open("r+b") as there:
                    there.seek(choice.randrange(1000))
                    there.write(b"B")
            elif step == "times":
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            elif step == "rights":
                path.chmod(choice.choice([0o600, 0o644]))
            else:
                try:
                    file.check()
                except StorageError:
                    return
                assert not any(b"B" in data for data in read)


def test_a_write_in_the_tick_of_the_listing_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("batchdet.storage.local_file.time.sleep", waited.append)
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    now = max(path.stat().st_mtime_ns, path.stat().st_ctime_ns)
    for age_ns, wanted_s in ((0, 0.02), (5_000_000, 0.015), (30_000_000, 0), (10**12, 0)):
        waited.clear()
        monkeypatch.setattr("batchdet.storage.local_file.time.time_ns", lambda age_ns=age_ns: now + age_ns)
        LocalFile(storage.stat(str(path))).close()
        assert waited == ([pytest.approx(wanted_s)] if wanted_s else [])


def test_a_local_list_that_is_overwritten_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "list.csv"
    path.write_text("uri\na.jpg\n")
    real = LocalFile.fetch

    def overwritten(self: LocalFile, start: int, end: int) -> bytes:
        data = real(self, start, end)
        path.write_text("uri\nb.jpg\n")
        return data

    monkeypatch.setattr(LocalFile, "fetch", overwritten)
    with pytest.raises(StorageError):
        storage.read_object(storage.stat(str(path)))


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_what_lasts_and_what_passes(number: int) -> None:
    """One table for all stores: what is not said to last is never a row, and only a full disk is not tried again."""
    error = OSError(number, os.strerror(number))
    assert may_pass(error) == (number not in LASTING)
    with pytest.raises(StorageError) as caught, storage.plain_errors("/x", "read"):
        raise error
    assert isinstance(caught.value, TransientError) == (number not in LASTING)
    assert isinstance(caught.value, storage.DiskFull) == (number in FULL)


@pytest.mark.parametrize(
    "name", ["EIO", "ESTALE", "ETIMEDOUT", "ENOMEM", "EMFILE", "ENFILE", "ENOSPC", "EINTR", "EAGAIN"]
)
def test_these_pass(name: str) -> None:
    assert getattr(errno, name) not in LASTING


@pytest.mark.parametrize("name", ["ENOENT", "EACCES", "EPERM", "ENAMETOOLONG", "EISDIR", "ENOTDIR", "ELOOP"])
def test_these_last(name: str) -> None:
    assert getattr(errno, name) in LASTING


@pytest.mark.parametrize("kind", [*FORMATS, "jpg"])
@pytest.mark.parametrize("number", [*random.Random(1).sample(_PASSING, 3), errno.EIO])
def test_a_read_that_fails_for_a_while_is_repeated_and_one_that_fails_for_ever_is_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, number: int
) -> None:
    path = tmp_path / f"in/x.{kind}"
    path.parent.mkdir()
    FORMATS.get(kind, lambda path, mark: path.write_bytes(image(mark, 1)))(path, b"A")
    shard, source, carried = shard_of(path)
    real, left = os.pread, [3]

    def failing(handle: int, count: int, at: int) -> bytes:
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return real(handle, count, at)

    monkeypatch.setattr("batchdet.storage.local_file.os.pread", failing)
    stop_the_clock(monkeypatch)
    if number not in FULL:
        rows = [row for segment in read_segments(shard, source, carried, 2, 1 << 30) for row in rows_of(segment)]
        assert set(rows) == {(b"A", None)}
    left[0] = 10**9
    with pytest.raises(TransientError) as failed:
        list(read_segments(shard, source, carried, 2, 1 << 30))
    assert str(path) in failed.value.message
    assert number in FULL or "tried for 7" in failed.value.message
