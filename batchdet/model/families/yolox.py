"""YOLOX: a decoupled head with objectness, whose boxes are offsets within the cells of three grids."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from batchdet.geometry.boxes import cxcywh_to_xyxy
from batchdet.geometry.letterbox import Letterbox
from batchdet.model.families.family import (
    DecodeSettings,
    Family,
    SenselessOutput,
    Signature,
    are_places,
    best_class,
    candidates,
    grid,
    suppressed,
)
from batchdet.model.labels import COCO_80
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Tensor
from batchdet.records.detections import Detections

STRIDES: Final = (8, 16, 32)
_OUTLIER: Final = 100.0
_FARTHEST_OFFSET: Final = 4.0
"""Mean distance of box centres from the corners of their cells, in cells; trained models have about one."""


class Yolox(Family):
    """``output`` ``(N, A, 5 + C)``: cell offsets x, y, log sizes w, h, objectness, then C class scores.

    A cell's box is centred at ``(offset + cell) * stride`` and ``exp(log size) * stride`` large; its score is
    objectness times the best class score.

    Source: Ge et al., "YOLOX: Exceeding YOLO Series in 2021", arXiv:2107.08430, section 2.
    """

    name = "yolox"
    summary = "one output [N, anchors, 5 + classes]: offsets, log sizes, objectness, class scores; NMS follows"
    preprocess = Preprocess(colours="BGR", scale=1.0, letterbox="top_left")

    def fits(self, signature: Signature) -> str | None:
        """Say why outputs of this shape cannot be decoded."""
        output = signature.output
        if output and (output.shape[2] or 0) >= 6 and output.shape[1] == len(grid(signature.canvas, STRIDES)[0]):
            return None
        return f"it has {self.summary}, with one anchor for each cell of strides 8, 16 and 32"

    def recognise(self, signature: Signature, metadata: Mapping[str, str]) -> str | None:
        """Say by what a model is known to be of this family."""
        if self.fits(signature) or metadata.get("end2end", "").lower() == "true":
            return None
        if not metadata.get("names") and self.class_count(signature) == len(COCO_80) - 1:
            return None  # 4 + 80: rows of yolo_dense
        return "one row for each cell of strides 8, 16 and 32, with objectness"

    def class_count(self, signature: Signature) -> int | None:
        """All channels but the four of the box and the objectness."""
        return None if signature.output is None else (signature.output.shape[2] or 5) - 5

    def class_scores(self, signature: Signature) -> tuple[int, int] | None:
        """Behind box and objectness."""
        return 2, 5

    def decode(
        self, outputs: Mapping[str, Tensor], letterboxes: Sequence[Letterbox], settings: DecodeSettings
    ) -> list[Detections]:
        """Turn the outputs of one run into detections."""
        (output,) = outputs.values()
        found = []
        for rows, letterbox in zip(output.astype(np.float32, copy=False), letterboxes, strict=True):
            _check_offsets(rows, letterbox.canvas)
            scores, class_ids = best_class(rows[:, 5:], 1, settings)
            scores = scores * rows[:, 4]
            keep = candidates(scores, class_ids, settings)
            corner, stride = (part[keep] for part in grid(letterbox.canvas, STRIDES))
            centre = (rows[keep, :2] + corner) * stride
            size = np.exp(rows[keep, 2:4]) * stride
            boxes = cxcywh_to_xyxy(np.concatenate([centre, size], axis=1))
            found.append(suppressed(boxes, scores[keep], class_ids[keep], letterbox, settings))
        return found


def _check_offsets(rows: Tensor, canvas: tuple[int, int]) -> None:
    """Refuse rows that do not begin with offsets within cells: other heads have as many rows.

    Args:
        rows: ``(A, 5 + C)`` of one image.
        canvas: ``(width_px, height_px)``.
    """
    in_pixels = np.minimum(np.abs(rows[:, :2]), _OUTLIER).mean() > _FARTHEST_OFFSET
    if in_pixels or are_places(rows[:, :2], canvas):
        raise SenselessOutput(
            "its rows do not begin with offsets within cells, as those of yolox do, but with centres or corners in "
            f"{'pixels' if in_pixels else 'shares'} of the canvas; set model.family: yolo_dense (class scores "
            "follow), yolo_anchors (objectness and class scores follow) or yolo_end2end (score and class follow)",
            code="model.family",
        )
