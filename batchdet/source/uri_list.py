"""URI lists: CSV, JSONL, Parquet or plain text that name images elsewhere; other columns are carried over.

An entry that is refused, missing, forbidden or broken is a failed row. An object store that fails in a way that may
pass ends the reading with :class:`~batchdet.storage.TransientError`: nothing of that segment is staged, and the same
command goes on. Web hosts (http, https) are the exception: a 5xx or time-out there is a failed row ``unreadable``
once retries are spent, because one dead host must not stop a job.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from batchdet.credentials import masked
from batchdet.errors import ImageError, SourceError
from batchdet.records.segment import Segment
from batchdet.source.columns import (
    Column,
    carry,
    find_uri_column,
    is_uri_name,
    refuse_repeated,
    require_column,
    require_columns,
    select_columns,
)
from batchdet.source.fetch import fill, read_allowed
from batchdet.source.list_file import ListFile, read_list
from batchdet.source.policy import UriPolicy
from batchdet.source.rows import UNKNOWN_SIZE_BYTES, ImageRow, cut_known, make_segment
from batchdet.source.shards import Shard
from batchdet.source.types import as_carried
from batchdet.source.values import typed_json, typed_text
from batchdet.spec import SourceSpec
from batchdet.storage import StoredObject

_NOTES: Final = 3
"""Lists of which is said how they were read; sources have thousands."""
_LONGEST_URI: Final = 4096
"""Of an entry; no store knows longer names, and the tables would keep each of them three times."""
_SHORTEST_BASE64: Final = 256
_BASE64: Final = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK", "Qk0", "data:image/")
"""How JPEG, PNG, GIF, WebP, TIFF and BMP begin in base64."""


def read_lists(source: SourceSpec, objects: Sequence[StoredObject]) -> tuple[pa.Table, pa.Schema, str]:
    """Read every list.

    Args:
        source: Names the columns.
        objects: The lists.

    Returns:
        The inventory's table, one row per listed image: ``uri`` (resolved), ``size_bytes`` (-1), ``etag`` (""),
        ``list_uri``, ``member`` (as listed), ``error_code`` and the columns carried over; their schema; and what a
        person should know of how the lists were read, or "".

    Raises:
        SourceError: A list cannot be read, its columns are not clear, or two lists differ in the type of one.
    """
    lists = [read_list(obj, source) for obj in objects]
    lists = [one for one in lists if one.table.num_rows] or lists[:1]  # an empty one does not tell types
    rows, columns = [], []
    for one in lists:
        refuse_repeated(one.table.schema.names, one.uri)
        column = find_uri_column(_guessed(one), source.image_column, one.uri)
        if source.id_column is not None:
            require_column(source.id_column, one.table.schema.names, "source.id_column", one.uri)
        require_columns(source.columns, one.table.schema.names, one.uri)
        rows.append(_entries(one, column, source.id_column))
        columns.append([c.name for c in select_columns(_types(one), source.columns, (column,), one.uri)])
    listed = pa.concat_tables(rows)
    typed = {name: _typed(lists, columns, name) for name in dict.fromkeys(n for names in columns for n in names)}
    found = (
        Column("column", name, pieces[i].type, one.uri)
        for i, (one, names) in enumerate(zip(lists, columns, strict=True))
        for name, pieces in typed.items()
        if name in names
    )
    carried, note = carry(found)
    for field, pieces in zip(carried, typed.values(), strict=True):
        chunks = [_without_secrets(as_carried(chunk, field.type)) for piece in pieces for chunk in piece.chunks]
        listed = listed.append_column(field, pa.chunked_array(chunks, field.type))
    notes = [one.note for one in lists if one.note]
    more = [f"{len(notes) - _NOTES} more lists likewise"] if len(notes) > _NOTES else []
    return listed, carried, "; ".join(filter(None, [*notes[:_NOTES], *more, note]))


def _without_secrets(column: pa.Array) -> pa.Array:
    """Mask the secrets of URIs in a text column: the tables would show them to every reader."""
    if not pa.types.is_string(column.type) or not pc.any(pc.match_substring(column, "://")).as_py():
        return column
    return pa.array([value if value is None else masked(value) for value in column.to_pylist()], pa.string())


def _guessed(one: ListFile) -> pa.Schema:
    """Return the columns of a list; where no name tells which one holds the URIs, numbers are told from texts."""
    names = one.table.schema.names
    if any(map(is_uri_name, names)):
        return one.table.schema
    columns = ((name, one.table[name], one.kinds.get(name)) for name in names)
    return pa.schema(
        [(name, column.type if kinds is None else _from_text(column, kinds).type) for name, column, kinds in columns]
    )


def _from_text(column: pa.ChunkedArray, kinds: frozenset[str]) -> pa.ChunkedArray:
    return typed_text(column) if "csv" in kinds else typed_json(column, kinds)


def _types(one: ListFile) -> dict[str, pa.DataType]:
    return {field.name: field.type for field in one.table.schema}


def _typed(lists: Sequence[ListFile], columns: Sequence[Sequence[str]], name: str) -> list[pa.ChunkedArray]:
    """Return a column of each list; what is written as text is typed once for all lists, so that they agree."""
    pieces = [
        one.table[name] if name in names else pa.chunked_array([pa.nulls(one.table.num_rows)])
        for one, names in zip(lists, columns, strict=True)
    ]
    kinds = [one.kinds.get(name) for one, names in zip(lists, columns, strict=True) if name in names]
    if any(kind is None for kind in kinds):
        return pieces
    texts = pa.chunked_array([chunk.cast(pa.string()) for piece in pieces for chunk in piece.chunks], pa.string())
    together = frozenset().union(*filter(None, kinds))
    typed = _from_text(texts, together)
    starts = [0, *itertools.accumulate(len(piece) for piece in pieces)]
    return [typed.slice(a, b - a) for a, b in itertools.pairwise(starts)]


def _entries(one: ListFile, column: str, id_column: str | None) -> pa.Table:
    """Return the inventory's own columns of one list."""
    if one.kinds.get(column, frozenset({"str"})) - {"str", "csv"}:
        raise SourceError(
            f"source.uri: {one.uri} cannot be read as a list: column {column!r} should hold URIs, and not all of its "
            "values are strings",
            code="source.list",
            key=one.uri,
        )
    listed = [value or "" for value in _strings(one.table[column])]
    _refuse_base64(listed, column, one.uri)
    # what is listed is in the inventory and in the tables, refused or not
    uris = [masked(uri) if len(uri) <= _LONGEST_URI else _shortened(uri) for uri in listed]
    names = uris
    if id_column is not None:
        try:
            ids = _strings(one.table[id_column])
        except (pa.ArrowException, TypeError) as error:
            raise SourceError(
                f"source.id_column: column {id_column!r} of {one.uri} holds no names: {error}", key="source.id_column"
            ) from error
        names = [uri if name is None else name for name, uri in zip(ids, uris, strict=True)]
    policy = UriPolicy(one.uri, ())
    bad = ["null_image" if not uri else "refused_uri" if len(uri) > _LONGEST_URI else None for uri in listed]
    members, codes = unique_members(names, bad)
    count = len(uris)
    arrays: dict[str, pa.Array] = {
        "uri": pa.array([policy.resolve(uri) if uri else "" for uri in uris], pa.string()),
        "size_bytes": pa.repeat(pa.scalar(-1, pa.int64()), count),
        "etag": pa.repeat("", count),
        "list_uri": pa.repeat(one.uri, count),
        "member": pa.array(members, pa.string()),
        "error_code": pa.array(codes, pa.string()),
    }
    return pa.table(arrays)


def _strings(column: pa.ChunkedArray) -> list[str | None]:
    return [value for chunk in column.chunks for value in as_carried(chunk, pa.string()).to_pylist()]


def _refuse_base64(listed: Sequence[str], column: str, where: str) -> None:
    """Refuse a list whose first entry is an image itself.

    Raises:
        SourceError: It is.
    """
    first = next((uri for uri in listed if uri), "")
    if len(first) > _SHORTEST_BASE64 and first.startswith(_BASE64):
        raise SourceError(
            f"source.uri: column {column!r} of {where} holds images in base64, not URIs; write the images into files, "
            "or decode them into a binary column of a Parquet file",
            code="source.base64",
            key=where,
        )


def _shortened(uri: str) -> str:
    return f"{uri[:200]}...{hashlib.sha256(uri.encode()).hexdigest()[:16]}"


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
    "refused_uri": "{name}: the listed name has more than 4096 characters",
}
