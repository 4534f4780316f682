"""What every family has in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from batchdet.geometry.boxes import Boxes, area
from batchdet.geometry.letterbox import Letterbox
from batchdet.geometry.nms import nms
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Tensor, TensorInfo
from batchdet.records.detections import Detections

_YOLO_STRIDES = ((8, 16, 32), (4, 8, 16, 32), (8, 16, 32, 64), (4, 8, 16), (16, 32))


@dataclass(frozen=True)
class Signature:
    """What one run on an empty canvas showed.

    Args:
        inputs: As declared.
        outputs: With the shapes that came out, for one image.
        canvas: ``(width_px, height_px)`` of that run.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    canvas: tuple[int, int]

    @property
    def output(self) -> TensorInfo | None:
        """The output, when there is one with three axes and no other."""
        return self.outputs[0] if len(self.outputs) == 1 and len(self.outputs[0].shape) == 3 else None

    def is_grid(self, cells: int | None) -> bool:
        """Tell whether a number of rows is that of the cells of a YOLO feature pyramid on this canvas."""
        width, height = self.canvas
        return any(cells == sum((width // s) * (height // s) for s in strides) for strides in _YOLO_STRIDES)


@dataclass(frozen=True)
class DecodeSettings:
    """What is kept of a model's outputs.

    Args:
        score_threshold: Lowest score.
        iou_threshold: Of two boxes of one class that overlap more, the weaker goes (families with NMS).
        max_detections: At most this many per image.
        class_ids: Keep only these; None keeps all.
        best_class_only: Outputs hold the best class's score and its number in the place of all class scores.
    """

    score_threshold: float = 0.25
    iou_threshold: float = 0.7
    max_detections: int = 300
    class_ids: tuple[int, ...] | None = None
    best_class_only: bool = False


class Family(ABC):
    """How the raw outputs of a kind of detector become detections. Families hold no state."""

    name: str
    summary: str
    preprocess: Preprocess
    class_scores: tuple[int, int] | None = None
    """Axis of the only output's channels, and the first of those that are class scores, where only the best counts."""

    @abstractmethod
    def fits(self, signature: Signature) -> str | None:
        """Say why outputs of this shape cannot be decoded, None when they can."""

    @abstractmethod
    def recognise(self, signature: Signature, metadata: Mapping[str, str]) -> str | None:
        """Say by what a model is known to be of this family, None when it is not."""

    def class_count(self, signature: Signature) -> int | None:
        """Return the number of classes, None when the outputs do not show it, as where labels are numbers."""
        return None

    def feeds(self, signature: Signature, letterboxes: Sequence[Letterbox]) -> dict[str, Tensor]:
        """Return the inputs besides the canvases: none."""
        return {}

    @abstractmethod
    def decode(
        self, outputs: Mapping[str, Tensor], letterboxes: Sequence[Letterbox], settings: DecodeSettings
    ) -> list[Detections]:
        """Turn the outputs of one run into detections.

        Args:
            outputs: By name; the first axis is the image.
            letterboxes: One per image.
            settings: What is kept.

        Returns:
            One per image, in original pixels, by falling score.
        """


@lru_cache(maxsize=64)
def grid(canvas: tuple[int, int], strides: tuple[int, ...]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the cells of a pyramid of grids, finest first, row by row.

    Args:
        canvas: ``(width_px, height_px)``.
        strides: Pixels of a cell, finest first; the last row and column may be cut by the canvas.

    Returns:
        ``(A, 2)`` float32 column and row of each cell, ``(A, 1)`` float32 its stride in pixels.
    """
    corners, sides = [], []
    for stride in strides:
        y, x = np.mgrid[: -(-canvas[1] // stride), : -(-canvas[0] // stride)]
        corners.append(np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32))
        sides.append(np.full((x.size, 1), stride, np.float32))
    return np.concatenate(corners), np.concatenate(sides)


def best_class(
    class_scores: npt.NDArray[np.float32], axis: int, settings: DecodeSettings
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Return the highest score along an axis, and its class."""
    if settings.best_class_only:
        scores, class_ids = np.moveaxis(class_scores, axis, 0)
        return scores, class_ids.astype(np.int32)
    return class_scores.max(axis=axis), class_scores.argmax(axis=axis).astype(np.int32)


def candidates(
    scores: npt.NDArray[np.float32], class_ids: npt.NDArray[np.int32], settings: DecodeSettings
) -> npt.NDArray[np.intp]:
    """Return the indices of detections that reach the score threshold and are of a wanted class.

    Args:
        scores: ``(N,)``; NaN reaches no threshold.
        class_ids: ``(N,)``.
        settings: What is kept.
    """
    keep = scores >= np.float32(settings.score_threshold)
    if settings.class_ids is not None:
        keep &= np.isin(class_ids, settings.class_ids)
    return np.flatnonzero(keep)


def by_score(scores: npt.NDArray[np.float32], max_detections: int) -> npt.NDArray[np.intp]:
    """Return the indices of the highest scores, falling; equal ones keep their order."""
    return np.argsort(-scores, kind="stable")[:max_detections]


def strongest(
    scores: npt.NDArray[np.float32], class_ids: npt.NDArray[np.int32], settings: DecodeSettings
) -> npt.NDArray[np.intp]:
    """Return the indices of :func:`candidates` with the highest scores, falling: all that is left without NMS."""
    keep = candidates(scores, class_ids, settings)
    return keep[by_score(scores[keep], settings.max_detections)]


def suppressed(
    boxes_xyxy: Boxes,
    scores: npt.NDArray[np.float32],
    class_ids: npt.NDArray[np.int32],
    letterbox: Letterbox,
    settings: DecodeSettings,
) -> Detections:
    """Make detections of what NMS leaves of boxes in canvas pixels."""
    keep = nms(boxes_xyxy, scores, class_ids, settings.iou_threshold, settings.max_detections)
    return detections(letterbox.to_image(boxes_xyxy[keep]), scores[keep], class_ids[keep])


def detections(boxes_xyxy: Boxes, scores: npt.NDArray[np.float32], class_ids: npt.NDArray[np.int32]) -> Detections:
    """Make detections of boxes in original pixels, without those that are empty or not finite.

    Args:
        boxes_xyxy: ``(N, 4)`` clipped to the image, sorted by falling score.
        scores: ``(N,)``.
        class_ids: ``(N,)``.
    """
    real = np.isfinite(boxes_xyxy).all(axis=1) & (area(boxes_xyxy) > 0)
    return Detections(
        boxes_xyxy[real].astype(np.float32), scores[real].astype(np.float32), class_ids[real].astype(np.int32)
    )
