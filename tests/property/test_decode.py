"""Whatever the bytes are, decoding gives pixels or an ImageError with a known code, and never a warning."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from batchdet.decode.image import decode_image, decode_reduced
from batchdet.errors import ImageError
from batchdet.geometry.letterbox import REDUCTIONS, Reduction, reduced
from batchdet.records.schema import ERROR_CODES
from tests.broken_images import encoded, picture

MAX_PIXELS = 4_000_000


def _seeds() -> dict[str, bytes]:
    image = picture(40, 30)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    palette = image.quantize(16)
    return {
        "jpeg": encoded(image, "JPEG", exif=exif),
        "progressive": encoded(image, "JPEG", progressive=True),
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "gray": encoded(image.convert("L"), "JPEG"),
        "png": encoded(image, "PNG", exif=exif),
        "palette": encoded(palette, "PNG", transparency=0),
        "deep": encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), "PNG"),
        "webp": encoded(image, "WEBP", exif=exif),
        "lossless": encoded(image.convert("RGBA"), "WEBP", lossless=True),
        "bmp": encoded(image, "BMP"),
        "gif": encoded(palette, "GIF", save_all=True, append_images=[palette]),
        "tiff": encoded(image, "TIFF", exif=exif),
        "deflate": encoded(image, "TIFF", compression="tiff_deflate"),
        "jpeg_in_tiff": encoded(image, "TIFF", compression="jpeg"),
    }


SEEDS = _seeds()


def check(data: bytes) -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            result: Any = decode_image(data, MAX_PIXELS)
        except ImageError as error:
            result = error
    if isinstance(result, ImageError):
        assert result.code in ERROR_CODES
        assert result.message
        assert "\n" not in result.message
    else:
        assert result.dtype == np.uint8
        assert result.ndim == 3
        assert result.shape[2] == 3
        assert result.flags.c_contiguous
        assert result.shape[0] * result.shape[1] <= MAX_PIXELS
    assert not heard, [str(w.message) for w in heard]


@pytest.mark.parametrize("name", SEEDS)
def test_the_seeds_are_images(name: str) -> None:
    assert decode_image(SEEDS[name], MAX_PIXELS).size


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(SEEDS[draw(st.sampled_from(sorted(SEEDS)))])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1) | st.integers(0, min(160, len(data) - 1)))
        kind = draw(st.sampled_from(["byte", "cut", "insert", "remove", "zeros"]))
        if kind == "byte":
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut" and at > 16:
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "remove" and len(data) > 32:
            del data[at : at + draw(st.integers(1, 8))]
        elif kind == "zeros":
            data[at : at + 8] = bytes(len(data[at : at + 8]))
        if not data:
            break
    return bytes(data)


@settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
@pytest.mark.acceptance("S24")
def test_mutated_images(data: bytes) -> None:
    check(data)


def outcome(data: bytes, reduction: Reduction) -> Any:
    """Return the original's size, or the error's code."""
    try:
        pixels, size = decode_reduced(data, MAX_PIXELS, lambda size: reduction)
    except ImageError as error:
        return error.code
    assert (pixels.shape[1], pixels.shape[0]) == (reduced(size, reduction) if data[:2] == b"\xff\xd8" else size)
    return size


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(mutated(), st.sampled_from(REDUCTIONS))
def test_a_reduction_changes_neither_the_size_that_is_told_nor_the_error(data: bytes, reduction: Reduction) -> None:
    assert outcome(data, reduction) == outcome(data, 1)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([s[:n] for s in SEEDS.values() for n in (2, 4, 8, 16, 40)] + [b""]),
    st.binary(max_size=300),
)
@pytest.mark.acceptance("S24")
def test_a_known_beginning_and_then_anything(head: bytes, rest: bytes) -> None:
    check(head + rest)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_will_do(kind: Any) -> None:
    assert decode_image(kind(SEEDS["jpeg"]), MAX_PIXELS).shape == (40, 30, 3)
