"""The rows of one Parquet file: opened for streaming, read a few at a time, turned into images."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchdet.errors import ImageError, SourceError
from batchdet.records.hive import value_of
from batchdet.records.segment import Segment
from batchdet.source.columns import (
    Column,
    find_image_column,
    is_image_struct,
    is_text,
    origin_of,
    refuse_repeated,
    require_column,
    select_columns,
)
from batchdet.source.fetch import fill, read_allowed
from batchdet.source.policy import UriPolicy
from batchdet.source.range_file import lasting_shard_code, open_listed
from batchdet.source.rows import ImageRow, make_segment
from batchdet.source.shards import Shard
from batchdet.source.types import as_carried, unwrapped
from batchdet.source.uri_list import unique_members
from batchdet.spec import SourceSpec
from batchdet.storage import StorageError, StoredObject

_BUFFER_BYTES: Final = 4 * 1024 * 1024
_BATCH_ROWS: Final = 256
_BATCH_BYTES: Final = 8 * 1024 * 1024
_MAX_HELD_BYTES: Final = 512 * 1024 * 1024
"""A few bytes of a dictionary-encoded column can name one large image thousands of times."""
_PATH_COLUMN: Final = "image_path"


_OF_A_TYPE: Final = (AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True)
class OpenFile:
    """A file that is open for streaming.

    Args:
        parquet: Its reader.
        check: Raises StorageError if it is not the listed file any more.
    """

    parquet: pq.ParquetFile
    check: Callable[[], None]


@contextmanager
def open_file(obj: StoredObject) -> Iterator[OpenFile]:
    """Open a file for streaming.

    Raises:
        StorageError: It cannot be read or has changed.
        pa.ArrowException: It is no Parquet, or a package that adds column types (Ray) stumbles on those it names.
    """
    with open_listed(obj) as file:
        try:
            parquet = pq.ParquetFile(pa.PythonFile(file, "r"), buffer_size=_BUFFER_BYTES)
            parquet.schema_arrow  # noqa: B018
        except pa.ArrowException:
            raise
        except _OF_A_TYPE as error:
            raise pa.ArrowInvalid(f"a column type cannot be understood: {type(error).__name__}: {error}") from error
        yield OpenFile(parquet, file.check)


def columns_of(
    schema: pa.Schema, image: str, source: SourceSpec, where: str, large: frozenset[str] = frozenset()
) -> list[Column]:
    """Choose the columns of a file that are carried over; the path in an image's struct becomes ``image_path``."""
    types = {f.name: f.type for f in schema}
    columns = source.columns
    has_path = is_image_struct(types[image]) and types[image].get_field_index("path") >= 0
    wants_path = has_path and (columns is None or _PATH_COLUMN in columns)
    found = [replace(c, large=c.name in large) for c in select_columns(types, columns, (image,), where)]
    return [*found, *([Column("image", "path", pa.string(), where, _PATH_COLUMN)] if wants_path else [])]


def hive_values(uri: str) -> dict[str, str | None]:
    """Return the ``name=value`` folders of a path; of two of one name the inner one."""
    pairs = (part.split("=", 1) for part in uri.split("/")[:-1] if "=" in part)
    return {name: value_of(value) for name, value in pairs if name}


class ParquetRows:
    """Reads ranges of rows of one file, front to back, with one batch in hand."""

    def __init__(self, file: pq.ParquetFile, shard: Shard, source: SourceSpec, carried: pa.Schema) -> None:
        self._file = file
        self._shard = shard
        self._source = source
        self._carried = carried
        schema = file.schema_arrow
        refuse_repeated(schema.names, shard.shard_uri)
        self._image = find_image_column(schema, source.image_column, shard.shard_uri)
        if is_text(schema.field(self._image).type):
            raise SourceError(f"column {self._image!r} holds text here and images in the first file")
        self._policy = UriPolicy(shard.shard_uri, source.allow)
        counts = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        self._starts = [sum(counts[:i]) for i in range(len(counts) + 1)]
        self._means = [self._mean(i) for i in range(len(counts))]
        self._names: list[str] | None = None
        self._codes: list[str | None] = []
        if source.id_column is not None:
            self._names, self._codes = self._ids(source.id_column)
        self._hive = hive_values(shard.shard_uri)
        self._group = -1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None
        self._batch_start = 0
        self._failure: tuple[str, str] | None = None
        self._held_bytes = 0

    def _mean(self, group: int) -> int:
        return self._size_bytes(group) // max(1, int(self._file.metadata.row_group(group).num_rows))

    def _size_bytes(self, group: int) -> int:
        """Return what the footer says of the images of a row group, unpacked; each repeated one counts once."""
        row_group = self._file.metadata.row_group(group)
        columns = [row_group.column(i) for i in range(row_group.num_columns)]
        try:
            mine = [c for c in columns if f"{c.path_in_schema}.".startswith(f"{self._image}.")]
        except UnicodeDecodeError as error:  # the footer names columns twice, and this is the other place
            raise pa.ArrowInvalid(f"a column's name is no text: {error}") from error
        return max(sum(int(c.total_uncompressed_size) for c in mine), 0)

    def _batch_rows(self, group: int) -> int:
        """Choose how many rows to take at once, so that they fit even where all name the largest image."""
        largest = max(1, min(self._size_bytes(group), self._source.max_image_bytes))
        return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, self._means[group]), _MAX_HELD_BYTES // largest))

    def _ids(self, column: str) -> tuple[list[str], list[str | None]]:
        require_column(column, self._file.schema_arrow.names, "source.id_column", self._shard.shard_uri)
        chunks = self._file.read([column])[column].chunks
        values = [value for chunk in chunks for value in as_carried(chunk, pa.string()).to_pylist()]
        return unique_members([value or "" for value in values], [None] * len(values))

    def weights(self) -> Iterator[int]:
        """Yield what each row weighs in the cut."""
        for group, mean in enumerate(self._means):
            for _ in range(self._starts[group], self._starts[group + 1]):
                yield mean

    def segment(self, index: int, last: bool, places: range) -> Segment:
        """Read one segment."""
        rows: list[ImageRow] = []
        tables = [self._carried.empty_table()]
        linked: dict[int, str] = {}
        at = places.start
        self._held_bytes = 0
        while at < places.stop:
            batch, failure = self._batch_at(at, places.stop)
            count = failure[2] if failure else batch.num_rows
            new = [self._row(i) for i in range(at, at + count)]
            carried = None
            if failure is None:
                carried, failure = self._carry(batch)
            if failure is not None:
                for row in new:
                    row.fail(failure[0], failure[1])
                carried = pa.table([pa.nulls(count, f.type) for f in self._carried], schema=self._carried)
            else:
                self._take_images(batch.column(self._image), new, linked)
            rows += new
            tables.append(carried)
            at += count
        if linked:
            fill([row for row in rows if row.position in linked], lambda row: self._read_linked(row, linked))
        return make_segment(self._shard, index, last, rows, self._carried, pa.concat_tables(tables))

    def _row(self, position: int) -> ImageRow:
        uri = self._shard.shard_uri
        member = str(position) if self._names is None else self._names[position]
        row = ImageRow(f"{uri}#{position}", uri, member, position, -1)
        if self._names is not None and self._codes[position] is not None:
            row.fail("duplicate_member", f"{row.uri}: column {self._source.id_column!r} holds this value twice")
        return row

    def _batch_at(self, at: int, stop: int) -> tuple[pa.RecordBatch, tuple[str, str, int] | None]:
        """Return rows from ``at`` on, at most to ``stop``; or why the rest of their row group cannot be read."""
        group = bisect_right(self._starts, at) - 1
        group_end = self._starts[group + 1]
        if group != self._group:
            self._group, self._batch, self._failure = group, None, None
            self._batch_start = self._starts[group]
            origins = [origin_of(field) for field in self._carried]
            here = set(self._file.schema_arrow.names)
            names = sorted({self._image, *(name for kind, name in origins if kind == "column" and name in here)})
            self._batches = self._file.iter_batches(
                self._batch_rows(group), row_groups=[group], columns=names, use_threads=False
            )
        while self._failure is None and (self._batch is None or at >= self._batch_start + self._batch.num_rows):
            self._batch_start += self._batch.num_rows if self._batch is not None else 0
            try:
                self._batch = next(self._batches)
            except StopIteration:
                self._failure = "shard_corrupt", f"{self._shard.shard_uri}: row group {group} has too few rows"
            except StorageError as error:
                self._failure = lasting_shard_code(error), error.message
            except (pa.ArrowException, OSError, MemoryError) as error:
                self._failure = "shard_corrupt", f"{self._shard.shard_uri}: {' '.join(str(error).split())}"
        if self._failure is not None:
            return None, (*self._failure, min(group_end, stop) - at)
        assert self._batch is not None
        return self._batch.slice(at - self._batch_start, stop - at), None

    def _carry(self, batch: pa.RecordBatch) -> tuple[pa.Table | None, tuple[str, str, int] | None]:
        arrays = []
        for field in self._carried:
            kind, name = origin_of(field)
            try:
                array = as_carried(self._origin(batch, kind, name), field.type)
                array.validate(full=True)  # text that is no UTF-8 would make the tables unreadable
            except (pa.ArrowException, *_OF_A_TYPE) as error:
                message = f"{self._shard.shard_uri}: column {name!r}: {' '.join(str(error).split())}"
                return None, ("unreadable", message, batch.num_rows)
            arrays.append(array)
        return pa.table(arrays, schema=self._carried), None

    def _origin(self, batch: pa.RecordBatch, kind: str, name: str) -> pa.Array:
        """Return a column as the file has it; nulls for one that it has not."""
        rows = batch.num_rows
        if kind == "hive":
            return pa.repeat(pa.scalar(self._hive.get(name), pa.string()), rows)
        if kind == "image":
            image = batch.column(self._image)
            has_path = pa.types.is_struct(image.type) and image.type.get_field_index(name) >= 0
            return pc.struct_field(image, name) if has_path else pa.nulls(rows)
        if name not in batch.schema.names:
            return pa.nulls(rows)
        return batch.column(name)

    def _take_images(self, array: pa.Array, rows: Sequence[ImageRow], linked: dict[int, str]) -> None:
        paths: Sequence[str | None] = [None] * len(rows)
        if pa.types.is_struct(array.type):
            if array.type.get_field_index("path") >= 0:
                paths = as_carried(pc.struct_field(array, "path"), pa.string()).to_pylist()
            array = pc.struct_field(array, "bytes")
        for row, value, path in zip(rows, unwrapped(array), paths, strict=True):
            if row.error_code is not None:
                continue
            if value.is_valid:
                self._take(row, value)
            elif path:
                linked[row.position] = path
            else:
                row.fail("null_image", f"{row.uri}: column {self._image!r} holds nothing")

    def _take(self, row: ImageRow, value: Any) -> None:
        row.size_bytes = len(value.as_buffer())
        limit = self._source.max_image_bytes
        if row.size_bytes > limit:
            row.fail("too_large", f"{row.uri}: {row.size_bytes} bytes, source.max_image_bytes is {limit}")
        elif self._held_bytes and self._held_bytes + row.size_bytes > _MAX_HELD_BYTES:
            row.fail(
                "too_large",
                f"{row.uri}: with it a segment holds more than {_MAX_HELD_BYTES} bytes, though the file's footer says "
                "that its images are small; set compute.segment_rows lower",
            )
        else:
            self._held_bytes += row.size_bytes
            row.data = value.as_py()

    def _read_linked(self, row: ImageRow, linked: dict[int, str]) -> bytes:
        try:
            allowed = self._policy.check(linked[row.position])
        except ImageError as error:
            raise ImageError("null_image", f"{row.uri}: no bytes, and its path is refused: {error}") from error
        return read_allowed(allowed, self._source.max_image_bytes)
