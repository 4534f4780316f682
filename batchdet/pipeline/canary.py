"""The canary: a faster, lossy way of computing is taken only if it finds the same boxes on the job's own images."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from batchdet.decode.canvas import Pixels, painted
from batchdet.decode.image import decode_reduced
from batchdet.errors import ImageError
from batchdet.geometry.boxes import iou_matrix
from batchdet.geometry.letterbox import Letterbox
from batchdet.model.detector import Detector
from batchdet.records.detections import Detections

Clock = Callable[[], float]
MIN_BOXES: Final = 20
"""With fewer boxes to compare nobody can tell."""
MIN_MATCHED: Final = 0.98
MIN_IOU: Final = 0.8
MAX_SCORE_DIFFERENCE: Final = 0.03
"""To move a large photograph by one pixel makes 0.025 (yolo26n)."""
MIN_GAIN: Final = 1.1
"""A way that is hardly faster is not worth a difference."""
_MIN_LEAD: Final = 1.03
"""Of two ways the second is tried first, if it is the quicker one by more than what timing itself is off."""
_RUNS: Final = 4
_MARGIN: Final = 0.05
"""Boxes nearer to the threshold may fall on either side of it."""


@dataclass(frozen=True)
class Way:
    """How images are labelled.

    Args:
        detector: The model, loaded.
        reduce: JPEGs are decoded no larger than their place on the canvas takes.
    """

    detector: Detector
    reduce: bool = False

    def canvas(self, data: Any, max_pixels: int) -> tuple[Pixels, Letterbox]:
        """Decode an image and place it on its canvas.

        Args:
            data: The encoded image.
            max_pixels: Larger ones are errors.

        Returns:
            ``(H, W, 3)`` uint8, and how the image came onto it.

        Raises:
            ImageError: It cannot be decoded.
        """
        place = self.detector.letterbox
        rgb, size = decode_reduced(data, max_pixels, lambda size: place(*size).reduction if self.reduce else 1)
        letterbox = place(*size)
        return painted(rgb, letterbox), letterbox


@dataclass(frozen=True)
class Agreement:
    """How two ways of computing compare on some images.

    Args:
        images: Images compared.
        boxes: Boxes of either way whose score is 0.05 above the threshold.
        matched: Share of them for which the other way has a box of the same class with an IoU of at least 0.8.
        score_difference: Mean difference of the scores of matched boxes.
        exact_ms: Median milliseconds an image without the step that is tried, decoding included.
        fast_ms: The same with it.
    """

    images: int
    boxes: int
    matched: float
    score_difference: float
    exact_ms: float
    fast_ms: float

    @property
    def gain(self) -> float:
        """How many times as fast the fast way is."""
        return self.exact_ms / self.fast_ms if self.fast_ms else 0.0

    @property
    def objection(self) -> str:
        """Why the fast way is not to be taken, as half a sentence; "" when it may be."""
        if self.boxes < MIN_BOXES:
            return f"{self.boxes} boxes on {self.images} of the job's images are too few to compare"
        if self.matched < MIN_MATCHED or self.score_difference > MAX_SCORE_DIFFERENCE:
            return f"{self.words} (wanted: {MIN_MATCHED:.0%}, at most {MAX_SCORE_DIFFERENCE})"
        if self.gain < MIN_GAIN:
            return f"it takes {self.fast_ms:.1f} ms an image here, the exact way {self.exact_ms:.1f} ms"
        return ""

    @property
    def words(self) -> str:
        """How well they agree."""
        return (
            f"on {self.images} of the job's images {self.matched:.1%} of {self.boxes} boxes agree, and scores differ "
            f"by {self.score_difference:.3f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``lineage.json``."""
        return asdict(self)


def compare(
    exact: Way, fast: Way, images: Iterable[Any], max_pixels: int, score_threshold: float, clock: Clock, rows: int = 1
) -> Agreement:
    """Label images both ways, in turns, until there are boxes enough.

    The gain is that of the last step towards the fast way: of reduced decoding, where it has that, with the fast way's
    model in both; else of its model.

    Args:
        exact: The exact way.
        fast: The same model, the fast way; it has the same canvases.
        images: Encoded; those that cannot be decoded are passed over.
        max_pixels: Larger ones are passed over, too.
        score_threshold: Of both.
        clock: Tells seconds.
        rows: The model is given each image so many times at once, as it will be given so many images.
    """
    decode_s: tuple[list[float], list[float]] = ([], [])
    model_s: tuple[list[float], list[float]] = ([], [])
    matches: list[tuple[bool, float]] = []
    warm: set[tuple[int, int]] = set()
    for data in images:
        found: list[Detections] = []
        try:
            canvases = []
            for way, taken in zip((exact, fast), decode_s, strict=True):
                started = clock()
                canvases.append(way.canvas(data, max_pixels))
                taken.append(clock() - started)
        except ImageError:
            continue
        for way, taken, (canvas, letterbox) in zip((exact, fast), model_s, canvases, strict=True):
            batch, letterboxes = np.repeat(canvas[None], rows, axis=0), [letterbox] * rows
            if letterbox.canvas not in warm:
                way.detector.detect(batch, letterboxes)  # the first run on a canvas prepares things
            started = clock()
            found.append(way.detector.detect(batch, letterboxes)[0])
            taken.append((clock() - started) / rows)
        warm.add(canvases[0][1].canvas)
        matches += match(found[0], found[1], score_threshold) + match(found[1], found[0], score_threshold)
        if len(matches) >= 3 * MIN_BOXES:
            break
    differences = [difference for is_matched, difference in matches if is_matched]
    before = model_s[1] if fast.reduce else model_s[0]
    return Agreement(
        images=len(model_s[0]),
        boxes=len(matches),
        matched=float(np.mean([is_matched for is_matched, _ in matches])) if matches else 0.0,
        score_difference=float(np.mean(differences)) if differences else 0.0,
        exact_ms=_median_ms(decode_s[0]) + _median_ms(before),
        fast_ms=_median_ms(decode_s[1]) + _median_ms(model_s[1]),
    )


def is_quicker(plain: Way, other: Way, image: Any, max_pixels: int, clock: Clock) -> bool:
    """Tell whether the model takes less time the other way, for one image, by the best of a few runs each.

    Args:
        plain: One way.
        other: The other one, with the same canvases.
        image: Encoded.
        max_pixels: It has no more.
        clock: Tells seconds.

    Raises:
        ImageError: The image cannot be decoded.
    """
    canvas, letterbox = plain.canvas(image, max_pixels)
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(1 + _RUNS):
        for way, seconds in zip((plain, other), taken, strict=True):
            started = clock()
            way.detector.detect(canvas[None], [letterbox])
            seconds.append(clock() - started)
    best = [min(seconds[1:]) for seconds in taken]
    return best[0] >= _MIN_LEAD * best[1]


def _median_ms(seconds: Sequence[float]) -> float:
    return float(np.median(seconds)) * 1e3 if seconds else 0.0


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
