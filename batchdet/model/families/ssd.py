"""Exports whose graph ends with boxes, labels and scores: SSD, RetinaNet, Faster R-CNN."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from batchdet.geometry.letterbox import Letterbox
from batchdet.model.families.family import DecodeSettings, Family, Signature, detections, strongest
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Tensor, TensorInfo
from batchdet.records.detections import Detections

_ROLES: Final = {"boxes": ("boxes", "bboxes", "dets"), "labels": ("labels", "classes"), "scores": ("scores",)}
_LARGEST_SHARE: Final = 1.5
"""Where no coordinate is larger, they are shares of the canvas: boxes in pixels would be smaller than two."""


class Ssd(Family):
    """``boxes`` (N, D, 4), ``labels`` (N, D), ``scores`` (N, D); NMS is in the graph.

    Boxes are xyxy in canvas pixels or shares of the canvas. Without the axis of images, as torchvision exports them,
    ``boxes`` (D, 4) belong to one image, and such models get one at a time. MMDetection's ``dets`` (N, D, 5) has the
    score behind the box. Labels are taken as they are: those of torchvision begin with the background, 0, so that
    ``model.labels`` has to begin with it, too. Padding is what has no score or a negative label.

    Source: Liu et al., "SSD: Single Shot MultiBox Detector", arXiv:1512.02325; the outputs are those of torchvision's
    and MMDetection's exports.
    """

    name = "ssd"
    summary = "the outputs boxes, labels, scores (or dets with scores, and labels), and no input but images"
    preprocess = Preprocess()

    def fits(self, signature: Signature) -> str | None:
        """Say why outputs of this shape cannot be decoded."""
        found = _roles(tuple(info.name for info in signature.outputs))
        shapes = {role: _shape(signature, name) for role, name in found.items()}
        boxes, labels = shapes.get("boxes", ()), shapes.get("labels", ())
        width = 4 if "scores" in found else 5
        fit = (
            len(signature.inputs) == 1
            and len(boxes) in (2, 3)
            and boxes[-1] == width
            and len(labels) == len(boxes) - 1
            and shapes.get("scores", labels) == labels
        )
        return None if fit else f"it has {self.summary}"

    def recognise(self, signature: Signature, metadata: Mapping[str, str]) -> str | None:
        """Say by what a model is known to be of this family."""
        return None if self.fits(signature) else "boxes and labels among the outputs"

    def decode(
        self, outputs: Mapping[str, Tensor], letterboxes: Sequence[Letterbox], settings: DecodeSettings
    ) -> list[Detections]:
        """Turn the outputs of one run into detections.

        Raises:
            ValueError: Outputs without the axis of images came for several.
        """
        named = {role: outputs[name] for role, name in _roles(tuple(outputs)).items()}
        if named["boxes"].ndim == 2:
            if len(letterboxes) != 1:
                raise ValueError(f"boxes of one image came for {len(letterboxes)}")
            named = {role: array[None] for role, array in named.items()}
        boxes = named["boxes"].astype(np.float32)
        scores = named["scores"] if "scores" in named else boxes[..., 4]
        found = []
        for rows, marks, numbers, letterbox in zip(boxes[..., :4], scores, named["labels"], letterboxes, strict=True):
            found.append(_decoded(rows, marks.astype(np.float32), numbers.astype(np.int32), letterbox, settings))
        return found


def _decoded(
    rows: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    class_ids: npt.NDArray[np.int32],
    letterbox: Letterbox,
    settings: DecodeSettings,
) -> Detections:
    if rows.max(initial=0) <= _LARGEST_SHARE:
        rows = rows * np.array(letterbox.canvas * 2, np.float32)
    real = np.flatnonzero((scores > 0) & (class_ids >= 0))
    rows, scores, class_ids = rows[real], scores[real], class_ids[real]
    keep = strongest(scores, class_ids, settings)
    return detections(rows[keep], scores[keep], class_ids[keep], letterbox, settings)


def _roles(names: tuple[str, ...]) -> dict[str, str]:
    """Return which output has which role; {} when one is missing, or more are there."""
    found = {role: name for role, known in _ROLES.items() for name in names if name in known}
    whole = {"boxes", "labels"} | (set() if found.get("boxes") == "dets" else {"scores"})
    return found if found.keys() == whole and len(names) == len(whole) else {}


def _shape(signature: Signature, name: str) -> tuple[int | None, ...]:
    info: TensorInfo = next(info for info in signature.outputs if info.name == name)
    return info.shape
