"""YOLO heads without objectness: YOLOv8 to YOLO12, and the one-to-many head of YOLO26."""

from collections.abc import Mapping, Sequence

import numpy as np

from batchdet.geometry.boxes import cxcywh_to_xyxy
from batchdet.geometry.letterbox import Letterbox
from batchdet.model.families.family import (
    DecodeSettings,
    Family,
    Signature,
    best_class,
    candidates,
    suppressed,
)
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Tensor
from batchdet.records.detections import Detections


class YoloDense(Family):
    """``output0`` ``(N, 4 + C, A)``: centre x, centre y, width, height (canvas pixels), then C class scores.

    Each anchor has one class, its best. NMS then works within classes.
    """

    name = "yolo_dense"
    summary = "one output [N, 4 + classes, anchors]: centre x, centre y, width, height, class scores; NMS follows"
    preprocess = Preprocess()
    class_scores = (1, 4)

    def fits(self, signature: Signature) -> str | None:
        """Say why outputs of this shape cannot be decoded."""
        output = signature.output
        return None if output and (output.shape[1] or 0) >= 5 else f"it has {self.summary}"

    def recognise(self, signature: Signature, metadata: Mapping[str, str]) -> str | None:
        """Say by what a model is known to be of this family."""
        output = signature.output
        if self.fits(signature) or output is None or not signature.is_grid(output.shape[2]):
            return None
        return "one column for each cell of a feature pyramid, without objectness"

    def class_count(self, signature: Signature) -> int | None:
        """All channels but the four of the box."""
        return None if signature.output is None else (signature.output.shape[1] or 4) - 4

    def decode(
        self, outputs: Mapping[str, Tensor], letterboxes: Sequence[Letterbox], settings: DecodeSettings
    ) -> list[Detections]:
        """Turn the outputs of one run into detections."""
        (output,) = outputs.values()
        found = []
        for channels, letterbox in zip(output.astype(np.float32, copy=False), letterboxes, strict=True):
            scores, class_ids = best_class(channels[4:], 0, settings)
            keep = candidates(scores, class_ids, settings)
            boxes = cxcywh_to_xyxy(channels[:4, keep].T)
            found.append(suppressed(boxes, scores[keep], class_ids[keep], letterbox, settings))
        return found
