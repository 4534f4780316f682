"""The canary: a faster, lossy way of computing is taken only if it finds the same boxes on the job's own images."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from batchdet.decode.canvas import Pixels, painted
from batchdet.geometry.boxes import iou_matrix
from batchdet.model.detector import Detector
from batchdet.records.detections import Detections

MIN_BOXES: Final = 20
"""With fewer boxes to compare nobody can tell."""
MIN_MATCHED: Final = 0.98
MIN_IOU: Final = 0.8
MAX_SCORE_DIFFERENCE: Final = 0.02
MIN_GAIN: Final = 1.2
"""A way that is hardly faster is not worth a difference."""
_MARGIN: Final = 0.05
"""Boxes nearer to the threshold may fall on either side of it."""


@dataclass(frozen=True)
class Agreement:
    """How two ways of computing compare on some images.

    Args:
        images: Images compared.
        boxes: Boxes of either way whose score is 0.05 above the threshold.
        matched: Share of them for which the other way has a box of the same class with an IoU of at least 0.8.
        score_difference: Mean difference of the scores of matched boxes.
        exact_ms: Median milliseconds an image of the exact way, decoding left out.
        fast_ms: The same of the fast way.
    """

    images: int
    boxes: int
    matched: float
    score_difference: float
    exact_ms: float
    fast_ms: float

    @property
    def objection(self) -> str:
        """Why the fast way is not to be taken, as half a sentence; "" when it may be."""
        if self.boxes < MIN_BOXES:
            return f"{self.boxes} boxes on {self.images} of the job's images are too few to compare"
        if self.matched < MIN_MATCHED or self.score_difference > MAX_SCORE_DIFFERENCE:
            return (
                f"on {self.images} of the job's images {self.matched:.1%} of the boxes agree, scores differ by "
                f"{self.score_difference:.3f} (wanted: {MIN_MATCHED:.0%}, at most {MAX_SCORE_DIFFERENCE})"
            )
        if self.exact_ms < MIN_GAIN * self.fast_ms:
            return f"it takes {self.fast_ms:.1f} ms an image here, the exact way {self.exact_ms:.1f} ms"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``lineage.json``."""
        return asdict(self)


def compare(exact: Detector, fast: Detector, images: Iterable[Pixels], score_threshold: float) -> Agreement:
    """Label images both ways, in turns, until there are boxes enough.

    Args:
        exact: The exact way.
        fast: The same model, the fast way; it has the same canvases.
        images: ``(H, W, 3)`` uint8 RGB, upright.
        score_threshold: Of both.
    """
    times: tuple[list[float], list[float]] = ([], [])
    matches: list[tuple[bool, float]] = []
    for rgb in images:
        letterbox = exact.letterbox(rgb.shape[1], rgb.shape[0])
        canvas = painted(rgb, letterbox)[None]
        found = []
        for detector, taken in zip((exact, fast), times, strict=True):
            if not taken:
                detector.detect(canvas, [letterbox])  # the first run of all prepares things
            started = time.perf_counter()
            found += detector.detect(canvas, [letterbox])
            taken.append(time.perf_counter() - started)
        matches += match(found[0], found[1], score_threshold) + match(found[1], found[0], score_threshold)
        if len(matches) >= 3 * MIN_BOXES:
            break
    differences = [difference for is_matched, difference in matches if is_matched]
    return Agreement(
        images=len(times[0]),
        boxes=len(matches),
        matched=float(np.mean([is_matched for is_matched, _ in matches])) if matches else 0.0,
        score_difference=float(np.mean(differences)) if differences else 0.0,
        exact_ms=float(np.median(times[0])) * 1e3 if times[0] else 0.0,
        fast_ms=float(np.median(times[1])) * 1e3 if times[1] else 0.0,
    )


def match(one: Detections, other: Detections, score_threshold: float) -> list[tuple[bool, float]]:
    """Look for each clear box of one among those of the other.

    Returns:
        Per box of ``one`` that is clear of the threshold: whether the other has it, and how much its score differs.
    """
    clear = np.flatnonzero(one.scores >= score_threshold + _MARGIN)
    if not len(other):
        return [(False, 0.0)] * len(clear)
    overlaps = iou_matrix(one.boxes_xyxy[clear], other.boxes_xyxy)
    overlaps[one.class_ids[clear][:, None] != other.class_ids[None, :]] = 0
    best: Sequence[int] = overlaps.argmax(axis=1)
    return [
        (bool(overlaps[row, column] >= MIN_IOU), float(abs(one.scores[box] - other.scores[column])))
        for row, (box, column) in enumerate(zip(clear, best, strict=True))
    ]
