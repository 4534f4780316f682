"""TIFF directories: the tags of a TIFF file and of EXIF, which is one.

Source: TIFF Revision 6.0 (1992), section 2; BigTIFF as in libtiff's specification; Exif 2.32 (CIPA DC-008).
"""

import struct
from collections.abc import Collection
from typing import Final

WIDTH: Final = 256
HEIGHT: Final = 257
BITS: Final = 258
PHOTOMETRIC: Final = 262
ORIENTATION: Final = 274
_OFFSETS_AND_COUNTS: Final = ((273, 279), (324, 325))
_TYPES: Final = {1: "B", 3: "H", 4: "I", 16: "Q"}
_SIZES: Final = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value by its type, where it is more than one."""
PAGE_TAGS: Final = frozenset({WIDTH, HEIGHT, BITS, PHOTOMETRIC, *(tag for pair in _OFFSETS_AND_COUNTS for tag in pair)})
_MAX_ENTRIES: Final = 4096
_MAX_VALUES: Final = 1_000_000

Tags = dict[int, tuple[int, ...]]


class TagError(ValueError):
    """The bytes are no TIFF directory; ``truncated`` tells that they end too early."""

    def __init__(self, message: str, truncated: bool = False) -> None:
        super().__init__(message)
        self.truncated = truncated


def read_tags(data: memoryview, wanted: Collection[int], may_lack_bytes: bool = False) -> Tags:
    """Read unsigned integers of the first directory.

    Args:
        data: A whole TIFF file, or the TIFF part of an EXIF block.
        wanted: Tags to read; thousands of others may name the same bytes, so that reading all would fill the memory.
        may_lack_bytes: Values of other tags may have been cut off, as editors do with EXIF; else a directory whose
            values are larger than the file in all is refused, for a decoder might read them all.

    Returns:
        Tag number to values.

    Raises:
        TagError: It cannot be read.
    """
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None:
        raise TagError("no byte order mark")
    big = bytes(data[2:4]) in (b"+\0", b"\0+")
    count_format, entry, width = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    (at,) = _unpack(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = _unpack(order + count_format, data, at)
    at += struct.calcsize(order + count_format)
    if count > _MAX_ENTRIES:
        raise TagError(f"a directory of {count} entries")
    tags: Tags = {}
    total_bytes = 0
    for _ in range(count):
        tag, kind, number = _unpack(order + entry, data, at)
        total_bytes += number * _SIZES.get(kind, 1)
        place = at + struct.calcsize(order + entry)
        at = place + width
        letter = _TYPES.get(kind)
        if tag not in wanted or tag in tags or letter is None or not 0 < number <= _MAX_VALUES:
            continue
        layout = f"{order}{number}{letter}"
        if struct.calcsize(layout) > width:
            (place,) = _unpack(order + ("Q" if big else "I"), data, place)
        tags[tag] = _unpack(layout, data, place)
    if total_bytes > len(data) and not may_lack_bytes:
        raise TagError(f"the values of the first directory take {total_bytes} bytes, more than the file has")
    return tags


def pixel_data_end(tags: Tags) -> int:
    """Return the offset in the file behind the last strip or tile; 0 when the tags do not say."""
    ends = [
        offset + count
        for where, size in _OFFSETS_AND_COUNTS
        for offset, count in zip(tags.get(where, ()), tags.get(size, ()), strict=False)
    ]
    return max(ends, default=0)


def exif_orientation(block: memoryview) -> int:
    r"""Return the orientation, 1..8, of an EXIF block; 1 when it has none that can be read.

    Args:
        block: The EXIF bytes, with or without the leading ``Exif\0\0``.
    """
    if bytes(block[:6]) == b"Exif\0\0":
        block = block[6:]
    try:
        values = read_tags(block, (ORIENTATION,), may_lack_bytes=True).get(ORIENTATION, (1,))
    except TagError:
        return 1
    return values[0] if 1 <= values[0] <= 8 else 1


def _unpack(layout: str, data: memoryview, at: int) -> tuple[int, ...]:
    if at + struct.calcsize(layout) > len(data):
        raise TagError("the directory or its values lie behind the end of the file", truncated=True)
    return struct.unpack_from(layout, data, at)
