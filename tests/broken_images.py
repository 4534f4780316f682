"""Broken and hostile image files, each with the error code that it must get. Used by unit and end-to-end tests."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def picture(width_px: int = 96, height_px: int = 64) -> Image.Image:
    """Return a picture with enough detail that a cut falls into its data."""
    noise = np.random.default_rng(7).integers(0, 256, (height_px, width_px, 3), np.uint8)
    return Image.fromarray(noise)


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    """Return an image as a file of the given format."""
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG chunk with its check sum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width_px: int, height_px: int) -> bytes:
    """Return a tiny, well-formed PNG whose header claims any size."""
    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)


def jpeg_claiming(width_px: int, height_px: int) -> bytes:
    """Return a small JPEG whose frame header claims any size."""
    jpeg = bytearray(encoded(picture(), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", height_px, width_px)
    return bytes(jpeg)


def tiff_of_floats() -> bytes:
    """Return a TIFF of floating-point pixels."""
    return encoded(Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), "TIFF")


def flipped(data: bytes, at: int, mask: int = 0xFF) -> bytes:
    """Return the data with bits of one byte inverted."""
    broken = bytearray(data)
    broken[at] ^= mask
    return bytes(broken)


def broken_images() -> dict[str, tuple[bytes, str]]:
    """Return file name -> (bytes, error code)."""
    jpeg, png = encoded(picture(), "JPEG", quality=90), encoded(picture(), "PNG")
    progressive = encoded(picture(), "JPEG", progressive=True)
    webp, bmp = encoded(picture(), "WEBP", lossless=True), encoded(picture(), "BMP")
    gif, tiff = encoded(picture(), "GIF"), encoded(picture(), "TIFF")
    lzw = encoded(picture(), "TIFF", compression="tiff_lzw")
    scan = jpeg.index(b"\xff\xda")
    idat = png.index(b"IDAT")
    garbage = bytes(np.random.default_rng(1).integers(0, 256, 2048, np.uint8))
    return {
        "zero_bytes.jpg": (b"", "empty"),
        "error_page.jpg": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not_an_image"),
        "s3_error.png": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "not_an_image"),
        "text.jpg": (b"this is not an image at all\n" * 20, "not_an_image"),
        "json.webp": (b'{"error": "quota exceeded"}', "not_an_image"),
        "random.jpg": (b"\x01" + garbage, "not_an_image"),
        "zeros.png": (bytes(4096), "not_an_image"),
        "one_byte.gif": (b"G", "not_an_image"),
        "only_magic.jpg": (jpeg[:4], "truncated"),
        "cut_header.jpg": (jpeg[: scan // 2], "truncated"),
        "cut_half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "cut_end_marker.jpg": (jpeg[:-2], "truncated"),
        "cut_progressive.jpg": (progressive[: len(progressive) // 2], "truncated"),
        "no_tables.jpg": (jpeg[:2] + jpeg[jpeg.index(b"\xff\xc0") :].replace(b"\xff\xc4", b"\xff\xef"), "corrupt"),
        "garbage_header.jpg": (jpeg[:2] + b"\xff\xe0\x00\x04ab\0" + garbage, "corrupt"),
        "cut_half.png": (png[: len(png) // 2], "truncated"),
        "cut_last_chunk.png": (png[:-12], "truncated"),
        "only_signature.png": (png[:8], "truncated"),
        "bad_crc_data.png": (flipped(png, idat + 200), "corrupt"),
        "bad_crc_header.png": (flipped(png, 17, 0x01), "corrupt"),
        "bad_zlib.png": (png[:33] + png_chunk(b"IDAT", garbage) + png_chunk(b"IEND", b""), "corrupt"),
        "cut_half.webp": (webp[: len(webp) // 2], "truncated"),
        "bad_data.webp": (webp[:26] + bytes(len(webp) - 26), "corrupt"),
        "cut_half.bmp": (bmp[: len(bmp) // 2], "truncated"),
        "cut_half.gif": (gif[: len(gif) // 2], "truncated"),
        "cut_half.tif": (tiff[: len(tiff) // 2], "truncated"),
        "cut_lzw.tif": (lzw[: len(lzw) // 2], "truncated"),
        "bad_lzw.tif": (lzw.replace(lzw[200:1200], garbage[:1000]), "corrupt"),
        "bomb_20k.png": (png_claiming(20_000, 20_000), "too_large"),
        "huge_claim.png": (png_claiming(2**31 - 1, 2**31 - 1), "too_large"),
        "huge_claim.jpg": (jpeg_claiming(65_535, 65_535), "too_large"),
        "no_pixels.png": (png_claiming(0, 10), "corrupt"),
        "photoshop.jpg": (b"8BPS\0\x01" + bytes(200), "unsupported_format"),
        "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(200), "unsupported_format"),
        "document.jpg": (b"%PDF-1.7\n" + bytes(200), "unsupported_format"),
        "fits.tif": (b"SIMPLE  =                    T" + b" " * 2850, "unsupported_format"),
        "phone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "unsupported_format"),
        "vector.png": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "unsupported_format"),
        "floats.tif": (tiff_of_floats(), "unsupported_mode"),
    }
