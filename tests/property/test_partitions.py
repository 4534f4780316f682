"""Any value of a partition column comes back equal, through pyarrow, DuckDB and batchdet's own reader."""

import tempfile
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchdet.records.hive import folder_of, is_too_long, value_of, why_not
from batchdet.results.tables import partition_values, quote_name, quote_text
from batchdet.table.parts import PartWriter

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_ODD = [
    "a/b",
    "..",
    ".",
    "x=y",
    "%41",
    "new\nline",
    "e\u0301",
    "",
    " ",
    "null",
    "NaN",
    "007",
]
_NAMES = ["camera", "photo day", "straße", "a.b", "it's", 'say "x"', "1", "select", "Ü\u0301"]


def _written(folder: str, name: str, values: list[str | None]) -> list[str]:
    schema = pa.schema([("n", pa.int64()), (name, pa.string())])
    writer = PartWriter(folder, "images", "r", schema, (name,), 1000)
    writer.add(pa.table({"n": range(len(values)), name: pa.array(values, pa.string())}, schema=schema))
    return [part.path for part in writer.close({})]


def _by_number(rows: list[tuple[int, str | None]]) -> list[str | None]:
    return [value for _, value in sorted(rows, key=lambda row: row[0])]


@pytest.mark.timeout(120)
@settings(max_examples=40)
@example(values=[*_ODD, None], name="camera")
@given(values=st.lists(_TEXT | st.sampled_from(_ODD) | st.none(), min_size=1, max_size=8), name=st.sampled_from(_NAMES))
def test_values_come_back(values: list[str | None], name: str) -> None:
    values = [None if v is None or is_too_long(name, v) else v for v in values]
    with tempfile.TemporaryDirectory() as folder:
        paths = _written(folder, name, values)
        found = ds.dataset(folder, partitioning=ds.HivePartitioning(pa.schema([(name, pa.string())]))).to_table()
        assert _by_number(list(zip(found["n"].to_pylist(), found[name].to_pylist(), strict=True))) == values
        files = ", ".join(quote_text(f"{folder}/{path}") for path in paths)
        options = "hive_partitioning=true, hive_types_autocast=false"
        read = duckdb.sql(f"SELECT n, {quote_name(name)} FROM read_parquet([{files}], {options})")
        assert _by_number(read.fetchall()) == values
        ours = []
        for path in paths:
            for n in ds.dataset(f"{folder}/{path}").to_table()["n"].to_pylist():
                ours.append((n, partition_values(path)[name]))
        assert _by_number(ours) == values


def test_the_name_of_null_is_null(tmp_path: Path) -> None:
    paths = _written(str(tmp_path), "camera", [None, "__HIVE_DEFAULT_PARTITION__", "a"])
    assert [partition_values(path) for path in paths] == [{"camera": None}, {"camera": "a"}]


@given(values=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=200, max_size=400), unique=True))
def test_long_values_are_cut_and_stay_apart(values: list[str]) -> None:
    folders = [folder_of("camera", value) for value in values]
    assert len(set(folders)) == len(values)
    for folder, value in zip(folders, values, strict=True):
        assert len(folder.encode()) <= 255
        found = value_of(folder.partition("=")[2])
        assert found is not None
        assert found == value if not is_too_long("camera", value) else value.startswith(found[:-17])


@pytest.mark.parametrize(
    "name", ["km/h", "a=b", "", "_hidden", ".x", "a%41", "a*", "a?b", "a[1]", "a\\b", "a\nb", "a" * 200]
)
def test_names_that_readers_do_not_find_again(name: str) -> None:
    assert why_not(name)


@pytest.mark.parametrize("name", _NAMES)
def test_names_that_they_do(name: str) -> None:
    assert why_not(name) == ""
