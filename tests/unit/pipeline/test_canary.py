"""A faster way of computing is taken when it finds the same boxes, and only then."""

import io
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from batchdet.errors import ImageError
from batchdet.geometry.letterbox import Letterbox
from batchdet.model.detector import Detector
from batchdet.pipeline import canary
from batchdet.pipeline.canary import Agreement, Way, compare, is_slower, match
from batchdet.records.detections import Detections

REPOSITORY = Path(__file__).parents[3]
BOXES = [[10.0 * i, 0, 10.0 * i + 8, 20] for i in range(5)]


def found(shift_px: float = 0, scores: Sequence[float] = (0.9, 0.8, 0.7, 0.6, 0.5), class_id: int = 1) -> Detections:
    boxes = np.array(BOXES[: len(scores)], np.float32).reshape(-1, 4) + np.float32(shift_px)
    return Detections(boxes, np.array(scores, np.float32), np.full(len(scores), class_id, np.int32))


class Clock:
    """Tells the seconds that others say they take."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Fixed:
    """Finds the same in every image, and takes its time."""

    def __init__(self, detections: Detections, seconds: float, clock: Clock) -> None:
        self._detections, self._seconds, self._clock = detections, seconds, clock
        self.seen: list[Any] = []

    def letterbox(self, width_px: int, height_px: int) -> Letterbox:
        return Letterbox.centred((width_px, height_px), (64, 64))

    def detect(self, canvases: Any, letterboxes: Any) -> list[Detections]:
        self.seen.append(canvases[0].copy())
        self._clock.now_s += self._seconds
        return [self._detections]


def jpeg(width: int, height: int) -> bytes:
    sink = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(sink, "JPEG")
    return sink.getvalue()


def agreement(fast: Detections, images: int = 12, fast_s: float = 0.001, exact_s: float = 0.01) -> Agreement:
    clock = Clock()
    ways = (Way(cast(Detector, Fixed(found(), exact_s, clock))), Way(cast(Detector, Fixed(fast, fast_s, clock))))
    return compare(*ways, [jpeg(64, 48)] * images, 10**6, 0.25, clock)


def test_the_same_boxes_with_nearly_the_same_scores_agree() -> None:
    result = agreement(found(0.2, (0.91, 0.79, 0.71, 0.6, 0.5)))
    assert result.objection == ""
    assert result.images == 6, "that is boxes enough"
    assert result.boxes == 60
    assert result.matched == 1
    assert result.score_difference == pytest.approx(0.006, abs=1e-6)
    assert (result.exact_ms, result.fast_ms) == pytest.approx((10, 1))
    assert result.gain == pytest.approx(10)


@pytest.mark.parametrize(
    ("fast", "words"),
    [
        (found(4), r"0\.0% of 60 boxes agree"),
        (found(class_id=2), r"0\.0% of 60 boxes agree"),
        (found(scores=(0.9, 0.8, 0.7, 0.6)), r"88\.9% of 63 boxes agree"),
        (found(scores=(0.95, 0.85, 0.75, 0.65, 0.55)), r"scores differ by 0\.050 \(wanted: 98%, at most 0\.03\)"),
        (Detections.empty(), r"0\.0% of 60 boxes agree"),
    ],
)
def test_other_boxes_or_scores_do_not(fast: Detections, words: str) -> None:
    assert re.search(words, agreement(fast).objection)


def test_reduced_decoding_is_tried_with_the_model_that_the_actors_take() -> None:
    clock = Clock()
    exact, fast = Fixed(found(), 0.01, clock), Fixed(found(), 0.001, clock)
    picture = jpeg(640, 480)
    result = compare(
        Way(cast(Detector, exact)), Way(cast(Detector, fast), True), [picture, b"no image"] * 9, 10**6, 0.25, clock
    )
    assert result.images == 6, "what cannot be decoded is passed over"
    assert (result.exact_ms, result.fast_ms) == pytest.approx((1, 1)), "decoding takes no time by this clock"
    assert "the exact way" in result.objection
    full, reduced = exact.seen[0].astype(float), fast.seen[0].astype(float)
    assert full.shape == reduced.shape == (64, 64, 3)
    assert reduced[8:56].std() < full[8:56].std() / 2, (
        "a DCT of few frequencies smooths noise, taking each tenth pixel not"
    )


def test_a_way_that_is_hardly_faster_is_not_worth_it() -> None:
    assert "the exact way" in agreement(found(), fast_s=0.01).objection


def test_a_few_runs_in_turns_say_what_is_slower() -> None:
    for other_s, expected in ((0.005, False), (0.0102, False), (0.0104, True), (0.02, True)):
        clock = Clock()
        ways = (Way(cast(Detector, Fixed(found(), other_s, clock))), Way(cast(Detector, Fixed(found(), 0.01, clock))))
        assert is_slower(*ways, jpeg(64, 48), 10**6, clock) is expected


class Busy(Clock):
    """Time on a machine on which everything takes half as long again from the third run of a model on."""

    runs = 0

    @property
    def factor(self) -> float:
        self.runs += 1
        return 1.0 if self.runs <= 3 else 1.5


class Shared(Fixed):
    """Takes as long as the machine makes it."""

    def detect(self, canvases: Any, letterboxes: Any) -> list[Detections]:
        self._clock.now_s += self._seconds * (cast(Busy, self._clock).factor - 1)
        return super().detect(canvases, letterboxes)


def test_one_run_before_the_machine_is_busy_decides_nothing() -> None:
    clock = Busy()
    plain, other = (Way(cast(Detector, Shared(found(), seconds, clock))) for seconds in (0.01, 0.008))
    assert not is_slower(other, plain, jpeg(64, 48), 10**6, clock), "its best run is slower, four of five are quicker"
    clock = Busy()
    exact, fast = (Way(cast(Detector, Shared(found(), seconds, clock))) for seconds in (0.01, 0.008))
    assert compare(exact, fast, [jpeg(64, 48)] * 9, 10**6, 0.25, clock).gain == pytest.approx(1.25)


def test_without_boxes_nobody_can_tell() -> None:
    assert agreement(found(), images=1).objection == "10 boxes on 1 of the job's images: too few to compare"
    assert agreement(found(), images=0).objection.startswith("0 boxes on 0")


def test_boxes_near_the_threshold_count_neither_way() -> None:
    assert match(found(scores=(0.9, 0.28)), found(scores=(0.9,)), 0.25) == [(True, 0.0)]
    assert match(found(scores=(0.9, 0.32)), found(scores=(0.9,)), 0.25) == [(True, 0.0), (False, pytest.approx(0.58))]
    assert match(Detections.empty(), found(), 0.25) == []


class Prepares(Fixed):
    """Takes a second for each canvas that it meets for the first time, and makes canvases like their images."""

    def letterbox(self, width_px: int, height_px: int) -> Letterbox:
        return Letterbox.centred((width_px, height_px), (width_px, height_px))

    def detect(self, canvases: Any, letterboxes: Any) -> list[Detections]:
        if not any(seen.shape == canvases[0].shape for seen in self.seen):
            self._clock.now_s += 1
        return super().detect(canvases, letterboxes)


def test_what_a_new_canvas_takes_the_first_time_does_not_count() -> None:
    clock = Clock()
    ways = [Way(cast(Detector, Prepares(found(), seconds, clock))) for seconds in (0.01, 0.002)]
    images = [jpeg(64, height) for height in (16, 24, 32, 40, 48, 56)]
    result = compare(*ways, images, 10**6, 0.25, clock)
    assert result.images == 6
    assert (result.exact_ms, result.fast_ms) == pytest.approx((10, 2))


class Disturbed(Fixed):
    """Takes a quarter longer the first four times."""

    def detect(self, canvases: Any, letterboxes: Any) -> list[Detections]:
        self._clock.now_s += self._seconds / 4 if len(self.seen) < 4 else 0
        return super().detect(canvases, letterboxes)


def test_a_gain_in_doubt_is_looked_at_again() -> None:
    clock = Clock()
    exact, fast = Fixed(found(), 0.01, clock), Disturbed(found(), 0.008, clock)
    result = compare(Way(cast(Detector, exact)), Way(cast(Detector, fast)), [jpeg(64, 48)] * 9, 10**6, 0.25, clock)
    assert (result.exact_ms, result.fast_ms) == pytest.approx((10, 8))
    assert result.objection == ""
    assert len(exact.seen) == len(fast.seen) == 1 + 3 * 6
    sure = Fixed(found(), 0.005, clock)
    compare(Way(cast(Detector, exact)), Way(cast(Detector, sure)), [jpeg(64, 48)] * 9, 10**6, 0.25, clock)
    assert len(sure.seen) == 1 + 6, "no doubt, no second look"


def test_a_slow_model_is_compared_on_the_images_that_there_is_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "_PATIENCE_S", -1)
    assert agreement(found(), fast_s=0.01).images == 1
    clock = Clock()
    exact, fast = (Fixed(found(), seconds, clock) for seconds in (0.01, 0.009))
    compare(Way(cast(Detector, exact)), Way(cast(Detector, fast)), [jpeg(64, 48)] * 9, 10**6, 0.25, clock)
    assert len(exact.seen) == 1 + 1, "a gain in doubt is not looked at again"


def test_an_image_that_hangs_ends_the_process() -> None:
    code = (
        "import time\n"
        "from batchdet.pipeline.canary import Way, compare\n"
        "Way.canvas = lambda *args: time.sleep(60)\n"
        "compare(Way(None), Way(None), [b''], 1, 0.25, time.process_time, image_timeout_s=0.5)\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=REPOSITORY, timeout=90, check=False)
    assert done.returncode == 1
    assert b"Timeout" in done.stderr
    assert time.monotonic() - started < 50


def test_an_image_that_only_one_way_decodes_counts_for_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    exact, fast = (Way(cast(Detector, Fixed(found(), 0.01, clock)), reduce) for reduce in (False, True))
    decode = Way.canvas

    def canvas(way: Way, data: Any, max_pixels: int) -> Any:
        clock.now_s += 1 if data == b"half" else 0.001
        if data == b"half" and way.reduce:
            raise ImageError("corrupt", "only at half its size")
        return decode(way, jpeg(64, 48) if data == b"half" else data, max_pixels)

    monkeypatch.setattr(Way, "canvas", canvas)
    result = compare(exact, fast, [b"half", *[jpeg(64, 48)] * 6, b"half"], 10**6, 0.25, clock)
    assert result.images == 6
    assert result.exact_ms == pytest.approx(11)
