"""Types of carried columns: those that Arrow's kernels, Parquet, DuckDB and pandas can all write, read and filter."""

import json
import zoneinfo
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_MOST_DIGITS: Final = 38
"""Of a decimal that DuckDB reads exactly."""
_DIGITS: Final = {8: 3, 16: 5, 32: 10, 64: 20}
_EXACT_BITS: Final = {32: 24, 64: 53}
"""Bits of a float -> bits of an integer that it holds exactly."""
_UNITS: Final = ("s", "ms", "us", "ns")
_LISTS: Final = (
    (pa.types.is_list, pa.list_),
    (pa.types.is_large_list, pa.large_list),
    (pa.types.is_list_view, pa.list_view),
    (pa.types.is_large_list_view, pa.large_list_view),
)


def plain_type(type_: pa.DataType) -> pa.DataType:
    """Return the type under which a column is carried; nulls stay for :func:`unify`, and :func:`settled` ends them.

    Extensions, dictionaries and views become what they hold; half floats float32; maps lists of structs, because
    DuckDB refuses repeated keys. What has no such type (decimals of more than 38 digits, structs whose names are
    empty or differ by case only) becomes text.
    """
    if isinstance(type_, pa.BaseExtensionType):
        return plain_type(type_.storage_type)
    if pa.types.is_dictionary(type_) or pa.types.is_run_end_encoded(type_):
        return plain_type(type_.value_type)
    if pa.types.is_nested(type_):
        return _plain_nested(type_)
    if pa.types.is_decimal(type_):
        precision, scale = type_.precision + max(0, -type_.scale), max(0, type_.scale)
        return pa.decimal128(precision, scale) if precision <= _MOST_DIGITS else pa.string()
    if pa.types.is_timestamp(type_) and type_.tz is not None:
        return pa.timestamp(type_.unit, type_.tz if _is_zone(type_.tz) else "UTC")
    simple = {
        pa.string_view(): pa.string(),
        pa.binary_view(): pa.binary(),
        pa.float16(): pa.float32(),
        pa.date64(): pa.date32(),
        pa.month_day_nano_interval(): pa.string(),
    }
    return simple.get(type_, type_)


def _plain_nested(type_: pa.DataType) -> pa.DataType:
    inner = [type_.field(i) for i in range(type_.num_fields)]
    plain = [plain_type(field.type) for field in inner]
    if any(pa.types.is_nested(f.type) and pa.types.is_string(p) for f, p in zip(inner, plain, strict=True)):
        return pa.string()  # what cannot be carried inside cannot be carried outside
    if pa.types.is_map(type_):
        return pa.list_(pa.struct([("key", plain_type(type_.key_type)), ("value", plain_type(type_.item_type))]))
    if pa.types.is_struct(type_):
        names = [field.name.casefold() for field in inner]
        fit = names and all(names) and len(set(names)) == len(names) and not any("\0" in name for name in names)
        return pa.struct([f.with_type(p) for f, p in zip(inner, plain, strict=True)]) if fit else pa.string()
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(inner[0].with_type(plain[0]), type_.list_size)
    if pa.types.is_list(type_) or pa.types.is_list_view(type_):
        return pa.list_(inner[0].with_type(plain[0]))
    if pa.types.is_large_list(type_) or pa.types.is_large_list_view(type_):
        return pa.large_list(inner[0].with_type(plain[0]))
    return pa.string()


def settled(type_: pa.DataType) -> pa.DataType:
    """Return a plain type in which text stands for what held nothing but nulls."""
    if pa.types.is_null(type_):
        return pa.string()
    if pa.types.is_struct(type_):
        return pa.struct([f.with_type(settled(f.type)) for f in type_])
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(type_.value_field.with_type(settled(type_.value_type)), type_.list_size)
    if pa.types.is_list(type_):
        return pa.list_(type_.value_field.with_type(settled(type_.value_type)))
    if pa.types.is_large_list(type_):
        return pa.large_list(type_.value_field.with_type(settled(type_.value_type)))
    return type_


def _is_zone(name: str) -> bool:
    if name[:1] in "+-":
        return True
    try:
        zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        return False
    return True


def unify(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Return a plain type that holds the values of two without loss, or None.

    Of 64-bit integers and floats it is float64: who calls looks whether the integers are below 2**53.
    """
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if _is_number(a) and _is_number(b):
        return _unify_numbers(a, b)
    texts = (pa.types.is_string, pa.types.is_large_string)
    if all(any(f(t) for f in texts) for t in (a, b)):
        return pa.large_string()
    binaries = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    if all(any(f(t) for f in binaries) for t in (a, b)):
        return pa.large_binary() if pa.types.is_large_binary(a) or pa.types.is_large_binary(b) else pa.binary()
    if pa.types.is_timestamp(a) and pa.types.is_timestamp(b) and (a.tz is None) == (b.tz is None):
        return pa.timestamp(max(a.unit, b.unit, key=_UNITS.index), a.tz if a.tz == b.tz else "UTC")
    if pa.types.is_duration(a) and pa.types.is_duration(b):
        return pa.duration(max(a.unit, b.unit, key=_UNITS.index))
    if pa.types.is_time(a) and pa.types.is_time(b):
        unit = max(a.unit, b.unit, key=_UNITS.index)
        return pa.time32(unit) if unit in {"s", "ms"} else pa.time64(unit)
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        return _unify_structs(a, b)
    if _is_list(a) and _is_list(b):
        value = unify(a.value_type, b.value_type)
        large = pa.types.is_large_list(a) or pa.types.is_large_list(b)
        return None if value is None else pa.large_list(value) if large else pa.list_(value)
    return None


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_))


def _is_list(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_))


def _unify_numbers(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if pa.types.is_decimal(a) or pa.types.is_decimal(b):
        if pa.types.is_floating(a) or pa.types.is_floating(b):
            return None
        shapes = [(t.precision, t.scale) if pa.types.is_decimal(t) else (_DIGITS[t.bit_width], 0) for t in (a, b)]
        scale = max(s for _, s in shapes)
        precision = max(p - s for p, s in shapes) + scale
        return pa.decimal128(precision, scale) if precision <= _MOST_DIGITS else None
    if pa.types.is_floating(a) and pa.types.is_floating(b):
        return pa.float64()
    if pa.types.is_floating(a) or pa.types.is_floating(b):
        number, whole = (a, b) if pa.types.is_floating(a) else (b, a)
        return number if whole.bit_width <= _EXACT_BITS[number.bit_width] else pa.float64()
    if pa.types.is_signed_integer(a) == pa.types.is_signed_integer(b):
        return a if a.bit_width > b.bit_width else b
    signed, unsigned = (a, b) if pa.types.is_signed_integer(a) else (b, a)
    bits = max(signed.bit_width, 2 * unsigned.bit_width)
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64(), 128: pa.decimal128(20, 0)}[bits]


def _unify_structs(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    types = {f.name: f.type for f in a}
    for field in b:
        common = unify(types.get(field.name, pa.null()), field.type)
        if common is None:
            return None
        types[field.name] = common
    return pa.struct(list(types.items()))


def as_carried(array: pa.Array, type_: pa.DataType) -> pa.Array:
    """Give a column of a source the type under which it is carried.

    Args:
        array: As the source holds it.
        type_: By :func:`plain_type` and :func:`unify`, settled.

    Raises:
        pa.ArrowException: A value does not fit.
    """
    array = unwrapped(array)
    if array.type == type_:
        return array
    if pa.types.is_timestamp(array.type) and array.type.tz is not None and pa.types.is_timestamp(type_):
        array = array.view(pa.timestamp(array.type.unit, type_.tz))  # the same instants, whatever the zone is called
    as_text = pa.types.is_string(type_) or pa.types.is_large_string(type_)
    if as_text and (pa.types.is_nested(array.type) or pa.types.is_interval(array.type)):
        return pa.array([None if v is None else _as_json(v) for v in array.to_pylist()], type_)
    if pa.types.is_struct(type_):
        return _as_struct(array, type_)
    if _is_list(type_):
        return _as_list(array, type_)
    return array.cast(type_)


def _as_struct(array: pa.Array, type_: pa.DataType) -> pa.Array:
    places = {field.name: i for i, field in enumerate(array.type)}
    children = [
        as_carried(pc.struct_field(array, [places[f.name]]), f.type)
        if f.name in places
        else pa.nulls(len(array), f.type)
        for f in type_
    ]
    return pa.StructArray.from_arrays(children, fields=list(type_), mask=array.is_null())


def _as_list(array: pa.Array, type_: pa.DataType) -> pa.Array:
    # not by cast: pyarrow 26 makes broken arrays of list views
    if pa.types.is_map(array.type):
        pair = pa.struct([("key", array.type.key_type), ("value", array.type.item_type)])
        array = array.cast(pa.list_(pair))
    if pa.types.is_fixed_size_list(type_):
        size = type_.list_size
        values = array.values.slice(array.offset * size, len(array) * size)
        if pa.types.is_null(values.type):  # of which pyarrow 26 may keep fewer than the lists have
            values = pa.nulls(len(array) * size)
        values = as_carried(values, type_.value_type)
        return pa.FixedSizeListArray.from_arrays(values, type=type_, mask=array.is_null())
    offsets = np.zeros(len(array) + 1, np.int64)
    np.cumsum(pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False), out=offsets[1:])
    large = pa.types.is_large_list(type_)
    kind = pa.LargeListArray if large else pa.ListArray
    places = pa.array(offsets, pa.int64() if large else pa.int32())
    return kind.from_arrays(places, as_carried(array.flatten(), type_.value_type), type=type_, mask=array.is_null())


class _Seen:
    """An array under another type of the same layout, for Arrow's C interface; a cast refuses some nested types.

    No value of an extension may reach Python as it is: some extensions unpickle what a file holds.
    """

    def __init__(self, array: pa.Array, type_: pa.DataType) -> None:
        self._array, self._type = array, type_

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        return self._type.__arrow_c_schema__(), self._array.__arrow_c_array__()[1]


def _without_extensions(type_: pa.DataType) -> pa.DataType:
    """Return the type of the same layout in which storage stands for extensions, at any depth."""
    if isinstance(type_, pa.BaseExtensionType):
        return _without_extensions(type_.storage_type)
    if pa.types.is_dictionary(type_):
        return pa.dictionary(type_.index_type, _without_extensions(type_.value_type), type_.ordered)
    if pa.types.is_run_end_encoded(type_):
        return pa.run_end_encoded(type_.run_end_type, _without_extensions(type_.value_type))
    if not pa.types.is_nested(type_):
        return type_
    inner = [f.with_type(_without_extensions(f.type)) for f in map(type_.field, range(type_.num_fields))]
    if pa.types.is_struct(type_):
        return pa.struct(inner)
    if pa.types.is_map(type_):
        return pa.map_(*inner[0].type, type_.keys_sorted)
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(inner[0], type_.list_size)
    return next((make(inner[0]) for is_one, make in _LISTS if is_one(type_)), type_)  # Parquet holds no unions


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def unwrapped(array: pa.Array) -> pa.Array:
    """Take a column out of extensions, at any depth, and out of dictionaries and runs."""
    type_ = _without_extensions(array.type)
    if type_ != array.type:
        array = pa.array(_Seen(array, type_))
    if pa.types.is_dictionary(array.type):
        return unwrapped(array.dictionary_decode())
    if pa.types.is_run_end_encoded(array.type):
        return unwrapped(pc.run_end_decode(array))
    return array
