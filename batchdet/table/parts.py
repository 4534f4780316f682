"""Part files: rows gathered by Hive partition and written as few, large, sorted Parquet files."""

import hashlib
import io
import urllib.parse
from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchdet import storage
from batchdet.errors import OutputError
from batchdet.table.manifest import PartFile

ROW_GROUP_ROWS: Final = 128 * 1024
_MAX_BUFFER_BYTES: Final = 256 * 1024 * 1024
_MAX_PARTITIONS: Final = 10_000
_NULL_PARTITION: Final = "__HIVE_DEFAULT_PARTITION__"


class PartWriter:
    """Writes one table of one run.

    Memory stays below about 256 MiB of buffered rows, whatever the size of the table.

    Args:
        folder: Where part files are gathered before they are moved to their place.
        table: ``images`` or ``detections``.
        run_id: Goes into file names and metadata.
        schema: Of the table without partition columns.
        partition_by: Partition columns, outermost first.
        part_rows: At most this many rows per file.
        sort_by: Columns to sort each part by; empty keeps the order of arrival.
        metadata: Key-value metadata of each file.
    """

    def __init__(
        self,
        folder: str,
        table: str,
        run_id: str,
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
        self._run_id = run_id
        self._partition_by = tuple(partition_by)
        self._part_rows = part_rows
        self._sort_by = tuple(sort_by)
        self._buffers: dict[tuple[str, ...], list[pa.Table]] = {}
        self._rows: dict[tuple[str, ...], int] = {}
        self._bytes: dict[tuple[str, ...], int] = {}
        self._numbers: dict[tuple[str, ...], int] = {}

    def add(self, rows: pa.Table) -> None:
        """Take rows that have the columns of the schema and of the partitions.

        Raises:
            OutputError: There are too many partitions, or a file cannot be written.
        """
        for values, part in self._split(rows):
            if values not in self._buffers and len(self._numbers) >= _MAX_PARTITIONS:
                raise OutputError(
                    f"output.partition_by: {', '.join(self._partition_by)} makes more than {_MAX_PARTITIONS} "
                    "partitions; partition by a column with few values"
                )
            self._numbers.setdefault(values, 0)
            self._buffers.setdefault(values, []).append(part)
            self._rows[values] = self._rows.get(values, 0) + part.num_rows
            self._bytes[values] = self._bytes.get(values, 0) + part.nbytes
            while self._rows.get(values, 0) >= self._part_rows:
                self._flush(values, self._part_rows)
        while sum(self._bytes.values()) > _MAX_BUFFER_BYTES:
            fullest = max(self._bytes, key=lambda key: self._bytes[key])
            self._flush(fullest, self._rows[fullest])

    def close(self, constants: dict[str, str]) -> list[PartFile]:
        """Write what is left; a table without rows gets one empty file, so that readers find its columns.

        Args:
            constants: Partition values known without rows, such as ``run_date``.

        Returns:
            All part files, by path.
        """
        for values in sorted(self._buffers):
            self._flush(values, self._rows[values])
        if not self.parts:
            empty = tuple(constants.get(name, _NULL_PARTITION) for name in self._partition_by)
            self._buffers[empty] = [self.schema.empty_table()]
            self._rows[empty] = self._numbers[empty] = 0
            self._flush(empty, 0)
        return sorted(self.parts, key=lambda part: part.path)

    def _split(self, rows: pa.Table) -> list[tuple[tuple[str, ...], pa.Table]]:
        columns = rows.select(self.schema.names).cast(self.schema)
        if not self._partition_by or rows.num_rows == 0:
            return [((), columns)] if rows.num_rows else []
        keys = [pc.fill_null(rows[name].cast(pa.string()), _NULL_PARTITION) for name in self._partition_by]
        if all(pc.count_distinct(key).as_py() == 1 for key in keys):
            return [(tuple(key[0].as_py() for key in keys), columns)]
        joined = pa.table(keys, names=[str(i) for i in range(len(keys))])
        result = []
        for group in joined.group_by(joined.schema.names, use_threads=False).aggregate([]).to_pylist():
            mask = pa.chunked_array([pa.repeat(True, rows.num_rows)])
            for i, key in enumerate(keys):
                mask = pc.and_(mask, pc.equal(key, group[str(i)]))
            result.append((tuple(group[str(i)] for i in range(len(keys))), columns.filter(mask)))
        return result

    def _flush(self, values: tuple[str, ...], count: int) -> None:
        rows = pa.concat_tables(self._buffers[values])
        now, later = rows.slice(0, count), rows.slice(count)
        if self._sort_by:
            now = now.sort_by([(name, "ascending") for name in self._sort_by])
        buffer = io.BytesIO()
        sorting = [pq.SortingColumn(self.schema.get_field_index(name)) for name in self._sort_by] or None
        pq.write_table(
            now.combine_chunks(),
            buffer,
            row_group_size=ROW_GROUP_ROWS,
            compression="zstd",
            sorting_columns=sorting,
            store_schema=True,
        )
        data = buffer.getvalue()
        slices = [f"{n}={urllib.parse.quote(v, safe='')}" for n, v in zip(self._partition_by, values, strict=True)]
        name = f"part-{self._run_id}-{self._numbers[values]:05d}.parquet"
        path = storage.join(self._table, *slices, name)
        storage.persist(lambda: storage.write_bytes(storage.join(self._folder, path), data))
        self.parts.append(PartFile(path, now.num_rows, len(data), hashlib.sha256(data).hexdigest()))
        self._numbers[values] += 1
        if later.num_rows:
            self._buffers[values] = [later]
            self._rows[values] = later.num_rows
            self._bytes[values] = later.nbytes
        else:
            self._buffers.pop(values)
            self._rows.pop(values)
            self._bytes.pop(values, None)
