"""Batches: canvases of one shape that go through the detector together, and what happens when they do not."""

import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from batchdet.decode.canvas import Pixels
from batchdet.errors import ClusterError, ImageError, OutOfDeviceMemory
from batchdet.failpoint import failpoint
from batchdet.geometry.letterbox import Letterbox
from batchdet.model.detector import Detector
from batchdet.model.families import SenselessOutput
from batchdet.pipeline.pictures import Inline
from batchdet.records.detections import Detections

Outcome = tuple[int, Detections | ImageError | SenselessOutput]
"""Place of an image in its segment, and what became of it."""
Allocate = Callable[[int], npt.NDArray[np.uint8]]


def plain_buffer(size_bytes: int) -> npt.NDArray[np.uint8]:
    """Allocate flat memory."""
    return np.empty(size_bytes, np.uint8)


@dataclass(eq=False)
class Batch:
    """Images whose canvases have one shape.

    Args:
        canvases: ``(rows, H, W, 3)`` uint8, filled from the first on.
        indices: Places of the images in their segment.
        letterboxes: One per image.
        painted: When each canvas is filled.
    """

    canvases: Pixels
    indices: list[int] = field(default_factory=list)
    letterboxes: list[Letterbox] = field(default_factory=list)
    painted: list[Future[Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.indices)

    def add(self, index: int, letterbox: Letterbox, put: Callable[[Letterbox, Pixels], None], pool: Executor) -> None:
        """Have an image painted onto the next canvas."""
        self.painted.append(pool.submit(put, letterbox, self.canvases[len(self)]))
        self.indices.append(index)
        self.letterboxes.append(letterbox)

    def parts(self, rows: int) -> "list[Batch]":
        """Cut into batches of at most so many images, without copying."""
        if len(self) <= rows:
            return [self]
        cuts = [slice(start, start + rows) for start in range(0, len(self), rows)]
        return [Batch(self.canvases[c], self.indices[c], self.letterboxes[c], self.painted[c]) for c in cuts]


class BatchRunner:
    """Gives batches to a detector; with a thread of its own, one is computed while the next is prepared.

    Args:
        detector: The model, loaded.
        rows: Images of a batch. Halved for good when the device's memory does not hold so many.
        overlap: Compute in a thread, with at most two batches on the way; otherwise in the caller's.
        step: Called with a number of images before they are waited for.
        allocate: Makes the memory of a batch.
    """

    def __init__(
        self, detector: Detector, rows: int, overlap: bool, step: Callable[[int], None], allocate: Allocate
    ) -> None:
        self.rows = rows
        self._detector = detector
        self._pool = ThreadPoolExecutor(1, "infer") if overlap else Inline()
        self._on_the_way = 1 if overlap else 0
        self._step = step
        self._allocate = allocate
        self._flying: deque[tuple[Batch, Future[list[Detections]]]] = deque()
        self._free: list[npt.NDArray[np.uint8]] = []
        self._taken: dict[int, npt.NDArray[np.uint8]] = {}

    def new(self, canvas: tuple[int, int]) -> Batch:
        """Return an empty batch of canvases ``(width_px, height_px)``; its memory comes back when it has been run."""
        width, height = canvas
        size = self.rows * height * width * 3
        large_enough = (i for i, flat in enumerate(self._free) if flat.size >= size)
        place = next(large_enough, None)
        # squares, so that the next batch of this actor finds its place in it, whatever shape it has
        flat = self._allocate(self.rows * max(canvas) ** 2 * 3) if place is None else self._free.pop(place)
        batch = Batch(flat[:size].reshape(self.rows, height, width, 3))
        self._taken[id(batch)] = flat
        return batch

    def run(self, batch: Batch) -> Iterator[Outcome]:
        """Start a batch, and yield what became of images of the same or an earlier one."""
        self._start(batch)
        while len(self._flying) > self._on_the_way:
            yield from self._land()

    def finish(self) -> Iterator[Outcome]:
        """Yield what became of all that is still on the way."""
        while self._flying:
            yield from self._land()

    def forget(self) -> None:
        """Wait for what is on the way and drop it: its segment is given up."""
        self._idle()
        self._flying.clear()
        self._taken.clear()

    def _start(self, batch: Batch) -> None:
        self._step(len(batch))
        self._flying.append((batch, self._pool.submit(self._detect, batch)))

    def _land(self) -> Iterator[Outcome]:
        batch, future = self._flying.popleft()
        self._step(len(batch))
        yield from self._outcomes(batch, future)
        self._free.append(self._taken.pop(id(batch)))

    def _outcomes(self, batch: Batch, future: "Future[list[Detections]]") -> Iterator[Outcome]:
        """Say what became of a batch; when the model fails on it, cut it, to find the image at fault."""
        try:
            yield from zip(batch.indices, future.result(), strict=True)
            return
        except OutOfDeviceMemory as error:
            failure: Exception = error
            if len(batch) > 1 and len(batch) // 2 < self.rows:
                self.rows = len(batch) // 2
                print(f"batches of {len(batch)} do not fit the device; {self.rows} from here on", file=sys.stderr)
            parts = batch.parts(self.rows)
        except Exception as error:
            failure, parts = error, batch.parts(1)
        self._idle()
        if len(batch) > 1:
            for part in parts:
                self._step(len(part))
                yield from self._outcomes(part, self._pool.submit(self._detect, part))
            return
        if isinstance(failure, SenselessOutput):
            yield batch.indices[0], failure
            return
        text = f"{type(failure).__name__}: {' '.join(str(failure).split())}"[:500]
        self._check_alive(batch, text)
        yield batch.indices[0], ImageError("inference", text)

    def _detect(self, batch: Batch) -> list[Detections]:
        for painted in batch.painted:
            painted.result()
        failpoint("infer")
        return self._detector.detect(batch.canvases[: len(batch)], batch.letterboxes)

    def _idle(self) -> None:
        """Wait until the detector has nothing to do."""
        for batch, future in self._flying:
            self._step(len(batch))
            wait([future])

    def _check_alive(self, batch: Batch, text: str) -> None:
        """Make sure that the model still works: a device that is lost would fail every image from here on.

        Raises:
            ClusterError: It fails on an empty canvas, too.
        """
        empty = np.full_like(batch.canvases[:1], batch.letterboxes[0].pad_value)
        try:
            self._pool.submit(self._detector.detect, empty, batch.letterboxes).result()
        except Exception as error:
            raise ClusterError(f"the model has stopped working on this worker: {text}") from error
