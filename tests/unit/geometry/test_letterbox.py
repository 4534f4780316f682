import dataclasses

import pytest

from batchdet.geometry.letterbox import REDUCTIONS, Letterbox, Resample, rectangle_canvas, reduced


@pytest.mark.parametrize(
    ("source", "canvas", "content", "pad"),
    [
        ((640, 640), (640, 640), (640, 640), (0, 0)),
        ((1280, 720), (640, 640), (640, 360), (0, 140)),
        ((810, 1080), (640, 640), (480, 640), (80, 0)),
        ((640, 427), (640, 640), (640, 427), (0, 106)),
        ((427, 640), (640, 640), (427, 640), (106, 0)),
        ((500, 375), (320, 320), (320, 240), (0, 40)),
        ((100, 50), (640, 640), (640, 320), (0, 160)),
        ((10_000, 1), (640, 640), (640, 1), (0, 319)),
    ],
)
def test_centred(
    source: tuple[int, int], canvas: tuple[int, int], content: tuple[int, int], pad: tuple[int, int]
) -> None:
    letterbox = Letterbox.centred(source, canvas)
    assert (letterbox.content, letterbox.pad, letterbox.pad_value) == (content, pad, 114)


def test_top_left_begins_in_the_corner() -> None:
    letterbox = Letterbox.top_left((640, 427), (416, 416))
    assert letterbox.pad == (0, 0)
    assert letterbox.content[0] == 416
    assert letterbox.content[1] == pytest.approx(427 * 0.65, abs=1)


def test_stretch_has_a_scale_an_axis() -> None:
    letterbox = Letterbox.stretch((640, 320), (320, 320))
    assert letterbox.scale == (0.5, 1.0)
    assert letterbox.to_image([[0, 0, 160, 160]]).tolist() == [[0, 0, 320, 160]]


def test_boxes_come_back_clipped() -> None:
    letterbox = Letterbox.centred((1280, 720), (640, 640))
    assert letterbox.to_image([[-10, 0, 700, 640]]).tolist() == [[0, 0, 1280, 720]]
    assert letterbox.to_canvas([[0, 0, 1280, 720]]).tolist() == [[0, 140, 640, 500]]


def test_no_boxes() -> None:
    assert Letterbox.centred((8, 8), (32, 32)).to_image([]).shape == (0, 4)


def test_it_is_a_value() -> None:
    letterbox = Letterbox.centred((8, 8), (32, 32))
    assert letterbox == Letterbox.centred((8, 8), (32, 32))
    assert hash(letterbox) == hash(Letterbox.centred((8, 8), (32, 32)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        letterbox.pad = (1, 1)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("source", "reduction"),
    [
        ((640, 640), 1),
        ((1278, 960), 1),
        ((1279, 960), 2),  # sides are rounded up
        ((1280, 720), 2),
        ((2556, 1900), 2),
        ((2560, 1920), 4),
        ((4000, 3000), 4),
        ((3000, 4000), 4),
        ((6000, 4000), 8),
        ((60_000, 2), 8),
        ((100, 50), 1),
    ],
)
def test_large_images_may_be_decoded_smaller(source: tuple[int, int], reduction: int) -> None:
    assert Letterbox.centred(source, (640, 640)).reduction == reduction
    assert Letterbox.top_left(source, (640, 640)).reduction == reduction


def test_both_sides_limit_the_reduction() -> None:
    assert Letterbox.stretch((5120, 640), (640, 640)).reduction == 1
    assert Letterbox.stretch((2560, 5120), (640, 640)).reduction == 4


def test_the_reduction_is_the_largest_that_leaves_pixels_enough() -> None:
    for width in range(1, 700, 3):
        for height in (1, 7, 64, 65, 333, 512):
            letterbox = Letterbox.centred((width, height), (64, 64))
            enough = [r for r in REDUCTIONS if all(map(int.__ge__, reduced((width, height), r), letterbox.content))]
            assert letterbox.reduction == max([*enough, 1])


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_filters_that_smooth_want_all_pixels(resample: Resample) -> None:
    assert Letterbox.stretch((6000, 4000), (640, 640), resample).reduction == 1


def test_content_must_lie_on_the_canvas() -> None:
    with pytest.raises(ValueError, match="does not lie on the canvas"):
        Letterbox((8, 8), (32, 32), (40, 32))


@pytest.mark.parametrize(
    ("source", "canvas"),
    [
        ((640, 480), (640, 480)),
        ((640, 427), (640, 448)),
        ((1080, 1920), (384, 640)),
        ((500, 500), (640, 640)),
        ((10_000, 1), (640, 32)),
    ],
)
def test_rectangles(source: tuple[int, int], canvas: tuple[int, int]) -> None:
    assert rectangle_canvas(source, 640, 32) == canvas
