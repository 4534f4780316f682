"""Segments: the unit of work, retry and record-keeping. One segment is one row of a Ray Data block."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from batchdet.errors import ImageError
from batchdet.records.schema import MEMBERS

_KEY: Final = [
    ("shard_index", pa.int32()),
    ("shard_id", pa.string()),
    ("segment_index", pa.int32()),
    ("last", pa.bool_()),
]
_ROW: Final = pa.schema(
    [
        *_KEY,
        ("members", pa.large_binary()),
        ("data", pa.large_list(pa.large_binary())),
        ("read_s", pa.float64()),
        ("passed_over", pa.string()),
    ]
)
_LABELLED_ROW: Final = pa.schema(
    [
        *_KEY,
        ("images", pa.large_binary()),
        ("detections", pa.large_binary()),
        ("times_s", pa.string()),
        ("passed_over", pa.string()),
    ]
)


def table_to_ipc(table: pa.Table, compression: str | None = "lz4") -> bytes:
    """Serialise a table as one Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def table_from_ipc(data: Any) -> pa.Table:
    """Read a table back from :func:`table_to_ipc`; ``data`` is anything with the buffer interface."""
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        return reader.read_all()


@dataclass(frozen=True, eq=False)
class Segment:
    """Up to N images or B bytes of one shard, in order, still encoded.

    ``(shard_id, segment_index)`` names it for ever. Every shard has at least one segment, and its last
    one says so, which is how the commit knows that a shard is complete.

    Args:
        shard_index: Place of the shard in the run's plan, from 0.
        shard_id: The shard's name (see :class:`batchdet.source.shards.Shard`).
        segment_index: Place within the shard, from 0.
        last: Whether the shard ends with this segment.
        members: One row per listed image, :data:`batchdet.records.schema.MEMBERS` and then columns carried over.
        data: One entry per row: the encoded image (anything with the buffer interface), or None when
            ``error_code`` of that row is set.
        read_s: Seconds that its reader took.
        passed_over: Members of an archive that are neither images nor carried over: kind -> how many. They were read
            since the segment before.

    Raises:
        ValueError: ``members`` and ``data`` differ in length or ``members`` lacks a column.
    """

    shard_index: int
    shard_id: str
    segment_index: int
    last: bool
    members: pa.Table
    data: Sequence[Any]
    read_s: float = 0.0
    passed_over: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.data) != self.members.num_rows:
            raise ValueError(f"segment {self.name}: {self.members.num_rows} members but {len(self.data)} images")
        if self.members.schema.names[: len(MEMBERS)] != MEMBERS.names:
            raise ValueError(f"segment {self.name}: members begin with {self.members.schema.names}")

    @property
    def name(self) -> str:
        """``SHARD_ID/00012``, for logs."""
        return f"{self.shard_id}/{self.segment_index:05d}"

    @property
    def shard_uri(self) -> str:
        """Where its images are, for messages; "" when it has none."""
        return self.members["shard_uri"][0].as_py() if self.members.num_rows else ""

    def errors(self) -> dict[int, ImageError]:
        """Return place -> error of the images that have failed before they came here."""
        codes, messages = (self.members[name].to_pylist() for name in ("error_code", "error_message"))
        return {
            i: ImageError(code, message or "")
            for i, (code, message) in enumerate(zip(codes, messages, strict=True))
            if code is not None
        }

    @property
    def size_bytes(self) -> int:
        """Encoded bytes that travel with the segment."""
        return sum(len(d) for d in self.data if d is not None)

    def to_row(self) -> pa.Table:
        """Return a table of one row, ready for Ray's object store."""
        row = vars(self) | {
            "members": table_to_ipc(self.members),
            "data": list(self.data),
            "passed_over": json.dumps(dict(self.passed_over)),
        }
        return pa.Table.from_pylist([row], schema=_ROW)

    @staticmethod
    def from_rows(table: pa.Table) -> "Iterator[Segment]":
        """Read segments back; the image bytes are views of the table's buffers, not copies."""
        for i in range(table.num_rows):
            images = table["data"][i].values
            yield Segment(
                shard_index=table["shard_index"][i].as_py(),
                shard_id=table["shard_id"][i].as_py(),
                segment_index=table["segment_index"][i].as_py(),
                last=table["last"][i].as_py(),
                members=table_from_ipc(table["members"][i].as_buffer()),
                data=[memoryview(v.as_buffer()) if v.is_valid else None for v in images],
                read_s=table["read_s"][i].as_py(),
                passed_over=json.loads(table["passed_over"][i].as_py()),
            )


@dataclass(frozen=True, eq=False)
class LabelledSegment:
    """What became of a segment: one row per image, and the detections.

    Args:
        shard_index: As in :class:`Segment`.
        shard_id: As in :class:`Segment`.
        segment_index: As in :class:`Segment`.
        last: As in :class:`Segment`.
        images: :data:`batchdet.records.schema.IMAGES` and then columns carried over, in order.
        detections: :data:`batchdet.records.schema.DETECTIONS`, grouped by image, in order.
        times_s: Seconds spent by step.
        passed_over: As in :class:`Segment`.
    """

    shard_index: int
    shard_id: str
    segment_index: int
    last: bool
    images: pa.Table
    detections: pa.Table
    times_s: dict[str, float]
    passed_over: Mapping[str, int] = field(default_factory=dict)

    def to_row(self) -> pa.Table:
        """Return a table of one row."""
        tables = {"images": table_to_ipc(self.images), "detections": table_to_ipc(self.detections)}
        texts = {"times_s": json.dumps(self.times_s), "passed_over": json.dumps(dict(self.passed_over))}
        row = vars(self) | tables | texts
        return pa.Table.from_pylist([row], schema=_LABELLED_ROW)

    @staticmethod
    def from_rows(table: pa.Table) -> "Iterator[LabelledSegment]":
        """Read labelled segments back."""
        for i in range(table.num_rows):
            yield LabelledSegment(
                shard_index=table["shard_index"][i].as_py(),
                shard_id=table["shard_id"][i].as_py(),
                segment_index=table["segment_index"][i].as_py(),
                last=table["last"][i].as_py(),
                images=table_from_ipc(table["images"][i].as_buffer()),
                detections=table_from_ipc(table["detections"][i].as_buffer()),
                times_s=json.loads(table["times_s"][i].as_py()),
                passed_over=json.loads(table["passed_over"][i].as_py()) if "passed_over" in table.schema.names else {},
            )
