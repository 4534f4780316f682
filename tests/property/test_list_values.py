"""What is written in a list comes back as it was written, whoever wrote it."""

import csv
import io
import json
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.source.corpus import read_all

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=12)
_LOOKS_LIKE_NUMBERS = [
    "007",
    "1e3",
    "+1",
    "1.10",
    "NaN",
    "nan",
    "-0",
    "1_000",
    "0x1f",
    "12345678901234567890",
    "1.0",
    "5",
]
_WORDS = ["true", "false", "True", "inf", "2024-01-02", "", " 5", "null", "None"]
_CELL = _TEXT | st.sampled_from(_LOOKS_LIKE_NUMBERS + _WORDS) | st.integers().map(str) | st.floats().map(repr)
_COLUMN = st.lists(_CELL, min_size=3, max_size=3) | st.lists(
    st.integers(-(2**70), 2**70).map(str), min_size=3, max_size=3
)
_COLUMN |= st.lists(st.floats(allow_nan=False, allow_infinity=False).map(repr), min_size=3, max_size=3)
_COLUMN |= st.lists(st.sampled_from(["True", "False"]), min_size=3, max_size=3)


def _written(rows: list[list[str]], quoting: int = csv.QUOTE_MINIMAL, delimiter: str = ",", end: str = "\r\n") -> bytes:
    sink = io.StringIO(newline="")
    csv.writer(sink, quoting=quoting, delimiter=delimiter, lineterminator=end).writerows(rows)
    return sink.getvalue().encode()


def _carried(data: bytes, name: str = "l.csv") -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(data)
        carried = read_all(path).inventory
        return carried.objects.select(carried.carried.names).to_pylist()


_WRITERS = [
    lambda rows: _written(rows),
    lambda rows: _written(rows, csv.QUOTE_ALL),
    lambda rows: _written(rows, end="\n"),
    lambda rows: _written(rows, delimiter=";"),
    lambda rows: _written(rows, delimiter="\t", end="\n"),
    lambda rows: pd.DataFrame(rows[1:], columns=rows[0]).to_csv(index=False).encode(),
]


@pytest.mark.timeout(120)
@settings(max_examples=60)
@example(columns=[["007", "8", "9"], ["1.10", "2.5", "3.0"], ["true", "false", "true"]], writer=0)
@given(columns=st.lists(_COLUMN, min_size=1, max_size=4), writer=st.integers(0, len(_WRITERS) - 1))
def test_csv_comes_back(columns: list[list[str]], writer: int) -> None:
    header = ["uri", *(f"c{i}" for i in range(len(columns)))]
    rows = [header, *([f"{n}.jpg", *cells] for n, cells in enumerate(zip(*columns, strict=True)))]
    found = _carried(_WRITERS[writer](rows))
    assert len(found) == 3
    for row, want in zip(found, rows[1:], strict=True):
        for name, text in zip(header[1:], want[1:], strict=True):
            value = row[name]
            same = str(value) in {text, text.capitalize()} if isinstance(value, bool) else str(value) == text
            assert same or (value is None and text == ""), (name, text, value)


_NUMBER = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
_LEAF = _NUMBER | st.booleans() | _TEXT | st.none()
_VALUE = st.recursive(_LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3))
_JSON_COLUMN = st.one_of(
    *(
        st.lists(kind | st.none(), min_size=3, max_size=3)
        for kind in (st.integers(), _NUMBER, st.booleans(), _TEXT, _VALUE)
    )
)


@pytest.mark.timeout(120)
@settings(max_examples=80)
@example(columns=[[12345678901234567890, 1, 2], [1.5, 2, None], [{"a": {}}, None, {"b": [1, 2.5]}]])
@given(columns=st.lists(_JSON_COLUMN, min_size=1, max_size=3))
def test_json_lines_come_back(columns: list[list[Any]]) -> None:
    lines = [
        json.dumps({"uri": f"{n}.jpg"} | {f"c{i}": v for i, v in enumerate(values)})
        for n, values in enumerate(zip(*columns, strict=True))
    ]
    for n, row in enumerate(_carried("\n".join(lines).encode(), "l.jsonl")):
        for i, column in enumerate(columns):
            assert _is_same(row[f"c{i}"], column[n]), (row[f"c{i}"], column[n])


def _is_same(found: Any, want: Any) -> bool:
    if isinstance(found, str) and not isinstance(want, str):
        try:
            found = json.loads(found)
        except ValueError:
            return False
    if isinstance(want, dict):
        return isinstance(found, dict) and all(_is_same(found.get(k), want.get(k)) for k in found.keys() | want.keys())
    if isinstance(want, list):
        return isinstance(found, list) and len(found) == len(want) and all(map(_is_same, found, want))
    if isinstance(want, (int, float)) and not isinstance(want, bool) and isinstance(found, (int, float)):
        return Decimal(found) == Decimal(want)
    return bool(found == want and type(found) is type(want))


@given(text=st.sampled_from(["1.10", "1e400", "0.1234567890123456789", "100000000000000000000.0", "-0.0", "1E5"]))
def test_json_numbers_that_no_float_holds_stay_text(text: str) -> None:
    (row,) = _carried(f'{{"uri": "a.jpg", "x": {text}}}'.encode(), "l.jsonl")
    assert row["x"] == text or Decimal(repr(row["x"])) == Decimal(text)
