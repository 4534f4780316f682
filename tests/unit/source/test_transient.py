"""A failure that may pass is never a row: it leaves the reader, and reading again gives everything."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from batchdet import storage
from batchdet.errors import ImageError, SourceError
from batchdet.records.segment import Segment
from batchdet.source import fetch
from batchdet.source.inventory import Inventory, list_inventory, plan_shards
from batchdet.source.policy import Allowed
from batchdet.source.reader import read_image, read_segments
from batchdet.spec import SourceSpec
from batchdet.storage import StorageError, TransientError
from tests.clock import stop_the_clock
from tests.unit.source.corpus import image, tar_bytes

ROOT = "memory://transient-test"
IMAGES = [(f"{i:02d}.jpg", image(i, 3000)) for i in range(12)]


@pytest.fixture(autouse=True)
def _fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_the_clock(monkeypatch)
    monkeypatch.setattr("batchdet.source.stream.BlockStream.__init__.__defaults__", (8192,))
    monkeypatch.setattr("batchdet.source.parquet_rows._BUFFER_BYTES", 4096)


@pytest.fixture(autouse=True)
def stored(tmp_path: Path) -> Iterator[None]:
    for name, data in IMAGES:
        storage.write_bytes(f"{ROOT}/folder/{name}", data)
    storage.write_bytes(f"{ROOT}/tar/a.tar", tar_bytes(IMAGES))
    rng = np.random.default_rng(0)
    pixels = [rng.bytes(3000) for _ in IMAGES]
    pq.write_table(pa.table({"image": pixels}), tmp_path / "a.parquet", row_group_size=4, compression="none")
    storage.write_bytes(f"{ROOT}/table/a.parquet", (tmp_path / "a.parquet").read_bytes())
    structs = [{"bytes": None, "path": f"../folder/{name}"} for name, _ in IMAGES]
    type_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(structs, type_)}), tmp_path / "b.parquet")
    storage.write_bytes(f"{ROOT}/linked/b.parquet", (tmp_path / "b.parquet").read_bytes())
    storage.write_bytes(f"{ROOT}/list/l.csv", ("url\n" + "\n".join(f"../folder/{n}" for n, _ in IMAGES)).encode())
    yield
    fsspec.filesystem("memory").rm("/transient-test", recursive=True)


Broken = Callable[[str, int], Exception | None]


def _break(monkeypatch: pytest.MonkeyPatch, broken: Broken) -> None:
    """Let reads fail of the path and first byte that ``broken`` says."""
    real = MemoryFileSystem.cat_file

    def cat_file(self: MemoryFileSystem, path: str, start: int | None = None, end: int | None = None) -> bytes:
        error = broken(path, start or 0)
        if error is not None:
            raise error
        return bytes(real(self, path, start=start, end=end))

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)


def _read(what: str, inventory: Inventory, done: frozenset[int] = frozenset()) -> Iterator[Segment]:
    (shard,) = plan_shards(inventory)
    source = SourceSpec(uri=f"{ROOT}/{what}", allow=(ROOT,))
    return read_segments(shard, source, inventory.carried, 2, 1 << 30, done)


def _list(what: str) -> Inventory:
    return list_inventory(SourceSpec(uri=f"{ROOT}/{what}", allow=(ROOT,)))


SOURCES = {
    "tar": "/tar/a.tar", "table": "/table/a.parquet", "folder": "/folder/07.jpg", "list/l.csv": "/folder/07.jpg",
    "linked": "/folder/07.jpg",
}  # fmt: skip


@pytest.mark.parametrize("what", SOURCES)
@pytest.mark.parametrize("start", [0, 15_000])
def test_what_may_pass_leaves_the_reader_and_reading_again_goes_on(
    what: str, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inventory = _list(what)
    want = [bytes(d) for s in _read(what, inventory) for d in s.data]
    assert len(want) == 12
    single = "folder" in SOURCES[what]
    asked = []

    def broken(path: str, first: int) -> Exception | None:
        if path.endswith(SOURCES[what]) and (single or first >= start):
            asked.append(path)
            return TransientError(f"{ROOT}{SOURCES[what]}: 503 SlowDown")
        return None

    got: dict[int, Segment] = {}

    def read() -> None:
        for segment in _read(what, inventory, frozenset(got)):
            got[segment.segment_index] = segment

    with monkeypatch.context() as patch:
        _break(patch, broken)
        with pytest.raises(TransientError, match=rf"{ROOT}{SOURCES[what]}: 503"):
            read()
        assert len(asked) >= 4
    assert {c for s in got.values() for c in s.members["error_code"].to_pylist()} <= {None}
    assert not any(s.last for s in got.values())
    assert len(got) > 0 or start == 0
    read()
    assert [bytes(d) for i in sorted(got) for d in got[i].data] == want
    assert got[5].last


@pytest.mark.parametrize("what", ["tar", "table"])
def test_opening(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inventory = _list(what)

    def info(self: Any, path: str, **kwargs: Any) -> Any:
        raise TransientError(f"{path}: time-out")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "info", info)
        with pytest.raises(TransientError, match="time-out"):
            list(_read(what, inventory))


@pytest.mark.parametrize("what", SOURCES)
@pytest.mark.parametrize("error", [StorageError("403"), storage.NotFound("404")])
def test_what_lasts_is_a_row(what: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    inventory = _list(what)
    _break(monkeypatch, lambda path, _: error if path.endswith(SOURCES[what]) else None)
    segments = list(_read(what, inventory))
    codes = [c for s in segments for c in s.members["error_code"].to_pylist()]
    if what in {"tar", "table"}:
        assert codes == ["shard_unreadable"]
    else:
        assert codes == [None] * 7 + ["unreadable"] + [None] * 4
    assert segments[-1].last


@pytest.mark.parametrize(
    ("raised", "lasts"),
    [(ValueError("no name"), True), (NotImplementedError(), True), (RuntimeError("pool closed"), False),
     (MemoryError(), False)],
)  # fmt: skip
def test_errors_of_unknown_clients(raised: Exception, lasts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _break(monkeypatch, lambda path, _: raised)
    want: type[Exception] = ImageError if lasts else TransientError
    with pytest.raises(want, match=f"{ROOT}/folder/00.jpg"):
        fetch.read_object(storage.stat(f"{ROOT}/folder/00.jpg"), 10_000)


def test_web_hosts_fail_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def down(allowed: Allowed, max_bytes: int) -> bytes:
        raise TransientError(f"{allowed.uri}: HTTP 503")

    monkeypatch.setattr(fetch.http, "fetch", down)
    (tmp_path / "a.jpg").write_bytes(b"1")
    (tmp_path / "l.txt").write_text("https://example.org/a.jpg\na.jpg\n")
    source = SourceSpec(uri=str(tmp_path / "l.txt"), allow=("https://example.org", str(tmp_path)))
    inventory = list_inventory(source)
    (shard,) = plan_shards(inventory)
    (segment,) = read_segments(shard, source, inventory.carried, 9, 1 << 30)
    assert segment.members["error_code"].to_pylist() == ["unreadable", None]


def test_listing_does_not_take_another_files_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{ROOT}/table/b.parquet", storage.read_bytes(f"{ROOT}/table/a.parquet"))
    _break(monkeypatch, lambda path, _: TransientError("a: 503") if path.endswith("a.parquet") else None)
    with pytest.raises(SourceError, match=r"source\.uri: a: 503"):
        _list("table")


def test_reading_one_image_again_is_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _break(monkeypatch, lambda path, _: TransientError("503"))
    for shard_uri, member in [(f"{ROOT}/folder", "00.jpg"), (f"{ROOT}/list/l.csv", "../folder/00.jpg")]:
        uri = f"{ROOT}/folder/00.jpg"
        with pytest.raises(ImageError, match="503"):
            read_image(SourceSpec(uri=f"{ROOT}/folder", allow=(ROOT,)), uri, shard_uri, member, 0)
