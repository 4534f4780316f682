"""The actor: labels segment after segment with a model that it loads once, and survives images that end processes."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from batchdet.failpoint import failpoint
from batchdet.model.rehearsal import Rehearsed
from batchdet.model.runtimes import Device
from batchdet.pipeline.guard import Guard
from batchdet.pipeline.isolation import Replay
from batchdet.pipeline.labeller import load_labeller
from batchdet.records.painted import segments_of
from batchdet.records.schema import STATUS_FAILED
from batchdet.records.segment import LabelledSegment
from batchdet.spec import JobSpec
from batchdet.table.staging import staged_folder, write_staged

_BATCH_OF_LIMITS: Final = 8
"""``compute.image_memory_bytes`` is meant for batches up to this size; larger ones may take more in proportion."""


@dataclass(frozen=True)
class StagedSegment:
    """What reaches the driver of a segment: counts and times.

    Args:
        shard_id: Its shard.
        segment_index: Its place within the shard.
        images: Images in it.
        failed: Those that failed.
        detections: Objects found.
        size_bytes: Encoded bytes.
        times_s: Seconds by step: of its reader (read), of the actor (decode, infer, rows, stage), how long the actor
            had been idle before, and once for each actor what loading the model took (load).
    """

    shard_id: str
    segment_index: int
    images: int
    failed: int
    detections: int
    size_bytes: int
    times_s: dict[str, float]

    @staticmethod
    def count(segment: LabelledSegment, more_s: Mapping[str, float]) -> "StagedSegment":
        """Count what a labelled segment holds.

        Args:
            segment: The segment.
            more_s: Seconds of steps that are not the segment's own work: stage, idle, load.
        """
        failed = pc.sum(pc.equal(segment.images["status"], STATUS_FAILED)).as_py() or 0
        size_bytes = pc.sum(pc.max_element_wise(segment.images["size_bytes"], 0)).as_py() or 0
        images, detections = segment.images.num_rows, segment.detections.num_rows
        times_s = segment.times_s | dict(more_s)
        return StagedSegment(segment.shard_id, segment.segment_index, images, failed, detections, size_bytes, times_s)

    def to_row(self) -> pa.Table:
        """Return a table of one row."""
        return pa.Table.from_pylist([asdict(self) | {"times_s": json.dumps(self.times_s)}])

    @staticmethod
    def from_rows(table: pa.Table) -> "Iterator[StagedSegment]":
        """Read counts back."""
        for row in table.to_pylist():
            yield StagedSegment(**row | {"times_s": json.loads(row["times_s"])})


class DetectorActor:
    """A Ray actor's class: loads the model once, then labels segment after segment.

    Images that end their process are found by its :class:`~batchdet.pipeline.guard.Guard`.

    Results are staged here, before anything is told: a driver that dies loses the segments in work and no others.

    Args:
        spec: The job.
        model_sha256: The digest that the driver saw; another one is refused.
        out: The output's URI.
        run_id: Goes into every row.
        batch_rows: Images given to the model at once.
        device: ``cpu`` or ``gpu``.
        threads: Threads for arithmetic, and on GPU for decoding.
        driver: Names this driver: workers of an earlier one may have died because it did.
        rehearsed: What the model has shown in the probe; None has it shown again.
    """

    def __init__(
        self,
        spec: JobSpec,
        model_sha256: str,
        out: str,
        run_id: str,
        batch_rows: int,
        device: Device,
        threads: int,
        driver: str,
        rehearsed: Rehearsed | None = None,
    ) -> None:
        failpoint("actor.load")
        began = time.perf_counter()
        self._ended: float | None = None
        self._folder = staged_folder(out, run_id)
        self._labeller = load_labeller(spec, model_sha256, run_id, batch_rows, device, threads, self._step, rehearsed)
        self._guard = Guard(
            f"{run_id}-{driver}",
            Replay(spec, model_sha256, device),
            spec.compute.image_memory_bytes * max(1, batch_rows // _BATCH_OF_LIMITS),
        )
        self._load_s = {"load": time.perf_counter() - began}

    def _step(self, images: int) -> None:
        self._guard.step(images)

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Label and stage each segment of a block; a row in, its counts out.

        Raises:
            ClusterError: Workers die with a segment although each of its images passes alone.
            StorageError: The output cannot be written.
            SenselessOutput: What the model gives for most images cannot be true.
        """
        for segment in segments_of(rows):
            idle_s = 0.0 if self._ended is None else time.perf_counter() - self._ended
            with self._guard.around(segment) as fatal:
                labelled = self._labeller.label(segment, fatal)
            self._labeller.sense.check()
            labelled = replace(labelled, times_s={"read": segment.read_s, **labelled.times_s})
            labelled_at = time.perf_counter()
            write_staged(self._folder, labelled)
            self._ended = time.perf_counter()
            more_s = {"stage": self._ended - labelled_at, "idle": idle_s, **self._load_s}
            self._load_s = {}
            yield StagedSegment.count(labelled, more_s).to_row()
