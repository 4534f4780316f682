"""GFL heads: class scores, and for each side of a box a distribution over distances: NanoDet, PicoDet.

Source: Li et al., "Generalized Focal Loss", arXiv:2006.04388, section 3.2: the distance to a side is the mean of a
softmax over the bins 0..n, in cells.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from batchdet.geometry.letterbox import Letterbox
from batchdet.model.families.family import (
    DecodeSettings,
    Family,
    SenselessOutput,
    Signature,
    best_class,
    candidates,
    grid,
    suppressed,
)
from batchdet.model.labels import COCO_80
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Tensor, TensorInfo
from batchdet.records.detections import Detections

_STRIDES: Final = ((8, 16, 32, 64), (8, 16, 32))
_BINS: Final = 8
Floats = npt.NDArray[np.float32]


class NanoDet(Family):
    """One output ``(N, A, C + 32)``: class scores, then 8 bins for each of left, top, right, bottom.

    With strides 8 to 64 (NanoDet-Plus) a cell's point is its corner, with 8 to 32 (NanoDet) its centre, as their own
    code has it.

    Source: https://github.com/RangiLyu/nanodet, its heads and its ONNX export.
    """

    name = "nanodet"
    summary = "one output [N, anchors, classes + 32]: class scores, 8 bins for each side; NMS follows"
    preprocess = Preprocess(
        colours="BGR", scale=1.0, letterbox="stretch", mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395)
    )

    def fits(self, signature: Signature) -> str | None:
        """Say why outputs of this shape cannot be decoded."""
        output = signature.output
        if output and (output.shape[2] or 0) > 4 * _BINS and _strides(signature.canvas, output.shape[1]):
            return None
        return f"it has {self.summary}, with one anchor for each cell of strides 8 to 32 or 64"

    def recognise(self, signature: Signature, metadata: Mapping[str, str]) -> str | None:
        """Say by what a model is known to be of this family."""
        output = signature.output
        if self.fits(signature) or output is None:
            return None
        if _strides(signature.canvas, output.shape[1])[-1] == 64:
            return "one row for each cell of strides 8 to 64"
        # YOLOX's rows are of the same cells; names that contradict the number of classes are refused for all families
        known = metadata.get("names") or self.class_count(signature) == len(COCO_80)
        return "one row for each cell of strides 8 to 32, and as many labels" if known else None

    def class_count(self, signature: Signature) -> int | None:
        """All channels but the bins."""
        return None if signature.output is None else (signature.output.shape[2] or 0) - 4 * _BINS

    def decode(
        self, outputs: Mapping[str, Tensor], letterboxes: Sequence[Letterbox], settings: DecodeSettings
    ) -> list[Detections]:
        """Turn the outputs of one run into detections."""
        (output,) = outputs.values()
        count = output.shape[2] - 4 * _BINS
        last = output[..., -_BINS:]
        if 0 < last.max(initial=0) <= 1 and last.min(initial=0) >= 0:
            raise SenselessOutput(
                "the last numbers of its rows all lie in 0..1, as class scores do, so they are no bins of distances; "
                "set model.family",
                code="model.family",
            )
        strides = _strides(letterboxes[0].canvas, output.shape[1])
        place = 0.0 if strides[-1] == 64 else 0.5
        return _decode(output[..., :count], output[..., count:], strides, place, letterboxes, settings)


class PicoDet(Family):
    """For each level two outputs: scores ``(N, cells, C)`` and bins ``(N, cells, 4 n)``; a cell's point is its centre.

    Source: Yu et al., "PP-PicoDet", arXiv:2111.00902, and PaddleDetection's export without post-processing.
    """

    name = "picodet"
    summary = "for each stride from 8 to 32 or 64 the outputs [N, cells, classes] and [N, cells, 4 x bins]; NMS follows"
    preprocess = Preprocess(letterbox="stretch", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

    def fits(self, signature: Signature) -> str | None:
        """Say why outputs of this shape cannot be decoded."""
        levels = _levels(signature.outputs, signature.canvas)
        classes = {scores.shape[2] for scores, _ in levels}
        bins = {sides.shape[2] for _, sides in levels}
        if levels and len(classes) == len(bins) == 1 and (bins.pop() or 1) % 4 == 0:
            return None
        return f"it has {self.summary}"

    def recognise(self, signature: Signature, metadata: Mapping[str, str]) -> str | None:
        """Say by what a model is known to be of this family."""
        return None if self.fits(signature) else "two outputs for each stride"

    def class_count(self, signature: Signature) -> int | None:
        """The channels of the scores."""
        levels = _levels(signature.outputs, signature.canvas)
        return levels[0][0].shape[2] if levels else None

    def decode(
        self, outputs: Mapping[str, Tensor], letterboxes: Sequence[Letterbox], settings: DecodeSettings
    ) -> list[Detections]:
        """Turn the outputs of one run into detections."""
        canvas = letterboxes[0].canvas
        infos = tuple(TensorInfo(name, array.dtype.name, array.shape) for name, array in outputs.items())
        levels = _levels(infos, canvas)
        scores, sides = (np.concatenate([outputs[level[i].name] for level in levels], axis=1) for i in (0, 1))
        return _decode(scores, sides, _strides(canvas, scores.shape[1]), 0.5, letterboxes, settings)


def _decode(
    scores: Tensor,
    sides: Tensor,
    strides: tuple[int, ...],
    place: float,
    letterboxes: Sequence[Letterbox],
    settings: DecodeSettings,
) -> list[Detections]:
    """Decode scores ``(N, A, C)`` and bins ``(N, A, 4 n)``; a cell's point is its corner moved by ``place`` cells."""
    found = []
    for rows, bins, letterbox in zip(scores.astype(np.float32), sides.astype(np.float32), letterboxes, strict=True):
        marks, class_ids = best_class(_probabilities(rows), 1, settings)
        keep = candidates(marks, class_ids, settings)
        corners, cells = (part[keep] for part in grid(letterbox.canvas, strides))
        logits = bins[keep].reshape(len(keep), 4, bins.shape[1] // 4)
        shares = np.exp(logits - logits.max(axis=2, keepdims=True))
        distances = (shares / shares.sum(axis=2, keepdims=True)) @ np.arange(logits.shape[2], dtype=np.float32) * cells
        points = (corners + place) * cells
        boxes = np.concatenate([points - distances[:, :2], points + distances[:, 2:]], axis=1).astype(np.float32)
        found.append(suppressed(boxes, marks[keep], class_ids[keep], letterbox, settings))
    return found


def _probabilities(scores: Floats) -> Floats:
    """Return class scores in 0..1: some exports end before the sigmoid, and then most cells have negative numbers."""
    if scores.min(initial=0) < 0:
        return (1 / (1 + np.exp(-scores))).astype(np.float32)
    return scores


def _levels(outputs: Sequence[TensorInfo], canvas: tuple[int, int]) -> list[tuple[TensorInfo, TensorInfo]]:
    """Return scores and bins of each level, finest first; empty when the outputs are no such pairs.

    Of a level's two outputs, the first in the model's order is the scores.
    """
    for strides in _STRIDES:
        pairs = [[o for o in outputs if len(o.shape) == 3 and o.shape[1] == _cells(canvas, s)] for s in strides]
        if len(outputs) == 2 * len(strides) and all(len(pair) == 2 for pair in pairs):
            return [(pair[0], pair[1]) for pair in pairs]
    return []


def _strides(canvas: tuple[int, int], cells: int | None) -> tuple[int, ...]:
    """Return the strides whose grids have so many cells in all; () for none."""
    return next((s for s in _STRIDES if cells == sum(_cells(canvas, stride) for stride in s)), ())


def _cells(canvas: tuple[int, int], stride: int) -> int:
    return -(-canvas[0] // stride) * -(-canvas[1] // stride)
