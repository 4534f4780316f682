"""What makes a derivation exact: stricter filters give those of the detections that pass them, for each family."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchdet.geometry.letterbox import Letterbox
from batchdet.model.families import FAMILIES, DecodeSettings
from batchdet.model.families.family import Family
from batchdet.model.families.plugin import Head, PluginFamily
from batchdet.records.detections import Detections

pytestmark = pytest.mark.acceptance("R36")

CANVAS, ROWS, CLASSES = (128, 128), 60, 3


class _Head(Head):
    nms = True

    def decode(self, outputs: Any, canvas: tuple[int, int]) -> Any:
        rows = outputs["rows"]
        return rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int32)


class _PlainHead(_Head):
    nms = False


def _outputs(name: str, seed: int) -> dict[str, Any]:
    """Return outputs for one image: many boxes that overlap, equal scores, and boxes that lie beside the image."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(-10, 110, (ROWS, 2))
    corners = np.column_stack([low, low + rng.uniform(5, 60, (ROWS, 2))]).astype(np.float32)
    corners[rng.random(ROWS) < 0.3] += np.float32([0, -90, 0, -90])  # above the image, on the padding or beyond
    scores = (rng.integers(1, 20, ROWS) / 20).astype(np.float32)
    numbers = rng.integers(0, CLASSES, ROWS)
    shares = np.full((ROWS, CLASSES), 0.01, np.float32)
    shares[np.arange(ROWS), numbers] = scores
    centred = np.column_stack([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]])
    if name == "yolo_dense":
        return {"output0": np.column_stack([centred, shares]).T[None].astype(np.float32)}
    if name == "yolo_anchors":
        return {"output0": np.column_stack([centred, np.ones(ROWS), shares])[None].astype(np.float32)}
    if name in ("detr_focal", "detr_softmax"):
        logits = np.log(shares / (1 - shares))
        if name == "detr_softmax":
            logits = np.log(np.column_stack([shares, 1 - shares.sum(axis=1).clip(max=0.999)]))
        return {"logits": logits[None], "pred_boxes": (centred / 128)[None].astype(np.float32)}
    rows = np.column_stack([corners, scores, numbers]).astype(np.float32)
    if name == "ssd":
        return {"boxes": corners[None], "labels": numbers[None], "scores": scores[None]}
    return {"rows" if name.startswith("plug-in") else "output0": rows[None]}


def _family(name: str) -> Family:
    heads = {"plug-in": _PlainHead, "plug-in with NMS": _Head}
    return PluginFamily(name, heads[name]()) if name in heads else FAMILIES[name]


def _rows(found: Detections, keep: Any = slice(None)) -> list[tuple[float, ...]]:
    rows = np.column_stack([found.boxes_xyxy, found.scores, found.class_ids])[keep]
    return [tuple(row) for row in rows.tolist()]


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(
        [
            "yolo_dense",
            "yolo_anchors",
            "yolo_end2end",
            "detr_focal",
            "detr_softmax",
            "ssd",
            "plug-in",
            "plug-in with NMS",
        ]
    ),
    seed=st.integers(0, 10_000),
    low=st.integers(1, 10),
    more=st.integers(0, 9),
    limit=st.sampled_from([1, 3, 8, 20, 300]),
    wanted=st.sampled_from([None, (0,), (0, 2), (0, 1, 2)]),
)
def test_stricter_filters_only_filter(
    name: str, seed: int, low: int, more: int, limit: int, wanted: tuple[int, ...] | None
) -> None:
    """Thresholds are scores that occur; a class may only go from an image with fewer detections than the limit."""
    family, outputs = _family(name), _outputs(name, seed)
    letterbox = Letterbox.centred((128, 64), CANVAS)
    before, after = (low / 20, (low + more) / 20)
    (found,) = family.decode(outputs, [letterbox], DecodeSettings(before, 0.5, limit))
    (strict,) = family.decode(outputs, [letterbox], DecodeSettings(after, 0.5, limit))
    passes = found.scores >= np.float32(after)
    assert _rows(strict) == _rows(found, passes)
    if len(found) < limit and wanted is not None:
        (fewer,) = family.decode(outputs, [letterbox], DecodeSettings(after, 0.5, limit, wanted))
        assert _rows(fewer) == _rows(found, passes & np.isin(found.class_ids, wanted))


def test_what_is_no_box_takes_no_place() -> None:
    """Two boxes on the padding and one on the image: the limit of one leaves the one on the image."""
    rows = np.float32([[10, 2, 50, 20, 0.9, 0], [10, 5, 50, 25, 0.8, 1], [10, 60, 50, 80, 0.7, 2]])
    letterbox = Letterbox.centred((128, 64), CANVAS)
    for name in ("yolo_end2end", "plug-in", "plug-in with NMS"):
        outputs = {"rows" if name.startswith("plug-in") else "output0": rows[None]}
        (found,) = _family(name).decode(outputs, [letterbox], DecodeSettings(0.25, 0.5, 1))
        assert found.class_ids.tolist() == [2]
