"""Part files: rows gathered by Hive partition and written as few, large Parquet files of sorted row groups."""

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchdet import storage
from batchdet.errors import OutputError
from batchdet.records.hive import NULL, folder_of
from batchdet.table.manifest import PartFile

ROW_GROUP_ROWS: Final = 128 * 1024
_BUFFER_BYTES: Final = 16 * 1024 * 1024
_MORE_PER_PARTITION_BYTES: Final = 256 * 1024
"""Many partitions share the buffer; with less for each, their row groups would be too small to read well."""
_MAX_BUFFER_BYTES: Final = 256 * 1024 * 1024
_MAX_PIECES: Final = 64
"""A table of a few rows takes up more than they do."""
_MAX_OPEN_FILES: Final = 128
MAX_PARTITIONS: Final = 10_000


_Values = tuple[str | None, ...]
"""Of the partition columns, outermost first."""


@dataclass
class _Partition:
    """What is known of one partition so far.

    Args:
        buffer: Rows that are in no file yet.
        rows: How many.
        size_bytes: Their size.
        number: Of the next part file.
        written: Rows in the part file that is being written.
        file: The part file that is being written: a local one without a name, so that a process that is killed
            leaves nothing behind; None between two.
        writer: Writes into it.
    """

    buffer: list[pa.Table] = field(default_factory=list)
    rows: int = 0
    size_bytes: int = 0
    number: int = 0
    written: int = 0
    file: Any = None
    writer: pq.ParquetWriter | None = None


class PartWriter:
    """Writes one table of one run.

    Memory does not grow with the table: rows wait for a row group to be full, 16 MiB in all (with hundreds of
    partitions more, at most 256 MiB); part files grow on the local disk until they are stored.

    Args:
        folder: Where part files are gathered before they are moved to their place.
        table: ``images`` or ``detections``.
        name: Goes into file names: ``part-NAME-00000.parquet``.
        schema: Of the table without partition columns.
        partition_by: Partition columns, outermost first.
        part_rows: At most this many rows per file.
        sort_by: Columns to sort each row group by; empty keeps the order of arrival.
        metadata: Key-value metadata of each file.
    """

    def __init__(
        self,
        folder: str,
        table: str,
        name: str,
        schema: pa.Schema,
        partition_by: Sequence[str],
        part_rows: int,
        sort_by: Sequence[str] = (),
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.schema = pa.schema([f for f in schema if f.name not in partition_by], metadata=metadata)
        self.parts: list[PartFile] = []
        self._folder = folder
        self._table = table
        self._name = name
        self._partition_by = tuple(partition_by)
        self._part_rows = part_rows
        self._sort_by = tuple(sort_by)
        self._partitions: dict[_Values, _Partition] = {}

    def add(self, rows: pa.Table) -> None:
        """Take rows that have the columns of the schema and of the partitions.

        Raises:
            OutputError: There are too many partitions, or a file cannot be written.
        """
        for values, part in self._split(rows):
            if values not in self._partitions and len(self._partitions) >= MAX_PARTITIONS:
                raise OutputError(
                    f"output.partition_by: {', '.join(self._partition_by)} makes more than {MAX_PARTITIONS} "
                    "partitions; partition by a column with few values"
                )
            partition = self._partitions.setdefault(values, _Partition())
            partition.buffer.append(part)
            partition.rows += part.num_rows
            partition.size_bytes += part.nbytes
            if len(partition.buffer) > _MAX_PIECES:
                partition.buffer = [pa.concat_tables(partition.buffer).combine_chunks()]
            while partition.rows >= min(ROW_GROUP_ROWS, self._part_rows - partition.written):
                self._write(values, partition)
        limit = min(_MAX_BUFFER_BYTES, max(_BUFFER_BYTES, _MORE_PER_PARTITION_BYTES * len(self._partitions)))
        while sum(partition.size_bytes for partition in self._partitions.values()) > limit:
            self._write(*max(self._partitions.items(), key=lambda item: item[1].size_bytes))

    def close(self, constants: dict[str, str]) -> list[PartFile]:
        """Write what is left; a table without rows gets one empty file, so that readers find its columns.

        Args:
            constants: Partition values known without rows, such as ``run_date``.

        Returns:
            All part files, by path.
        """
        if not self._partitions:
            empty = tuple(constants.get(name) for name in self._partition_by)
            self._partitions[empty] = _Partition([self.schema.empty_table()])
        for values, partition in sorted(self._partitions.items(), key=lambda item: self._folders(item[0])):
            if partition.buffer:
                self._write(values, partition)
            if partition.writer:
                self._store(values, partition)
        return sorted(self.parts, key=lambda part: part.path)

    def _split(self, rows: pa.Table) -> list[tuple[_Values, pa.Table]]:
        columns = rows.select(self.schema.names).cast(self.schema)
        if not self._partition_by or rows.num_rows == 0:
            return [((), columns)] if rows.num_rows else []
        texts = [rows[name].cast(pa.string()) for name in self._partition_by]
        keys = [pc.if_else(pc.equal(text, NULL), pa.scalar(None, pa.string()), text) for text in texts]
        if all(pc.count_distinct(key, mode="all").as_py() == 1 for key in keys):
            return [(tuple(key[0].as_py() for key in keys), columns)]
        joined = pa.table(keys, names=[str(i) for i in range(len(keys))])
        result = []
        for group in joined.group_by(joined.schema.names, use_threads=False).aggregate([]).to_pylist():
            mask = pa.chunked_array([pa.repeat(True, rows.num_rows)])
            for i, key in enumerate(keys):
                value = group[str(i)]
                mask = pc.and_(mask, pc.is_null(key) if value is None else pc.fill_null(pc.equal(key, value), False))
            result.append((tuple(group[str(i)] for i in range(len(keys))), columns.filter(mask)))
        return result

    def _write(self, values: _Values, partition: _Partition) -> None:
        """Write a row group, and store the part file when it is full."""
        rows = pa.concat_tables(partition.buffer)
        room = min(ROW_GROUP_ROWS, self._part_rows - partition.written)
        now, later = rows.slice(0, room), rows.slice(room)
        if self._sort_by:
            now = now.sort_by([(name, "ascending") for name in self._sort_by])
        if partition.writer is None:
            self._make_room()
        with self._spooling():
            writer = partition.writer or self._open(partition)
            writer.write_table(now.combine_chunks(), row_group_size=ROW_GROUP_ROWS)
        partition.written += now.num_rows
        partition.buffer = [later] if later.num_rows else []
        partition.rows, partition.size_bytes = later.num_rows, later.nbytes
        if partition.written >= self._part_rows:
            self._store(values, partition)

    def _open(self, partition: _Partition) -> pq.ParquetWriter:
        sorting = [pq.SortingColumn(self.schema.get_field_index(name)) for name in self._sort_by] or None
        partition.file = tempfile.TemporaryFile(prefix="batchdet-part-")  # noqa: SIM115  # closed by _store
        partition.writer = pq.ParquetWriter(
            partition.file, self.schema, compression="zstd", sorting_columns=sorting, store_schema=True
        )
        return partition.writer

    @contextlib.contextmanager
    def _spooling(self) -> Iterator[None]:
        """Say which folder is full if a local part file cannot be written; what is there gives its room back."""
        try:
            with storage.temporary_errors():
                yield
        except storage.StorageError:
            for partition in self._partitions.values():
                if partition.file is not None:
                    with contextlib.suppress(OSError):
                        partition.file.close()
            raise

    def _make_room(self) -> None:
        """Store the largest part file when too many are open."""
        open_ones = [(values, partition) for values, partition in self._partitions.items() if partition.writer]
        if len(open_ones) >= _MAX_OPEN_FILES:
            self._store(*max(open_ones, key=lambda item: item[1].written))

    def _folders(self, values: _Values) -> list[str]:
        return [folder_of(name, value) for name, value in zip(self._partition_by, values, strict=True)]

    def _store(self, values: _Values, partition: _Partition) -> None:
        assert partition.writer is not None
        with self._spooling():
            partition.writer.close()
            partition.file.flush()
        name = f"part-{self._name}-{partition.number:05d}.parquet"
        path, file = storage.join(self._table, *self._folders(values), name), partition.file
        with file:
            size_bytes = file.seek(0, io.SEEK_END)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            storage.persist(lambda: storage.write_file(storage.join(self._folder, path), file))
        self.parts.append(PartFile(path, partition.written, size_bytes, digest))
        partition.number, partition.written = partition.number + 1, 0
        partition.writer = partition.file = None
