"""Batches overlap with the preparation of the next one, and are cut when the model or the device fails on them."""

import threading
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from batchdet.errors import ClusterError, OutOfDeviceMemory
from batchdet.geometry.letterbox import Letterbox
from batchdet.model.detector import Detector
from batchdet.pipeline.labeller import SegmentLabeller
from batchdet.records.detections import Detections

from .test_labeller import BrightSpot, png, segment

_PATIENCE_S = 20


def labeller(detector: BrightSpot, batch_rows: int, threads: int, **options: Any) -> SegmentLabeller:
    return SegmentLabeller(cast(Detector, detector), "run", batch_rows, 10**6, threads, **options)


class Waits(BrightSpot):
    """Does not end its first batch before the images of the next one are placed."""

    def __init__(self) -> None:
        super().__init__()
        self.placed = 0
        self.next_prepared = threading.Event()
        self.in_time: list[bool] = []

    def letterbox(self, width_px: int, height_px: int) -> Letterbox:
        self.placed += 1
        if self.placed == 4:
            self.next_prepared.set()
        return super().letterbox(width_px, height_px)

    def detect(self, canvases: Any, letterboxes: Sequence[Letterbox]) -> list[Detections]:
        self.in_time.append(self.next_prepared.wait(_PATIENCE_S))
        return super().detect(canvases, letterboxes)


def test_a_batch_is_computed_while_the_next_is_prepared() -> None:
    detector = Waits()
    labelled = labeller(detector, 2, 2).label(segment([png(50)] * 6))
    assert detector.in_time == [True] * 3
    assert labelled.images["detection_count"].to_pylist() == [2] * 6


class CountsFlights(BrightSpot):
    """Counts how many batches are asked for before one is done."""

    def __init__(self) -> None:
        super().__init__()
        self.placed, self.most_ahead = 0, 0

    def letterbox(self, width_px: int, height_px: int) -> Letterbox:
        self.placed += 1
        self.most_ahead = max(self.most_ahead, self.placed - sum(shape[0] for shape in self.batches))
        return super().letterbox(width_px, height_px)


def test_at_most_two_batches_are_on_the_way() -> None:
    detector = CountsFlights()
    labeller(detector, 2, 3).label(segment([png(50)] * 30))
    assert detector.most_ahead <= 3 * 2, "two on the way, one in preparation"


@pytest.mark.parametrize("threads", [1, 4])
def test_which_images_share_a_batch_does_not_hang_on_who_is_quicker(threads: int) -> None:
    data = [png(40 + i, (40, 30) if i % 3 else (30, 40)) for i in range(20)]
    alone, many = BrightSpot(), BrightSpot()
    wanted = labeller(alone, 4, 1).label(segment(data))
    found = labeller(many, 4, threads).label(segment(data))
    assert many.batches == alone.batches
    assert found.images.equals(wanted.images)
    assert found.detections.equals(wanted.detections)


class SmallDevice(BrightSpot):
    """Holds no more than some images at once."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def detect(self, canvases: Any, letterboxes: Sequence[Letterbox]) -> list[Detections]:
        if len(letterboxes) > self.room:
            self.batches.append(canvases.shape)
            raise OutOfDeviceMemory("Failed to allocate memory for requested buffer of size 939524096")
        return super().detect(canvases, letterboxes)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_device_without_memory_gets_smaller_batches_from_then_on(
    threads: int, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = SmallDevice(3)
    ours = labeller(detector, 8, threads)
    labelled = ours.label(segment([png(50)] * 16 + [png(0)]))
    assert labelled.images["error_code"].to_pylist() == [None] * 16 + ["inference"], "no image fails because of it"
    assert labelled.images["detection_count"].to_pylist() == [2] * 16 + [0]
    assert "do not fit the device; 2 from here on" in capsys.readouterr().err
    detector.batches.clear()
    ours.label(segment([png(50)] * 6))
    assert [shape[0] for shape in detector.batches] == [2, 2, 2]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_device_that_holds_not_even_one_image_is_lost(threads: int) -> None:
    with pytest.raises(ClusterError, match="the model has stopped working on this worker: OutOfDeviceMemory"):
        labeller(SmallDevice(0), 4, threads).label(segment([png(50)] * 9))


@pytest.mark.parametrize("threads", [1, 3])
def test_memory_of_batches_is_used_again(threads: int) -> None:
    asked: list[int] = []

    def allocate(size_bytes: int) -> Any:
        asked.append(size_bytes)
        return np.empty(size_bytes, np.uint8)

    detector = BrightSpot()
    ours = labeller(detector, 2, threads, allocate=allocate)
    for value in (50, 60, 70):
        labelled = ours.label(segment([png(value + i, (40, 30) if i % 2 else (30, 40)) for i in range(12)]))
        assert labelled.detections["class_id"].to_pylist()[::2] == [value + i for i in range(12)]
    assert len(asked) <= (5 if threads > 1 else 3), "a batch each shape, and those on the way"


@pytest.mark.parametrize("threads", [1, 3])
def test_a_segment_that_is_given_up_leaves_nothing_behind(threads: int) -> None:
    detector = BrightSpot()
    steps: list[int] = []

    def step(images: int) -> None:
        steps.append(images)
        if len(steps) == 9:
            raise KeyError("given up")

    ours = labeller(detector, 2, threads, step=step)
    with pytest.raises(KeyError):
        ours.label(segment([png(50)] * 12))
    labelled = ours.label(segment([png(60)] * 3))
    assert labelled.detections["class_id"].to_pylist() == [60, 1] * 3
    assert labelled.images["detection_count"].to_pylist() == [2] * 3
