"""One face over all formats: cut a shard into segments, or read one image again."""

from collections.abc import Iterator

import pyarrow as pa

from batchdet import storage
from batchdet.errors import ImageError
from batchdet.records.segment import Segment
from batchdet.source import folder, parquet, uri_list, webdataset
from batchdet.source.fetch import read_allowed, read_object
from batchdet.source.policy import UriPolicy
from batchdet.source.shards import Shard
from batchdet.spec import SourceSpec
from batchdet.storage import StorageError, StoredObject, TransientError

_READERS = {
    "webdataset": webdataset.read_segments,
    "folder": folder.read_segments,
    "parquet": parquet.read_segments,
    "uri_list": uri_list.read_segments,
}


def read_segments(
    shard: Shard,
    source: SourceSpec,
    carried: pa.Schema,
    segment_rows: int,
    segment_bytes: int,
    done: frozenset[int] = frozenset(),
) -> Iterator[Segment]:
    """Cut a shard into segments, in order.

    The cut depends on the shard and the two limits alone, never on ``done``. Every shard has at least one
    segment, and exactly its last one says so. What lasts (missing, forbidden, changed, corrupt) becomes failed rows;
    what may pass does not, because rows are committed.

    Args:
        shard: What to read.
        source: Limits, columns and the allow-list.
        carried: The inventory's carried columns.
        segment_rows: At most this many images per segment.
        segment_bytes: At most this many encoded bytes per segment; one larger image is a segment of its own.
        done: Indices that are not wanted; where the format allows, they are not downloaded.

    Yields:
        The segments that are not in ``done``.

    Raises:
        TransientError: The store failed in a way that may pass, after retries; its message names the URI. The
            segments before it are good, and reading again goes on behind those. A web host in a list is no store:
            its failures are rows.
    """
    yield from _READERS[shard.format](shard, source, carried, segment_rows, segment_bytes, done)


def read_image(source: SourceSpec, uri: str, shard_uri: str, member: str, position: int) -> bytes:
    """Read one image again, as its row in the images table names it.

    Args:
        source: Limits, columns and the allow-list.
        uri: The row's ``uri``.
        shard_uri: The row's ``shard_uri``.
        member: The row's ``member``.
        position: The row's ``position``.

    Raises:
        ImageError: It cannot be read, or may not be.
    """
    if uri.startswith(f"{shard_uri}#"):
        obj = StoredObject(shard_uri, -1, "")
        try:
            with storage.open_read(shard_uri) as file:
                is_parquet = file.read(4) == b"PAR1"
        except StorageError as error:
            raise ImageError("unreadable", error.message) from error
        return parquet.read_image(source, obj, position) if is_parquet else webdataset.read_image(obj, member)
    try:
        if uri == f"{shard_uri.rstrip('/')}/{member}":
            return read_object(StoredObject(uri, -1, ""), source.max_image_bytes)
        return read_allowed(UriPolicy(shard_uri, source.allow).check(uri), source.max_image_bytes)
    except TransientError as error:
        raise ImageError("unreadable", error.message) from error
