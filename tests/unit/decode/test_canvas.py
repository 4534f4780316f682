import cv2
import numpy as np
import pytest

from batchdet.decode.canvas import paint
from batchdet.geometry.letterbox import Letterbox

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.mark.parametrize("kind", [Letterbox.centred, Letterbox.top_left])
@pytest.mark.parametrize("canvas", [(64, 64), (32, 32), (96, 64), (64, 160)])
def test_content_stands_in_gray(kind: object, canvas: tuple[int, int]) -> None:
    letterbox = kind((64, 48), canvas)  # type: ignore[operator]
    batch = np.zeros((2, canvas[1], canvas[0], 3), np.uint8)
    paint(IMAGE, letterbox, batch[1])
    (left, top), (width, height) = letterbox.pad, letterbox.content
    expected = np.full((canvas[1], canvas[0], 3), 114, np.uint8)
    expected[top : top + height, left : left + width] = cv2.resize(IMAGE, (width, height))
    np.testing.assert_array_equal(batch[1], expected)
    assert not batch[0].any()


def test_stretch_fills_the_canvas() -> None:
    out = np.zeros((32, 32, 3), np.uint8)
    paint(IMAGE, Letterbox.stretch((64, 48), (32, 32)), out)
    np.testing.assert_array_equal(out, cv2.resize(IMAGE, (32, 32)))


def test_an_image_of_the_canvas_size_is_copied() -> None:
    out = np.zeros_like(IMAGE)
    paint(IMAGE, Letterbox.centred((64, 48), (64, 48)), out)
    np.testing.assert_array_equal(out, IMAGE)


def test_sizes_must_fit_the_letterbox() -> None:
    letterbox = Letterbox.centred((64, 48), (64, 64))
    with pytest.raises(ValueError, match="for an image"):
        paint(IMAGE[:-1], letterbox, np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="for a canvas"):
        paint(IMAGE, letterbox, np.zeros((64, 63, 3), np.uint8))
