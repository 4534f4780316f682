"""What every family has in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from batchdet.errors import ModelError
from batchdet.geometry.boxes import Boxes, area
from batchdet.geometry.letterbox import Letterbox
from batchdet.geometry.nms import nms
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Tensor, TensorInfo
from batchdet.records.detections import Detections

_YOLO_STRIDES: Final = ((8, 16, 32), (4, 8, 16, 32), (8, 16, 32, 64), (4, 8, 16), (16, 32))
SCORE_ROUNDING: Final = 1e-3
"""A score that leaves 0..1 by at most this is clamped: arithmetic of few bits rounds so far."""
_PADDING: Final = -1
"""Some exports fill rows without a detection with this score."""
_FARTHEST: Final = 100
"""No box of a detector reaches farther than so many sides of its canvas."""
_FOLLOWS: Final = 0.7
"""Numbers that correlate with the places of their cells so much, along both axes, are places."""
_NO_PIXELS: Final = 8.0
"""Centres of a whole pyramid that are all smaller are offsets within cells or shares of the canvas."""
_LARGEST_SHARE: Final = 2.0
_SMALLEST_CANVAS: Final = 100
"""If no corner of an image's boxes exceeds 2 on a canvas of at least 100 px, they are shares of the canvas."""


class SenselessOutput(ModelError):
    """What the model gives for an image cannot be true, such as a score of 370. Nothing of it may reach a table."""

    def about(self, subject: str) -> "SenselessOutput":
        """Return the same error with a message that begins with what it is about, such as the image."""
        return SenselessOutput(f"{subject}: {self.message}", code=self.code, key=self.key, hint=self.hint)


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
        return cells is not None and is_grid(self.canvas, cells)

    def is_grid_of_anchors(self, rows: int | None) -> bool:
        """Tell whether a number of rows is three for each cell of a pyramid, as YOLOs with anchors have."""
        return rows is not None and rows % 3 == 0 and is_grid(self.canvas, rows // 3)


@dataclass(frozen=True)
class DecodeSettings:
    """What is kept of a model's outputs.

    Args:
        score_threshold: Lowest score.
        iou_threshold: Of two boxes of one class that overlap more, the weaker goes (families with NMS).
        max_detections: At most this many per image.
        class_ids: Keep only these; None keeps all.
        label_count: Number of labels that are known; a larger class number is refused. 0 if none are known.
        best_class_only: Outputs hold the best class's score and its number in the place of all class scores.
    """

    score_threshold: float = 0.25
    iou_threshold: float = 0.7
    max_detections: int = 300
    class_ids: tuple[int, ...] | None = None
    label_count: int = 0
    best_class_only: bool = False


class Family(ABC):
    """How the raw outputs of a kind of detector become detections. Families hold no state."""

    name: str
    summary: str
    preprocess: Preprocess

    @abstractmethod
    def fits(self, signature: Signature) -> str | None:
        """Say why outputs of this shape cannot be decoded, None when they can."""

    @abstractmethod
    def recognise(self, signature: Signature, metadata: Mapping[str, str]) -> str | None:
        """Say by what a model is known to be of this family, None when it is not."""

    def class_count(self, signature: Signature) -> int | None:
        """Return the number of classes, None when the outputs do not show it, as where labels are numbers."""
        return None

    def class_scores(self, signature: Signature) -> tuple[int, int] | None:
        """Return the axis of the only output's channels, and the first that is a class score, if only the best counts.

        None if other class scores count, too.
        """
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

        Raises:
            SenselessOutput: The outputs for an image cannot be true.
        """


def is_grid(canvas: tuple[int, int], cells: int) -> bool:
    """Tell whether a number is that of the cells of a YOLO feature pyramid on a canvas ``(width_px, height_px)``."""
    width, height = canvas
    return any(cells == sum((width // s) * (height // s) for s in strides) for strides in _YOLO_STRIDES)


@lru_cache(maxsize=64)
def _cell_centres(canvas: tuple[int, int], rows: int) -> npt.NDArray[np.float32] | None:
    """Return the centres of the cells that rows stand for, ``(rows, 2)`` in pixels; None without a grid.

    There are one or three rows for each cell; of three, those of an anchor follow one another within a level.
    """
    width, height = canvas
    for strides in _YOLO_STRIDES:
        levels = [grid(((width // s) * s, (height // s) * s), (s,))[0] * s + s / 2 for s in strides]
        for anchors in (1, 3):
            if anchors * sum(map(len, levels)) == rows:
                places: npt.NDArray[np.float32] = np.concatenate([np.tile(level, (anchors, 1)) for level in levels])
                return places
    return None


def are_places(numbers: npt.NDArray[np.float32], canvas: tuple[int, int]) -> bool:
    """Tell whether numbers of the rows of a feature pyramid, ``(A, 2)``, grow with the places of their cells."""
    centres = _cell_centres(canvas, len(numbers))
    if centres is None:
        return False
    one, other = numbers - numbers.mean(axis=0), centres - centres.mean(axis=0)
    lengths = np.sqrt((one * one).sum(axis=0) * (other * other).sum(axis=0))
    return bool(((one * other).sum(axis=0) > _FOLLOWS * lengths).all() and (lengths > 0).all())


def check_centred(boxes_cxcywh: npt.NDArray[np.float32], canvas: tuple[int, int]) -> None:
    """Refuse rows of a whole feature pyramid that do not begin with centre, width and height in canvas pixels.

    Args:
        boxes_cxcywh: ``(A, 4)`` of all rows, also weak ones.
        canvas: ``(width_px, height_px)``.

    Raises:
        SenselessOutput: They are corners, or offsets within cells, or shares of the canvas.
    """
    if _cell_centres(canvas, len(boxes_cxcywh)) is None or max(canvas) < _SMALLEST_CANVAS:
        return
    if are_places(boxes_cxcywh[:, 2:4], canvas):
        raise SenselessOutput(
            "its boxes end near their cells, so they are corners (xyxy), not centre, width and height; if score and "
            "class follow, set model.family: yolo_end2end, else write a head (model.family: module:Class)",
            code="model.family",
        )
    farthest = np.fmax.reduce(np.abs(boxes_cxcywh[:, :2]), axis=None, initial=0)
    if 0 < farthest < _NO_PIXELS:
        raise SenselessOutput(
            f"no centre of its {len(boxes_cxcywh)} boxes is farther than {farthest:.3g} from the corner of a canvas of "
            f"{canvas[0]} x {canvas[1]} px, so they are shares of the canvas or offsets within cells, not pixels; "
            "export the model with decoded boxes, or write a head (model.family: module:Class)",
            code="model.family",
        )


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
        scores: ``(N,)`` of all rows, also weak ones; NaN reaches no threshold.
        class_ids: ``(N,)``.
        settings: What is kept.

    Raises:
        SenselessOutput: A score is outside 0..1.
    """
    lowest, highest = np.fmin.reduce(scores, initial=0), np.fmax.reduce(scores, initial=0)
    if highest > 1 + SCORE_ROUNDING or (lowest < -SCORE_ROUNDING and lowest != _PADDING):
        found = f"{highest:.4g}" if highest > 1 else f"{lowest:.4g}"
        raise SenselessOutput(
            f"it gives a score of {found}, and scores must lie in 0..1; its outputs may not be those of this family "
            "(model.family), or its export may end before the sigmoid",
            code="model.scores_out_of_range",
        )
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
    """Return the indices of :func:`candidates` by falling score: :func:`detections` keeps as many as are wanted."""
    keep = candidates(scores, class_ids, settings)
    return keep[by_score(scores[keep], len(keep))]


def suppressed(
    boxes_xyxy: Boxes,
    scores: npt.NDArray[np.float32],
    class_ids: npt.NDArray[np.int32],
    letterbox: Letterbox,
    settings: DecodeSettings,
) -> Detections:
    """Make detections of what NMS leaves of boxes in canvas pixels.

    Boxes that :func:`detections` drops may suppress others, but take the place of none in ``max_detections``: so an
    image with fewer detections has lost none to the limit.

    Raises:
        SenselessOutput: As of :func:`detections`.
    """
    _check_boxes(boxes_xyxy, letterbox.canvas)
    real = _are_real(letterbox.to_image(boxes_xyxy))
    keep = nms(boxes_xyxy, scores, class_ids, settings.iou_threshold, settings.max_detections, real)
    return detections(boxes_xyxy[keep], scores[keep], class_ids[keep], letterbox, settings)


def detections(
    boxes_xyxy: Boxes,
    scores: npt.NDArray[np.float32],
    class_ids: npt.NDArray[np.int32],
    letterbox: Letterbox,
    settings: DecodeSettings,
) -> Detections:
    """Make detections of the first boxes in canvas pixels, without those that are empty or not a number.

    Args:
        boxes_xyxy: ``(N, 4)``, sorted by falling score.
        scores: ``(N,)``; clamped to 0..1, see :data:`SCORE_ROUNDING`.
        class_ids: ``(N,)``.
        letterbox: How the image was put on the canvas.
        settings: What is known of the classes, and how many detections are kept.

    Raises:
        SenselessOutput: Boxes are infinite, far outside the canvas, mostly inside out or shares of the canvas, or a
            class number has no label.
    """
    _check_boxes(boxes_xyxy, letterbox.canvas)
    _check_classes(class_ids, settings.label_count)
    placed = letterbox.to_image(boxes_xyxy)
    real = np.flatnonzero(_are_real(placed))[: settings.max_detections]
    return Detections(
        placed[real].astype(np.float32),
        scores[real].clip(0, 1).astype(np.float32),
        class_ids[real].astype(np.int32),
    )


def _are_real(placed_xyxy: Boxes) -> npt.NDArray[np.bool_]:
    """Tell which boxes in pixels of the image are no empty ones, and numbers."""
    real: npt.NDArray[np.bool_] = np.isfinite(placed_xyxy).all(axis=1) & (area(placed_xyxy) > 0)
    return real


def _check_boxes(boxes_xyxy: Boxes, canvas: tuple[int, int]) -> None:
    """Refuse boxes of one image that reach the score threshold and cannot be boxes in canvas pixels."""
    if not len(boxes_xyxy):
        return
    largest, side = np.fmax.reduce(np.abs(boxes_xyxy), axis=None, initial=0), max(canvas)
    wanted = f"they must be x_min, y_min, x_max, y_max in pixels of the canvas of {canvas[0]} x {canvas[1]} px"
    if largest > _FARTHEST * side:
        raise SenselessOutput(f"it gives a box with the coordinate {largest:.4g}; {wanted}", code=_BOXES)
    if largest <= _LARGEST_SHARE and side >= _SMALLEST_CANVAS:
        raise SenselessOutput(
            f"no coordinate of its {len(boxes_xyxy)} boxes exceeds {largest:.3g}, so they seem to be shares of the "
            f"canvas; {wanted}",
            code=_BOXES,
        )
    inside_out = int(((boxes_xyxy[:, 2:] < boxes_xyxy[:, :2]).any(axis=1)).sum())
    if 2 * inside_out > len(boxes_xyxy):
        raise SenselessOutput(
            f"{inside_out} of its {len(boxes_xyxy)} boxes end before they begin (x_max below x_min or y_max below "
            f"y_min), as corner with width and height (xywh) would; {wanted}",
            code=_BOXES,
        )


def _check_classes(class_ids: npt.NDArray[np.int32], label_count: int) -> None:
    """Refuse class numbers without a label, where labels are known."""
    if len(class_ids) and (class_ids.min() < 0 or class_ids.max() >= label_count > 0):
        found = class_ids.min() if class_ids.min() < 0 else class_ids.max()
        known = f"the labels go from 0 to {label_count - 1}" if label_count else "classes begin with 0"
        raise SenselessOutput(
            f"it gives the class number {found}, but {known}; set model.labels to a file with all labels of the model",
            code="model.labels",
        )


_BOXES: Final = "model.boxes_out_of_range"
