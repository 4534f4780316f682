"""Metadata, trailers and odd layouts: what libjpeg, libpng and libtiff read is read, or refused with a fitting code."""

import struct
import time
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from batchdet.decode.image import decode_image
from batchdet.errors import ImageError
from tests.broken_images import encoded, png_chunk
from tests.image_writers import (
    Samples,
    Tiff,
    bmp,
    bmp_of_palette,
    jpeg_of,
    jpeg_segments,
    on_white,
    png,
    tiff,
    to_8_bits,
)

MAX_PIXELS = 1_000_000
Y, X = np.mgrid[:40, :56]
RGB: Samples = (np.stack([X * 4, Y * 6, (X + Y) * 2], 2) % 256).astype(np.uint16)
IMAGE = Image.fromarray(RGB.astype(np.uint8))
JPEG = encoded(IMAGE, "JPEG", quality=95, subsampling=0)
PROGRESSIVE = encoded(IMAGE, "JPEG", quality=95, subsampling=0, progressive=True)
JPEGS = pytest.mark.parametrize("jpeg", [JPEG, PROGRESSIVE], ids=["baseline", "progressive"])


def decode(data: bytes) -> Any:
    return decode_image(data, MAX_PIXELS)


def code_of(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data)
    return caught.value.code


def pressed(text_bytes: int) -> bytes:
    return zlib.compress(bytes(np.random.default_rng(0).integers(97, 103, text_bytes, np.uint8)))


@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"k\0\0" + pressed(2_500_000)),
        (b"iTXt", b"k\0\1\0\0\0" + pressed(2_500_000)),
        (b"iCCP", b"k\0\0" + pressed(2_500_000)),
        (b"tEXt", b"k" * 2_500_000),
        (b"zTXt", b"k\0\7broken"),
        (b"gAMA", b""),
        (b"pHYs", b"1"),
        (b"cHRM", b""),
        (b"sRGB", b""),
        (b"tRNS", b"\1"),
        (b"eXIf", b"no exif"),
        (b"acTL", b""),
        (b"fcTL", b"\0"),
    ],
    ids=lambda chunk: f"{chunk[0].decode()} of {len(chunk[1])}",
)
def test_metadata_never_fails_a_png(chunk: tuple[bytes, bytes]) -> None:
    np.testing.assert_array_equal(decode(png(RGB, 8, 2, before=[chunk])), RGB)
    np.testing.assert_array_equal(decode(png(RGB, 8, 2, behind=[chunk])), RGB)


def test_a_wrong_check_sum_of_metadata_is_passed_over() -> None:
    whole = png(RGB, 8, 2, before=[(b"tEXt", b"a\0b"), (b"tRNS", struct.pack(">3H", *RGB[3, 4]))])
    text, transparent = whole.index(b"tEXt") + 4, whole.index(b"tRNS") + 4
    broken = bytearray(whole)
    broken[text] ^= 1
    broken[transparent + 6] ^= 1
    np.testing.assert_array_equal(decode(bytes(broken)), RGB)
    assert code_of(whole[: whole.index(b"IDAT") + 8] + b"\1" + whole[whole.index(b"IDAT") + 9 :]) == "corrupt"


def test_ancillary_chunks_between_those_of_pixels() -> None:
    whole = png(RGB, 8, 2)
    at = whole.index(b"IDAT") + 4
    (length,) = struct.unpack_from(">I", whole, at - 8)
    pixels = whole[at : at + length]
    parts = [png_chunk(b"IDAT", pixels[:50]), png_chunk(b"tEXt", b"a\0b"), png_chunk(b"IDAT", pixels[50:])]
    np.testing.assert_array_equal(decode(whole[: at - 8] + b"".join(parts) + whole[at + length + 4 :]), RGB)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("which", ["first", "second", "last"])
def test_the_transparent_gray_of_a_png(bits: int, which: str) -> None:
    top = 2**bits - 1
    gray = ((X * 7 + Y * 13) * 257 % (top + 1)).astype(np.uint16)
    transparent = {"first": 0, "second": 1, "last": top}[which]
    gray[0, 0] = transparent
    expected = np.repeat(to_8_bits(gray, bits)[:, :, None], 3, axis=2)
    expected[gray == transparent] = 255
    data = png(gray[:, :, None], bits, 0, [(b"tRNS", struct.pack(">H", transparent))])
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_transparent_colour_of_a_png(bits: int) -> None:
    colours = RGB << (bits - 8)
    colours[5, 6] = colours[3, 4]
    colours[5, 6, 0] ^= 1  # not the transparent colour, though its high bits may be
    expected = to_8_bits(colours, bits)
    expected[(colours == colours[3, 4]).all(axis=2)] = 255
    data = png(colours, bits, 2, [(b"tRNS", struct.pack(">3H", *colours[3, 4]))])
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("tag", [269, 270, 282, 296, 305, 330, 700, 33432, 33723, 34377, 34665, 34675, 34853, 65000])
def test_metadata_never_fails_a_tiff(tag: int, compression: int) -> None:
    whole = tiff((RGB, Tiff(compression=compression, planar=compression == 8, tags=((tag, 4, (1,)),))))
    at = whole.rindex(struct.pack("<HHI", tag, 4, 1))
    for kind in (1, 2, 3, 4, 5, 7, 11, 12, 13, 99):
        for count, value in ((1, 0), (4, 5), (1, 10**9), (100_000_000, 8), (20, 20)):
            odd = whole[:at] + struct.pack("<HHII", tag, kind, count, value) + whole[at + 12 :]
            np.testing.assert_array_equal(decode(odd), RGB)


@pytest.mark.parametrize("chunk", [(b"ICCP", b"garbage"), (b"EXIF", b"xx"), (b"XMP ", b"\xff" * 9), (b"abcd", b"1")])
def test_metadata_never_fails_a_webp(chunk: tuple[bytes, bytes]) -> None:
    plain = encoded(IMAGE, "WEBP", lossless=True)
    pixels = plain[20 : 20 + struct.unpack_from("<I", plain, 16)[0]]
    sides = b"".join((side - 1).to_bytes(3, "little") for side in IMAGE.size)
    chunks = [(b"VP8X", struct.pack("<I", 0x2C) + sides), (b"VP8L", pixels)]
    chunks.insert(1 if chunk[0] == b"ICCP" else 2, chunk)
    body = b"".join(k + struct.pack("<I", len(v)) + v + b"\0" * (len(v) % 2) for k, v in chunks)
    np.testing.assert_array_equal(decode(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body), RGB)


def exif_of(kind: int, value: bytes, big: bool = False) -> bytes:
    order = ">" if big else "<"
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(order + "IH", 8, 1)
    return b"Exif\0\0" + head + struct.pack(order + "HHI", 0x0112, kind, 1) + value.ljust(4, b"\0") + bytes(4)


@JPEGS
@pytest.mark.parametrize(
    "exif",
    [
        exif_of(1, b"\6"),
        exif_of(3, b"\6\0"),
        exif_of(4, b"\6\0\0\0"),
        exif_of(6, b"\6"),
        exif_of(8, b"\6\0"),
        exif_of(9, b"\6\0\0\0"),
        exif_of(8, b"\0\6", big=True),
        exif_of(9, b"\0\0\0\6", big=True),
    ],
)
def test_an_orientation_of_any_type_anywhere_before_the_pixels(jpeg: bytes, exif: bytes) -> None:
    segments, rest = jpeg_segments(jpeg)
    upright = np.rot90(decode(jpeg), -1)
    for place in (0, 1, len(segments)):
        turned = jpeg_of([*segments[:place], (0xE1, exif), *segments[place:]], rest)
        np.testing.assert_array_equal(decode(turned), upright)
    negative = jpeg_of([(0xE1, exif_of(8, b"\xfa\xff")), *segments], rest)
    np.testing.assert_array_equal(decode(negative), decode(jpeg))


@JPEGS
@pytest.mark.parametrize(
    "segment",
    [
        (0xE2, b"ICC_PROFILE\0\3\2" + bytes(50)),
        (0xE2, b"ICC_PROFILE\0\0\0"),
        (0xE0, b"JFIF\0\7\7\0\0\1\0\1\0\0"),
        (0xE1, b"Exif"),
        (0xED, b"Photoshop 3.0\x008BIM" + b"\xff" * 40),
        (0xEE, b"Adobe\0\x64\0\0\0\0\7"),
        (0xFE, b""),
    ],
    ids=lambda segment: segment[1][:12].decode("latin-1").rstrip("\0"),
)
def test_metadata_never_fails_a_jpeg(jpeg: bytes, segment: tuple[int, bytes]) -> None:
    segments, rest = jpeg_segments(jpeg)
    np.testing.assert_array_equal(decode(jpeg_of([segment, *segments], rest)), decode(jpeg))


@JPEGS
def test_stray_bytes_between_the_segments_of_a_header(jpeg: bytes) -> None:
    segments, _ = jpeg_segments(jpeg)
    at = 2 + 4 + len(segments[0][1])
    for stray in (b"abc", b"\xff\0abc", b"\xff\xff\xff"):
        np.testing.assert_array_equal(decode(jpeg[:at] + stray + jpeg[at:]), decode(jpeg))


@JPEGS
def test_what_follows_the_end_marker_is_no_part_of_a_jpeg(jpeg: bytes) -> None:
    for trailer in (b"\xff\xda" * 500, jpeg, bytes(5000), b"\xff\xd8\xff\xc4"):
        np.testing.assert_array_equal(decode(jpeg + trailer), decode(jpeg))


@JPEGS
@pytest.mark.parametrize("trailer", [b"", bytes(500), b"\xff\xfd\0\x10" + bytes(500), b"SEFH" + bytes(40) + b"SEFT"])
def test_a_jpeg_without_end_marker_is_truncated(jpeg: bytes, trailer: bytes) -> None:
    assert code_of(jpeg[:-2] + trailer) == "truncated"
    assert code_of(jpeg[: len(jpeg) * 3 // 4] + trailer) == "truncated"


def of_separate_scans(scans: int) -> bytes:
    """Return a baseline JPEG that gives its channels one scan each, the last one again and again."""
    segments, rest = jpeg_segments(JPEG)
    head = jpeg_of(segments, b"")
    coded = rest[2 + struct.unpack_from(">H", rest, 2)[0] : -2]
    scan = [b"\xff\xda\0\x08\x01" + bytes([channel, table]) + b"\0\x3f\0" + coded[:20] for channel, table in
            ((1, 0), (2, 0x11), (3, 0x11))]  # fmt: skip
    return head + b"".join(scan) + scan[2] * scans + b"\xff\xd9"


@pytest.mark.acceptance("S1")
def test_scans_are_counted_in_every_jpeg_that_has_several() -> None:
    start = time.process_time()
    with pytest.raises(ImageError, match="more than 100 scans") as caught:
        decode(of_separate_scans(5000))
    assert caught.value.code == "corrupt"
    assert time.process_time() - start < 1
    with pytest.raises(ImageError, match="segments"):
        decode(b"\xff\xd8" + b"\xff\xe5\0\2" * 70_000 + JPEG[2:])


@pytest.mark.parametrize("alpha", [0, 128, 255])
@pytest.mark.parametrize("header_bytes", [56, 108, 124])
@pytest.mark.parametrize(
    "masks",
    [
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
    ],
)
def test_alpha_of_a_bmp(masks: tuple[int, ...], header_bytes: int, alpha: int) -> None:
    plane = np.full((*RGB.shape[:2], 1), alpha, np.uint16)
    found = decode(bmp(np.concatenate([RGB, plane], axis=2), masks, header_bytes))
    assert np.abs(found.astype(int) - on_white(RGB, plane[:, :, 0])).max() <= 1


def _opaque(format_: str, **options: Any) -> bytes:
    return encoded(Image.fromarray(np.dstack([RGB, RGB[:, :, 0] * 0]).astype(np.uint8)), format_, **options)


@pytest.mark.parametrize(
    "data",
    [
        _opaque("PNG"),
        _opaque("TIFF"),
        _opaque("TIFF", compression="tiff_lzw"),
        _opaque("WEBP", lossless=True, exact=True),
        tiff((np.dstack([RGB, RGB[:, :, 0] * 0]), Tiff(extra=(1,)))),
        tiff((np.dstack([RGB, RGB[:, :, 0] * 0]) * 257, Tiff(16, extra=(1,), compression=8))),
        tiff((np.dstack([RGB, RGB[:, :, 0] * 0]) * 257, Tiff(16, extra=(2,), planar=True))),
        png(np.dstack([RGB, RGB[:, :, 0] * 0]) * 257, 16, 6),
    ],
    ids=["png", "tiff", "lzw", "webp", "premultiplied", "premultiplied 16", "planes apart", "png 16"],
)
def test_alpha_that_is_0_everywhere_is_opaque(data: bytes) -> None:
    np.testing.assert_array_equal(decode(data), RGB)


def test_a_palette_that_is_transparent_throughout_is_opaque() -> None:
    image = IMAGE.quantize(16)
    for format_ in ("PNG", "GIF"):
        for transparency in (bytes(16),) if format_ == "PNG" else (0,):
            single = image if format_ == "PNG" else Image.fromarray(np.zeros((4, 4), np.uint8), "P")
            single.putpalette(image.getpalette() or [])
            found = decode(encoded(single, format_, transparency=transparency))
            np.testing.assert_array_equal(found, np.asarray(single.convert("RGB")))
    gray = np.full((4, 4, 1), 9, np.uint16)
    assert (decode(png(gray, 8, 0, [(b"tRNS", b"\0\x09")])) == 9).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_bmp_palette_of_black_and_white_alone(bits: int) -> None:
    indices = (X + Y) % 2
    for palette in ([(0, 0, 0), (255, 255, 255)], [(255, 255, 255), (0, 0, 0)]):
        np.testing.assert_array_equal(decode(bmp_of_palette(indices, palette, bits)), np.array(palette)[indices])


@pytest.mark.parametrize(("number", "name"), [(34712, "JPEG 2000"), (34887, "LERC"), (50001, "WebP"), (777, "unknown")])
def test_a_tiff_of_a_compression_that_is_not_read(number: int, name: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(tiff((RGB, Tiff(compression=number))))
    assert caught.value.code == "unsupported_format"
    assert f"{number} ({name})" in caught.value.message


@pytest.mark.parametrize(
    "compression", ["tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "lzma", "zstd", "jpeg"]
)
def test_tiff_compressions_that_are_read(compression: str) -> None:
    options = {"quality": 98} if compression == "jpeg" else {}
    found = decode(encoded(IMAGE, "TIFF", compression=compression, **options))
    assert np.abs(found.astype(int) - RGB).mean() < (2 if options else 0.001)


@pytest.mark.parametrize("compression", ["tiff_ccitt", "group3", "group4"])
def test_tiff_compressions_of_fax_machines(compression: str) -> None:
    image = IMAGE.convert("1")
    found = decode(encoded(image, "TIFF", compression=compression))
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


def test_four_planes_of_eight_bits() -> None:
    fourth = ((X * 3) % 256).astype(np.uint16)
    planes = np.dstack([RGB, fourth])
    np.testing.assert_array_equal(decode(tiff((planes, Tiff(planar=True, extra=(0,))))), RGB)
    found = decode(tiff((planes, Tiff(planar=True, extra=(2,)))))
    assert np.abs(found.astype(int) - on_white(RGB, fourth)).max() <= 1
    assert code_of(tiff((planes, Tiff(planar=True, extra=(1,))))) == "unsupported_mode"


SMALL = RGB[::4, ::4]
SMALLER: Any = ((254, 4, (1,)),)


@pytest.mark.parametrize(
    "pages",
    [
        [(SMALL, Tiff(tags=SMALLER)), (RGB, Tiff(tags=((254, 4, (0,)),)))],
        [(SMALL, Tiff(tags=((255, 3, (2,)),))), (RGB, Tiff(tags=((255, 3, (1,)),)))],
        [(SMALL, Tiff(tags=SMALLER)), (SMALL, Tiff(tags=((254, 4, (4,)),))), (RGB, Tiff(planar=True))],
        [(SMALL, Tiff(tags=SMALLER)), (RGB * 257, Tiff(16, planar=True)), (SMALL, Tiff())],
        [(RGB, Tiff()), (SMALL, Tiff(tags=SMALLER))],
    ],
)
def test_the_page_of_full_resolution_is_read(pages: list[tuple[Samples, Tiff]]) -> None:
    np.testing.assert_array_equal(decode(tiff(*pages)), RGB)


@pytest.mark.acceptance("S1")
def test_smaller_pages_without_end() -> None:
    page = (SMALL, Tiff(tags=SMALLER))
    np.testing.assert_array_equal(decode(tiff(*[page] * 40)), SMALL)
    loop = bytearray(tiff(page, page))
    first = struct.unpack_from("<I", loop, 4)[0]
    (entries,) = struct.unpack_from("<H", loop, first)
    struct.pack_into("<I", loop, first + 2 + 12 * entries, first)
    np.testing.assert_array_equal(decode(bytes(loop)), SMALL)
    cut = tiff(page, (RGB, Tiff()))
    assert code_of(cut[: cut.rindex(b"\0\1\4\0") - 100]) == "truncated"
    with pytest.raises(ImageError) as caught:
        decode_image(tiff(page, (RGB, Tiff())), RGB.shape[0] * RGB.shape[1] - 1)
    assert caught.value.code == "too_large"


def test_pillow_is_left_as_it_was() -> None:
    from PIL import TiffImagePlugin

    decode(tiff((RGB, Tiff(planar=True))))
    assert TiffImagePlugin.READ_LIBTIFF is False


def test_opencv_agrees_about_planes_of_sixteen_bits() -> None:
    data = tiff((RGB * 257, Tiff(16, planar=True)))
    seen: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decode(data), seen[:, :, ::-1])
