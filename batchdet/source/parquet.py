"""Parquet: a binary column or Hugging Face's ``{bytes, path}`` struct; one file is one shard.

Row groups are read a few rows at a time. The cut takes each row of a row group for as heavy as their mean, which
the footer tells, so that segments can be left out unread.

A file that is gone, forbidden, changed or corrupt is one failed row, and a row group that cannot be decoded fails its
own rows. A store that fails in a way that may pass, at opening or in the middle, ends the reading with
:class:`~batchdet.storage.TransientError` instead: nothing more is staged, and the same command goes on.
"""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from batchdet.errors import ImageError, SourceError
from batchdet.records.segment import Segment
from batchdet.source.columns import (
    Column,
    carry,
    find_image_column,
    is_text,
    refuse_repeated,
    require_column,
    require_columns,
)
from batchdet.source.parquet_rows import ParquetRows, columns_of, hive_values, open_file
from batchdet.source.range_file import lasting_shard_code
from batchdet.source.rows import cut, failed_shard, while_unchanged
from batchdet.source.shards import Shard
from batchdet.source.values import typed_text
from batchdet.spec import SourceSpec
from batchdet.storage import StorageError, StoredObject, TransientError

_TRIES: Final = 8
_READERS: Final = 16
_DAMAGE: Final = (UnicodeDecodeError, TypeError, ValueError, OSError, pa.ArrowException)
_DOUBLE_EXACT: Final = 1 << 53
_COLUMN_ROOM: Final = 64
"""Columns of 64-bit integers whose extremes are looked at, per file; statistics of more would take long."""


@dataclass(frozen=True)
class _Footer:
    """What the footer of a file tells.

    Args:
        uri: The file.
        schema: Its columns.
        large: Columns with integers that float64 does not hold exactly.
    """

    uri: str
    schema: pa.Schema
    large: frozenset[str]


def _footer(obj: StoredObject) -> _Footer | str:
    """Read one footer; what lasts is returned as text, because the file becomes a failed row.

    Raises:
        SourceError: The store failed in a way that may pass, or two columns have one name.
    """
    try:
        with open_file(obj) as opened:
            file = opened.parquet
            refuse_repeated(file.schema_arrow.names, obj.uri)
            try:
                large = _large_integers(file)
            except _DAMAGE:  # a footer names columns twice, and this is the other place: the reader says so
                large = frozenset()
            return _Footer(obj.uri, file.schema_arrow, large)
    except TransientError as error:  # another file's columns would decide what is carried over
        raise SourceError(f"source.uri: {error.message}") from error
    except (StorageError, pa.ArrowException, OSError) as error:
        return f"{obj.uri}: {error}"


def _large_integers(file: pq.ParquetFile) -> frozenset[str]:
    wide = [f.name for f in file.schema_arrow if f.type in (pa.int64(), pa.uint64())]
    wanted = set(wide[:_COLUMN_ROOM])
    large = set()
    for number in range(file.metadata.num_row_groups if wanted else 0):
        group = file.metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            statistics = column.statistics if column.path_in_schema in wanted else None
            if statistics is not None and statistics.has_min_max:
                largest = max(abs(int(statistics.min)), abs(int(statistics.max)))
                large |= {column.path_in_schema} if largest > _DOUBLE_EXACT else set()
    return frozenset(large)


def _first_schema(objects: Sequence[StoredObject]) -> _Footer:
    """Read the first readable footer."""
    failure = ""
    for obj in objects[:_TRIES]:
        footer = _footer(obj)
        if isinstance(footer, _Footer):
            return footer
        failure = failure or footer
    raise SourceError(f"source.uri: no Parquet file can be read; {failure}")


def holds_uris(source: SourceSpec, objects: Sequence[StoredObject]) -> bool:
    """Tell whether the image column holds URIs, so that the files are lists.

    Raises:
        SourceError: No file can be read, or the image column is not clear.
    """
    first = _first_schema(objects)
    return is_text(first.schema.field(find_image_column(first.schema, source.image_column, first.uri)).type)


def carried_schema(source: SourceSpec, objects: Sequence[StoredObject], root: str) -> tuple[pa.Schema, str]:
    """Return the columns carried over, by the footers of all files, and what was renamed or cast, in words.

    Args:
        source: Names the columns.
        objects: The files; those that cannot be read become failed rows later.
        root: The folder that was listed; ``name=value`` in paths below it is a column, too.

    Raises:
        SourceError: A column that the spec names does not exist, or two files differ in its type.
    """
    first = _first_schema(objects)
    find_image_column(first.schema, source.image_column, first.uri)
    if source.id_column is not None:
        require_column(source.id_column, first.schema.names, "source.id_column", first.uri)
    columns: list[Column] = []
    known: dict[str, None] = {}
    with ThreadPoolExecutor(_READERS, thread_name_prefix="footers") as pool:
        for footer in pool.map(_footer, objects):
            if isinstance(footer, str):
                continue
            try:
                image = find_image_column(footer.schema, source.image_column, footer.uri)
            except SourceError:
                continue  # its reader says so, in a failed row
            columns += columns_of(footer.schema, image, source, footer.uri, footer.large)
            known |= dict.fromkeys(footer.schema.names)
    hive = [column for column in _hive_columns(objects, root) if column.name not in known]
    paths = [column.wanted for column in columns if column.kind == "image"][:1]
    require_columns(source.columns, [*known, *paths, *(column.name for column in hive)], first.uri)
    return carry([*columns, *(c for c in hive if source.columns is None or c.name in source.columns)])


def _hive_columns(objects: Sequence[StoredObject], root: str) -> list[Column]:
    """Return the ``name=value`` folders between a source and its files, typed if all values stay as written."""
    values: dict[str, list[str | None]] = {}
    for obj in objects:
        for name, value in hive_values(obj.uri.removeprefix(root.rstrip("/") + "/")).items():
            values.setdefault(name, []).append(value)
    return [
        Column("hive", name, typed_text(pa.chunked_array([pa.array(found, pa.string())])).type, root)
        for name, found in values.items()
    ]


def read_segments(
    shard: Shard, source: SourceSpec, carried: pa.Schema, segment_rows: int, segment_bytes: int, done: frozenset[int]
) -> Iterator[Segment]:
    """Cut one Parquet file into segments; see :func:`batchdet.source.reader.read_segments`."""
    failure: tuple[str, str] | None = None
    opened = None
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(open_file(shard.objects[0]))
            reader = ParquetRows(opened.parquet, shard, source, carried)
        except StorageError as error:
            failure = lasting_shard_code(error), error.message
        except (pa.ArrowException, SourceError, OSError) as error:
            failure = "shard_corrupt", f"{shard.shard_uri}: {' '.join(str(error).split())}"
        if failure is not None:
            segments = iter([] if 0 in done else [failed_shard(shard, carried, *failure)])
        else:
            ranges = cut(reader.weights(), segment_rows, segment_bytes)
            wanted = ((index, rows) for index, rows in enumerate(ranges) if index not in done)
            segments = (reader.segment(index, index == len(ranges) - 1, rows) for index, rows in wanted)
        yield from while_unchanged(shard, carried, segments, opened.check if opened else lambda: None)


def read_image(source: SourceSpec, obj: StoredObject, position: int) -> bytes:
    """Read the image of one row again.

    Raises:
        ImageError: It is not there, or cannot be read.
    """
    shard = Shard(0, "", obj.uri, "parquet", (obj,))
    try:
        with open_file(obj) as opened:
            file = opened.parquet
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
