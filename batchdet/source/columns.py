"""Which column holds the image, and which columns are carried over under which names."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Never

import pyarrow as pa

from batchdet.errors import SourceError
from batchdet.records.schema import DETECTIONS, FEATURES, IMAGES

RESERVED: Final = frozenset([*IMAGES.names, *DETECTIONS.names, FEATURES, "run_date", "etag", "list_uri"])
"""Names that batchdet's own tables use; a carried column of that name becomes ``source_NAME``."""

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
        if not (is_binary(type_) or is_image_struct(type_) or is_text(type_)):
            raise SourceError(
                f"source.image_column: column {wanted!r} of {where} is {type_}; "
                "it should be binary, a struct {bytes, path}, or a string with URIs"
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
    _refuse(named or images + texts, schema.names, where)


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
    _refuse(named or texts, schema.names, where)


def _refuse(candidates: Sequence[str], names: Sequence[str], where: str) -> Never:
    if candidates:
        found = f"{len(candidates)} columns of {where} could hold the images ({', '.join(candidates)})"
        raise SourceError(f"source.image_column: {found}; name one of them")
    found = f"no column of {where} looks like images or their URIs (it has {', '.join(names) or 'none'})"
    raise SourceError(f"source.image_column: {found}; name the one that does")


def plain_type(type_: pa.DataType) -> pa.DataType:
    """Return the type under which a column travels: what extensions and dictionaries hold; text for only nulls."""
    if pa.types.is_null(type_):
        return pa.string()
    if isinstance(type_, pa.BaseExtensionType):
        return plain_type(type_.storage_type)
    if pa.types.is_dictionary(type_):
        return plain_type(type_.value_type)
    return _without_extensions(type_)


def _without_extensions(type_: pa.DataType) -> pa.DataType:
    """Return a nested type without extensions, whose Python classes may unpickle what the file holds."""
    if isinstance(type_, pa.BaseExtensionType):
        return _without_extensions(type_.storage_type)
    if pa.types.is_struct(type_):
        return pa.struct([f.with_type(_without_extensions(f.type)) for f in type_])
    if pa.types.is_list(type_):
        return pa.list_(type_.value_field.with_type(_without_extensions(type_.value_type)))
    if pa.types.is_large_list(type_):
        return pa.large_list(type_.value_field.with_type(_without_extensions(type_.value_type)))
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(type_.value_field.with_type(_without_extensions(type_.value_type)), type_.list_size)
    return type_


def carried_names(names: Iterable[str]) -> dict[str, str]:
    """Choose the names of carried columns in the images table.

    Returns:
        Name in the source -> name in the images table; one that batchdet's own columns use gets ``source_``
        before it, again and again until it is free.
    """
    names = list(names)
    taken = RESERVED | set(names)
    chosen: dict[str, str] = {}
    for name in names:
        new = name
        while new in RESERVED or (new != name and new in taken):
            new = f"source_{new}"
        chosen[name] = new
        taken = taken | {new}
    return chosen


def select_columns(
    types: Mapping[str, pa.DataType], columns: Sequence[str] | None, key_columns: Sequence[str], where: str
) -> dict[str, pa.Field]:
    """Choose the columns that are carried over.

    Args:
        types: Every column of the source with its type.
        columns: ``source.columns``; None carries all but ``key_columns``.
        key_columns: The columns of the image itself.
        where: The source, for messages.

    Returns:
        Name in the source -> nullable field of the images table, in the source's order.

    Raises:
        SourceError: ``columns`` names one that does not exist, or the image itself.
    """
    if columns is not None:
        for name in columns:
            require_column(name, list(types), "source.columns", where)
            if name in key_columns and not is_text(types[name]):
                raise SourceError(f"source.columns: {name!r} is the image itself and cannot be carried over")
    kept = [name for name in types if (name in columns if columns is not None else name not in key_columns)]
    names = carried_names(kept)
    return {name: pa.field(names[name], plain_type(types[name]), nullable=True) for name in kept}
