"""YOLO heads that need no NMS: YOLOv10, YOLO26, and batchdet's own embedded model."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from batchdet.geometry.letterbox import Letterbox
from batchdet.model.families.family import (
    DecodeSettings,
    Family,
    SenselessOutput,
    Signature,
    candidates,
    detections,
    is_grid,
    strongest,
    suppressed,
)
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Tensor
from batchdet.records.detections import Detections

_MOST_ROWS: Final = 1000
"""Heads without NMS keep no more rows; more are one or three for each cell of a feature pyramid."""


class YoloEnd2End(Family):
    """``output0`` ``(N, K, 6)``: x_min, y_min, x_max, y_max (canvas pixels), score, class, one row a detection.

    Rows that are one or three for each cell of a feature pyramid have not been selected yet; NMS then follows. As other
    heads have rows of six numbers, too, such a model has to be named.

    Source: Wang et al., "YOLOv10: Real-Time End-to-End Object Detection", arXiv:2405.14458 (one-to-one head).
    """

    name = "yolo_end2end"
    summary = "one output [N, K, 6]: x_min, y_min, x_max, y_max, score, class"
    preprocess = Preprocess()

    def fits(self, signature: Signature) -> str | None:
        """Say why outputs of this shape cannot be decoded."""
        output = signature.output
        return None if output and output.shape[2] == 6 else f"it has {self.summary}"

    def recognise(self, signature: Signature, metadata: Mapping[str, str]) -> str | None:
        """Say by what a model is known to be of this family."""
        output = signature.output
        if self.fits(signature) or output is None:
            return None
        if metadata.get("end2end", "").lower() == "true":
            return "end2end in its metadata, and rows of six numbers"
        rows = output.shape[1] or 0
        if signature.is_grid(rows) or (rows > _MOST_ROWS and signature.is_grid_of_anchors(rows)):
            return None
        return "rows of six numbers"

    def class_count(self, signature: Signature) -> int | None:
        """Six numbers do not show how many classes there are."""
        return None

    def decode(
        self, outputs: Mapping[str, Tensor], letterboxes: Sequence[Letterbox], settings: DecodeSettings
    ) -> list[Detections]:
        """Turn the outputs of one run into detections."""
        (output,) = outputs.values()
        found = []
        for rows, letterbox in zip(output.astype(np.float32, copy=False), letterboxes, strict=True):
            class_ids = np.nan_to_num(rows[:, 5], posinf=-1, neginf=-1).astype(np.int32)
            each_cell = len(rows) > _MOST_ROWS and any(
                is_grid(letterbox.canvas, n) for n in (len(rows), len(rows) // 3)
            )
            keep = (candidates if each_cell else strongest)(rows[:, 4], class_ids, settings)
            rows, class_ids = rows[keep], class_ids[keep]
            _check_classes(rows)
            place = suppressed if each_cell else detections
            found.append(place(rows[:, :4], rows[:, 4], class_ids, letterbox, settings))
        return found


def _check_classes(rows: Tensor) -> None:
    """Refuse rows whose last number is no class."""
    odd = rows[rows[:, 5] != np.round(rows[:, 5]), 5]
    if len(odd):
        raise SenselessOutput(
            f"the last of six numbers is {odd[0]:.4g}, but it must be a class, a whole number; if its rows are centre, "
            "size, objectness and the score of one class, set model.family: yolo_anchors",
            code="model.family",
        )
