"""Columns of any Arrow type and name are carried: Parquet, pyarrow's kernels, DuckDB and a whole job take them."""

import datetime as dt
import io
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchdet.job import run_job
from batchdet.results.open import open_results
from batchdet.results.tables import quote_name
from batchdet.source.columns import Column, carry
from batchdet.source.types import as_carried
from tests.without_ray import job, without_ray

_FLAT: list[tuple[pa.DataType, list[Any]]] = [
    (pa.int8(), [-128, 127]),
    (pa.uint64(), [2**64 - 1, 0]),
    (pa.float16(), [1.5, -2.0]),
    (pa.float64(), [0.1, float("inf")]),
    (pa.bool_(), [True, False]),
    (pa.string(), ["ü", ""]),
    (pa.string_view(), ["ü", "a text longer than twelve bytes"]),
    (pa.large_string(), ["a", "b"]),
    (pa.binary(), [b"\xff", b""]),
    (pa.binary_view(), [b"\xff", b"bytes of more than twelve"]),
    (pa.binary(3), [b"abc", b"\0\0\0"]),
    (pa.decimal32(5, 2), [Decimal("1.50"), Decimal("-9.99")]),
    (pa.decimal64(15, 2), [Decimal("1.50"), Decimal("-9.99")]),
    (pa.decimal128(38, 3), [Decimal("1.500"), Decimal("-9.999")]),
    (pa.decimal256(20, 2), [Decimal("1.50"), Decimal("-9.99")]),
    (pa.decimal256(76, 2), [Decimal(10) ** 70, Decimal("-9.99")]),
    (pa.date32(), [dt.date(2024, 2, 29), dt.date(1, 1, 1)]),
    (pa.date64(), [dt.date(2024, 2, 29), dt.date(1970, 1, 1)]),
    (pa.time32("s"), [dt.time(1, 2, 3), dt.time(0)]),
    (pa.time64("ns"), [dt.time(1, 2, 3), dt.time(0)]),
    (pa.timestamp("s"), [dt.datetime(2024, 1, 1), dt.datetime(1970, 1, 1)]),
    (pa.timestamp("ns", "UTC"), [1, 2]),
    (pa.timestamp("us", "Mars/Base"), [1, 2]),
    (pa.duration("s"), [1, 2]),
    (pa.null(), [None, None]),
    (pa.dictionary(pa.int8(), pa.string()), ["x", "y"]),
    (pa.uuid(), [b"0123456789abcdef", b"0123456789abcdee"]),
]
_Typed = tuple[pa.DataType, list[Any]]


def _nested(inner: st.SearchStrategy[_Typed]) -> st.SearchStrategy[_Typed]:
    plain = inner.filter(lambda t: not isinstance(t[0], pa.BaseExtensionType) and not pa.types.is_dictionary(t[0]))
    known = plain.filter(lambda t: "Mars" not in str(t[0]))  # becomes text, and Python tells no time on Mars
    return st.one_of(
        plain.map(lambda t: (pa.list_(t[0]), [[t[1][0], None], []])),
        plain.map(lambda t: (pa.large_list(t[0]), [[t[1][0]], t[1]])),
        plain.map(lambda t: (pa.list_(t[0], 2), [t[1], t[1]])),
        plain.map(lambda t: (pa.list_view(t[0]), [[t[1][0], None], []])),
        plain.map(lambda t: (pa.struct([("a", t[0]), ("b", pa.int8())]), [{"a": t[1][0], "b": 1}, {"a": None}])),
        known.map(lambda t: (pa.struct([("a", t[0]), ("A", pa.int8())]), [{"a": t[1][0], "A": 1}, {"a": None}])),
        plain.map(lambda t: (pa.map_(pa.string(), t[0]), [[("k", t[1][0]), ("k", None)], []])),
    )


_TYPES = st.recursive(st.sampled_from(_FLAT), _nested, max_leaves=3)
_NAMES = st.sampled_from(
    [
        "",
        "a",
        "A",
        "label",
        "URI",
        "q\"uo'te",
        "select",
        "a.b",
        "x y",
        "n\0",
        "rowid",
        "filename",
        "file_row_number",
        "ß",
    ]
)
_COLUMNS = st.dictionaries(
    _NAMES | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), _TYPES, min_size=1, max_size=5
)


def _array(type_: pa.DataType, values: list[Any]) -> pa.Array:
    storage = type_.storage_type if isinstance(type_, pa.BaseExtensionType) else type_
    if isinstance(type_, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(type_, pa.array([*values, None], storage))
    if pa.types.is_dictionary(type_):
        return pa.array([*values, None], type_.value_type).dictionary_encode()
    return pa.array([*values, None], type_)


@pytest.mark.timeout(180)
@settings(max_examples=60)
@example(columns={f"c{i}": typed for i, typed in enumerate(_FLAT)})
@example(columns={"m": (pa.map_(pa.string(), pa.list_(pa.null(), 2)), [[("k", [None, None]), ("k", None)], []])})
@given(columns=_COLUMNS)
def test_any_column_is_written_read_and_filtered(columns: dict[str, _Typed]) -> None:
    arrays = {name: _array(*typed) for name, typed in columns.items()}
    carried, _ = carry(Column("column", name, array.type, "f") for name, array in arrays.items())
    fitted = [as_carried(array, field.type) for array, field in zip(arrays.values(), carried, strict=True)]
    table = pa.table(fitted, schema=carried)
    table.validate(full=True)
    assert table.take([2, 0]).num_rows == 2
    assert table.filter(pa.array([True, False, True])).num_rows == 2
    for field in carried:
        if not pa.types.is_nested(field.type):
            assert table.sort_by(field.name).num_rows == 3
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(table, f"{folder}/t.parquet")
        back = pq.read_table(f"{folder}/t.parquet")
        assert [c.null_count for c in back.columns] == [c.null_count for c in table.columns]
        quoted = ", ".join(quote_name(name) + "::VARCHAR" for name in carried.names)
        assert len(duckdb.sql(f"SELECT {quoted} FROM '{folder}/t.parquet'").fetchall()) == 3


def _is_parquet(table: pa.Table) -> bool:
    try:
        pq.write_table(table, io.BytesIO())
        return True
    except (pa.ArrowException, OSError):
        return False


@pytest.mark.timeout(300)
@settings(max_examples=12)
@example(columns={f"c{i}": typed for i, typed in enumerate(_FLAT)})
@example(columns={"": _FLAT[0], "a": _FLAT[6], "A": _FLAT[2], "label": _FLAT[5], "image.path": _FLAT[5]})
@given(columns=_COLUMNS)
def test_any_column_goes_through_a_job(columns: dict[str, _Typed]) -> None:
    image = pa.array([{"bytes": bytes([i]) * 9, "path": f"{i}.jpg"} for i in range(3)])
    columns = {name: typed for name, typed in columns.items() if "\0" not in name}
    table = pa.table({"the image": image} | {name: _array(*typed) for name, typed in columns.items()})
    while not _is_parquet(table):
        table = table.select(table.schema.names[:-1])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "in").mkdir()
        pq.write_table(table, f"{folder}/in/a.parquet")
        with without_ray():
            run = run_job(job(f"{folder}/in", f"{folder}/out", source_={"image_column": "the image"}))
        assert (run.images_ok, run.images_failed) == (3, 0)
        found = open_results(f"{folder}/out").sql("SELECT COLUMNS(*)::VARCHAR FROM images ORDER BY uri").fetchall()
        assert len(found) == 3
        images = open_results(f"{folder}/out").images()
        assert len(found[0]) == len(images.schema)
        paths = images.to_arrow(["image_path"])["image_path"].to_pylist()
        assert sorted(paths) == ["0.jpg", "1.jpg", "2.jpg"]
