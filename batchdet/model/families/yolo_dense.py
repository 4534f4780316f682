"""YOLO heads without objectness: YOLOv8 to YOLO12, and the one-to-many head of YOLO26."""

from collections.abc import Mapping, Sequence

import numpy as np

from batchdet.geometry.boxes import cxcywh_to_xyxy
from batchdet.geometry.letterbox import Letterbox
from batchdet.model.families.family import (
    DecodeSettings,
    Family,
    SenselessOutput,
    Signature,
    best_class,
    candidates,
    check_centred,
    is_grid,
    suppressed,
)
from batchdet.model.labels import COCO_80, parse_names
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Tensor
from batchdet.records.detections import Detections


class YoloDense(Family):
    """``output0`` ``(N, 4 + C, A)``: centre x, centre y, width, height (canvas pixels), then C class scores.

    Each anchor has one class, its best. NMS then works within classes. Some exports swap the last two axes.
    """

    name = "yolo_dense"
    summary = (
        "one output [N, 4 + classes, anchors] or [N, anchors, 4 + classes]: centre x, centre y, width, height, class "
        "scores; NMS follows"
    )
    preprocess = Preprocess()

    def fits(self, signature: Signature) -> str | None:
        """Say why outputs of this shape cannot be decoded."""
        count = self.class_count(signature)
        return None if count is not None and count > 0 else f"it has {self.summary}"

    def recognise(self, signature: Signature, metadata: Mapping[str, str]) -> str | None:
        """Say by what a model is known to be of this family."""
        output = signature.output
        if self.fits(signature) or output is None:
            return None
        if signature.is_grid(output.shape[2]):
            return "one column for each cell of a feature pyramid, without objectness"
        # rows of six numbers may also be boxes with score and class, or with objectness and one class
        if not _swapped(signature.canvas, output.shape) or output.shape[2] == 6 or metadata.get("end2end") == "true":
            return None
        known = self.class_count(signature) == (len(parse_names(metadata.get("names", ""))) or len(COCO_80))
        return "one row for each cell of a feature pyramid, and as many class scores as labels" if known else None

    def class_count(self, signature: Signature) -> int | None:
        """All channels but the four of the box."""
        output = signature.output
        return None if output is None else (output.shape[_axis(signature.canvas, output.shape)] or 4) - 4

    def class_scores(self, signature: Signature) -> tuple[int, int] | None:
        """Behind the box."""
        output = signature.output
        return None if output is None else (_axis(signature.canvas, output.shape), 4)

    def decode(
        self, outputs: Mapping[str, Tensor], letterboxes: Sequence[Letterbox], settings: DecodeSettings
    ) -> list[Detections]:
        """Turn the outputs of one run into detections."""
        (output,) = outputs.values()
        found = []
        for channels, letterbox in zip(output.astype(np.float32, copy=False), letterboxes, strict=True):
            if _swapped(letterbox.canvas, output.shape):
                channels = channels.T
            check_centred(channels[:4].T, letterbox.canvas)
            if not settings.best_class_only:
                _check_selected(channels)
            scores, class_ids = best_class(channels[4:], 0, settings)
            keep = candidates(scores, class_ids, settings)
            boxes = cxcywh_to_xyxy(channels[:4, keep].T)
            found.append(suppressed(boxes, scores[keep], class_ids[keep], letterbox, settings))
        return found


def _check_selected(channels: Tensor) -> None:
    """Refuse what has been selected by score already: six channels, the fifth falling, the sixth whole numbers."""
    if len(channels) != 6:
        return
    scores, classes = channels[4:]
    if scores.any() and (np.diff(scores) <= 0).all() and (classes == np.round(classes)).all():
        raise SenselessOutput(
            "its columns are sorted by a score, and whole numbers follow it, so they are x_min, y_min, x_max, y_max, "
            "score and class with swapped axes; export the model with the outputs [N, K, 6]",
            code="model.family",
        )


def _axis(canvas: tuple[int, int], shape: Sequence[int | None]) -> int:
    return 2 if _swapped(canvas, shape) else 1


def _swapped(canvas: tuple[int, int], shape: Sequence[int | None]) -> bool:
    """Tell whether the anchors are the second axis of three, not the last."""
    _, first, last = (n or 0 for n in shape)
    return is_grid(canvas, first) and not is_grid(canvas, last)
