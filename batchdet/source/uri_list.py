"""URI lists: CSV, JSONL, Parquet or plain text that name images elsewhere; other columns are carried over.

An entry that is refused, missing, forbidden or broken is a failed row. An object store that fails in a way that may
pass ends the reading with :class:`~batchdet.storage.TransientError`: nothing of that segment is staged, and the same
command goes on. Web hosts (http, https) are the exception: a 5xx or time-out there is a failed row ``unreadable``
once retries are spent, because one dead host must not stop a job.
"""

import posixpath
from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from batchdet import storage
from batchdet.credentials import masked
from batchdet.errors import ImageError, SourceError
from batchdet.records.segment import Segment
from batchdet.source.columns import find_uri_column, refuse_repeated, require_column, select_columns
from batchdet.source.fetch import fill, read_allowed
from batchdet.source.policy import UriPolicy
from batchdet.source.rows import UNKNOWN_SIZE_BYTES, ImageRow, cut_known, make_segment
from batchdet.source.shards import Shard
from batchdet.spec import SourceSpec
from batchdet.storage import StorageError, StoredObject

_BOM: Final = b"\xef\xbb\xbf"
_LEADING_ZERO: Final = r"^[+-]?0[0-9]"
_GUESSES: Final = (pa.int64(), pa.float64(), pa.bool_())


def read_lists(source: SourceSpec, objects: Sequence[StoredObject]) -> tuple[pa.Table, pa.Schema]:
    """Read every list.

    Args:
        source: Names the columns.
        objects: The lists.

    Returns:
        The inventory's table, one row per listed image: ``uri`` (resolved), ``size_bytes`` (-1), ``etag`` (""),
        ``list_uri``, ``member`` (as listed), ``error_code`` and the columns carried over; and their schema.

    Raises:
        SourceError: A list cannot be read, its columns are not clear, or differ from the first list's.
    """
    tables = []
    carried = pa.schema([])
    named = [source.image_column or "uri", *filter(None, [source.id_column])]
    lists = [(obj.uri, _read_list(obj, named)) for obj in objects]
    lists = [one for one in lists if one[1].num_rows] or lists[:1]  # an empty one does not tell types
    for number, (uri, raw) in enumerate(lists):
        refuse_repeated(raw.schema.names, uri)
        column = find_uri_column(raw.schema, source.image_column, uri)
        if source.id_column is not None:
            require_column(source.id_column, raw.schema.names, "source.id_column", uri)
        types = {f.name: f.type for f in raw.schema}
        fields = select_columns(types, source.columns, (column,), uri)
        if number == 0:
            carried = pa.schema(list(fields.values()))
        tables.append(_inventory_rows(raw, uri, column, source.id_column, fields, carried))
    return pa.concat_tables(tables), carried


def _inventory_rows(
    raw: pa.Table, list_uri: str, column: str, id_column: str | None, fields: dict[str, pa.Field], carried: pa.Schema
) -> pa.Table:
    count = raw.num_rows
    uris = raw[column].cast(pa.string())
    # what is listed stands in the inventory and in the tables, refused or not
    uri_texts = ["" if uri is None else masked(uri.strip()) for uri in uris.to_pylist()]
    raw = raw.set_column(raw.schema.get_field_index(column), column, pa.array(uri_texts, pa.string()))
    names = uri_texts
    if id_column is not None:
        try:
            ids = raw[id_column].cast(pa.string()).to_pylist()
        except pa.ArrowException as error:
            raise SourceError(
                f"source.id_column: column {id_column!r} of {list_uri} holds no names: {error}"
            ) from error
        names = [uri if name is None else name for name, uri in zip(ids, uri_texts, strict=True)]
    policy = UriPolicy(list_uri, ())
    members, codes = unique_members(names, ["null_image" if not uri else None for uri in uri_texts])
    arrays: dict[str, pa.Array] = {
        "uri": pa.array([policy.resolve(uri) if uri else "" for uri in uri_texts], pa.string()),
        "size_bytes": pa.repeat(pa.scalar(-1, pa.int64()), count),
        "etag": pa.repeat("", count),
        "list_uri": pa.repeat(list_uri, count),
        "member": pa.array(members, pa.string()),
        "error_code": pa.array(codes, pa.string()),
    }
    new_names = {new.name: old for old, new in fields.items()}
    for field in carried:
        arrays[field.name] = _column(raw, new_names.get(field.name), field, list_uri)
    return pa.table(arrays)


def _column(raw: pa.Table, name: str | None, field: pa.Field, where: str) -> pa.ChunkedArray:
    if name is None:
        return pa.nulls(raw.num_rows, field.type)
    try:
        return raw[name].cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(
            f"source.uri: column {name!r} of {where} is {raw[name].type}, {field.type} in the first list: {error}"
        ) from error


def unique_members(names: Sequence[str], codes: Sequence[str | None]) -> tuple[list[str], list[str | None]]:
    """Make names unique within their source.

    Args:
        names: As they are listed; "" becomes ``#ROW``.
        codes: Error codes so far.

    Returns:
        Unique names, and codes in which each later row of a name is ``duplicate_member``.
    """
    seen: set[str] = set()
    members: list[str] = []
    new_codes: list[str | None] = []
    for row, (name, code) in enumerate(zip(names, codes, strict=True)):
        member = name or f"#{row}"
        if member in seen:
            code = code or "duplicate_member"
            while member in seen:
                member = f"{member}#{row}"
        seen.add(member)
        members.append(member)
        new_codes.append(code)
    return members, new_codes


def _read_list(obj: StoredObject, columns: Sequence[str]) -> pa.Table:
    """Read one list; one without a line has no row, and the columns that are asked for."""
    try:
        data = storage.retry(lambda: storage.read_bytes(obj.uri, obj.size_bytes))
    except StorageError as error:
        raise SourceError(f"source.uri: {error.message}") from error
    name = posixpath.basename(obj.uri).lower()
    data = data.removeprefix(_BOM)
    try:
        if name.endswith((".parquet", ".pq")):
            return _read_parquet(data)
        data.decode()
        if not data.strip():
            return pa.table({column: pa.array([], pa.string()) for column in columns})
        if name.endswith((".jsonl", ".ndjson", ".json")):
            options = pa.json.ReadOptions(use_threads=False, block_size=max(1024, len(data) + 1))
            return pa.json.read_json(pa.BufferReader(data), read_options=options)
        if name.endswith((".csv", ".tsv")):
            return _read_csv(data, "\t" if name.endswith(".tsv") else ",")
        lines = [line.strip() for line in data.decode().splitlines()]
        return pa.table({"uri": pa.array([line for line in lines if line], pa.string())})
    except UnicodeDecodeError as error:
        raise SourceError(f"source.uri: {obj.uri} is not UTF-8 text (byte {error.start})") from error
    except pa.ArrowException as error:
        text = " ".join(str(error).split())
        raise SourceError(f"source.uri: {obj.uri} cannot be read as a list: {text}") from error


def _read_parquet(data: bytes) -> pa.Table:
    try:
        table = pq.read_table(pa.BufferReader(data))
        table.validate(full=True)  # text that is no UTF-8 would make the tables unreadable
        return table
    except pa.ArrowException:
        raise
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:  # broken pages, odd column types
        raise pa.ArrowInvalid(f"{type(error).__name__}: {error}") from error


def _read_csv(data: bytes, delimiter: str) -> pa.Table:
    parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    header = next(line for line in data.splitlines() if line.strip()) + b"\n"
    names = pa.csv.read_csv(pa.BufferReader(header), parse_options=parse).schema.names
    # everything as text first: Arrow guesses from the first block and fails on a later one
    convert = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    read = pa.csv.ReadOptions(use_threads=False, block_size=max(1024, len(data) + 1))
    table = pa.csv.read_csv(pa.BufferReader(data), read_options=read, parse_options=parse, convert_options=convert)
    return pa.table([_guess(column) for column in table.columns], names=table.schema.names)


def _guess(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Give a column of text the type that all of its values have; ``007`` stays text."""
    if column.null_count == len(column):
        return column
    if pc.any(pc.match_substring_regex(column, _LEADING_ZERO)).as_py():
        return column
    for type_ in _GUESSES:
        try:
            return column.cast(type_)
        except pa.ArrowInvalid:
            continue
    return column


def read_segments(
    shard: Shard, source: SourceSpec, carried: pa.Schema, segment_rows: int, segment_bytes: int, done: frozenset[int]
) -> Iterator[Segment]:
    """Cut one slice of a list into segments; see :func:`batchdet.source.reader.read_segments`."""
    assert shard.listed is not None
    listed = shard.listed
    members, codes = shard.members, listed["error_code"].to_pylist()
    policy = UriPolicy(shard.shard_uri, source.allow)

    def build(index: int, last: bool, places: range) -> Segment:
        rows = []
        allowed = {}
        for i in places:
            uri, position = shard.objects[i].uri, shard.first_position + i
            row = ImageRow(uri, shard.shard_uri, members[i], position, -1)
            rows.append(row)
            if codes[i] is not None:
                row.fail(codes[i], _MESSAGES[codes[i]].format(name=members[i].rsplit("#", 1)[0]))
                continue
            try:
                allowed[position] = policy.check(uri)
                row.uri = allowed[position].uri
            except ImageError as error:
                row.fail(error.code, error.message)
        fill(rows, lambda row: read_allowed(allowed[row.position], source.max_image_bytes))
        table = listed.slice(places.start, len(places)).select(carried.names)
        return make_segment(shard, index, last, rows, carried, table)

    weights = [0 if code else UNKNOWN_SIZE_BYTES for code in codes]
    return cut_known(shard, weights, segment_rows, segment_bytes, done, build)


_MESSAGES: Final = {
    "null_image": "the list names no URI in this row",
    "duplicate_member": "{name}: the list names it a second time",
}
