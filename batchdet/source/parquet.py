"""Parquet: a binary column or Hugging Face's ``{bytes, path}`` struct; one file is one shard.

Row groups are read a few rows at a time. The cut takes each row of a row group for as heavy as their mean, which
the footer tells, so that segments can be left out unread.

A file that is gone, forbidden, changed or corrupt is one failed row, and a row group that cannot be decoded fails its
own rows. A store that fails in a way that may pass, at opening or in the middle, ends the reading with
:class:`~batchdet.storage.TransientError` instead: nothing more is staged, and the same command goes on.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow as pa

from batchdet.errors import ImageError, SourceError
from batchdet.records.segment import Segment
from batchdet.source.columns import (
    find_image_column,
    is_text,
    refuse_repeated,
    require_column,
)
from batchdet.source.parquet_rows import ParquetRows, fields_of, open_file
from batchdet.source.range_file import lasting_shard_code
from batchdet.source.rows import cut, failed_shard
from batchdet.source.shards import Shard
from batchdet.spec import SourceSpec
from batchdet.storage import StorageError, StoredObject, TransientError

_TRIES: Final = 8


def _first_schema(objects: Sequence[StoredObject]) -> tuple[pa.Schema, str]:
    """Read the first readable footer."""
    failure = ""
    for obj in objects[:_TRIES]:
        try:
            with open_file(obj) as file:
                refuse_repeated(file.schema_arrow.names, obj.uri)
                return file.schema_arrow, obj.uri
        except TransientError as error:  # another file's columns would decide what is carried over
            raise SourceError(f"source.uri: {error.message}") from error
        except (StorageError, pa.ArrowException, OSError) as error:
            failure = failure or f"{obj.uri}: {error}"
    raise SourceError(f"source.uri: no Parquet file can be read; {failure}")


def holds_uris(source: SourceSpec, objects: Sequence[StoredObject]) -> bool:
    """Tell whether the image column holds URIs, so that the files are lists.

    Raises:
        SourceError: No file can be read, or the image column is not clear.
    """
    schema, where = _first_schema(objects)
    return is_text(schema.field(find_image_column(schema, source.image_column, where)).type)


def carried_schema(source: SourceSpec, objects: Sequence[StoredObject]) -> pa.Schema:
    """Return the columns carried over, as the first file has them.

    Raises:
        SourceError: A column that the spec names does not exist.
    """
    schema, where = _first_schema(objects)
    image = find_image_column(schema, source.image_column, where)
    if source.id_column is not None:
        require_column(source.id_column, schema.names, "source.id_column", where)
    return pa.schema(list(fields_of(schema, image, source, where).values()))


def read_segments(
    shard: Shard, source: SourceSpec, carried: pa.Schema, segment_rows: int, segment_bytes: int, done: frozenset[int]
) -> Iterator[Segment]:
    """Cut one Parquet file into segments; see :func:`batchdet.source.reader.read_segments`."""
    failure: tuple[str, str] | None = None
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open_file(shard.objects[0]))
            reader = ParquetRows(file, shard, source, carried)
        except StorageError as error:
            failure = lasting_shard_code(error), error.message
        except (pa.ArrowException, SourceError, OSError) as error:
            failure = "shard_corrupt", f"{shard.shard_uri}: {' '.join(str(error).split())}"
        if failure is not None:
            if 0 not in done:
                yield failed_shard(shard, carried, *failure)
            return
        ranges = cut(reader.weights(), segment_rows, segment_bytes)
        for index, rows in enumerate(ranges):
            if index not in done:
                yield reader.segment(index, index == len(ranges) - 1, rows)


def read_image(source: SourceSpec, obj: StoredObject, position: int) -> bytes:
    """Read the image of one row again.

    Raises:
        ImageError: It is not there, or cannot be read.
    """
    shard = Shard(0, "", obj.uri, "parquet", (obj,))
    try:
        with open_file(obj) as file:
            if not 0 <= position < file.metadata.num_rows:
                raise ImageError("unreadable", f"{obj.uri}: no row {position}")
            reader = ParquetRows(file, shard, source, pa.schema([]))
            segment = reader.segment(0, True, range(position, position + 1))
    except (StorageError, SourceError, pa.ArrowException, OSError) as error:
        raise ImageError("unreadable", f"{obj.uri}#{position}: {error}") from error
    data = segment.data[0]
    if data is None:
        raise ImageError(segment.members["error_code"][0].as_py(), segment.members["error_message"][0].as_py())
    return bytes(data)
