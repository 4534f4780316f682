"""However a picture is stored, a real model finds the same boxes in it as in the canonical RGB (ACCEPTANCE R23)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from batchdet.decode.canvas import paint
from batchdet.decode.image import decode_image
from batchdet.model.detector import Detector, open_detector
from batchdet.records.detections import Detections
from batchdet.spec import ModelSpec
from tests.broken_images import encoded
from tests.coco120 import as_rows, matched

pytestmark = pytest.mark.acceptance("R23")


@pytest.fixture(scope="module")
def detector(shared: Path) -> Detector:
    return open_detector(ModelSpec(uri=str(shared / "models" / "yolo11n_320.onnx"), score_threshold=0.3))


@pytest.fixture(scope="module")
def picture(shared: Path) -> Image.Image:
    rgb = decode_image((shared / "images" / "bus.jpg").read_bytes(), 100_000_000)
    return Image.fromarray(rgb).resize((405, 540))


def found(detector: Detector, data: bytes) -> Detections:
    rgb = decode_image(data, 100_000_000)
    box = detector.letterbox(rgb.shape[1], rgb.shape[0])
    canvas = np.empty((1, box.canvas[1], box.canvas[0], 3), np.uint8)
    paint(rgb, box, canvas[0])
    return detector.detect(canvas, [box])[0]


def same(detector: Detector, data: bytes, canonical: Image.Image, score: float = 0.01) -> None:
    mine, theirs = found(detector, data), found(detector, encoded(canonical, "PNG"))
    assert len(theirs) >= 3
    assert matched(as_rows({"": mine}, 0.35), as_rows({"": theirs}, 0), iou=0.9, score=score) == 1
    assert matched(as_rows({"": theirs}, 0.35), as_rows({"": mine}, 0), iou=0.9, score=score) == 1


def sixteen_bits(image: Image.Image) -> bytes:
    deep = np.asarray(image).astype(np.uint16) * 257
    return bytes(cv2.imencode(".png", deep[:, :, ::-1] if deep.ndim == 3 else deep)[1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif(detector: Detector, picture: Image.Image, orientation: int) -> None:
    turn: dict[int, Any] = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = picture.transpose(turn[orientation]) if orientation in turn else picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    same(detector, encoded(stored, "JPEG", quality=98, subsampling=0, exif=exif), picture, 0.05)


@pytest.mark.parametrize(
    "store",
    [
        lambda image: encoded(image, "PNG"),
        lambda image: encoded(image, "BMP"),
        lambda image: encoded(image, "TIFF", compression="tiff_lzw"),
        lambda image: encoded(image, "WEBP", lossless=True),
        lambda image: encoded(image.convert("RGBA"), "PNG"),
        lambda image: encoded(image, "PNG", save_all=True, append_images=[Image.new("RGB", image.size)]),
        sixteen_bits,
    ],
    ids=["png", "bmp", "tiff", "webp", "rgba", "apng", "16-bit"],
)
def test_colour(detector: Detector, picture: Image.Image, store: Callable[[Image.Image], bytes]) -> None:
    same(detector, store(picture), picture)


@pytest.mark.parametrize("format_", ["JPEG", "TIFF"])
def test_cmyk(detector: Detector, picture: Image.Image, format_: str) -> None:
    same(
        detector,
        encoded(picture.convert("CMYK"), format_, **({"quality": 98} if format_ == "JPEG" else {})),
        picture,
        0.05,
    )


@pytest.mark.parametrize(
    "store",
    [
        lambda gray: encoded(gray, "PNG"),
        lambda gray: encoded(gray.convert("LA"), "PNG"),
        lambda gray: encoded(gray, "TIFF"),
        lambda gray: encoded(gray, "GIF"),
        sixteen_bits,
    ],
    ids=["gray", "gray+alpha", "tiff", "gif", "16-bit"],
)
def test_gray(detector: Detector, picture: Image.Image, store: Callable[[Image.Image], bytes]) -> None:
    gray = picture.convert("L")
    same(detector, store(gray), gray.convert("RGB"))


@pytest.mark.parametrize("format_", ["PNG", "GIF"])
def test_palette(detector: Detector, picture: Image.Image, format_: str) -> None:
    palette = picture.quantize(256)
    options = {"save_all": True, "append_images": [palette.rotate(90)]} if format_ == "GIF" else {}
    same(detector, encoded(palette, format_, **options), palette.convert("RGB"))


def test_one_bit(detector: Detector, picture: Image.Image) -> None:
    bits = picture.resize((810, 1080)).convert("1")
    rgb = np.repeat(np.asarray(bits, np.uint8)[:, :, None] * 255, 3, axis=2)
    mine, theirs = found(detector, encoded(bits, "PNG")), found(detector, encoded(Image.fromarray(rgb), "PNG"))
    np.testing.assert_array_equal(mine.boxes_xyxy, theirs.boxes_xyxy)
