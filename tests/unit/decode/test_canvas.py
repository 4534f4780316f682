import cv2
import numpy as np
import pytest

from batchdet.decode.canvas import paint, painted
from batchdet.geometry.letterbox import REDUCTIONS, Letterbox, Reduction, reduced

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


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("source", [(640, 480), (641, 473), (479, 643)])
def test_an_image_decoded_smaller_takes_the_same_place(source: tuple[int, int], reduction: Reduction) -> None:
    letterbox = Letterbox.centred(source, (64, 64))
    width, height = reduced(source, reduction)
    rgb = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    (left, top), content = letterbox.pad, letterbox.content
    expected = np.full((64, 64, 3), 114, np.uint8)
    expected[top : top + content[1], left : left + content[0]] = cv2.resize(rgb, content)
    np.testing.assert_array_equal(painted(rgb, letterbox), expected)


def test_an_image_decoded_to_its_contents_size_is_copied() -> None:
    letterbox = Letterbox.centred((512, 384), (64, 64))
    np.testing.assert_array_equal(painted(IMAGE, letterbox)[8:56], IMAGE)


@pytest.mark.parametrize("size", [(250, 187), (251, 187), (334, 250), (63, 47), (62, 46), (1000, 375), (500, 750)])
def test_other_sizes_are_refused(size: tuple[int, int]) -> None:
    letterbox = Letterbox.centred((1001, 750), (64, 64))  # decoded smaller: 501 x 375, 251 x 188, 126 x 94
    with pytest.raises(ValueError, match="for an image"):
        painted(np.zeros((size[1], size[0], 3), np.uint8), letterbox)


def test_channels_are_three() -> None:
    for shape in ((48, 64), (48, 64, 4)):
        with pytest.raises(ValueError, match="for an image"):
            painted(np.zeros(shape, np.uint8), Letterbox.centred((64, 48), (64, 64)))


def test_sizes_must_fit_the_letterbox() -> None:
    letterbox = Letterbox.centred((64, 48), (64, 64))
    with pytest.raises(ValueError, match="for an image"):
        paint(IMAGE[:-1], letterbox, np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="for a canvas"):
        paint(IMAGE, letterbox, np.zeros((64, 63, 3), np.uint8))
