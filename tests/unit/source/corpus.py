"""Small sources for tests. Images are opaque to ``batchdet.source``, so any bytes will do."""

import gzip
import io
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchdet.records.segment import Segment
from batchdet.source.inventory import Inventory, list_inventory, plan_shards
from batchdet.source.reader import read_segments
from batchdet.spec import SourceSpec


def image(i: int, size: int = 200) -> bytes:
    return (f"image {i};".encode() * (size // 4))[:size]


def tar_member(name: str, data: bytes = b"", type_: bytes = tarfile.REGTYPE, link: str = "") -> tuple[Any, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = type_, link, len(data)
    return info, data


def tar_bytes(members: Iterable[tuple[Any, bytes]], format_: int = tarfile.PAX_FORMAT) -> bytes:
    """Pack ``(name or TarInfo, bytes)`` pairs."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format_) as tar:
        for name, data in members:
            info, data = (name, data) if isinstance(name, tarfile.TarInfo) else tar_member(name, data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def raw_header(name: bytes, size: int = 0, type_: bytes = b"0", link: bytes = b"") -> bytes:
    """Build a header block by hand, for names and sizes that tarfile would not write."""
    field = b"\x80" + size.to_bytes(11, "big", signed=True) if not 0 <= size < 8**11 else b"%011o\0" % size
    if size < 0:
        field = b"\xff" + size.to_bytes(11, "big", signed=True)
    block = bytearray(512)
    block[0 : len(name)] = name[:100]
    block[100:108] = b"0000644\0"
    block[108:124] = b"0000000\0" * 2
    block[124:136] = field
    block[136:148] = b"00000000000\0"
    block[156:157] = type_
    block[157 : 157 + len(link)] = link
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


END = bytes(1024)


@dataclass
class Result:
    """Everything that a source gave."""

    inventory: Inventory
    segments: list[Segment]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for segment in self.segments for row in segment.members.to_pylist()]

    @property
    def data(self) -> list[bytes | None]:
        return [None if d is None else bytes(d) for segment in self.segments for d in segment.data]

    @property
    def codes(self) -> list[str | None]:
        return [row["error_code"] for row in self.rows]

    @property
    def members(self) -> list[str]:
        return [row["member"] for row in self.rows]

    @property
    def passed_over(self) -> Counter[str]:
        return Counter(kind for s in self.segments for kind, n in s.passed_over.items() for _ in range(n))

    @property
    def by_member(self) -> dict[str, bytes | None]:
        return dict(zip(self.members, self.data, strict=True))


def read_all(
    uri: str | Path, segment_rows: int = 1000, segment_bytes: int = 1 << 40, slice_rows: int = 1024, **spec: Any
) -> Result:
    source = SourceSpec(uri=str(uri), **spec)
    inventory = list_inventory(source)
    segments: list[Segment] = []
    for shard in plan_shards(inventory, slice_rows):
        segments += read_segments(shard, source, inventory.carried, segment_rows, segment_bytes)
    check_segments(segments)
    return Result(inventory, segments)


def check_segments(segments: Sequence[Segment]) -> None:
    """Every shard's segments count from 0 and only the last says so; a row has data or a code, never both."""
    by_shard: dict[str, list[Segment]] = {}
    for segment in segments:
        by_shard.setdefault(segment.shard_id, []).append(segment)
    for found in by_shard.values():
        assert [s.segment_index for s in found] == list(range(len(found)))
        assert [s.last for s in found] == [False] * (len(found) - 1) + [True]
        members = [m for s in found for m in s.members["member"].to_pylist()]
        assert len(set(members)) == len(members)
    for segment in segments:
        for row, data in zip(segment.members.to_pylist(), segment.data, strict=True):
            assert (row["error_code"] is None) == (data is not None)
            assert (row["error_code"] is None) == (row["error_message"] is None)


def write_tar(path: Path, members: Iterable[tuple[Any, bytes]], packed: bool = False) -> Path:
    data = tar_bytes(members)
    path.write_bytes(gzip.compress(data) if packed else data)
    return path
