"""Every kind of pixel gives the canonical RGB; every kind of broken file gives its code."""

import io
import math
import tracemalloc
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from PIL import Image

from batchdet.decode.image import decode_image, decode_reduced
from batchdet.errors import ImageError
from batchdet.geometry.letterbox import REDUCTIONS, Reduction, Size
from batchdet.records.schema import ERROR_CODES
from tests.broken_images import broken_images, encoded, jpeg_claiming, picture, png_chunk, png_claiming

MAX_PIXELS = 100_000_000
BROKEN = broken_images()


def smooth(width_px: int = 120, height_px: int = 80) -> npt.NDArray[np.uint8]:
    """Return ``(H, W, 3)`` RGB that lossy formats keep well and that looks different from every side."""
    y, x = np.mgrid[:height_px, :width_px]
    return np.stack([x * 2, y * 3, (x + y) % 128 + 60], axis=2).astype(np.uint8)


RGB = smooth()
GRAY = np.asarray(Image.fromarray(RGB).convert("L"))
IMAGE = Image.fromarray(RGB)


def decode(data: bytes) -> npt.NDArray[np.uint8]:
    pixels = decode_image(data, MAX_PIXELS)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    return pixels


def code_of(data: bytes, max_pixels: int = MAX_PIXELS, reduction: Reduction = 1) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data, max_pixels, reduction)
    assert caught.value.message
    return caught.value.code


def distance(a: Any, b: Any) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize(
    ("format_", "options", "mean"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"compression": "tiff_deflate"}, 0),
        ("TIFF", {"compression": "jpeg", "quality": 95}, 2),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 3),
        ("JPEG", {"quality": 95, "subsampling": 0}, 1.5),
        ("JPEG", {"quality": 95, "subsampling": 2}, 3),
        ("JPEG", {"quality": 95, "progressive": True}, 3),
        ("JPEG", {"quality": 95, "restart_marker_blocks": 4}, 3),
    ],
)
def test_formats(format_: str, options: dict[str, Any], mean: float) -> None:
    assert distance(decode(encoded(IMAGE, format_, **options)), RGB) <= mean


def test_jpeg_pixels_are_those_of_opencv() -> None:
    data = encoded(picture(203, 151), "JPEG", quality=80)
    np.testing.assert_array_equal(decode(data), cv2.imdecode(np.frombuffer(data, np.uint8), 1)[:, :, ::-1])


def turned(orientation: int, format_: str, **options: Any) -> bytes:
    """Return the picture as a camera that was turned like this stores it."""
    stored = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, 1),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(np.ascontiguousarray(stored)), format_, exif=exif, **options)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format_: str, orientation: int) -> None:
    options: dict[str, Any] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format_, {})
    assert distance(decode(turned(orientation, format_, **options)), RGB) < 1.5


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_is_a_smoothed_one(orientation: int, reduction: Reduction) -> None:
    data = turned(orientation, "JPEG", quality=95)
    pixels, size = decode_reduced(data, MAX_PIXELS, lambda size: reduction)
    smoothed = cv2.resize(decode(data), (120 // reduction, 80 // reduction), interpolation=cv2.INTER_AREA)
    assert size == (120, 80)
    assert pixels.flags.c_contiguous
    assert distance(pixels, smoothed) < 3
    assert distance(pixels, smoothed[::-1]) > 10
    assert distance(pixels, smoothed[:, ::-1]) > 10


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
def test_sides_of_reduced_jpegs_are_rounded(subsampling: str, reduction: Reduction) -> None:
    for width in (*range(1, 21), 63, 64, 65):
        for height in (*range(1, 10), 16, 17, 71):
            gray = subsampling == "Gray"
            stored = np.zeros((height, width, 1 if gray else 3), np.uint8)
            data = simplejpeg.encode_jpeg(stored, colorspace="Gray" if gray else "RGB", colorsubsampling=subsampling)
            pixels = decode_image(data, MAX_PIXELS, reduction)
            assert pixels.shape == (*(max(1, math.floor(side / reduction + 0.5)) for side in (height, width)), 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sides_are_rounded_whichever_way_the_image_was_stored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(81, 46), "JPEG", exif=exif)
    upright = (46, 81) if orientation >= 5 else (81, 46)
    asked: list[Size] = []

    def choose(size: Size) -> Reduction:
        asked.append(size)
        return 4

    pixels, size = decode_reduced(data, MAX_PIXELS, choose)
    assert asked == [size] == [upright]
    assert (pixels.shape[1], pixels.shape[0]) == ((12, 20) if orientation >= 5 else (20, 12))


@pytest.mark.parametrize(
    ("reduction", "flag"),
    [(2, cv2.IMREAD_REDUCED_COLOR_2), (4, cv2.IMREAD_REDUCED_COLOR_4), (8, cv2.IMREAD_REDUCED_COLOR_8)],
)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_reduced_pixels_are_those_of_opencv(reduction: Reduction, flag: int, options: dict[str, Any]) -> None:
    data = encoded(picture(203, 151), "JPEG", quality=80, **options)
    expected: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    found = decode_image(data, MAX_PIXELS, reduction)
    np.testing.assert_array_equal(found, expected[: found.shape[0], : found.shape[1], ::-1])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cmyk_is_reduced_too(reduction: Reduction) -> None:
    data = encoded(Image.new("CMYK", (50, 30), (0, 0, 0, 128)), "JPEG", quality=100)
    pixels = decode_image(data, MAX_PIXELS, reduction)
    assert pixels.shape == {2: (15, 25, 3), 4: (8, 13, 3), 8: (4, 6, 3)}[reduction]
    assert np.abs(pixels.astype(int) - 127).max() <= 2


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_other_formats_are_decoded_in_full(format_: str) -> None:
    data = encoded(IMAGE, format_)
    pixels, size = decode_reduced(data, MAX_PIXELS, lambda size: 8)
    np.testing.assert_array_equal(pixels, decode(data))
    assert size == IMAGE.size


def test_the_size_of_a_turned_tiff_is_the_upright_one() -> None:
    assert decode_reduced(turned(6, "TIFF"), MAX_PIXELS, lambda size: 8)[1] == IMAGE.size


def test_a_chroma_layout_that_the_simple_interface_does_not_know_is_decoded_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise ValueError("Could not determine subsampling level of JPEG image")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuse)
    pixels, size = decode_reduced(encoded(IMAGE, "JPEG"), MAX_PIXELS, lambda size: 8)
    assert pixels.shape == RGB.shape
    assert size == IMAGE.size


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_does_not_exist_is_passed_over(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode(encoded(IMAGE, "JPEG", exif=exif)).shape == RGB.shape


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_gray_has_three_equal_channels(format_: str) -> None:
    pixels = decode(encoded(Image.fromarray(GRAY), format_, **({"lossless": True} if format_ == "WEBP" else {})))
    assert distance(pixels, np.repeat(GRAY[:, :, None], 3, axis=2)) < (2 if format_ == "JPEG" else 0.1)


@pytest.mark.parametrize("format_", ["PNG", "BMP", "TIFF", "GIF"])
def test_one_bit_is_black_and_white(format_: str) -> None:
    bits = IMAGE.convert("1")
    expected = np.repeat(np.asarray(bits, np.uint8)[:, :, None] * 255, 3, axis=2)
    np.testing.assert_array_equal(decode(encoded(bits, format_)), expected)


@pytest.mark.parametrize("format_", ["PNG", "BMP", "TIFF", "GIF"])
def test_a_palette_is_looked_up(format_: str) -> None:
    palette = IMAGE.quantize(64)
    np.testing.assert_array_equal(decode(encoded(palette, format_)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_onto_white(format_: str, mode: str) -> None:
    colour = RGB if mode == "RGBA" else np.repeat(GRAY[:, :, None], 3, axis=2)
    alpha = np.linspace(0, 255, RGB.shape[1]).astype(np.uint8)[None].repeat(RGB.shape[0], axis=0)
    planes = colour if mode == "RGBA" else GRAY[:, :, None]
    image = Image.fromarray(np.concatenate([planes, alpha[:, :, None]], axis=2))
    weight = alpha[:, :, None] / 255
    expected = np.rint(colour * weight + 255 * (1 - weight)).astype(np.uint8)
    options = {"lossless": True, "exact": True} if format_ == "WEBP" else {}
    pixels = decode(encoded(image, format_, **options))
    assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= 1


def test_opaque_alpha_changes_nothing() -> None:
    np.testing.assert_array_equal(decode(encoded(IMAGE.convert("RGBA"), "PNG")), RGB)


@pytest.mark.parametrize("format_", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(format_: str) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    pixels = decode(encoded(image, format_, transparency=1))
    assert pixels.tolist() == [[[10, 20, 30], [255] * 3], [[70, 80, 90], [255] * 3]]


def test_a_transparent_gray_is_white() -> None:
    image = Image.fromarray(np.array([[7, 9]], np.uint8))
    assert decode(encoded(image, "PNG", transparency=9)).tolist() == [[[7] * 3, [255] * 3]]


@pytest.mark.parametrize("format_", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(format_: str) -> None:
    ink = np.concatenate([255 - RGB, np.zeros((*RGB.shape[:2], 1), np.uint8)], axis=2)
    data = encoded(Image.frombytes("CMYK", IMAGE.size, ink.tobytes()), format_)
    pixels = decode(data)
    assert distance(pixels, RGB) < 4
    assert distance(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))) < 1


def test_black_ink_darkens() -> None:
    image = Image.new("CMYK", (16, 16), (0, 0, 0, 128))
    assert np.abs(decode(encoded(image, "JPEG", quality=100)).astype(int) - 127).max() <= 2


def test_sixteen_bit_gray_keeps_the_high_bits() -> None:
    deep = np.linspace(0, 65_535, 64 * 48).astype(np.uint16).reshape(48, 64)
    expected = np.repeat((deep >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    for format_ in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(encoded(Image.fromarray(deep), format_)), expected)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_sixteen_bit_colour_keeps_the_high_bits(channels: int, extension: str) -> None:
    deep = RGB.astype(np.uint16) * 257
    if channels == 4:
        deep = np.concatenate([deep, np.full((*RGB.shape[:2], 1), 65_535, np.uint16)], axis=2)
    order = [2, 1, 0, 3][:channels]
    data = cv2.imencode(extension, np.ascontiguousarray(deep[:, :, order]))[1].tobytes()
    np.testing.assert_array_equal(decode(data), RGB)


def test_a_tiff_whose_white_is_zero() -> None:
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    data = bytearray(encoded(Image.fromarray(deep), "TIFF"))
    at = data.index(b"\x06\x01\x03\x00\x01\x00\x00\x00\x01\x00")
    data[at + 8] = 0
    np.testing.assert_array_equal(decode(bytes(data))[:, :, 0], 255 - (deep >> 8))


def test_only_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    for format_ in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(frames[0], format_, save_all=True, append_images=frames[1:])
        pixels = decode(data)
        assert pixels.shape == (10, 20, 3)
        assert distance(pixels, np.broadcast_to([255, 0, 0], (10, 20, 3))) < 3


@pytest.mark.acceptance("S1")
def test_a_tiff_of_a_thousand_pages_costs_one_page() -> None:
    page = Image.new("L", (8, 8), 7)
    data = encoded(page, "TIFF", save_all=True, append_images=[page] * 999)
    assert (decode(data) == 7).all()


def test_the_extension_does_not_matter_and_bytes_behind_the_end_neither() -> None:
    assert decode(encoded(IMAGE, "PNG") + b"trailing").shape == RGB.shape
    assert decode(encoded(IMAGE, "JPEG") + bytes(1000)).shape == RGB.shape


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.acceptance("R22", "S1")
def test_broken_files_get_their_code(name: str) -> None:
    data, code = BROKEN[name]
    assert code in ERROR_CODES
    assert code_of(data) == code


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_broken_files_get_the_same_code_at_every_reduction(name: str, reduction: Reduction) -> None:
    data, code = BROKEN[name]
    assert code_of(data, reduction=reduction) == code


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_jpeg_that_ends_anywhere_is_truncated_at_every_reduction(reduction: Reduction) -> None:
    for options in ({}, {"progressive": True}):
        data = encoded(picture(), "JPEG", **options)
        for end in range(len(data) // 4, len(data) - 1, 97):
            assert code_of(data[:end], reduction=reduction) == code_of(data[:end]) == "truncated"


def test_the_corpus_has_more_than_twenty_kinds() -> None:
    assert len(BROKEN) >= 20
    assert len({code for _, code in BROKEN.values()}) >= 7


@pytest.mark.parametrize(
    "data", [png_claiming(20_000, 20_000), jpeg_claiming(65_535, 65_535)], ids=["png 20k x 20k", "jpeg 65535 x 65535"]
)
@pytest.mark.acceptance("S1")
def test_a_bomb_is_refused_before_memory_is_taken(data: bytes) -> None:
    tracemalloc.start()
    try:
        assert code_of(data) == "too_large"
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.acceptance("S1")
def test_the_cap_is_the_users() -> None:
    data = encoded(IMAGE, "PNG")
    assert code_of(data, max_pixels=RGB.shape[0] * RGB.shape[1] - 1) == "too_large"
    assert decode_image(data, RGB.shape[0] * RGB.shape[1]).shape == RGB.shape


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_cap_counts_the_full_size(reduction: Reduction) -> None:
    data = encoded(IMAGE, "JPEG")
    assert code_of(data, RGB.shape[0] * RGB.shape[1] - 1, reduction) == "too_large"
    assert decode_image(data, RGB.shape[0] * RGB.shape[1], reduction).shape == (80 // reduction, 120 // reduction, 3)


def test_more_pixels_than_pillow_allows_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for format_ in ("PNG", "BMP", "GIF"):
        assert decode(encoded(IMAGE, format_)).shape == RGB.shape
    for format_ in ("WEBP", "TIFF"):
        assert code_of(encoded(IMAGE, format_)) == "too_large"


@pytest.mark.acceptance("S1")
def test_a_gif_frame_larger_than_its_screen_meets_the_cap() -> None:
    data = bytearray(encoded(Image.new("P", (64, 64)), "GIF"))
    data[6:10] = bytes([1, 0, 1, 0])
    assert code_of(bytes(data), max_pixels=1000) == "too_large"


@pytest.mark.parametrize("count", [2, 12])  # the decoder's look-ahead swallows the first few without a word
def test_stray_bytes_before_the_end_marker_are_harmless(count: int) -> None:
    data = encoded(IMAGE, "JPEG")
    stray = data[:-2] + bytes(count) + data[-2:]
    np.testing.assert_array_equal(decode(stray), decode(data))
    for reduction in REDUCTIONS:
        reduced = decode_image(data, MAX_PIXELS, reduction)
        np.testing.assert_array_equal(decode_image(stray, MAX_PIXELS, reduction), reduced)


def test_unknown_text_chunks_and_broken_exif_are_harmless() -> None:
    png = encoded(IMAGE, "PNG")
    odd = png[:33] + png_chunk(b"eXIf", b"MM\0*\0\0\xff\xff") + png_chunk(b"teSt", b"x" * 99) + png[33:]
    np.testing.assert_array_equal(decode(odd), RGB)


def test_errors_pickle() -> None:
    import pickle

    with pytest.raises(ImageError) as caught:
        decode_image(b"", 10)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.code, again.message) == ("empty", caught.value.message)
