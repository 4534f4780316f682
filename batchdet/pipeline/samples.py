"""Samples: some images of the job, and what one worker that has the machine to itself takes for them."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, Final

import numpy as np
import pyarrow as pa

from batchdet.decode.header import read_header
from batchdet.errors import BatchdetError, ImageError
from batchdet.model.detector import Detector
from batchdet.model.families import SenselessOutput
from batchdet.model.runtimes import Device
from batchdet.pipeline.canary import Clock, Way
from batchdet.pipeline.resources import gpu_batch_rows
from batchdet.pipeline.sense import Sense
from batchdet.records.schema import MEMBERS
from batchdet.records.segment import Segment
from batchdet.roofline import Alone, Spread
from batchdet.source.reader import read_segments
from batchdet.source.shards import ShardPlan
from batchdet.spec import ComputeSpec, JobSpec

_SHARDS: Final = 5
_IMAGES: Final = 8
"""Of each shard whose images are counted."""
_IMAGES_TO_COUNT: Final = 64
"""Of each other one: from their size follows how many there are."""
_BYTES: Final = 16 * 1024 * 1024
"""Of each shard, at most."""
_READ_TIMEOUT_S: Final = 5.0
_BUDGET_S: Final = 0.4
"""Of steps whose time is taken."""
_PATIENCE_S: Final = 1.0
"""Of all, with what only warms up."""
_FEW: Final = 3
"""So many images are measured even when the model is slow, with the patience doubled."""
_TAR_BLOCK: Final = 512


@dataclass(frozen=True)
class Sample:
    """One encoded image of the job.

    Args:
        shard_index: Where it comes from.
        data: The image, still encoded.
        stored_bytes: What it takes in the source, with what a tar puts around it and its sidecars.
        carried_bytes: What the columns carried over hold for it, as text.
        uri: What it is called.
    """

    shard_index: int
    data: Any
    stored_bytes: float
    carried_bytes: int
    uri: str = ""


@dataclass(frozen=True)
class Samples:
    """Where to take images of the job from.

    Args:
        shards: Shards to take them from.
        carried: Columns carried over.
    """

    shards: ShardPlan
    carried: pa.Schema

    @staticmethod
    def of(shards: ShardPlan, carried: pa.Schema) -> "Samples":
        """Choose a few shards, evenly over all of them."""
        chosen = {i * (len(shards) - 1) // (_SHARDS - 1) for i in range(_SHARDS)} if len(shards) else set()
        return Samples(shards.subset(sorted(chosen)), carried)

    def read(self, spec: JobSpec) -> "ReadSamples":
        """Read some images of each shard.

        Nothing may be held up by it: what is not there after five seconds is done without.

        Returns:
            The images, those of all shards by turns; when there are none, why.
        """
        groups: list[list[Sample]] = []
        failed: list[str] = []

        def read_all() -> None:
            try:
                groups.extend(self._read_shard(spec, i) for i in range(len(self.shards)))
            except BatchdetError as error:
                failed.append(error.message)

        started = time.perf_counter()
        reader = threading.Thread(target=read_all, name="samples", daemon=True)  # reading cannot be broken off
        reader.start()
        reader.join(_READ_TIMEOUT_S)
        read_s = time.perf_counter() - started
        images = [sample for turn in zip_longest(*groups) for sample in turn if sample is not None]
        late = f"no image of the job could be read within {_READ_TIMEOUT_S:g} s"
        why_none = "" if images else failed[0] if failed else late if reader.is_alive() else "no image can be read"
        return ReadSamples(tuple(images), read_s, why_none)

    def _read_shard(self, spec: JobSpec, index: int) -> list[Sample]:
        shard = self.shards[index]
        rows = _IMAGES_TO_COUNT if shard.image_count < 0 else _IMAGES
        segment = next(read_segments(shard, spec.source, self.carried, rows, _BYTES))
        whole = (
            sum(obj.size_bytes for obj in shard.objects) / len(segment.data) if segment.last and segment.data else 0.0
        )
        samples = []
        for row, data in enumerate(segment.data):
            if data is not None:
                carried = _carried_bytes(segment, row)
                in_tar = sum(_TAR_BLOCK - n // -_TAR_BLOCK * _TAR_BLOCK for n in (len(data), *carried))
                stored = whole or (in_tar if shard.format == "webdataset" else len(data))
                samples.append(Sample(index, data, stored, sum(carried), segment.members["uri"][row].as_py()))
        return samples


@dataclass(frozen=True)
class ReadSamples:
    """Images of the job that were read.

    Args:
        images: In the order in which to use them.
        read_s: How long reading took.
        why_none: Why there are none; "" when there are.
    """

    images: Sequence[Sample] = ()
    read_s: float = 0.0
    why_none: str = ""

    @cached_property
    def _sized(self) -> list[tuple[Sample, tuple[int, int]]]:
        sized = []
        for sample in self.images:
            with contextlib.suppress(ImageError):
                sized.append((sample, read_header(memoryview(sample.data)).upright))
        return sized

    def sizes(self) -> Iterator[tuple[int, int]]:
        """Yield ``(width_px, height_px)`` of each that has a header, upright."""
        return (size for _, size in self._sized)

    def on_canvas(self, detector: Detector, canvases: Collection[str]) -> Any:
        """Return the first image that a detector puts on one of these canvases, ``WIDTHxHEIGHT``; None without any."""
        for sample, size in self._sized:
            width, height = detector.letterbox(*size).canvas
            if f"{width}x{height}" in canvases:
                return sample.data
        return None

    def by_turns(self, one: Detector, other: Detector) -> list[Any]:
        """Return images in the order in which to compare two ways: first, by turns, what moves and what does not.

        Else those few that tell would often be none that the other way puts on another canvas.
        """
        moved: list[Any] = []
        kept: list[Any] = []
        for sample, size in self._sized:
            where = kept if one.letterbox(*size).canvas == other.letterbox(*size).canvas else moved
            where.append(sample.data)
        return [data for turn in zip_longest(moved, kept) for data in turn if data is not None]

    def canvases(self, detector: Detector) -> Counter[tuple[int, int]]:
        """Count the canvases ``(width_px, height_px)`` that a detector takes for them, by what their headers say."""
        return Counter(detector.letterbox(*size).canvas for size in self.sizes())


def _carried_bytes(segment: Segment, row: int) -> list[int]:
    """Measure what columns carried over hold for an image; the sidecars in a tar."""
    values = (segment.members[i][row].as_py() for i in range(len(MEMBERS), segment.members.num_columns))
    return [len(str(value)) for value in values if value is not None]


def clock_of(device: Device) -> Clock:
    """Return a clock for what one worker does.

    On a CPU it tells what the process has computed: a Ray that starts at the same time takes turns on the cores, which
    is not the images' business.
    """
    return time.process_time if device == "cpu" else time.perf_counter


def rows_of(device: Device, compute: ComputeSpec) -> int:
    """Say how many images at once show what one takes: larger batches bring nothing on CPUs, and are all on GPUs."""
    return 1 if device == "cpu" else gpu_batch_rows(compute)


def measure(way: Way, device: Device, spec: JobSpec, samples: ReadSamples) -> Alone | None:
    """Take the time of some images, warm, in this process.

    On a GPU a batch is filled with the same image, see :func:`rows_of`.

    Args:
        way: As the actors will label.
        device: Where the model runs.
        spec: The job.
        samples: At least one image.

    Returns:
        The figures; None when no image can be decoded.

    Raises:
        SenselessOutput: What the model gives cannot be true, see :class:`batchdet.pipeline.sense.Sense`.
    """
    import cv2

    cv2.setNumThreads(1)  # as in the actors
    clock, detector = clock_of(device), way.detector
    batch_rows = rows_of(device, spec.compute)
    began, warm, sense = time.perf_counter(), set[tuple[int, int]](), Sense()
    decode_ms, model_ms, work_ms, detections = (_Groups() for _ in range(4))
    for sample in samples.images:
        try:
            if not warm:
                way.canvas(sample.data, spec.source.max_pixels)  # imports its codec
            started = clock()
            canvas, letterbox = way.canvas(sample.data, spec.source.max_pixels)
            decoded = clock()
        except ImageError:
            continue
        canvases, letterboxes = np.repeat(canvas[None], batch_rows, axis=0), [letterbox] * batch_rows
        try:
            if letterbox.canvas not in warm:
                detector.detect(canvases, letterboxes)
                warm.add(letterbox.canvas)
            shown = clock()
            found = detector.detect(canvases, letterboxes)
            ended = clock()
        except SenselessOutput as error:
            sense.take(error.about(f"{spec.model.uri}: for the image {sample.uri}"))
            if time.perf_counter() - began > 2 * _PATIENCE_S:
                break
            continue
        sense.take(found[0])
        decode_ms.add(sample, (decoded - started) * 1e3)
        model_ms.add(sample, (ended - shown) / batch_rows * 1e3)
        work_ms.add(sample, (decoded - started) * 1e3 + (ended - shown) / batch_rows * 1e3)
        detections.add(sample, len(found[0]))
        spent_s = time.perf_counter() - began
        enough = work_ms.count >= _FEW and (work_ms.total >= _BUDGET_S * 1e3 or spent_s > _PATIENCE_S)
        if enough or spent_s > 2 * _PATIENCE_S:
            break
    sense.check()
    if not work_ms.count:
        return None
    stored_bytes = _Groups()
    for sample in samples.images:
        stored_bytes.add(sample, sample.stored_bytes)
    return Alone(
        device=device,
        batch_rows=batch_rows,
        images=work_ms.count,
        shards=len(work_ms.by_shard),
        read_ms=samples.read_s / len(samples.images) * 1e3,
        decode_ms=decode_ms.spread,
        model_ms=model_ms.spread,
        work_ms=work_ms.spread,
        stored_bytes=stored_bytes.spread,
        sampled_bytes=sum(sample.stored_bytes for sample in samples.images),
        carried_bytes=sum(sample.carried_bytes for sample in samples.images) / len(samples.images),
        detections=detections.spread,
        image_vector_bytes=_vector_bytes(detector, "image"),
        detection_vector_bytes=_vector_bytes(detector, "boxes"),
    )


def _vector_bytes(detector: Detector, kind: str) -> int:
    features = detector.features
    return features["size"] * np.dtype(features["type"]).itemsize if features.get("kind") == kind else 0


class _Groups:
    """Numbers by shard."""

    def __init__(self) -> None:
        self.by_shard: dict[int, list[float]] = {}

    def add(self, sample: Sample, value: float) -> None:
        self.by_shard.setdefault(sample.shard_index, []).append(value)

    @property
    def count(self) -> int:
        return sum(map(len, self.by_shard.values()))

    @property
    def total(self) -> float:
        return sum(map(sum, self.by_shard.values()))

    @property
    def spread(self) -> Spread:
        return Spread.of(list(self.by_shard.values()))
