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


def test_buffers_are_written_when_they_grow_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_MAX_BUFFER_BYTES", 1000)
    writer = PartWriter(str(tmp_path), "images", "r", SCHEMA, ("key",), 10**6)
    for i in range(100):
        writer.add(rows(i, 5, f"k{i % 3}"))
    assert sum(writer._bytes.values()) <= 1000
    assert sum(f.rows for f in writer.close({})) == 500


def test_too_many_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_MAX_PARTITIONS", 3)
    writer = PartWriter(str(tmp_path), "images", "r", SCHEMA, ("key",), 10)
    with pytest.raises(OutputError, match=r"output.partition_by: key makes more than 3 partitions"):
        writer.add(pa.concat_tables(rows(i, 1, f"k{i}") for i in range(4)))


def test_an_empty_table_keeps_its_columns(tmp_path: Path) -> None:
    writer = PartWriter(str(tmp_path), "images", "r", SCHEMA, ("key",), 10)
    writer.add(rows(0, 0))
    (only,) = writer.close({"key": "x"})
    assert only.path == "images/key=x/part-r-00000.parquet"
    assert pq.ParquetFile(tmp_path / only.path).schema_arrow.names == ["n"]
