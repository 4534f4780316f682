"""One list file, read as it is written: its columns as texts, with or without a header line."""

import csv
import io
import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from batchdet import storage
from batchdet.errors import SourceError
from batchdet.source.columns import is_uri_name
from batchdet.source.listing import is_image_name
from batchdet.spec import SourceSpec
from batchdet.storage import StorageError, StoredObject

_BOM: Final = b"\xef\xbb\xbf"
_SEPARATORS: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_LINE_END: Final = re.compile("\r\n|\r|\n")
_TOLD_SEPARATOR: Final = re.compile('\\A"?sep=([,;\t|])"?(?:\r\n|\r|\n)')
"""The first line by which Excel is told what separates the columns."""
_BLOCK_ROWS: Final = 65536
_LONGEST_NAME: Final = 4096
"""Of a column that is taken for a path: no file system knows longer ones."""


@dataclass(frozen=True)
class ListFile:
    """One list as it is written.

    Args:
        uri: The list.
        table: Its columns: those of Parquet as they are, of all others as texts.
        kinds: Of columns of texts: which kinds of values JSON has there (str, int, float, bool, nested), or ``csv``.
        note: What a person should know of how it was read, or "".
    """

    uri: str
    table: pa.Table
    kinds: dict[str, frozenset[str]] = field(default_factory=dict)
    note: str = ""


def read_list(obj: StoredObject, source: SourceSpec) -> ListFile:
    """Read one list; one without a line has no row, and the columns that are asked for.

    Raises:
        SourceError: It cannot be read, or it is not certain what its columns are.
    """
    try:
        data = storage.retry(lambda: storage.read_object(obj))
    except StorageError as error:
        raise SourceError(f"source.uri: {error.message}") from error
    name = posixpath.basename(obj.uri).lower()
    data = data.removeprefix(_BOM)
    try:
        if name.endswith((".parquet", ".pq")):
            return ListFile(obj.uri, _read_parquet(data))
        text = data.decode()
        if not text.strip():
            named = [source.image_column or "uri", *filter(None, [source.id_column])]
            return ListFile(obj.uri, pa.table({column: pa.array([], pa.string()) for column in named}))
        if name.endswith((".jsonl", ".ndjson", ".json")):
            return _read_json(text, obj.uri)
        if name.endswith((".csv", ".tsv")):
            return _read_csv(data, text, obj.uri, source)
        lines = _LINE_END.split(text)
        return ListFile(obj.uri, pa.table({"uri": pa.array([line for line in lines if line.strip()], pa.string())}))
    except UnicodeDecodeError as error:
        raise SourceError(
            f"source.uri: {obj.uri} is not UTF-8 text (byte {error.start}); save it as UTF-8",
            code="source.list",
            key=obj.uri,
        ) from error
    except (pa.ArrowException, csv.Error) as error:
        text = " ".join(str(error).split())
        raise _unreadable(obj.uri, text) from error


def _unreadable(uri: str, why: str) -> SourceError:
    return SourceError(f"source.uri: {uri} cannot be read as a list: {why}", code="source.list", key=uri)


def _read_parquet(data: bytes) -> pa.Table:
    try:
        table = pq.read_table(pa.BufferReader(data))
        table.validate(full=True)  # text that is no UTF-8 would make the tables unreadable
        return table
    except pa.ArrowException:
        raise
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:  # broken pages, odd column types
        raise pa.ArrowInvalid(f"{type(error).__name__}: {error}") from error


def _read_csv(data: bytes, text: str, uri: str, source: SourceSpec) -> ListFile:
    usual = "\t" if uri.lower().endswith(".tsv") else ","
    if told := _TOLD_SEPARATOR.match(text):
        text, data = text[told.end() :], data[told.end() :]
        separator, first = told[1], _first_record(text, told[1])
    else:
        separator, first = _separator(text, usual, uri, source)
    _check_quotes(text, separator, uri)
    texts = dict.fromkeys((f"f{i}" for i in range(len(first))), pa.string())
    table = pa.csv.read_csv(
        pa.BufferReader(data if data.endswith(b"\n") else data + b"\n"),  # Arrow takes one open line for an empty file
        read_options=pa.csv.ReadOptions(
            use_threads=False, block_size=max(1024, len(data) + 2), autogenerate_column_names=True
        ),
        parse_options=pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(column_types=texts, strings_can_be_null=True, null_values=[""]),
    )
    notes = [] if separator == usual else [f"{uri} is read with {_SEPARATORS[separator]} between its columns"]
    names = ["" if value is None else value for value in (column[0].as_py() for column in table.columns)]
    place = _image_in_first_line(names, uri, source)
    if place is None:
        table = table.slice(1)
    else:
        names = ["uri" if i == place else f"column_{i + 1}" for i in range(len(names))]
        notes.append(f"{uri} has no header line; its columns are called {', '.join(names)}")
    return ListFile(uri, table.rename_columns(names), dict.fromkeys(names, frozenset({"csv"})), "; ".join(notes))


def _separator(text: str, usual: str, uri: str, source: SourceSpec) -> tuple[str, list[str]]:
    """Find what separates the columns, by the first line: that which shows a column of URIs, or the usual one."""
    found = {usual: _first_record(text, usual)} | {s: _first_record(text, s) for s in _SEPARATORS}
    for separator, cells in found.items():
        if source.image_column in cells or any(map(is_uri_name, cells)):
            return separator, cells
    whole = found[usual][0]
    if len(found[usual]) == 1 and not _is_file(whole, uri):
        for separator, cells in found.items():
            told = separator == "\t" or any(_is_file(cell, uri) for cell in cells)
            if len(cells) > 1 and (told or (not is_image_name(whole) and any(map(is_image_name, cells)))):
                return separator, cells
    return usual, found[usual]


def _check_quotes(text: str, separator: str, uri: str) -> None:
    """Refuse quotation marks that do not stand in pairs: a value without an end would swallow images.

    Raises:
        SourceError: A value is not closed, or more follows behind its end.
    """
    border = re.escape(separator) + r"\r\n"
    for value in re.finditer(rf'(?:\A|(?<=[{border}]))"[^"]*(?:""[^"]*)*("(?=[{border}]|\Z))?', text):
        if value[1] is None:
            line = text.count("\n", 0, value.start()) + 1
            raise SourceError(
                f"source.uri: {uri}:{line} has a value whose quotation marks do not stand in pairs; "
                'close the value, and write "" for a quotation mark within it',
                code="source.quotes",
                key=f"{uri}:{line}",
            )


def _first_record(text: str, separator: str) -> list[str]:
    try:
        return next(record for record in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if record)
    except csv.Error:
        return [""]


def _is_image(cell: str) -> bool:
    return is_image_name(cell) or "://" in cell


def _image_in_first_line(cells: Sequence[str], uri: str, source: SourceSpec) -> int | None:
    """Return which cell of the first line is an image, so that the line is no header; None if it is one.

    Raises:
        SourceError: Several are, or one may be.
    """
    if source.image_column in cells or any(map(is_uri_name, cells)):
        return None
    images = [i for i, cell in enumerate(cells) if _is_image(cell) or _is_file(cell, uri)]
    advice = "write a header line that names its columns, such as uri"
    if len(images) > 1:
        raise SourceError(
            f"source.uri: the first line of {uri} holds {len(images)} images or URIs and no names; {advice}",
            code="source.header",
            key=f"{uri}:1",
        )
    if not images and len(cells) == 1 and any(c in cells[0] for c in "/\\"):
        raise SourceError(
            f"source.uri: the first line of {uri} is {cells[0][:200]!r}, which may be a path or a name; {advice}",
            code="source.header",
            key=f"{uri}:1",
        )
    return images[0] if images else None


def _is_file(cell: str, uri: str) -> bool:
    """Tell whether a cell with a dot or slash names a file beside its list."""
    if not any(c in cell for c in "./") or len(cell) > _LONGEST_NAME or "\0" in cell:
        return False
    place = storage.join(posixpath.dirname(uri), cell)
    try:
        return storage.exists(place) and not storage.is_folder(place)
    except StorageError:
        return False


class _Int(str):
    """A whole number as it is written."""


class _Float(str):
    """Another number as it is written."""


_KINDS: Final = {str: "str", _Int: "int", _Float: "float", bool: "bool", dict: "nested", list: "nested"}


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key occurs twice in an object")
    return row


_JSON: Final = json.JSONDecoder(
    parse_int=_Int, parse_float=_Float, parse_constant=_Float, object_pairs_hook=_unrepeated
)


def _read_json(text: str, uri: str) -> ListFile:
    if text.lstrip().startswith("["):
        raise _unreadable(uri, "it is one JSON array; write one object a line, as jq -c '.[]' does, and name it .jsonl")
    columns: dict[str, list[pa.Array]] = {}
    kinds: dict[str, set[str]] = {}
    count = 0
    for rows in _blocks(text, uri):
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row.get(name) for row in rows]
            found = {_KINDS[type(value)] for value in values if value is not None}
            kinds.setdefault(name, set()).update(found)
            pieces = columns.setdefault(name, [pa.nulls(count, pa.string())])
            pieces.append(pa.nulls(count - sum(map(len, pieces)), pa.string()))
            pieces.append(pa.array([None if value is None else _written(value) for value in values], pa.string()))
        count += len(rows)
    for pieces in columns.values():
        pieces.append(pa.nulls(count - sum(map(len, pieces)), pa.string()))
    table = pa.table({name: pa.chunked_array(pieces, pa.string()) for name, pieces in columns.items()})
    return ListFile(uri, table, {name: frozenset(found) for name, found in kinds.items()})


def _blocks(text: str, uri: str) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(" \t\r")
        if not line:
            continue
        try:
            row, end = _JSON.raw_decode(line)
            if end < len(line):
                raise ValueError(f"more follows at character {end + 1}")
        except (ValueError, RecursionError) as error:
            raise _unreadable(f"{uri}:{number}", f"one JSON object is due on each line: {error}") from error
        if not isinstance(row, dict):
            raise _unreadable(f"{uri}:{number}", "one JSON object is due on each line")
        rows.append(row)
        if len(rows) == _BLOCK_ROWS:
            yield rows
            rows = []
    yield rows


def _written(value: Any) -> str:
    """Return a value as it is written; a string without its quotation marks, for these only tell its kind."""
    text = value if isinstance(value, str) else _nested(value)
    return str(text).encode("utf-8", "backslashreplace").decode()


def _nested(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {_nested(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_nested, value)) + "]"
    return str(value) if isinstance(value, (_Int, _Float)) else json.dumps(value, ensure_ascii=False)
