"""Properties of boxes, NMS and the letterbox that hold for every input."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchdet.geometry.boxes import clip, cxcywh_to_xyxy, iou_matrix, xyxy_to_xywh
from batchdet.geometry.letterbox import Letterbox, rectangle_canvas
from batchdet.geometry.nms import nms

RELAXED = settings(deadline=None, max_examples=80)  # a loaded machine is no failure
SIDE = st.integers(1, 5000)
SIZE = st.tuples(SIDE, SIDE)
CANVAS = st.tuples(st.integers(1, 40), st.integers(1, 40)).map(lambda n: (n[0] * 32, n[1] * 32))
KINDS = st.sampled_from([Letterbox.centred, Letterbox.top_left, Letterbox.stretch])
THRESHOLD = st.floats(0, 1, width=32)


@st.composite
def boxes(draw: st.DrawFn, within: tuple[float, float] = (1000, 1000), max_size: int = 30) -> npt.NDArray[np.float32]:
    """Return ``(N, 4)`` xyxy inside a plane."""
    unit = st.floats(0, 1, width=32)
    corners = draw(st.lists(st.tuples(unit, unit, unit, unit), max_size=max_size))
    array = np.array(corners, np.float32).reshape(-1, 2, 2) * np.array(within, np.float32)
    return np.sort(array, axis=1).reshape(-1, 4)


@st.composite
def scored(draw: st.DrawFn) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Return boxes, scores that all differ, and class ids."""
    xyxy = draw(boxes())
    rank = np.array(draw(st.permutations(range(len(xyxy)))), np.float32)
    classes = draw(st.lists(st.integers(0, 3), min_size=len(xyxy), max_size=len(xyxy)))
    return xyxy, (rank + 1) / np.float32(len(xyxy) + 1), np.array(classes, np.int32)


@RELAXED
@given(boxes(), boxes())
def test_iou_is_symmetric_and_bounded(a: Any, b: Any) -> None:
    iou = iou_matrix(a, b)
    assert iou.shape == (len(a), len(b))
    assert (iou >= 0).all()
    assert (iou <= 1).all()
    np.testing.assert_array_equal(iou, iou_matrix(b, a).T)


@RELAXED
@given(boxes())
def test_iou_of_a_box_with_itself_is_one_or_zero_without_area(xyxy: Any) -> None:
    sides = xyxy[:, 2:] - xyxy[:, :2]
    own = np.diagonal(iou_matrix(xyxy, xyxy))
    np.testing.assert_allclose(own, (sides[:, 0] * sides[:, 1] > 0).astype(np.float32), rtol=1e-6)


@RELAXED
@given(boxes())
def test_layouts_convert_back(xyxy: Any) -> None:
    xywh = xyxy_to_xywh(xyxy)
    cxcywh = np.concatenate([xywh[:, :2] + xywh[:, 2:] / 2, xywh[:, 2:]], axis=1)
    np.testing.assert_allclose(cxcywh_to_xyxy(cxcywh), xyxy, atol=1e-3)


@RELAXED
@given(boxes(), SIZE)
def test_clipped_boxes_stay_inside(xyxy: Any, size: tuple[int, int]) -> None:
    once = clip(xyxy - 100, *size)
    assert (once >= 0).all()
    assert (once <= [*size, *size]).all()
    np.testing.assert_array_equal(clip(once, *size), once)


@RELAXED
@given(scored(), THRESHOLD, st.integers(1, 40))
def test_nms_keeps_a_subset_by_falling_score(found: Any, threshold: float, limit: int) -> None:
    xyxy, scores, classes = found
    kept = nms(xyxy, scores, classes, threshold, limit)
    assert len(set(kept.tolist())) == len(kept) <= min(limit, len(xyxy))
    assert (np.diff(scores[kept]) <= 0).all()
    if len(xyxy):
        assert kept[0] == scores.argmax()


@RELAXED
@given(scored(), THRESHOLD)
def test_nms_is_idempotent(found: Any, threshold: float) -> None:
    xyxy, scores, classes = found
    kept = nms(xyxy, scores, classes, threshold, 1000)
    again = nms(xyxy[kept], scores[kept], classes[kept], threshold, 1000)
    np.testing.assert_array_equal(again, np.arange(len(kept)))


@RELAXED
@given(scored(), THRESHOLD, st.randoms(use_true_random=False))
def test_nms_does_not_depend_on_the_order(found: Any, threshold: float, random: Any) -> None:
    xyxy, scores, classes = found
    order = list(range(len(xyxy)))
    random.shuffle(order)
    kept = nms(xyxy, scores, classes, threshold, 1000)
    shuffled = nms(xyxy[order], scores[order], classes[order], threshold, 1000)
    np.testing.assert_array_equal(np.array(order, np.intp)[shuffled], kept)


@RELAXED
@given(scored(), THRESHOLD)
def test_nms_treats_classes_apart(found: Any, threshold: float) -> None:
    xyxy, scores, classes = found
    together = set(nms(xyxy, scores, classes, threshold, 1000).tolist())
    apart: set[int] = set()
    for class_id in np.unique(classes):
        mine = np.flatnonzero(classes == class_id)
        apart |= set(mine[nms(xyxy[mine], scores[mine], classes[mine], threshold, 1000)].tolist())
    assert together == apart


@RELAXED
@given(scored(), THRESHOLD)
def test_what_nms_drops_overlaps_something_stronger_that_it_keeps(found: Any, threshold: float) -> None:
    xyxy, scores, classes = found
    kept = nms(xyxy, scores, classes, threshold, 1000)
    for i in set(range(len(xyxy))) - set(kept.tolist()):
        stronger = kept[(scores[kept] > scores[i]) & (classes[kept] == classes[i])]
        assert iou_matrix(xyxy[i][None], xyxy[stronger]).max() > threshold


@RELAXED
@given(SIZE, CANVAS, KINDS, st.data())
def test_a_letterbox_and_its_inverse_meet(source: Any, canvas: Any, kind: Any, data: st.DataObject) -> None:
    letterbox = kind(source, canvas)
    xyxy = data.draw(boxes(within=source))
    back = letterbox.to_image(letterbox.to_canvas(xyxy))
    pixel_px = max(1 / s for s in letterbox.scale)
    np.testing.assert_allclose(back, xyxy, atol=1e-3 * max(1.0, pixel_px), rtol=1e-5)


@RELAXED
@given(SIZE, CANVAS, KINDS)
def test_the_whole_image_lands_on_the_content(source: Any, canvas: Any, kind: Any) -> None:
    letterbox = kind(source, canvas)
    (left, top), (width, height) = letterbox.pad, letterbox.content
    whole = letterbox.to_canvas([[0, 0, *source]])[0]
    np.testing.assert_allclose(whole, [left, top, left + width, top + height], rtol=1e-6)
    assert left + width <= canvas[0]
    assert top + height <= canvas[1]


@RELAXED
@given(SIZE, CANVAS, KINDS, st.data())
def test_boxes_from_the_canvas_stay_inside_the_image(source: Any, canvas: Any, kind: Any, data: st.DataObject) -> None:
    letterbox = kind(source, canvas)
    xyxy = data.draw(boxes(within=canvas)) * 1.5 - 100
    inside = letterbox.to_image(xyxy)
    assert inside.dtype == np.float32
    assert (inside >= 0).all()
    assert (inside <= np.array([*source, *source], np.float32)).all()


@RELAXED
@given(SIZE, st.integers(1, 40), st.sampled_from([8, 16, 32, 64]))
def test_a_rectangle_is_the_smallest_canvas_that_fits(source: Any, steps: int, stride: int) -> None:
    size_px = steps * stride
    canvas = rectangle_canvas(source, size_px, stride)
    assert all(side % stride == 0 and 0 < side <= size_px for side in canvas)
    assert max(canvas) == size_px
    letterbox = Letterbox.centred(source, canvas)
    assert letterbox.content == Letterbox.centred(source, (size_px, size_px)).content
    assert all(c - n < stride for c, n in zip(canvas, letterbox.content, strict=True))


@pytest.mark.parametrize("bad", [(0, 10), (10, 0)])
def test_sizes_without_pixels_are_refused(bad: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Letterbox.centred(bad, (64, 64))
