"""YOLO heads with anchor boxes and objectness: YOLOv5 and YOLOv7, and YOLOv6, whose exports look alike."""

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
    check_centred,
    suppressed,
)
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Tensor
from batchdet.records.detections import Detections


class YoloAnchors(Family):
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
            check_centred(rows[:, :4], letterbox.canvas)
            scores, class_ids = best_class(rows[:, 5:], 1, settings)
            scores = scores * rows[:, 4]
            keep = candidates(scores, class_ids, settings)
            boxes = cxcywh_to_xyxy(rows[keep, :4])
            found.append(suppressed(boxes, scores[keep], class_ids[keep], letterbox, settings))
        return found
