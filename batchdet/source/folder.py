"""Folders and globs: one object is one image. Listed sizes decide the cut, so segments can be left out unread.

An image that is gone, forbidden or changed is a failed row. A store that fails in a way that may pass ends the
reading with :class:`~batchdet.storage.TransientError`: nothing of that segment is staged, and the same command goes on.
"""

import re
from collections.abc import Iterator
from typing import Final

import pyarrow as pa

from batchdet.errors import ImageError
from batchdet.records.segment import Segment
from batchdet.source.fetch import fill, read_object
from batchdet.source.rows import UNKNOWN_SIZE_BYTES, ImageRow, cut_known, make_segment
from batchdet.source.shards import Shard
from batchdet.spec import SourceSpec
from batchdet.storage import NotFound, StoredObject

_ESCAPED: Final = re.compile(r"\\udc[89a-f][0-9a-f]")


def _read(obj: StoredObject, limit: int) -> bytes:
    try:
        return read_object(obj, limit)
    except ImageError as error:
        # the listing writes a byte that is no UTF-8 as an escape, and no file is called so
        if isinstance(error.__cause__, NotFound) and _ESCAPED.search(obj.uri):
            raise ImageError("unreadable", f"{obj.uri}: its name is not UTF-8; rename it") from error
        raise


def read_segments(
    shard: Shard, source: SourceSpec, carried: pa.Schema, segment_rows: int, segment_bytes: int, done: frozenset[int]
) -> Iterator[Segment]:
    """Cut one slice of a folder into segments; see :func:`batchdet.source.reader.read_segments`."""
    members = shard.members
    limit = source.max_image_bytes
    sizes = [obj.size_bytes for obj in shard.objects]
    weights = [UNKNOWN_SIZE_BYTES if size < 0 else size if size <= limit else 0 for size in sizes]

    def build(index: int, last: bool, places: range) -> Segment:
        rows = []
        objects = {}
        for i in places:
            obj = shard.objects[i]
            row = ImageRow(obj.uri, shard.shard_uri, members[i], shard.first_position + i, obj.size_bytes)
            if obj.size_bytes > limit:
                row.fail("too_large", f"{obj.uri}: {obj.size_bytes} bytes, source.max_image_bytes is {limit}")
            rows.append(row)
            objects[row.position] = obj
        fill(rows, lambda row: _read(objects[row.position], limit))
        return make_segment(shard, index, last, rows, carried)

    return cut_known(shard, weights, segment_rows, segment_bytes, done, build)
