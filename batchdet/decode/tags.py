"""TIFF directories: the tags of a TIFF file and of EXIF, which is one.

Source: TIFF Revision 6.0 (1992), section 2; BigTIFF as in libtiff's specification; Exif 2.32 (CIPA DC-008).
"""

import struct
from collections.abc import Collection
from typing import Final

KIND_OF_PAGE: Final = 254
OLD_KIND_OF_PAGE: Final = 255
WIDTH: Final = 256
HEIGHT: Final = 257
BITS: Final = 258
COMPRESSION: Final = 259
PHOTOMETRIC: Final = 262
ORIENTATION: Final = 274
SAMPLES: Final = 277
PLANES: Final = 284
EXTRA_SAMPLES: Final = 338
_OFFSETS_AND_COUNTS: Final = ((273, 279), (324, 325))
_TYPES: Final = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q"}
_SIZES: Final = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value by its type, where it is more than one."""
PAGE_TAGS: Final = frozenset(
    {KIND_OF_PAGE, OLD_KIND_OF_PAGE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANES, EXTRA_SAMPLES}
    | {tag for pair in _OFFSETS_AND_COUNTS for tag in pair}
)
_PIXEL_TAGS: Final = frozenset(
    {*PAGE_TAGS, ORIENTATION, 266, 278, 292, 293, 317, 320, 322, 323, 326, 327, 328, 332, 339, 347}
    | {*range(512, 522), *range(529, 533)}
) - {KIND_OF_PAGE, OLD_KIND_OF_PAGE}
"""What pixels depend on: layout, compression and colours. All else in a directory is metadata."""
_SMALLER_OR_MASK: Final = 0b101
_MAX_SMALLER_PAGES: Final = 16
_MAX_ENTRIES: Final = 4096
_MAX_VALUES: Final = 1_000_000

Tags = dict[int, tuple[int, ...]]


class TagError(ValueError):
    """The bytes are no TIFF directory; ``truncated`` tells that they end too early."""

    def __init__(self, message: str, truncated: bool = False) -> None:
        super().__init__(message)
        self.truncated = truncated


def main_page(data: memoryview) -> tuple[int, Tags]:
    """Find the first page of a TIFF that is neither a smaller copy of another one nor a mask.

    Args:
        data: A whole TIFF file.

    Returns:
        The offset of the page's directory, and its :data:`PAGE_TAGS`; the first page if there is no such page.

    Raises:
        TagError: A directory up to that page cannot be read.
    """
    order, big = _byte_order(data)
    (at,) = _unpack(order + ("Q" if big else "I"), data, 8 if big else 4)
    first = at, Tags()
    for page in range(_MAX_SMALLER_PAGES):
        here = at
        tags, at = _directory(data, here, PAGE_TAGS)
        if not page:
            first = here, tags
        kind = tags.get(KIND_OF_PAGE, (0,))[0] & _SMALLER_OR_MASK
        if not kind and tags.get(OLD_KIND_OF_PAGE, (1,))[0] != 2:
            return here, tags
        if not at:
            break
    return first


def one_page(data: memoryview, at: int) -> bytes:
    """Return a TIFF of one page alone, without metadata, so that no decoder reads what may be broken.

    Args:
        data: A whole TIFF file.
        at: The offset of the page's directory, from :func:`main_page`.
    """
    order, big = _byte_order(data)
    count_format, entry, offset, start = ("Q", 20, "Q", 8) if big else ("H", 12, "I", 4)
    (count,) = _unpack(order + count_format, data, at)
    first = at + struct.calcsize(order + count_format)
    orientation = _directory(data, at, (ORIENTATION,))[0].get(ORIENTATION, (0,))[0]
    kept: dict[int, memoryview] = {}
    for place in range(first, first + count * entry, entry):
        (tag,) = _unpack(order + "H", data, place)
        if tag in _PIXEL_TAGS and (tag != ORIENTATION or 1 <= orientation <= 8):
            kept.setdefault(tag, data[place : place + entry])
    directory = struct.pack(order + count_format, len(kept)) + b"".join(kept.values()) + struct.pack(order + offset, 0)
    head = bytes(data[:start]) + struct.pack(order + offset, at)
    end = start + struct.calcsize(order + offset)
    return b"".join([head, data[end:at], directory, data[at + len(directory) :]])


def read_tags(data: memoryview, wanted: Collection[int]) -> Tags:
    """Read integers of the first directory of EXIF, from which editors may have cut values of other tags.

    Args:
        data: The TIFF part of an EXIF block.
        wanted: Tags to read; thousands of others may name the same bytes, so that reading all would fill the memory.

    Returns:
        Tag number to values.

    Raises:
        TagError: It cannot be read.
    """
    order, big = _byte_order(data)
    (at,) = _unpack(order + ("Q" if big else "I"), data, 8 if big else 4)
    return _directory(data, at, wanted, may_lack_bytes=True)[0]


def _directory(data: memoryview, at: int, wanted: Collection[int], may_lack_bytes: bool = False) -> tuple[Tags, int]:
    """Return the wanted tags of the directory at an offset, and the offset of the next one, or 0.

    Unless bytes may be lacking, a directory whose values are larger than the file is refused, for a decoder might read
    all that pixels depend on.
    """
    order, big = _byte_order(data)
    if at < (16 if big else 8):
        raise TagError(f"a directory at byte {at}, within the header")
    count_format, entry, width = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    (count,) = _unpack(order + count_format, data, at)
    at += struct.calcsize(order + count_format)
    if count > _MAX_ENTRIES:
        raise TagError(f"a directory of {count} entries")
    tags: Tags = {}
    total_bytes = 0
    for _ in range(count):
        tag, kind, number = _unpack(order + entry, data, at)
        total_bytes += number * _SIZES.get(kind, 1) if tag in _PIXEL_TAGS else 0
        place = at + struct.calcsize(order + entry)
        at = place + width
        letter = _TYPES.get(kind)
        if tag not in wanted or tag in tags or letter is None or not 0 < number <= _MAX_VALUES:
            continue
        layout = f"{order}{number}{letter}"
        if struct.calcsize(layout) > width:
            (place,) = _unpack(order + ("Q" if big else "I"), data, place)
        tags[tag] = _unpack(layout, data, place)
    if may_lack_bytes:
        return tags, 0
    if total_bytes > len(data):
        raise TagError(f"the values of a directory take {total_bytes} bytes, more than the file has")
    has_next = at + width <= len(data)
    return tags, _unpack(order + ("Q" if big else "I"), data, at)[0] if has_next else 0


def _byte_order(data: memoryview) -> tuple[str, bool]:
    """Return the format character of the byte order, and whether it is a BigTIFF."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None:
        raise TagError("no byte order mark")
    return order, bytes(data[2:4]) in (b"+\0", b"\0+")


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
        values = read_tags(block, (ORIENTATION,)).get(ORIENTATION, (1,))
    except TagError:
        return 1
    return values[0] if 1 <= values[0] <= 8 else 1


def _unpack(layout: str, data: memoryview, at: int) -> tuple[int, ...]:
    if at + struct.calcsize(layout) > len(data):
        raise TagError("the directory or its values lie behind the end of the file", truncated=True)
    return struct.unpack_from(layout, data, at)
