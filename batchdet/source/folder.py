"""Folders and globs: one object is one image. Listed sizes decide the cut, so segments can be left out unread.

An image that is gone, forbidden or changed is a failed row. A store that fails in a way that may pass ends the
reading with :class:`~batchdet.storage.TransientError`: nothing of that segment is staged, and the same command goes on.
"""

from collections.abc import Iterator

import pyarrow as pa

from batchdet.records.segment import Segment
from batchdet.source.fetch import fill, read_object
from batchdet.source.rows import UNKNOWN_SIZE_BYTES, ImageRow, cut_known, make_segment
from batchdet.source.shards import Shard
from batchdet.spec import SourceSpec


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
        fill(rows, lambda row: read_object(objects[row.position], limit))
        return make_segment(shard, index, last, rows, carried)

    return cut_known(shard, weights, segment_rows, segment_bytes, done, build)
