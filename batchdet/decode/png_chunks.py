"""The chunks of a PNG (PNG Third Edition, section 5), and a PNG of those that hold pixels.

Text, profiles and other metadata never reach the decoder: they cannot fail an image, nor fill the memory.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from batchdet.decode.tags import exif_orientation
from batchdet.errors import ImageError

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_GRAY, _RGB, _PALETTE = 0, 2, 3
_KEPT: Final = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})


@dataclass(frozen=True)
class Chunks:
    """What the chunks of a PNG say.

    Args:
        width_px: As stored, before ``orientation`` is applied.
        height_px: Likewise.
        orientation: EXIF orientation, 1..8.
        pixels: First byte and byte behind the end of each chunk that a decoder needs.
        palette_alpha: The alpha of the palette's first entries, or none.
        transparent: A transparent gray or colour, a number of the PNG's own depth a channel, or none.
        bits: Of a channel.
    """

    width_px: int
    height_px: int
    orientation: int
    pixels: tuple[tuple[int, int], ...]
    palette_alpha: bytes
    transparent: tuple[int, ...]
    bits: int


def read_chunks(data: memoryview) -> Chunks:
    """Walk the chunks. The check sums of those that hold pixels are compared, because Pillow passes over those of IDAT.

    Raises:
        ImageError: The file ends before its last chunk, a chunk that matters is broken, or it is no plain PNG.
    """
    at, size, orientation, trns = 8, len(data), 1, b""
    kept: list[tuple[int, int]] = []
    kind = b""
    while kind != b"IEND":
        if at + 8 > size:
            raise _cut(size)
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if at == 8 and kind == b"CgBI":
            raise ImageError("unsupported_format", "CgBI is not read: Apple's own kind of PNG, made by Xcode for iOS")
        if at == 8 and (kind != b"IHDR" or length != 13):
            raise ImageError("corrupt", "png: the first chunk is not IHDR")
        if end > size:
            raise _cut(size)
        if not kind[0] & 0x20 and not _is_whole(data, at, end):
            raise ImageError("corrupt", f"png: wrong check sum of the chunk {kind.decode('latin-1')!r} at byte {at}")
        if kind in _KEPT:
            kept.append((at, end))
        elif kind == b"eXIf":
            orientation = exif_orientation(data[at + 8 : end - 4])
        elif kind == b"tRNS" and _is_whole(data, at, end) and not _has_pixels(data, kept):
            trns = bytes(data[at + 8 : end - 4])
        at = end
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    alpha = trns[:256] if colour == _PALETTE else b""
    return Chunks(width, height, orientation, tuple(kept), alpha, _transparent(trns, bits, colour), bits)


def pixels_only(data: memoryview, chunks: Chunks) -> bytes:
    """Return a PNG of the chunks that a decoder needs."""
    parts = [data[begin:end] for begin, end in chunks.pixels]
    first = next((i for i, part in enumerate(parts) if bytes(part[4:8]) == b"IDAT"), len(parts))
    alpha = [_chunk(b"tRNS", chunks.palette_alpha)] if chunks.palette_alpha else []
    return b"".join([SIGNATURE, *parts[:first], *alpha, *parts[first:]])


def _transparent(trns: bytes, bits: int, colour: int) -> tuple[int, ...]:
    channels = {_GRAY: 1, _RGB: 3}.get(colour, 0)
    if not channels or len(trns) < 2 * channels:
        return ()
    return tuple(value & (1 << bits) - 1 for value in struct.unpack_from(f">{channels}H", trns))


def _has_pixels(data: memoryview, chunks: list[tuple[int, int]]) -> bool:
    return bool(chunks) and bytes(data[chunks[-1][0] + 4 : chunks[-1][0] + 8]) == b"IDAT"


def _is_whole(data: memoryview, at: int, end: int) -> bool:
    (expected,) = struct.unpack_from(">I", data, end - 4)
    return bool(zlib.crc32(data[at + 4 : end - 4]) == expected)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _cut(size: int) -> ImageError:
    return ImageError("truncated", f"png: the file ends after {size} bytes, before its last chunk")
