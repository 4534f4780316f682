"""Reading an image's header: which format, how many pixels, which way up. Nothing is decoded here.

The first bytes decide, never the file's name. Sizes are known before a decoder sees the data, so that a small file
which claims to be huge costs nothing.
"""

import struct
from dataclasses import dataclass, field
from typing import Final

from batchdet.decode.jpeg_markers import Frame, read_frame
from batchdet.decode.png_chunks import SIGNATURE, Chunks, read_chunks
from batchdet.decode.tags import (
    COMPRESSION,
    EXTRA_SAMPLES,
    HEIGHT,
    PHOTOMETRIC,
    PLANES,
    WIDTH,
    TagError,
    Tags,
    exif_orientation,
    main_page,
    pixel_data_end,
)
from batchdet.errors import ImageError

_TIFF_COMPRESSIONS: Final = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32809, 32946, 34676, 34677, 34925, 50000})
"""What Pillow reads. It knows 50001 (WebP), too, but the libtiff of its wheels does not."""
_OTHER_COMPRESSIONS: Final = {
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34661: "JBIG",
    34712: "JPEG 2000",
    34713: "Nikon NEF",
    34715: "JBIG 2",
    34887: "LERC",
    34892: "lossy DNG",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_REFUSED: Final = (
    (0, b"8BPS", "Photoshop (PSD)"),
    (0, b"%!PS", "PostScript (EPS)"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript (EPS)"),
    (0, b"%PDF", "PDF"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyp", "HEIC or a video"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"DDS ", "DDS"),
    (0, b"\x00\x00\x01\x00", "Windows icon"),
    (128, b"DICM", "DICOM"),
    (0, b"\xd7\xcd\xc6\x9a", "Windows metafile"),
    (0, b"gimp xcf", "GIMP"),
    (0, b"\x1f\x8b", "gzip archive"),
    (0, b"PK\x03\x04", "zip archive"),
)


@dataclass(frozen=True)
class Header:
    """What an image says before it is decoded.

    Args:
        format: ``jpeg``, ``png``, ``webp``, ``bmp``, ``tiff`` or ``gif``.
        width_px: As stored, before ``orientation`` is applied.
        height_px: Likewise.
        orientation: EXIF orientation, 1..8; 1 for TIFF, whose decoder applies it.
        directory: Of a TIFF: the offset of the directory of the page that is read.
        tags: What stands in it; empty for other formats.
        frame: What the segments of a JPEG say.
        chunks: What the chunks of a PNG say.
    """

    format: str
    width_px: int
    height_px: int
    orientation: int = 1
    directory: int = 0
    tags: Tags = field(default_factory=dict)
    frame: Frame | None = None
    chunks: Chunks | None = None

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height in pixels once ``orientation`` is applied."""
        turned = self.orientation >= 5
        return (self.height_px, self.width_px) if turned else (self.width_px, self.height_px)


def read_header(data: memoryview) -> Header:
    """Read an image's header.

    Args:
        data: The encoded image, a view of bytes.

    Raises:
        ImageError: It is empty, no image, of a format that is not read, cut off, or broken.
    """
    if not len(data):
        raise ImageError("empty", "the file has no bytes")
    head = bytes(data[:16])
    try:
        if head.startswith(b"\xff\xd8\xff"):
            header = _jpeg(data)
        elif head.startswith(SIGNATURE):
            header = _png(data)
        elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            header = _webp(data)
        elif head[:6] in (b"GIF87a", b"GIF89a"):
            header = Header("gif", *struct.unpack_from("<HH", data, 6))
        elif head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            header = _tiff(data)
        elif head[:2] == b"BM" and len(data) > 2:
            header = _bmp(data)
        else:
            raise _no_image(data)
    except (struct.error, IndexError) as error:
        raise ImageError("truncated", f"the file ends within its header, after {len(data)} bytes") from error
    if header.width_px < 1 or header.height_px < 1:
        raise _corrupt(header.format, f"the header says {header.width_px} x {header.height_px} pixels")
    return header


def _corrupt(format_: str, text: str) -> ImageError:
    return ImageError("corrupt", f"{format_}: {text}")


def _cut(format_: str, text: str) -> ImageError:
    return ImageError("truncated", f"{format_}: {text}")


def _no_image(data: memoryview) -> ImageError:
    head = bytes(data[:1024])
    for at, magic, name in _REFUSED:
        if head[at : at + len(magic)] == magic:
            return ImageError("unsupported_format", f"{name} is not read; JPEG, PNG, WebP, BMP, TIFF and GIF are")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in text:
        return ImageError("unsupported_format", "SVG is not read; JPEG, PNG, WebP, BMP, TIFF and GIF are")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return ImageError("not_an_image", "the file is a web page or XML, perhaps an error page of a download")
    if head[:2] in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7") and head[2:3] in (b" ", b"\n", b"\r", b"\t", b"#"):
        return ImageError("unsupported_format", "PNM is not read; JPEG, PNG, WebP, BMP, TIFF and GIF are")
    return ImageError("not_an_image", f"no known image format begins with the bytes {head[:8].hex(' ')}")


def _jpeg(data: memoryview) -> Header:
    frame = read_frame(data)
    return Header("jpeg", frame.width_px, frame.height_px, frame.orientation, frame=frame)


def _png(data: memoryview) -> Header:
    chunks = read_chunks(data)
    return Header("png", chunks.width_px, chunks.height_px, chunks.orientation, chunks=chunks)


def _webp(data: memoryview) -> Header:
    """Walk the RIFF chunks (RFC 9649)."""
    (riff_bytes,) = struct.unpack_from("<I", data, 4)
    if riff_bytes + 8 > len(data):
        raise _cut("webp", f"{len(data)} of {riff_bytes + 8} bytes are there")
    at, width, height, orientation = 12, 0, 0, 1
    while at + 8 <= riff_bytes + 8:
        kind, length = struct.unpack_from("<4sI", data, at)
        start = at + 8
        if start + length > len(data):
            raise _corrupt("webp", f"the chunk {kind.decode('latin-1')!r} is longer than the file")
        if kind == b"VP8X":
            width, height = (int.from_bytes(data[start + o : start + o + 3], "little") + 1 for o in (4, 7))
        elif kind == b"VP8 " and not width:
            width, height = (n & 0x3FFF for n in struct.unpack_from("<HH", data, start + 6))
        elif kind == b"VP8L" and not width:
            (bits,) = struct.unpack_from("<I", data, start + 1)
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        elif kind == b"EXIF":
            orientation = exif_orientation(data[start : start + length])
        at = start + length + (length & 1)
    return Header("webp", width, height, orientation)


def _bmp(data: memoryview) -> Header:
    (info_bytes,) = struct.unpack_from("<I", data, 14)
    if info_bytes == 12:
        return Header("bmp", *struct.unpack_from("<HH", data, 18))
    if not 16 <= info_bytes <= 1024:
        raise ImageError("not_an_image", "the file begins with BM but has no bitmap header")
    width, height = struct.unpack_from("<ii", data, 18)
    return Header("bmp", width, abs(height))


def _tiff(data: memoryview) -> Header:
    try:
        directory, tags = main_page(data)
    except TagError as error:
        raise ImageError("truncated" if error.truncated else "corrupt", f"tiff: {error}") from error
    if WIDTH not in tags or HEIGHT not in tags:
        raise _corrupt("tiff", "the page has no size")
    (compression,) = tags.get(COMPRESSION, (1,))[:1]
    if compression not in _TIFF_COMPRESSIONS:
        name = _OTHER_COMPRESSIONS.get(compression, "unknown")
        raise ImageError("unsupported_format", f"tiff: compression {compression} ({name}) is not read")
    alpha, photometric = tags.get(EXTRA_SAMPLES, (0,))[0], tags.get(PHOTOMETRIC, (1,))[0]
    if tags.get(PLANES, (1,))[0] == 2 and (alpha == 1 or (alpha == 2 and photometric != 2)):  # Pillow mixes them up
        raise ImageError("unsupported_mode", "tiff: alpha in a plane apart is read for RGB that is not premultiplied")
    end = pixel_data_end(tags)
    if end > len(data):
        raise _cut("tiff", f"the pixels end at byte {end}, the file after {len(data)}")
    return Header("tiff", tags[WIDTH][0], tags[HEIGHT][0], directory=directory, tags=tags)
