"""The canary: a faster, lossy way of computing is taken only if it finds the same boxes on the job's own images."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from batchdet.decode.canvas import Pixels, decoded_onto_canvas
from batchdet.errors import ImageError
from batchdet.failpoint import failpoint
from batchdet.geometry.boxes import iou_matrix
from batchdet.geometry.letterbox import Letterbox
from batchdet.model.detector import Detector
from batchdet.model.runtimes import Device
from batchdet.pipeline.watchdog import ended_after
from batchdet.records.detections import Detections
from batchdet.text import counted

Clock = Callable[[], float]
MIN_BOXES: Final = 20
"""With fewer boxes to compare nobody can tell."""
MIN_MATCHED: Final = 0.98
MIN_IOU: Final = 0.8
MAX_SCORE_DIFFERENCE: Final = 0.03
"""To move a large photograph by one pixel makes 0.025 (yolo26n)."""
MIN_GAIN: Final = 1.05
"""A way that is hardly faster is not worth a difference."""
_SLOWER: Final = 1.03
"""By less one way is not told from another: so much timing itself is off."""
_RUNS: Final = 5
_IN_DOUBT: Final = (0.8, 1.3)
"""Gains that one look at each image does not tell from none: beside a Ray that starts, times are off by half."""
_MORE_LOOKS: Final = 2
IMAGE_TIMEOUT_S: Final[dict[Device, float]] = {"cpu": 20, "gpu": 90}
"""A process that hangs in an image is ended so soon, by itself; a graph may be compiled for it first."""
_PATIENCE_S: Final = 10.0
"""A slow model is compared on the images that this allows; one that has not been looked at holds up nobody."""
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
        failpoint("probe.image", data)
        return decoded_onto_canvas(data, max_pixels, self.detector.letterbox, self.reduce)


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
        gain: How many times as fast the fast way is: the median of what each image says. It may differ from the ratio
            of the two medians, as both are timed while other things run.
    """

    images: int
    boxes: int
    matched: float
    score_difference: float
    exact_ms: float
    fast_ms: float
    gain: float

    @property
    def objection(self) -> str:
        """Why the fast way is not to be taken, as half a sentence; "" when it may be."""
        if self.boxes < MIN_BOXES:
            return f"{counted(self.boxes, 'box')} on {self.images} of the job's images: too few to compare"
        if self.matched < MIN_MATCHED or self.score_difference > MAX_SCORE_DIFFERENCE:
            return f"{self.words} (wanted: {MIN_MATCHED:.0%}, at most {MAX_SCORE_DIFFERENCE})"
        if self.gain < MIN_GAIN:
            times = f"{self.fast_ms:.1f} ms an image, the exact way {self.exact_ms:.1f} ms"
            return f"it is {self.gain:.2f} times as fast here ({times}; wanted: {MIN_GAIN})"
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
    exact: Way,
    fast: Way,
    images: Iterable[Any],
    max_pixels: int,
    score_threshold: float,
    clock: Clock,
    rows: int = 1,
    image_timeout_s: float = IMAGE_TIMEOUT_S["cpu"],
) -> Agreement:
    """Label images both ways, in turns, until there are boxes enough.

    The gain is that of the last step towards the fast way: of reduced decoding, where it has that, with the fast way's
    model in both; else of its model. Where that is in doubt, all images are timed twice more. After ten seconds no
    image is begun.

    Args:
        exact: The exact way.
        fast: The same model, the fast way; it may give an image another canvas.
        images: Encoded; those that cannot be decoded are passed over.
        max_pixels: Larger ones are passed over, too.
        score_threshold: Of both.
        clock: Tells seconds.
        rows: The model is given each image so many times at once, as it will be given so many images.
        image_timeout_s: This process ends when an image takes longer, both ways together.
    """
    looks = _Look(exact, max_pixels, clock, rows), _Look(fast, max_pixels, clock, rows)
    matches: list[tuple[bool, float]] = []
    used: list[Any] = []
    end = time.perf_counter() + _PATIENCE_S
    for data in images:
        try:
            one, other = _look_in_turns(looks, data, image_timeout_s)
        except ImageError:
            continue
        used.append(data)
        matches += match(one, other, score_threshold) + match(other, one, score_threshold)
        if len(matches) >= 3 * MIN_BOXES or time.perf_counter() > end:
            break
    differences = [difference for is_matched, difference in matches if is_matched]

    def result() -> Agreement:
        before, after = looks
        model_s = after.model_s if fast.reduce else before.model_s
        exact_s, fast_s = np.add(before.decode_s, model_s), np.add(after.decode_s, after.model_s)
        return Agreement(
            images=len(used),
            boxes=len(matches),
            matched=float(np.mean([is_matched for is_matched, _ in matches])) if matches else 0.0,
            score_difference=float(np.mean(differences)) if differences else 0.0,
            exact_ms=_median(exact_s) * 1e3,
            fast_ms=_median(fast_s) * 1e3,
            gain=_median(exact_s / np.maximum(fast_s, 1e-9)),
        )

    if _IN_DOUBT[0] < result().gain < _IN_DOUBT[1]:
        for data in used * _MORE_LOOKS:
            if time.perf_counter() > end:
                break
            _look_in_turns(looks, data, image_timeout_s)
    return result()


class _Look:
    """One way, and the seconds that each image has taken with it, in the order of looking.

    Args:
        way: The way.
        max_pixels: Larger images are errors.
        clock: Tells seconds.
        rows: The model is given each image so many times at once.
    """

    def __init__(self, way: Way, max_pixels: int, clock: Clock, rows: int = 1) -> None:
        self.decode_s: list[float] = []
        self.model_s: list[float] = []
        self._way, self._max_pixels, self._clock, self._rows = way, max_pixels, clock, rows
        self._warm: set[tuple[int, int]] = set()

    def canvas(self, data: Any) -> tuple[Pixels, Letterbox, float]:
        """Decode an image and place it on its canvas; say how many seconds that took."""
        started = self._clock()
        canvas, letterbox = self._way.canvas(data, self._max_pixels)
        return canvas, letterbox, self._clock() - started

    def warm(self, canvas: Pixels, letterbox: Letterbox) -> None:
        """Run the model on a canvas of a size that it has not met; the first run prepares things."""
        if letterbox.canvas not in self._warm:
            self._warm.add(letterbox.canvas)
            self._detect(canvas, letterbox)

    def detect(self, canvas: Pixels, letterbox: Letterbox, decode_s: float) -> Detections:
        """Find what is on a canvas, and note what this and decoding it took."""
        started = self._clock()
        found = self._detect(canvas, letterbox)
        self.model_s.append((self._clock() - started) / self._rows)
        self.decode_s.append(decode_s)
        return found

    def _detect(self, canvas: Pixels, letterbox: Letterbox) -> Detections:
        batch = np.repeat(canvas[None], self._rows, axis=0)
        (found, *_) = self._way.detector.detect(batch, [letterbox] * self._rows)
        return found


def _look_in_turns(looks: Sequence[_Look], data: Any, timeout_s: float) -> list[Detections]:
    """Label an image each way, one right after the other: on a machine with others on it both meet the same hour.

    Raises:
        ImageError: It cannot be decoded one of the ways; nothing is noted then.
    """
    with ended_after(timeout_s):
        return _detect_in_turns(looks, [look.canvas(data) for look in looks])


def _detect_in_turns(looks: Sequence[_Look], canvases: Sequence[tuple[Pixels, Letterbox, float]]) -> list[Detections]:
    for look, (canvas, letterbox, _) in zip(looks, canvases, strict=True):
        look.warm(canvas, letterbox)
    return [look.detect(*canvas) for look, canvas in zip(looks, canvases, strict=True)]


def is_slower(other: Way, plain: Way, image: Any, max_pixels: int, clock: Clock) -> bool:
    """Tell whether the model clearly takes more time one way than the other, for one image, by a few runs in turns.

    For models on CPUs; this process ends when a run hangs.

    Args:
        other: One way.
        plain: The other one, with the same canvases.
        image: Encoded.
        max_pixels: It has no more.
        clock: Tells seconds.

    Raises:
        ImageError: The image cannot be decoded.
    """
    looks = _Look(plain, max_pixels, clock), _Look(other, max_pixels, clock)
    with ended_after(IMAGE_TIMEOUT_S["cpu"]):
        canvas = looks[0].canvas(image)
    for _ in range(_RUNS):
        with ended_after(IMAGE_TIMEOUT_S["cpu"]):
            _detect_in_turns(looks, [canvas, canvas])
    return _median(np.divide(looks[1].model_s, looks[0].model_s)) > _SLOWER


def _median(values: npt.NDArray[np.float64]) -> float:
    return float(np.median(values)) if len(values) else 0.0


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
