"""YOLOX: a decoupled head with objectness, whose boxes are offsets within the cells of three grids."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from batchdet.model.families.family import SenselessOutput, Signature, are_places, grid
from batchdet.model.families.objectness import ObjectnessFamily
from batchdet.model.labels import COCO_80
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Tensor

STRIDES: Final = (8, 16, 32)
_OUTLIER: Final = 100.0
_FARTHEST_OFFSET: Final = 4.0
"""Mean distance of box centres from the corners of their cells, in cells; trained models have about one."""


class Yolox(ObjectnessFamily):
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

    def check(self, rows: Tensor, canvas: tuple[int, int]) -> None:
        """Refuse rows that do not begin with offsets within cells: other heads have as many rows."""
        in_pixels = np.minimum(np.abs(rows[:, :2]), _OUTLIER).mean() > _FARTHEST_OFFSET
        if in_pixels or are_places(rows[:, :2], canvas):
            raise SenselessOutput(
                "its rows do not begin with offsets within cells, as those of yolox do, but with centres or corners in "
                f"{'pixels' if in_pixels else 'shares'} of the canvas; set model.family: yolo_dense (class scores "
                "follow), yolo_anchors (objectness and class scores follow) or yolo_end2end (score and class follow)",
                code="model.family",
            )

    def centred(self, rows: Tensor, keep: npt.NDArray[np.intp], canvas: tuple[int, int]) -> npt.NDArray[Any]:
        """Add the cells to the offsets, and undo the logarithm of the sizes."""
        corner, stride = (part[keep] for part in grid(canvas, STRIDES))
        centre = (rows[keep, :2] + corner) * stride
        size = np.exp(rows[keep, 2:4]) * stride
        return np.concatenate([centre, size], axis=1)
