"""The actor of the decode stage: turns segment after segment into canvases, on CPUs that feed the GPUs."""

from collections.abc import Iterator

import pyarrow as pa

from batchdet.failpoint import failpoint
from batchdet.model.placement import Placement
from batchdet.pipeline.guard import Guard
from batchdet.pipeline.isolation import Replay
from batchdet.pipeline.painter import SegmentPainter
from batchdet.records.segment import Segment
from batchdet.spec import JobSpec


class DecodeActor:
    """A Ray actor's class: decodes and paints; survives images that end processes as the detector's actor does.

    Args:
        spec: The job.
        placement: How the model wants images placed.
        run_id: The run.
        segment_rows: At most this many images per segment.
        driver: Names this driver: workers of an earlier one may have died because it did.
    """

    def __init__(self, spec: JobSpec, placement: Placement, run_id: str, segment_rows: int, driver: str) -> None:
        import cv2

        failpoint("decoder.load")
        cv2.setNumThreads(1)  # the actor's share of the machine is one core
        reduce = spec.model.canvas.decode == "reduced"
        self._painter = SegmentPainter(placement, spec.source.max_pixels, self._step, reduce)
        canvases_bytes = segment_rows * max(placement.canvas) ** 2 * 3
        self._guard = Guard(
            f"{run_id}-{driver}-decode",
            Replay(spec, "", "cpu", placement),
            spec.compute.image_memory_bytes + 2 * canvases_bytes,
        )

    def _step(self, images: int) -> None:
        self._guard.step(images)

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Paint each segment of a block; a row in, a row out.

        Raises:
            ClusterError: Workers die with a segment although each of its images passes alone.
        """
        for segment in Segment.from_rows(rows):
            with self._guard.around(segment) as fatal:
                painted = self._painter.paint(segment, fatal)
            yield painted
