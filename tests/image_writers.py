"""Writers of image files in layouts that Pillow and OpenCV read but do not write, and what their pixels mean."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.broken_images import png_chunk

Samples = npt.NDArray[np.uint16]
"""``(H, W, C)`` of values below ``2 ** bits``."""


def to_8_bits(samples: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Return samples in 0..255: fewer than 8 bits are spread, of more than 8 the high ones are kept."""
    wide = samples.astype(np.uint32)
    return (wide >> (bits - 8) if bits >= 8 else wide * 255 // (2**bits - 1)).astype(np.uint8)


def on_white(rgb: npt.NDArray[Any], alpha: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Composite ``(H, W, 3)`` of 0..255 onto white; alpha that is 0 everywhere counts as opaque."""
    if not alpha.any():
        return rgb.astype(np.uint8)
    weight = alpha[:, :, None] / 255
    return np.rint(rgb * weight + 255 * (1 - weight)).astype(np.uint8)


def packed_rows(samples: npt.NDArray[Any], bits: int, big_endian: bool = True) -> list[bytes]:
    """Return each row of ``(H, W, C)`` as bytes, samples side by side, the first one in the high bits."""
    rows = samples.reshape(samples.shape[0], -1)
    if bits in (8, 16):
        return [row.astype(f"{'>' if big_endian else '<'}u{bits // 8}").tobytes() for row in rows]
    single = rows[:, :, None] >> np.arange(bits - 1, -1, -1) & 1
    return [row.tobytes() for row in np.packbits(single.reshape(rows.shape[0], -1).astype(np.uint8), axis=1)]


def _literal_runs(data: bytes) -> bytes:
    """Compress nothing, in the manner of PackBits."""
    return b"".join(bytes([len(data[i : i + 128]) - 1]) + data[i : i + 128] for i in range(0, len(data), 128))


@dataclass(frozen=True)
class Tiff:
    """How a TIFF page is laid out (TIFF Revision 6.0).

    Args:
        bits: Of a sample.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK.
        planar: One plane behind the other.
        big_endian: Order of the bytes.
        rows: Rows of a strip, 0 for all; with ``tile`` unused.
        tile: Side of a tile in pixels, 0 for strips.
        compression: 1 none, 8 deflate, 32773 PackBits, or any number that is only named.
        extra: ExtraSamples: 0 unspecified, 1 premultiplied alpha, 2 alpha.
        tags: More tags, ``(number, type, values)``; type 3 is 16 bits, 4 is 32.
    """

    bits: int = 8
    photometric: int = 2
    planar: bool = False
    big_endian: bool = False
    rows: int = 0
    tile: int = 0
    compression: int = 1
    extra: tuple[int, ...] = ()
    tags: tuple[tuple[int, int, tuple[int, ...]], ...] = ()


def tiff(*pages: tuple[Samples, Tiff]) -> bytes:
    """Return a TIFF of one or several pages."""
    order = ">" if pages[0][1].big_endian else "<"
    data = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "I", 8)
    link = 4
    for samples, layout in pages:
        blocks = _blocks(samples, layout)
        offsets = []
        for block in blocks:
            offsets.append(len(data))
            data += block + b"\0" * (len(block) % 2)
        data = data[:link] + struct.pack(order + "I", len(data)) + data[link + 4 :]
        data += _directory(samples, layout, offsets, [len(block) for block in blocks], len(data))
        link = len(data) - 4 - _values_bytes(samples, layout, len(blocks))
    return data


def _blocks(samples: Samples, layout: Tiff) -> list[bytes]:
    height, width, channels = samples.shape
    planes = [samples[:, :, c : c + 1] for c in range(channels)] if layout.planar else [samples]
    parts: list[Any] = []
    for plane in planes:
        if layout.tile:
            side = layout.tile
            padded = np.pad(plane, ((0, -height % side), (0, -width % side), (0, 0)))
            tops, lefts = range(0, height, side), range(0, width, side)
            parts += [padded[top : top + side, left : left + side] for top in tops for left in lefts]
        else:
            parts += [plane[top : top + (layout.rows or height)] for top in range(0, height, layout.rows or height)]
    raw = [b"".join(packed_rows(part, layout.bits, layout.big_endian)) for part in parts]
    return [{8: zlib.compress, 32773: _literal_runs}.get(layout.compression, bytes)(block) for block in raw]


def _entries(
    samples: Samples, layout: Tiff, offsets: Sequence[int], sizes: Sequence[int]
) -> list[tuple[int, int, tuple[int, ...]]]:
    height, width, channels = samples.shape
    at, size = (324, 325) if layout.tile else (273, 279)
    entries: list[tuple[int, int, tuple[int, ...]]] = [
        (256, 4, (width,)), (257, 4, (height,)), (258, 3, (layout.bits,) * channels), (259, 3, (layout.compression,)),
        (262, 3, (layout.photometric,)), (at, 4, tuple(offsets)), (277, 3, (channels,)), (size, 4, tuple(sizes)),
        (284, 3, (2 if layout.planar else 1,)), *layout.tags,
    ]  # fmt: skip
    sides = (
        [(322, 3, (layout.tile,)), (323, 3, (layout.tile,))] if layout.tile else [(278, 4, (layout.rows or height,))]
    )
    return sorted(entries + sides + ([(338, 3, layout.extra)] if layout.extra else []))


def _room(entry: tuple[int, int, tuple[int, ...]]) -> int:
    size = len(entry[2]) * (2 if entry[1] == 3 else 4)
    return 0 if size <= 4 else size + size % 2


def _values_bytes(samples: Samples, layout: Tiff, blocks: int) -> int:
    return sum(map(_room, _entries(samples, layout, [0] * blocks, [0] * blocks)))


def _directory(samples: Samples, layout: Tiff, offsets: list[int], sizes: list[int], at: int) -> bytes:
    """Return a directory that begins at byte ``at``, its link to the next one (0), and the longer values behind it."""
    order = ">" if layout.big_endian else "<"
    entries = _entries(samples, layout, offsets, sizes)
    lines, values = b"", b""
    behind = at + 2 + 12 * len(entries) + 4
    for entry in entries:
        tag, kind, numbers = entry
        packed = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        place = struct.pack(order + "I", behind + len(values)) if _room(entry) else packed.ljust(4, b"\0")
        lines += struct.pack(order + "HHI", tag, kind, len(numbers)) + place
        values += packed.ljust(_room(entry), b"\0") if _room(entry) else b""
    return struct.pack(order + "H", len(entries)) + lines + bytes(4) + values


def bmp(samples: Samples, masks: Sequence[int], header_bytes: int = 108, top_down: bool = False) -> bytes:
    """Return a BMP of 16 or 32 bits a pixel, ``(H, W, len(masks))`` samples of 8 bits put under the masks.

    Args:
        samples: Red, green, blue and, with four masks, alpha; 0..255.
        masks: Of each channel; 32 bits if one reaches beyond the lower 16.
        header_bytes: 40 (masks behind the header), 52, 56 (V3), 108 (V4) or 124 (V5).
        top_down: The first row is stored first.
    """
    bits = 32 if max(masks) >> 16 else 16
    height, width = samples.shape[:2]
    words = np.zeros((height, width), np.uint32)
    for channel, mask in enumerate(masks):
        low = (mask & -mask).bit_length() - 1
        words |= (samples[:, :, channel].astype(np.uint32) >> (8 - mask.bit_count()) << low) & mask
    rows = [row.astype(f"<u{bits // 8}").tobytes() for row in (words if top_down else words[::-1])]
    pixels = b"".join(row + b"\0" * (-len(row) % 4) for row in rows)
    info = struct.pack("<IiiHHIIiiII", header_bytes, width, -height if top_down else height, 1, bits, 3, len(pixels),
                       2835, 2835, 0, 0)  # fmt: skip
    info += b"".join(struct.pack("<I", mask) for mask in masks)
    info = info.ljust(header_bytes, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + len(pixels), 0, 0, 14 + len(info)) + info + pixels


def bmp_of_palette(indices: npt.NDArray[Any], palette: Sequence[tuple[int, int, int]], bits: int) -> bytes:
    """Return a BMP of 1, 4 or 8 bits a pixel, ``(H, W)`` indices into RGB colours."""
    height, width = indices.shape
    rows = packed_rows(indices[::-1, :, None], bits)
    pixels = b"".join(row + b"\0" * (-len(row) % 4) for row in rows)
    colours = b"".join(bytes([b, g, r, 0]) for r, g, b in palette)
    start = 14 + 40 + len(colours)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, len(pixels), 2835, 2835, len(palette), 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + colours + pixels


PNG_COLOURS = {"gray": 0, "rgb": 2, "palette": 3, "gray and alpha": 4, "rgba": 6}


def png(
    samples: Samples,
    bits: int,
    colour: int,
    before: Sequence[tuple[bytes, bytes]] = (),
    behind: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """Return a PNG with chunks before and behind its pixels (PNG Third Edition)."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in packed_rows(samples, bits)))
    chunks = [(b"IHDR", header), *before, (b"IDAT", pixels), *behind, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)


def jpeg_segments(jpeg: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Return marker and content of each segment of a JPEG, and everything from the first scan on."""
    at, found = 2, []
    while jpeg[at + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", jpeg, at + 2)
        found.append((jpeg[at + 1], jpeg[at + 4 : at + 2 + length]))
        at += 2 + length
    return found, jpeg[at:]


def jpeg_of(segments: Sequence[tuple[int, bytes]], rest: bytes) -> bytes:
    """Return the JPEG of such parts."""
    head = b"".join(b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data for marker, data in segments)
    return b"\xff\xd8" + head + rest
