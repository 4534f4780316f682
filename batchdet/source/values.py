"""Values of lists: texts become numbers and truth values only if each comes back as it was written."""

import json
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from batchdet.source.types import as_carried, plain_type, settled

_WHOLE: Final = r"^(0|-?[1-9][0-9]{0,18})$"
_FLOAT: Final = r"^-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?$"
_TRUTH: Final = ({"true", "false"}, {"True", "False"})


def typed_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Type a column of a CSV.

    Args:
        column: Its texts; null where there is none.

    Returns:
        int64, bool or float64 if ``str`` of each value is its text; otherwise the texts.
    """
    if column.null_count == len(column):
        return column
    if _all_match(column, _WHOLE):
        return _cast_or_keep(column, pa.int64())
    if any(pc.all(pc.is_in(column.drop_null(), pa.array(words))).as_py() for words in _TRUTH):
        return column.cast(pa.bool_())
    return _floats_or_texts(column) if _all_match(column, _FLOAT) else column


def _floats_or_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    values = column.cast(pa.float64())
    # Arrow writes most floats with a point as Python does, and a hundred times faster
    same = pc.and_(pc.equal(values.cast(pa.string()), column), pc.match_substring(column, "."))
    rest = column.filter(pc.invert(same))
    return values if all(repr(float(text)) == text for chunk in rest.chunks for text in _texts(chunk)) else column


def typed_json(column: pa.ChunkedArray, kinds: frozenset[str]) -> pa.ChunkedArray:
    """Type a column of a JSON Lines file.

    Args:
        column: Its values as they are written there; strings without quotation marks.
        kinds: Kinds of its values: str, int, float, bool, nested.

    Returns:
        int64, float64, bool or nested values if these are exactly what is written; otherwise the texts.
    """
    if kinds == {"int"}:
        return _cast_or_keep(column, pa.int64())
    if kinds and kinds <= {"int", "float"}:
        exact = all(_is_exact(text) for chunk in column.chunks for text in _texts(chunk))
        return (
            pa.chunked_array([pa.array([None if t is None else float(t) for t in column.to_pylist()], pa.float64())])
            if exact
            else column
        )
    if kinds == {"bool"}:
        return column.cast(pa.bool_())
    return _typed_nested(column) if kinds == {"nested"} else column


def _texts(chunk: pa.Array) -> list[str]:
    return chunk.drop_null().to_pylist()  # type: ignore[no-any-return]


def _all_match(column: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(column, pattern)).as_py())


def _cast_or_keep(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    try:
        return column.cast(type_)
    except pa.ArrowInvalid:
        return column


def _is_exact(text: str) -> bool:
    """Tell whether a float has exactly the value that is written."""
    try:
        back = repr(float(text))
        return back == text or text in {"NaN", "Infinity", "-Infinity"} or Decimal(back) == Decimal(text)
    except InvalidOperation:  # 1e400
        return False


def _exact(text: str) -> float:
    if not _is_exact(text):
        raise ValueError(text)
    return float(text)


def _typed_nested(column: pa.ChunkedArray) -> pa.ChunkedArray:
    texts = column.to_pylist()
    try:
        values = [None if text is None else json.loads(text, parse_float=_exact) for text in texts]
        array = pa.array(values)
    except (pa.ArrowException, OverflowError, ValueError):
        return column
    type_ = settled(plain_type(array.type))
    if not pa.types.is_nested(type_):
        return column
    array = as_carried(array, type_)
    return pa.chunked_array([array]) if all(map(_same, array.to_pylist(), values)) else column


def _same(back: Any, value: Any) -> bool:
    """Tell whether Arrow gave a value back; a key that others have and it has not is null."""
    if isinstance(value, dict):
        return isinstance(back, dict) and all(
            _same(back.get(key), value.get(key)) for key in back.keys() | value.keys()
        )
    if isinstance(value, list):
        return isinstance(back, list) and len(back) == len(value) and all(map(_same, back, value))
    return bool(back == value and type(back) is type(value))
