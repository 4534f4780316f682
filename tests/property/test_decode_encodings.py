"""A picture in any encoding gives its pixels, or is refused with a fitting code: never other pixels."""

import struct
import zlib
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from batchdet.decode.image import decode_image
from batchdet.errors import ImageError
from tests.broken_images import encoded
from tests.image_writers import (
    PNG_COLOURS,
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

MAX_PIXELS = 100_000
REFUSALS = ("unsupported_format", "unsupported_mode")
SETTINGS = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


def outcome(data: bytes) -> tuple[str, npt.NDArray[Any]]:
    """Return the code of a refusal, or "", and the pixels."""
    try:
        return "", decode_image(data, MAX_PIXELS)
    except ImageError as error:
        return error.code, np.zeros((0, 0, 3))


def check(data: bytes, expected: npt.NDArray[Any], off_by: float = 1, refusals: tuple[str, ...] = REFUSALS) -> None:
    """Compare what is decoded; ``off_by`` is the greatest difference, or of lossy formats a mean below it."""
    code, found = outcome(data)
    if code:
        assert code in refusals
        return
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert (difference.mean() if off_by > 1 else difference.max()) <= off_by


@st.composite
def pictures(draw: st.DrawFn, channels: int, bits: int = 8) -> Samples:
    """Return ``(H, W, channels)`` that is smooth, but different from every side and in every channel."""
    width, height = draw(st.integers(3, 40)), draw(st.integers(3, 40))
    y, x = np.mgrid[:height, :width]
    slopes = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=channels, max_size=channels))
    planes = [(x * a + y * b + 40 * channel) % 256 for channel, (a, b) in enumerate(slopes)]
    return np.stack(planes, 2).astype(np.uint16) * 257 >> (16 - bits)


def meaning(samples: Samples, layout: Tiff) -> npt.NDArray[np.uint8]:
    """Return the RGB that a TIFF's samples mean."""
    values = to_8_bits(samples, layout.bits).astype(int)
    if layout.photometric == 5:
        colours = ((255 - values[:, :, :3]) * (255 - values[:, :, 3:4]) + 127) // 255
    elif layout.photometric == 2:
        colours = values[:, :, :3]
    else:
        gray = values[:, :, :1] if layout.photometric else 255 - values[:, :, :1]
        colours = np.repeat(gray, 3, axis=2)
    alpha = values[:, :, -1] if layout.extra in ((1,), (2,)) else np.full(samples.shape[:2], 255)
    if layout.extra == (1,) and alpha.any():
        return np.minimum(colours + 255 - alpha[:, :, None], 255).astype(np.uint8)
    return on_white(colours, alpha)


@SETTINGS
@given(st.data())
def test_tiff_of_any_layout(data: st.DataObject) -> None:
    draw = data.draw
    layout = Tiff(
        bits=draw(st.sampled_from([1, 2, 4, 8, 8, 12, 16, 16])),
        photometric=draw(st.sampled_from([0, 1, 2, 2, 5])),
        planar=draw(st.booleans()),
        big_endian=draw(st.booleans()),
        rows=draw(st.sampled_from([0, 1, 5])),
        tile=draw(st.sampled_from([0, 0, 16])),
        compression=draw(st.sampled_from([1, 1, 8, 32773, 34712])),
        extra=draw(st.sampled_from([(), (), (0,), (1,), (2,)])),
        tags=draw(st.sampled_from([(), *(((tag, 4, (10**8,)),) for tag in (270, 305, 700, 34665, 34675))])),
    )
    channels = {0: 1, 1: 1, 2: 3, 5: 4}[layout.photometric]
    samples = draw(pictures(channels + len(layout.extra), layout.bits))
    alpha = draw(st.sampled_from(["zero", "some"])) if layout.extra else ""
    if alpha == "zero":
        samples[:, :, channels] = 0
    elif layout.extra == (1,):
        samples[:, :, :channels] = np.minimum(samples[:, :, :channels], samples[:, :, channels:])
    check(tiff((samples, layout)), meaning(samples, layout))


@pytest.mark.parametrize("compression", [1, 8, 32773])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize(("rows", "tile"), [(0, 0), (7, 0), (0, 16)])
@pytest.mark.parametrize(("photometric", "extra"), [(1, ()), (2, ()), (2, (0,)), (2, (2,)), (5, ())])
@pytest.mark.parametrize("bits", [8, 16])
def test_planes_apart_are_read(
    bits: int, photometric: int, extra: tuple[int, ...], rows: int, tile: int, big_endian: bool, compression: int
) -> None:
    layout = Tiff(bits, photometric, True, big_endian, rows, tile, compression, extra)
    y, x = np.mgrid[:30, :41]
    planes = [x * 6, y * 8, (x + y) * 3, 255 - x, (x * 3 + y) * 2][: {1: 1, 2: 3, 5: 4}[photometric] + len(extra)]
    samples = (np.stack(planes, 2) % 256).astype(np.uint16) * (257 if bits == 16 else 1)
    check(tiff((samples, layout)), meaning(samples, layout), refusals=())


@SETTINGS
@given(st.data())
def test_png_of_any_kind(data: st.DataObject) -> None:
    draw = data.draw
    kind = draw(st.sampled_from(sorted(PNG_COLOURS)))
    depths = {"gray": [1, 2, 4, 8, 16], "palette": [1, 2, 4, 8]}.get(kind, [8, 16])
    bits = draw(st.sampled_from(depths))
    channels = {"gray": 1, "rgb": 3, "palette": 1, "gray and alpha": 2, "rgba": 4}[kind]
    samples = draw(pictures(channels, bits))
    values = to_8_bits(samples, bits)
    chunks: list[tuple[bytes, bytes]] = []
    alpha = values[:, :, -1] if kind in ("gray and alpha", "rgba") else np.full(samples.shape[:2], 255)
    colours = np.repeat(values[:, :, :1], 3, axis=2) if channels < 3 else values[:, :, :3]
    if kind == "palette":
        palette = np.random.default_rng(bits).integers(0, 256, (2**bits, 3), np.uint8)
        opacity = np.full(2**bits, 255, np.uint8)
        chunks.append((b"PLTE", palette.tobytes()))
        if draw(st.booleans()):
            opacity[:2] = draw(st.integers(0, 255)), draw(st.integers(0, 255))
            chunks.append((b"tRNS", opacity[:2].tobytes()))
        colours, alpha = palette[samples[:, :, 0]], opacity[samples[:, :, 0]]
    elif kind in ("gray", "rgb") and draw(st.booleans()):
        y, x = draw(st.integers(0, samples.shape[0] - 1)), draw(st.integers(0, samples.shape[1] - 1))
        chunks.append((b"tRNS", struct.pack(f">{channels}H", *samples[y, x])))
        alpha = np.where((samples == samples[y, x]).all(axis=2), 0, 255)
    text = (draw(st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"prVt"])), draw(st.binary(max_size=20)))
    place = draw(st.integers(0, len(chunks)))
    chunks.insert(place, text)
    check(png(samples, bits, PNG_COLOURS[kind], chunks, [text]), on_white(colours, alpha), refusals=())


@SETTINGS
@given(st.data())
def test_bmp_of_any_kind(data: st.DataObject) -> None:
    draw = data.draw
    if draw(st.booleans()):
        bits = draw(st.sampled_from([1, 4, 8]))
        colours = draw(st.integers(2, 2**bits))
        gray = draw(st.booleans())
        palette = [(i * 255 // (colours - 1),) * 3 if gray else (i * 37 % 256, i * 91 % 256, 255 - i)
                   for i in range(colours)]  # fmt: skip
        indices = draw(pictures(1))[:, :, 0] % colours
        check(bmp_of_palette(indices, palette, bits), np.array(palette)[indices], refusals=())
        return
    channels = draw(st.sampled_from([3, 4]))
    places = draw(st.permutations([0xFF, 0xFF00, 0xFF0000, 0xFF000000]))
    masks = tuple(places[:channels])
    assume(max(masks) >> 16)
    samples = draw(pictures(channels))
    if channels == 4 and draw(st.booleans()):
        samples[:, :, 3] = 0
    header_bytes = draw(st.sampled_from([40, 52, 56, 108, 124] if channels == 3 else [56, 108, 124]))
    alpha = samples[:, :, 3] if channels == 4 else np.full(samples.shape[:2], 255)
    check(bmp(samples, masks, header_bytes, draw(st.booleans())), on_white(samples[:, :, :3], alpha))


@SETTINGS
@given(st.data())
def test_jpeg_with_its_segments_in_any_order(data: st.DataObject) -> None:
    draw = data.draw
    picture = draw(pictures(3)).astype(np.uint8)
    plain = encoded(Image.fromarray(picture), "JPEG", quality=95, progressive=draw(st.booleans()))
    segments, rest = jpeg_segments(plain)
    metadata = st.tuples(st.sampled_from([*range(0xE0, 0xF0), 0xFE]), st.binary(max_size=40))
    known = st.sampled_from(
        [(0xE2, b"ICC_PROFILE\0\2\1x"), (0xE0, b"JFXX\0\x10"), (0xE1, b"http://ns.adobe.com/xap/1.0/\0<")]
    )
    for extra in draw(st.lists(metadata | known, max_size=4)):
        segments.insert(draw(st.integers(0, len(segments))), extra)
    frame = next(i for i, (marker, _) in enumerate(segments) if marker in (0xC0, 0xC2))
    segments.insert(draw(st.integers(0, len(segments) - 1)), segments.pop(frame))
    if draw(st.booleans()):
        rest += draw(st.binary(max_size=60) | st.just(plain))
    expected = decode_image(plain, MAX_PIXELS)
    check(jpeg_of(segments, rest), expected, off_by=0, refusals=())


@SETTINGS
@given(st.data())
def test_a_jpeg_that_is_cut_and_then_goes_on_with_anything(data: st.DataObject) -> None:
    draw = data.draw
    noise = np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8)
    plain = encoded(Image.fromarray(noise), "JPEG", quality=90, progressive=draw(st.booleans()))
    _, rest = jpeg_segments(plain)
    cut = draw(st.integers(len(plain) - len(rest) + 20, len(plain) - 20))
    tail = draw(st.sampled_from([b"", bytes(3000), b"\xff\xfd\0\4ab", b"SEFT"]) | st.binary(max_size=20))
    check(plain[:cut] + tail, np.zeros((0, 0, 3)), refusals=("truncated", "corrupt", "unsupported_mode"))


LOSSLESS: Any = [
    ("PNG", {}),
    ("PNG", {"compress_level": 0}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw", "tiffinfo": {317: 2}}),
    ("TIFF", {"compression": "tiff_adobe_deflate", "big_tiff": True}),
    ("TIFF", {"compression": "packbits"}),
    ("WEBP", {"lossless": True, "exact": True}),
]


@SETTINGS
@given(pictures(4), st.sampled_from(LOSSLESS), st.sampled_from(["L", "RGB", "RGBA", "LA", "1", "P"]))
def test_what_pillow_writes(samples: Samples, way: tuple[str, dict[str, Any]], mode: str) -> None:
    colours = Image.fromarray(samples.astype(np.uint8), "RGBA")
    image = (colours.convert("RGB") if mode == "P" else colours).convert(mode)
    format_, options = way
    assume(not (format_ == "BMP" and mode in ("LA", "RGBA")))  # Pillow writes no alpha there
    assume(not ("tiffinfo" in options and mode in ("1", "P")))
    whole = np.asarray(image.convert("RGBA"))
    check(encoded(image, format_, **options), on_white(whole[:, :, :3], whole[:, :, 3]), refusals=())


@SETTINGS
@given(pictures(3), st.sampled_from([".png", ".bmp", ".tiff", ".webp", ".jpg"]), st.booleans())
def test_what_opencv_writes(samples: Samples, extension: str, deep: bool) -> None:
    deep = deep and extension in (".png", ".tiff")
    array = (samples * 257 if deep else samples.astype(np.uint8))[:, :, ::-1]
    options = {".webp": [cv2.IMWRITE_WEBP_QUALITY, 101], ".jpg": [cv2.IMWRITE_JPEG_QUALITY, 100]}.get(extension, [])
    data = cv2.imencode(extension, np.ascontiguousarray(array), options)[1].tobytes()
    expected: Any = samples
    if extension == ".jpg":
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]  # type: ignore[index]
    check(data, expected, off_by=0, refusals=())


def test_a_comparison_that_would_pass_for_anything_is_none() -> None:
    samples = np.full((8, 8, 3), 7, np.uint16)
    with pytest.raises(AssertionError):
        check(png(samples, 8, 2), samples + 3)
    with pytest.raises(AssertionError):
        check(b"\x89PNG\r\n\x1a\n" + zlib.compress(b""), samples)
