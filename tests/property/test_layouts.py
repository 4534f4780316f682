"""Layouts: whatever the outputs of a YOLO-like head look like, they are read right or refused."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchdet.errors import ModelError
from batchdet.geometry.letterbox import Letterbox
from batchdet.model.families import FAMILIES, DecodeSettings, Signature, find_family
from batchdet.model.families.family import grid
from batchdet.model.runtimes import TensorInfo

OBJECTS = 5
NATURAL = {"dense": "yolo_dense", "yolox": "yolox", "anchors": "yolo_anchors", "end2end": "yolo_end2end"}
"""Layout -> the family that reads it."""


@dataclass(frozen=True)
class Head:
    layout: str
    strides: tuple[int, ...]
    canvas: tuple[int, int]
    classes: int
    swapped: bool
    named: bool
    shares: bool
    seed: int

    def outputs(self) -> tuple[Any, Any]:
        """Return what a trained head gives for an image, and the objects: xyxy, score, class."""
        rng = np.random.default_rng(self.seed)
        corner, stride = grid(self.canvas, self.strides)
        anchors = 3 if self.layout == "anchors" else 1
        levels = np.cumsum([len(grid(self.canvas, (s,))[0]) for s in self.strides])[:-1]
        corner, stride = (
            np.concatenate([np.tile(part, (anchors, 1)) for part in np.split(array, levels)])
            for array in (corner, stride)
        )
        count = len(corner)
        centre = (corner + rng.uniform(0, 1, (count, 2)).astype(np.float32)) * stride
        size = (stride * rng.uniform(1, 4, (count, 2))).astype(np.float32)
        scores = rng.uniform(1e-4, 0.05, (count, self.classes)).astype(np.float32)
        objectness = rng.uniform(1e-3, 0.3, count).astype(np.float32)
        places = rng.choice(count, OBJECTS, replace=False)
        numbers = rng.integers(0, self.classes, OBJECTS)
        scores[places, numbers] = rng.uniform(0.8, 0.97, OBJECTS)
        objectness[places] = 0.95
        boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
        with_objectness = self.layout in ("yolox", "anchors")
        marks = scores[places, numbers] * (objectness[places] if with_objectness else 1)
        objects = np.column_stack([boxes[places], marks, numbers])
        if self.layout == "yolox":
            rows = np.column_stack([centre / stride - corner, np.log(size / stride), objectness, scores])
        elif self.layout == "anchors":
            rows = np.column_stack([centre, size, objectness, scores])
        elif self.layout == "dense":
            rows = np.column_stack([centre, size, scores])
        else:
            rows = np.column_stack([boxes, scores.max(axis=1), scores.argmax(axis=1)])
            if self.layout == "end2end":
                rows = rows[np.argsort(-rows[:, 4])[:100]]
        if self.shares and self.layout != "yolox":
            rows[:, :4] /= np.array(self.canvas * 2)
        return rows.astype(np.float32)[None], objects[np.argsort(-objects[:, 4])]


HEADS = st.builds(
    Head,
    layout=st.sampled_from(["dense", "yolox", "anchors", "cells", "end2end"]),
    strides=st.sampled_from([(8, 16, 32), (8, 16, 32, 64), (16, 32), (4, 8, 16)]),
    canvas=st.sampled_from([(128, 128), (192, 128), (256, 256), (320, 192)]),
    classes=st.sampled_from([1, 2, 3, 5, 28, 33, 51, 80]),
    swapped=st.booleans(),
    named=st.booleans(),
    shares=st.sampled_from([False, False, False, True]),
    seed=st.integers(0, 1000),
)


def found_by(head: Head, family: str = "auto") -> tuple[str, Any]:
    rows, _ = head.outputs()
    output = rows.transpose(0, 2, 1) if head.swapped else rows
    inputs = (TensorInfo("images", "float32", (None, 3, *head.canvas[::-1])),)
    signature = Signature(inputs, (TensorInfo("o", "float32", output.shape),), head.canvas)
    names = {"names": repr([f"c{i}" for i in range(head.classes)])} if head.named else {}
    found, _ = find_family(family, signature, names)
    box = Letterbox.stretch(head.canvas, head.canvas)
    with np.errstate(all="ignore"):
        return found.name, found.decode({"o": output}, [box], DecodeSettings(0.5, 0.9))[0]


def check(head: Head, found: Any) -> None:
    _, objects = head.outputs()
    width, height = head.canvas
    wanted = objects[:, :4].clip(0, [width, height, width, height])
    np.testing.assert_allclose(found.scores, objects[:, 4], atol=1e-4)
    np.testing.assert_allclose(found.boxes_xyxy, wanted, atol=0.05)
    assert found.class_ids.tolist() == objects[:, 5].tolist()


@settings(max_examples=400, deadline=None)
@given(HEADS)
def test_a_layout_is_read_right_or_refused(head: Head) -> None:
    try:
        _, found = found_by(head)
    except ModelError as error:
        refused = error.code
    else:
        check(head, found)
        return
    assert refused in ("model.family", "model.labels", "model.scores_out_of_range", "model.boxes_out_of_range")


@pytest.mark.parametrize("classes", [1, 2, 80])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("layout", sorted(NATURAL))
def test_usual_layouts_are_not_refused(layout: str, named: bool, classes: int) -> None:
    head = Head(layout, (8, 16, 32), (256, 256), classes, layout == "dense", named, False, 1)
    family, found = found_by(head)
    assert family == NATURAL[layout]
    check(head, found)


@pytest.mark.parametrize(("classes", "named"), [(80, False), (80, True), (5, True)])
def test_dense_outputs_with_swapped_axes_are_read(classes: int, named: bool) -> None:
    head = Head("dense", (8, 16, 32), (256, 256), classes, False, named, False, 2)
    family, found = found_by(head)
    assert family == "yolo_dense"
    check(head, found)


@pytest.mark.parametrize("family", ["yolo_end2end", "yolo_anchors", "yolo_dense"])
def test_the_way_out_leads_out(family: str) -> None:
    """What is refused because rows of six numbers are ambiguous is read if the family is named."""
    layout = {"yolo_end2end": "cells", "yolo_anchors": "anchors", "yolo_dense": "dense"}[family]
    classes = {"yolo_end2end": 3, "yolo_anchors": 1, "yolo_dense": 2}[family]
    head = Head(layout, (8, 16, 32), (320, 320), classes, False, False, False, 3)
    if layout != "anchors":
        with pytest.raises(ModelError) as caught:
            found_by(head)
        assert caught.value.code == "model.family"
        assert family in caught.value.message
    name, found = found_by(head, family)
    assert name == family
    check(head, found)


def test_every_layout_has_a_family() -> None:
    assert set(NATURAL.values()) <= set(FAMILIES)
