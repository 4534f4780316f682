import numpy as np
import pytest

from batchdet.geometry.boxes import area, as_boxes, clip, cxcywh_to_xyxy, iou_matrix, xyxy_to_xywh


@pytest.mark.parametrize("empty", [[], np.zeros((0, 4)), np.zeros(0)])
def test_no_boxes_are_an_array_of_no_rows(empty: list[float]) -> None:
    assert as_boxes(empty).shape == (0, 4)
    assert iou_matrix(empty, [[0, 0, 1, 1]]).shape == (0, 1)
    assert cxcywh_to_xyxy(empty).shape == (0, 4)


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(N, 4\), got \(2, 3\)"):
        as_boxes(np.ones((2, 3)))


def test_corners_of_a_centre_and_size() -> None:
    assert cxcywh_to_xyxy([[10, 20, 4, 6]]).tolist() == [[8, 17, 12, 23]]


def test_corner_and_size_of_corners() -> None:
    assert xyxy_to_xywh([[8, 17, 12, 23]]).tolist() == [[8, 17, 4, 6]]


def test_clip_and_area() -> None:
    clipped = clip([[-5, -5, 5, 5], [20, 20, 30, 30]], 10, 10)
    assert clipped.tolist() == [[0, 0, 5, 5], [10, 10, 10, 10]]
    assert area(clipped).tolist() == [25, 0]
    assert area([[5, 5, 0, 0]]).tolist() == [0]


@pytest.mark.parametrize(
    ("a", "b", "iou"),
    [
        ([0, 0, 10, 10], [0, 0, 10, 10], 1),
        ([0, 0, 10, 10], [5, 0, 15, 10], 1 / 3),
        ([0, 0, 10, 10], [10, 0, 20, 10], 0),
        ([0, 0, 10, 10], [2, 2, 4, 4], 0.04),
        ([3, 3, 3, 3], [3, 3, 3, 3], 0),
    ],
)
def test_iou(a: list[float], b: list[float], iou: float) -> None:
    assert iou_matrix([a], [b])[0, 0] == pytest.approx(iou)
