"""Hostile tars and lists: only failed rows and typed errors, no hang, nothing outside is read (ACCEPTANCE S24)."""

import contextlib
import gzip
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from batchdet.errors import BatchdetError, ImageError
from batchdet.records.schema import ERROR_CODES
from batchdet.source.columns import carried_names
from batchdet.source.policy import UriPolicy
from batchdet.source.stream import StreamCorrupt
from batchdet.source.tar import _pax_records
from tests.unit.source.corpus import END, padded, raw_header, read_all, tar_bytes

pytestmark = [pytest.mark.timeout(120), pytest.mark.acceptance("S24")]
FUZZ = settings(max_examples=150, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
_TYPES = [b"0", b"\0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"L", b"K", b"S", b"x", b"X", b"g", b"V", b"M", b"Z"]

headers = st.builds(
    lambda name, size, type_, data, lie: raw_header(name, len(data) if lie is None else lie, type_) + padded(data),
    st.binary(max_size=20).map(lambda b: b + b".jpg"),
    st.just(0),
    st.sampled_from(_TYPES),
    st.binary(max_size=1500),
    st.one_of(st.none(), st.integers(-(2**62), 2**62), st.integers(0, 3000)),
)


def _read(folder: Path, name: str, data: bytes) -> list[str | None]:
    (folder / name).write_bytes(data)
    got = read_all(folder / name, segment_rows=3, max_image_bytes=1 << 20)
    assert {c for c in got.codes if c is not None} <= set(ERROR_CODES)
    for row in got.rows:
        assert row["error_message"] is None or len(row["error_message"]) < 2000
    return got.codes


@FUZZ
@given(parts=st.lists(headers, max_size=6), end=st.sampled_from([b"", END, b"garbage"]), packed=st.booleans())
def test_tar_of_hostile_headers(tmp_path: Path, parts: list[bytes], end: bytes, packed: bool) -> None:
    data = b"".join(parts) + end
    _read(tmp_path, "a.tar", gzip.compress(data, 1) if packed else data)
    assert os.listdir(tmp_path) == ["a.tar"]


@FUZZ
@given(data=st.binary(max_size=3000), packed=st.booleans())
def test_bytes_that_are_no_tar(tmp_path: Path, data: bytes, packed: bool) -> None:
    _read(tmp_path, "a.tar", gzip.compress(data, 1) if packed else data)


@FUZZ
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=8), packed=st.booleans())
def test_tar_with_changed_bytes(tmp_path: Path, changes: list[tuple[int, int]], packed: bool) -> None:
    long_name = "d/" * 60 + "long.jpg"
    data = tar_bytes([("a.jpg", b"1" * 700), (long_name, b"2"), ("a.json", b"{}"), ("b.jpg", b"3" * 512)])
    changed = bytearray(gzip.compress(data, 1) if packed else data)
    for place, value in changes:
        changed[place % len(changed)] = value
    codes = _read(tmp_path, "a.tar", bytes(changed))
    assert codes or changes


@FUZZ
@given(st.binary(max_size=400))
def test_pax_records(data: bytes) -> None:
    try:
        _pax_records(data)
    except StreamCorrupt:
        return


@FUZZ
@given(data=st.one_of(st.binary(max_size=600), st.text(max_size=300).map(str.encode)), kind=st.sampled_from(
    ["csv", "tsv", "jsonl", "txt", "parquet"]))  # fmt: skip
def test_lists_of_anything(tmp_path: Path, data: bytes, kind: str) -> None:
    with contextlib.suppress(BatchdetError):
        _read(tmp_path, f"l.{kind}", data)


_CELLS = st.sampled_from(
    ["a.jpg", "../a.jpg", "s3://b/a.jpg", "http://h/a.jpg", "", " ", '"', '""', "a,b", "\t", ";", "\r", "\n", "\0", "é",
     "=1", "1e999", "NaN", "true", "9" * 30, "{", "[1]", "null", "\ufeff", "\x1b[2J", "file:///etc/passwd", "x" * 1500]
)  # fmt: skip
_VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _CELLS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_CELLS, inner, max_size=3),
    max_leaves=5,
)


@FUZZ
@given(
    rows=st.lists(st.lists(_CELLS, min_size=1, max_size=4), max_size=5),
    first=st.sampled_from(["url,n", "uri;n;m", "image\tx", "a.jpg,1", '"url","url"', "\ufeffurl", "n"]),
    separator=st.sampled_from(",;\t"),
    kind=st.sampled_from(["csv", "tsv", "txt"]),
)
@example(rows=[["x" * 1500, "x" * 1500]], first="url,n", separator=",", kind="txt")
def test_tables_of_awkward_cells(tmp_path: Path, rows: list[list[str]], first: str, separator: str, kind: str) -> None:
    text = "\n".join([first, *(separator.join(row) for row in rows)])
    with contextlib.suppress(BatchdetError):
        _read(tmp_path, f"l.{kind}", text.encode())


@FUZZ
@given(st.lists(st.dictionaries(st.sampled_from(["url", "n", "a.b", "URL", ""]), _VALUES, max_size=4), max_size=4))
def test_json_lines_of_awkward_values(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    with contextlib.suppress(BatchdetError):
        _read(tmp_path, "l.jsonl", "\n".join(map(json.dumps, rows)).encode())


_PIECES = st.sampled_from(
    [
        "..", ".", "/", "//", "a", "b.jpg", "file:", "s3:", "http:", "https:", "FILE:", "memory:", "data:", "::", "@",
        "%2e", "\\", "~", "127.0.0.1", "[", "]", "#", "?", ":", "evil.org", "allowed.org", " ", "\0", "é", "bucket",
    ]
)  # fmt: skip


@FUZZ
@given(pieces=st.lists(_PIECES, max_size=9))
def test_nothing_outside_the_folder_is_allowed(pieces: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder) / "in"
        inside.mkdir()
        for allow in [(), ("https://allowed.org/a/",)]:
            try:
                allowed = UriPolicy(str(inside / "l.csv"), allow).check("".join(pieces))
            except ImageError:
                continue
            if "://" in allowed.uri:
                assert allowed.uri.startswith("https://allowed.org/a/" if allow else "s3://")
            else:
                assert not allow
                assert Path(allowed.uri).is_relative_to(inside)


_NAMES = ["uri", "source_uri", "source_source_uri", "label", "source_label", "x", "X", "URI", "", "\0", "column_1", "ß"]


@given(st.lists(st.sampled_from(_NAMES) | st.text(max_size=3), unique=True))
def test_carried_names_never_collide(names: list[str]) -> None:
    chosen = carried_names(names)
    folded = {name.casefold() for name in chosen}
    assert len(folded) == len(names) == len(chosen)
    assert not {"uri", "label", ""} & folded
    assert "\0" not in "".join(chosen)


def _parquet(column: str) -> bytes:
    sink = io.BytesIO()
    values = [b"1" * 300, b"2", None] if column == "image" else ["a.jpg", "b.jpg", None]
    rows = {column: values * 4, "n": range(12), "text": ["ü", "b", None] * 4, "s": [{"x": 1}, None, {"x": None}] * 4}
    pq.write_table(pa.table(rows), sink, row_group_size=5)
    return sink.getvalue()


_PARQUET = {column: _parquet(column) for column in ("image", "url")}
_CHANGES = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6)


@FUZZ
@example(changes=[(13121, 128)], column="image", cut=0)  # a name in the footer that is no text
@given(changes=_CHANGES, column=st.sampled_from(["image", "url"]), cut=st.integers(0, 3))
def test_parquet_with_changed_bytes(tmp_path: Path, changes: list[tuple[int, int]], column: str, cut: int) -> None:
    changed = bytearray(_PARQUET[column])
    for place, value in changes:
        changed[-(place % len(changed)) - 1] = value  # more of them in the footer than elsewhere
    with contextlib.suppress(BatchdetError):
        _read(tmp_path, "t.parquet", bytes(changed[: len(changed) - cut]))


@FUZZ
@given(changes=_CHANGES)
def test_gzip_with_changed_bytes(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    changed = bytearray(gzip.compress(tar_bytes([("a.jpg", b"1" * 700), ("b.jpg", os.urandom(3000))]), mtime=0))
    for place, value in changes:
        changed[place % len(changed)] = value
    _read(tmp_path, "a.tar", bytes(changed))
