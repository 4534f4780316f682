"""YOLO heads with anchor boxes and objectness: YOLOv5 and YOLOv7, and YOLOv6, whose exports look alike."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from batchdet.model.families.family import Signature, check_centred
from batchdet.model.families.objectness import ObjectnessFamily
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Tensor


class YoloAnchors(ObjectnessFamily):
    """``(N, A, 5 + C)``: centre x, centre y, width, height (canvas pixels), objectness, then C class scores.

    There are three anchors for each cell (one in YOLOv6, which therefore has to be named). The score is objectness
    times the best class score.

    Source: Redmon et al., "You Only Look Once", arXiv:1506.02640, equation 1; the layout is that of the ONNX exports
    of YOLOv5 and YOLOv7.
    """

    name = "yolo_anchors"
    summary = (
        "one output [N, 3 x cells, 5 + classes]: centre x, centre y, width, height, objectness, class scores; NMS "
        "follows"
    )
    preprocess = Preprocess()

    def fits(self, signature: Signature) -> str | None:
        """Say why outputs of this shape cannot be decoded."""
        output = signature.output
        if output and (output.shape[2] or 0) >= 6:
            rows = output.shape[1]
            if signature.is_grid_of_anchors(rows) or signature.is_grid(rows):
                return None
        return f"it has {self.summary}"

    def recognise(self, signature: Signature, metadata: Mapping[str, str]) -> str | None:
        """Say by what a model is known to be of this family."""
        output = signature.output
        if self.fits(signature) or output is None or not signature.is_grid_of_anchors(output.shape[1]):
            return None
        if metadata.get("end2end", "").lower() == "true":
            return None
        return "three rows for each cell of a feature pyramid, with objectness"

    def check(self, rows: Tensor, canvas: tuple[int, int]) -> None:
        """Refuse rows that do not begin with centres in pixels."""
        check_centred(rows[:, :4], canvas)

    def centred(self, rows: Tensor, keep: npt.NDArray[np.intp], canvas: tuple[int, int]) -> npt.NDArray[Any]:
        """Boxes are given so."""
        return rows[keep, :4]
