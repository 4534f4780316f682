"""YOLO heads that need no NMS: YOLOv10, YOLO26, and batchdet's own embedded model."""

from collections.abc import Mapping, Sequence

import numpy as np

from batchdet.geometry.letterbox import Letterbox
from batchdet.model.families.family import DecodeSettings, Family, Signature, detections, strongest
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Tensor
from batchdet.records.detections import Detections


class YoloEnd2End(Family):
    """``output0`` ``(N, K, 6)``: x_min, y_min, x_max, y_max (canvas pixels), score, class, one row a detection.

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
        return None if signature.is_grid(output.shape[1]) else "rows of six numbers"

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
            rows = rows[strongest(rows[:, 4], rows[:, 5].astype(np.int32), settings)]
            found.append(detections(letterbox.to_image(rows[:, :4]), rows[:, 4], rows[:, 5].astype(np.int32)))
        return found
