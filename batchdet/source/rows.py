"""From rows to segments: one place decides where a segment ends."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import pyarrow as pa

from batchdet.records.schema import MEMBERS
from batchdet.records.segment import Segment
from batchdet.source.range_file import lasting_shard_code
from batchdet.source.shards import Shard
from batchdet.storage import StorageError
from batchdet.text import shortened

UNKNOWN_SIZE_BYTES: Final = 512 * 1024
"""What an image weighs in the cut when its size is not listed (URI lists)."""

Text = Mapping[str, Any]


@dataclass(slots=True)
class ImageRow:
    """One listed image, read or failed.

    Args:
        uri: Where the image is.
        shard_uri: The source object that holds it.
        member: Its name there.
        position: Its place there.
        size_bytes: Encoded size, -1 when unknown.
        data: The encoded image, None when it failed.
        error_code: Why it failed, else None.
        error_message: The same for a person, else None.
        carried: Values of carried columns by their names in the images table; missing ones are null.
    """

    uri: str
    shard_uri: str
    member: str
    position: int
    size_bytes: int
    data: Any = None
    error_code: str | None = None
    error_message: str | None = None
    carried: Text = field(default_factory=dict)

    def fail(self, code: str, message: str) -> "ImageRow":
        """Turn into a failed row and return it; a message that quotes too much is cut in its middle."""
        self.data, self.error_code, self.error_message = None, code, shortened(message)
        return self


class Cutter:
    """Cut a stream of rows into segments, by order, rows and bytes alone.

    Args:
        segment_rows: At most this many rows per segment.
        segment_bytes: At most this many bytes per segment; one heavier row is a segment of its own.
    """

    def __init__(self, segment_rows: int, segment_bytes: int) -> None:
        self.segment_rows = segment_rows
        self.segment_bytes = segment_bytes
        self._index = self._rows = self._bytes = 0

    def place(self, weight: int) -> int:
        """Return the index of the segment that the next row, of this many bytes, belongs to."""
        if self._rows and (self._rows >= self.segment_rows or self._bytes + weight > self.segment_bytes):
            self._index += 1
            self._rows = self._bytes = 0
        self._rows += 1
        self._bytes += weight
        return self._index


def cut(weights: Iterable[int], segment_rows: int, segment_bytes: int) -> list[range]:
    """Cut rows whose weights are known beforehand; no rows at all are one empty segment."""
    cutter = Cutter(segment_rows, segment_bytes)
    starts: list[int] = []
    count = 0
    for count, weight in enumerate(weights, 1):
        if cutter.place(weight) == len(starts):
            starts.append(count - 1)
    bounds = [*(starts or [0]), count]
    return [range(a, b) for a, b in pairwise(bounds)]


def make_segment(
    shard: Shard,
    index: int,
    last: bool,
    rows: Sequence[ImageRow],
    carried: pa.Schema,
    carried_table: pa.Table | None = None,
    passed_over: Mapping[str, int] | None = None,
) -> Segment:
    """Build one segment.

    Args:
        shard: Where the rows come from.
        index: The segment's place in the shard.
        last: Whether the shard ends with it.
        rows: The images, in order.
        carried: Columns carried over.
        carried_table: Their values, row by row; None takes them from the rows.
        passed_over: Members that were passed over since the segment before, by kind.
    """
    arrays = [pa.array([getattr(row, f.name) for row in rows], f.type) for f in MEMBERS]
    for column in carried:
        if carried_table is None:
            arrays.append(pa.array([row.carried.get(column.name) for row in rows], column.type))
        else:
            arrays.append(carried_table[column.name])
    members = pa.table(arrays, schema=pa.schema([*MEMBERS, *carried]))
    data = [row.data for row in rows]
    return Segment(shard.shard_index, shard.shard_id, index, last, members, data, passed_over=dict(passed_over or {}))


def assemble(
    shard: Shard,
    carried: pa.Schema,
    weighed: Iterable[tuple[ImageRow, int]],
    segment_rows: int,
    segment_bytes: int,
    done: frozenset[int],
    passed_over: Counter[str],
) -> Iterator[Segment]:
    """Cut a stream of ``(row, weight)`` into segments, holding one at a time; ``done`` ones are dropped.

    ``passed_over`` is what the stream has counted; each segment takes it with it, and the count begins anew.
    """
    cutter = Cutter(segment_rows, segment_bytes)
    index = 0
    rows: list[ImageRow] = []
    for row, weight in weighed:
        place = cutter.place(weight)
        if place != index:
            if index not in done:
                yield make_segment(shard, index, False, rows, carried, passed_over=passed_over)
            passed_over.clear()
            index, rows = place, []
        if index not in done:
            rows.append(row)
    if index not in done:
        yield make_segment(shard, index, True, rows, carried, passed_over=passed_over)


def cut_known(
    shard: Shard,
    weights: Sequence[int],
    segment_rows: int,
    segment_bytes: int,
    done: frozenset[int],
    build: Callable[[int, bool, range], Segment],
) -> Iterator[Segment]:
    """Build the segments of a shard whose weights are known, without touching those in ``done``."""
    ranges = cut(weights, segment_rows, segment_bytes)
    for index, places in enumerate(ranges):
        if index not in done:
            yield build(index, index == len(ranges) - 1, places)


def failed_shard(
    shard: Shard, carried: pa.Schema, code: str, message: str, index: int = 0, member: str = ""
) -> Segment:
    """Return the last segment of a shard that cannot be read from there on: one failed row.

    Args:
        shard: The shard.
        carried: Columns carried over.
        code: Why not.
        message: The same for a person.
        index: Of the segment; 0 for a shard that cannot be read at all.
        member: The row's name, ``#`` and its position; "" for a shard that cannot be read at all.
    """
    uri = f"{shard.shard_uri}#{member}" if member else shard.shard_uri
    position = int(member.removeprefix("#")) if member else shard.first_position
    row = ImageRow(uri, shard.shard_uri, member, position, -1, None, code, message)
    return make_segment(shard, index, True, [row], carried)


def while_unchanged(
    shard: Shard, carried: pa.Schema, segments: Iterable[Segment], check: Callable[[], None]
) -> Iterator[Segment]:
    """Yield segments for as long as the file is the listed one after each; one failed row stands for the others.

    Args:
        shard: A tar or Parquet file.
        carried: Columns carried over.
        segments: Read from it.
        check: Raises StorageError if the file has changed since it was opened.

    Raises:
        TransientError: ``check`` did: the file system failed in a way that may pass.
    """
    for segment in segments:
        try:
            check()
        except StorageError as error:
            index = segment.segment_index
            member = f"#{segment.members['position'][0].as_py()}" if index else ""
            yield failed_shard(shard, carried, lasting_shard_code(error), error.message, index, member)
            return
        yield segment
