import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchdet.errors import OutputError
from batchdet.table import parts
from batchdet.table.parts import PartWriter

SCHEMA = pa.schema([("n", pa.int64()), ("key", pa.string())])


def rows(start: int, count: int, key: str | None = "a") -> pa.Table:
    return pa.table({"n": range(start, start + count), "key": [key] * count}, schema=SCHEMA)


def test_parts_are_cut_at_the_row_limit_in_order(tmp_path: Path) -> None:
    writer = PartWriter(str(tmp_path), "images", "r", SCHEMA, (), 10)
    for start in range(0, 35, 7):
        writer.add(rows(start, 7))
    files = writer.close({})
    assert [f.rows for f in files] == [10, 10, 10, 5]
    read = [pq.read_table(tmp_path / f.path)["n"].to_pylist() for f in files]
    assert [n for part in read for n in part] == list(range(35))
    for f in files:
        data = (tmp_path / f.path).read_bytes()
        assert (f.size_bytes, f.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_rows_wait_in_little_memory_and_part_files_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_BUFFER_BYTES", 1000)
    monkeypatch.setattr(parts, "_MORE_PER_PARTITION_BYTES", 10)
    writer = PartWriter(str(tmp_path), "images", "r", SCHEMA, ("key",), 10**6, sort_by=("n",))
    for i in range(100):
        writer.add(rows(-i, 5, f"k{i % 3}"))
        assert sum(partition.size_bytes for partition in writer._partitions.values()) <= 1000
    files = writer.close({})
    assert [f.path for f in files] == [f"images/key=k{i}/part-r-00000.parquet" for i in range(3)]
    assert sum(f.rows for f in files) == 500
    for f in files:
        file = pq.ParquetFile(tmp_path / f.path)
        assert file.num_row_groups > 1
        for group in range(file.num_row_groups):
            numbers = file.read_row_group(group)["n"].to_pylist()
            assert numbers == sorted(numbers)


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_MAX_OPEN_FILES", 2)
    monkeypatch.setattr(parts, "ROW_GROUP_ROWS", 5)
    writer = PartWriter(str(tmp_path), "images", "r", SCHEMA, ("key",), 100)
    for i in range(40):
        writer.add(rows(5 * i, 5, f"k{i % 4}"))
        assert sum(partition.writer is not None for partition in writer._partitions.values()) <= 2
    files = writer.close({})
    read = [n for f in files for n in pq.read_table(tmp_path / f.path)["n"].to_pylist()]
    assert sorted(read) == list(range(200))


def test_too_many_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_PARTITIONS", 3)
    writer = PartWriter(str(tmp_path), "images", "r", SCHEMA, ("key",), 10)
    with pytest.raises(OutputError, match=r"output.partition_by: key makes more than 3 partitions"):
        writer.add(pa.concat_tables(rows(i, 1, f"k{i}") for i in range(4)))


def test_an_empty_table_keeps_its_columns(tmp_path: Path) -> None:
    writer = PartWriter(str(tmp_path), "images", "r", SCHEMA, ("key",), 10)
    writer.add(rows(0, 0))
    (only,) = writer.close({"key": "x"})
    assert only.path == "images/key=x/part-r-00000.parquet"
    assert pq.ParquetFile(tmp_path / only.path).schema_arrow.names == ["n"]
