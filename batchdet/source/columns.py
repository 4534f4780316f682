"""Which column holds the image, and which columns are carried over under which names."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Never

import pyarrow as pa

from batchdet.errors import SourceError
from batchdet.records.schema import DETECTIONS, FEATURES, IMAGES
from batchdet.source.types import plain_type, settled, unify

RESERVED: Final = frozenset([*IMAGES.names, *DETECTIONS.names, FEATURES, "run_date", "etag", "list_uri"])
"""Names that batchdet's own tables use; a carried column of that name, in any case, becomes ``source_NAME``."""
_ORIGIN: Final = b"batchdet.source"

_IMAGE_NAMES: Final = frozenset({"image", "img", "jpg", "jpeg", "png", "webp", "bytes", "content", "data"})
_URI_RANKS: Final = (
    frozenset(
        {"uri", "url", "image_uri", "image_url", "img_uri", "img_url", "s3_uri", "s3_url", "file_uri", "file_url"}
    ),
    frozenset({"path", "image_path", "img_path", "s3_path", "filepath", "file_path"}),
    frozenset({"filename", "file_name", "file", "image_file", "image_name", "image", "img"}),
    frozenset({"key"}),
)
"""Names of columns that hold URIs, the most telling first: a URL beside a file name is where the image is."""


def is_binary(type_: pa.DataType) -> bool:
    """Tell whether a column of this type can hold encoded images."""
    if pa.types.is_dictionary(type_):
        return is_binary(type_.value_type)
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_))


def is_text(type_: pa.DataType) -> bool:
    """Tell whether a column of this type can hold URIs."""
    if pa.types.is_dictionary(type_):
        return is_text(type_.value_type)
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def is_image_struct(type_: pa.DataType) -> bool:
    """Tell whether a type is Hugging Face's image struct, ``{bytes, path}``."""
    return (
        pa.types.is_struct(type_)
        and type_.get_field_index("bytes") >= 0
        and is_binary(type_.field("bytes").type)
        and (type_.get_field_index("path") < 0 or is_text(type_.field("path").type))
    )


def refuse_repeated(names: Sequence[str], where: str) -> None:
    """Refuse a table in which two columns have one name.

    Raises:
        SourceError: It does.
    """
    for name in names:
        if names.count(name) > 1:
            raise SourceError(f"source.uri: {where} has {names.count(name)} columns named {name!r}; names must differ")


def require_column(name: str, names: Sequence[str], key: str, where: str) -> None:
    """Refuse a column that does not exist.

    Args:
        name: What the spec asks for.
        names: The columns there are.
        key: The spec's key, for the message.
        where: The file, for the message.

    Raises:
        SourceError: There is no such column.
    """
    if name in names:
        return
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(names) or 'no columns'}"
    raise SourceError(f"{key}: {where} has no column {name!r}; {hint}")


def find_image_column(schema: pa.Schema, wanted: str | None, where: str) -> str:
    """Find the column that holds the images of a Parquet file, or their URIs.

    Args:
        schema: The file's columns.
        wanted: ``source.image_column``.
        where: The file, for messages.

    Raises:
        SourceError: None or several could be meant, or the wanted one cannot hold images.
    """
    if wanted is not None:
        require_column(wanted, schema.names, "source.image_column", where)
        type_ = schema.field(wanted).type
        if not (is_binary(type_) or pa.types.is_fixed_size_binary(type_) or is_image_struct(type_) or is_text(type_)):
            raise SourceError(
                f"source.image_column: column {wanted!r} of {where} is {type_}; it should be binary, a struct "
                f"{{bytes, path}}, or a string with URIs{_row_by_row(type_)}",
                code="source.image_column",
                key="source.image_column",
            )
        return wanted
    images = [f.name for f in schema if is_binary(f.type) or is_image_struct(f.type)]
    named = [name for name in images if name.lower() in _IMAGE_NAMES]
    texts = _best_ranked([f.name for f in schema if is_text(f.type)])
    if len(named) == 1:
        return str(named[0])
    if len(images) == 1 and not texts:
        return str(images[0])
    if not images and len(texts) == 1:
        return str(texts[0])
    _refuse(named or images + texts, schema, where)


def is_uri_name(name: str) -> bool:
    """Tell whether a column of this name holds URIs of images."""
    return any(name.lower() in rank for rank in _URI_RANKS)


def _best_ranked(names: Sequence[str]) -> list[str]:
    """Return the names of the highest rank that any of them has."""
    found = ([name for name in names if name.lower() in rank] for rank in _URI_RANKS)
    return next((names for names in found if names), [])


def find_uri_column(schema: pa.Schema, wanted: str | None, where: str) -> str:
    """Find the column of a list that holds the images' URIs: ``url`` before ``path`` before ``file_name``.

    Args:
        schema: The list's columns.
        wanted: ``source.image_column``.
        where: The list, for messages.

    Raises:
        SourceError: None or several could be meant, or the wanted one is not text.
    """
    if wanted is not None:
        require_column(wanted, schema.names, "source.image_column", where)
        if not is_text(schema.field(wanted).type):
            type_ = schema.field(wanted).type
            raise SourceError(f"source.image_column: column {wanted!r} of {where} is {type_}, not text with URIs")
        return wanted
    texts = [f.name for f in schema if is_text(f.type)]
    named = _best_ranked(texts)
    if len(named) == 1:
        return str(named[0])
    if not named and len(texts) == 1:
        return str(texts[0])
    _refuse(named or texts, schema, where)


def _refuse(candidates: Sequence[str], schema: pa.Schema, where: str) -> Never:
    code, key = "source.image_column", "source.image_column"
    if candidates:
        found = f"{len(candidates)} columns of {where} could hold the images ({', '.join(candidates)})"
        raise SourceError(f"source.image_column: {found}; name one of them", code=code, key=key)
    found = f"no column of {where} looks like images or their URIs (it has {', '.join(schema.names) or 'none'})"
    several = next((f for f in schema if _row_by_row(f.type)), None)
    if several is not None:
        advice = f"column {several.name!r} is {several.type}{_row_by_row(several.type)}"
    elif any(pa.types.is_fixed_size_binary(f.type) or is_text(f.type) for f in schema):
        advice = "name the one that does"
    else:
        advice = "write the images into a binary column, or their URIs into a column of text"
    raise SourceError(f"source.image_column: {found}; {advice}", code=code, key=key)


def _row_by_row(type_: pa.DataType) -> str:
    """Say what to do with a column that holds several images a row; "" for other columns."""
    is_list = any(f(type_) for f in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))
    if is_list and (is_binary(type_.value_type) or is_image_struct(type_.value_type)):
        return "; write one row for each image"
    return ""


@dataclass(frozen=True)
class Column:
    """A column that a source has.

    Args:
        kind: ``column``; ``image``, of a child of the image's struct; ``hive``, of a ``name=value`` in the path.
        name: Its name there.
        type: Its type there.
        where: The file that has it, for messages.
        wanted: The name to carry it under; "" takes ``name``.
        large: It holds integers beyond 2**53, which float64 would round.
    """

    kind: str
    name: str
    type: pa.DataType
    where: str
    wanted: str = ""
    large: bool = False


def origin_of(field: pa.Field) -> tuple[str, str]:
    """Return kind and name in the source of a carried column."""
    origin = (field.metadata or {}).get(_ORIGIN)
    kind, name = json.loads(origin) if origin else ("column", field.name)
    return kind, name


def carried_names(names: Sequence[str]) -> list[str]:
    """Choose the names of carried columns in the images table.

    Args:
        names: Their names in the source, in its order.

    Returns:
        A name for each: not empty, without NUL, unique in any case. A name that batchdet's own columns use gets
        ``source_`` before it, until it is free; an empty one becomes ``column_PLACE``.
    """
    reserved = {name.casefold() for name in RESERVED}
    others = {name.casefold() for name in names}
    used: set[str] = set()
    chosen: list[str] = []
    for place, name in enumerate(names, 1):
        clean = name.replace("\0", "").encode("utf-8", "backslashreplace").decode()
        new = clean or f"column_{place}"
        while new.casefold() in reserved | used or (new != name and new.casefold() in others):
            new = f"source_{new}"
        used.add(new.casefold())
        chosen.append(new)
    return chosen


def carry(columns: Iterable[Column]) -> tuple[pa.Schema, str]:
    """Make the columns of all files of a source fit for the images table, by name and by type.

    Args:
        columns: Those of each file, one file after another.

    Returns:
        Nullable fields that know their :func:`origin_of`; and what was renamed or cast, in words, or "".

    Raises:
        SourceError: Two files give one column types that have no common one.
    """
    found: dict[tuple[str, str], Column] = {}
    types: dict[tuple[str, str], pa.DataType] = {}
    large: set[tuple[str, str]] = set()
    for column in columns:
        key = (column.kind, column.name)
        first = found.setdefault(key, column)
        type_ = plain_type(column.type)
        common = unify(types.get(key, type_), type_)
        large |= {key} if column.large else set()
        if common is None or (pa.types.is_floating(common) and key in large):
            raise SourceError(
                f"source.uri: column {column.name!r} is {column.type} in {column.where} and {first.type} in "
                f"{first.where}; give it one type, or leave it out of source.columns",
                code="source.types_differ",
                key=column.name,
            )
        types[key] = common
    names = carried_names([column.wanted or column.name for column in found.values()])
    fields, notes = [], []
    for (key, column), new in zip(found.items(), names, strict=True):
        type_ = settled(types[key])
        fields.append(pa.field(new, type_, nullable=True, metadata={_ORIGIN: json.dumps(key)}))
        renamed = f"{column.name!r} is carried as {new!r}" if new != (column.wanted or column.name) else ""
        cast = f"{column.type} becomes {type_}" if _is_cast(column.type, type_) else ""
        if renamed or cast:
            notes.append(
                f"{renamed or repr(column.name)}{' (' if renamed and cast else ': ' if cast else ''}{cast}"
                f"{')' if renamed and cast else ''}"
            )
    return pa.schema(fields), "; ".join(notes)


def _is_cast(before: pa.DataType, after: pa.DataType) -> bool:
    """Tell whether a type becomes another that a reader would notice."""
    same = pa.types.is_null(before) or is_text(before) or (is_binary(before) and is_binary(after))
    return not (same or before == after or isinstance(before, pa.BaseExtensionType) or pa.types.is_dictionary(before))


def select_columns(
    types: Mapping[str, pa.DataType], columns: Sequence[str] | None, key_columns: Sequence[str], where: str
) -> list[Column]:
    """Choose the columns of one file that are carried over.

    Args:
        types: Every column of the file with its type.
        columns: ``source.columns``; None carries all but ``key_columns``.
        key_columns: The columns of the image itself.
        where: The file, for messages.

    Returns:
        Those columns, in the file's order.

    Raises:
        SourceError: ``columns`` names the image itself.
    """
    for name in columns or ():
        if name in key_columns and name in types and not is_text(types[name]):
            raise SourceError(f"source.columns: {name!r} is the image itself and cannot be carried over")
    kept = [name for name in types if (name in columns if columns is not None else name not in key_columns)]
    return [Column("column", name, types[name], where) for name in kept]


def require_columns(columns: Sequence[str] | None, known: Sequence[str], where: str) -> None:
    """Refuse a name in ``source.columns`` that no file of the source has.

    Raises:
        SourceError: There is one.
    """
    for name in columns or ():
        require_column(name, known, "source.columns", where)
