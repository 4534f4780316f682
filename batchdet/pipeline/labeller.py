"""The step that turns a segment of encoded images into rows: decode, letterbox, infer, one row per image."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchdet.errors import ImageError
from batchdet.model.detector import Detector
from batchdet.model.families import SenselessOutput
from batchdet.model.fetch import fetch_asked
from batchdet.model.rehearsal import Rehearsed
from batchdet.model.runtimes import Device
from batchdet.model.runtimes.pinned import pinned_buffer
from batchdet.pipeline.batches import Allocate, Batch, BatchRunner, Outcome, plain_buffer
from batchdet.pipeline.pictures import Decoder, threads_or_inline
from batchdet.pipeline.resources import largest_batch
from batchdet.pipeline.sense import Sense
from batchdet.records.detections import Detections
from batchdet.records.schema import FEATURES, MEMBERS, STATUS_FAILED, STATUS_OK, image_id, schema_of
from batchdet.records.segment import LabelledSegment, Segment
from batchdet.spec import JobSpec


@dataclass
class _Image:
    """What is known of one image of a segment so far."""

    width_px: int | None = None
    height_px: int | None = None
    detections: Detections | None = None
    error_code: str | None = None
    error_message: str | None = None

    def take(self, outcome: Detections | ImageError | SenselessOutput) -> None:
        if isinstance(outcome, SenselessOutput):
            self.error_code, self.error_message = "inference", f"the model fails on this image: {outcome.message}"
        elif isinstance(outcome, ImageError):
            self.error_code, self.error_message = outcome.code, outcome.message
        else:
            self.detections = outcome


class _Stopwatch:
    """Seconds by step."""

    def __init__(self) -> None:
        self.times_s: dict[str, float] = {}
        self._started = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.times_s[step] = self.times_s.get(step, 0.0) + now - self._started
        self._started = now


class SegmentLabeller:
    """Labels segments with one detector. Pure: the same segment gives the same rows, so a retry is harmless.

    With threads, images are decoded and painted straight into their batch while the batch before is computed. Which
    images share a batch is decided in their order, whoever is quicker.

    Args:
        detector: The model, loaded.
        run_id: Goes into every row.
        batch_rows: Images given to the model at once; fewer, once the device's memory has not held so many.
        max_pixels: Larger images become failed rows.
        threads: Images decoded at the same time; 1 does everything in the caller's thread.
        step: Called before each step that works on images, with their number.
        allocate: Makes the memory of a batch.
        reduce: Decode JPEGs no larger than their place on the canvas takes, which is quicker and gives other pixels.
    """

    def __init__(
        self,
        detector: Detector,
        run_id: str,
        batch_rows: int,
        max_pixels: int,
        threads: int = 1,
        step: Callable[[int], None] = lambda images: None,
        allocate: Allocate = plain_buffer,
        reduce: bool = False,
    ) -> None:
        self._detector = detector
        self._run_id = run_id
        self._pool = threads_or_inline(threads, "decode")
        placement = detector.placement if reduce else None
        self._decoder = Decoder(max_pixels, self._pool, batch_rows if threads > 1 else 0, step, placement)
        self._runner = BatchRunner(detector, batch_rows, threads > 1, step, allocate)
        self.sense = Sense()
        """Whether what the model has given so far can be true; whoever stages results asks before."""

    def label(self, segment: Segment, fatal: Mapping[int, ImageError] | None = None) -> LabelledSegment:
        """Label every image of a segment; a bad one becomes a failed row and its neighbours go on.

        Args:
            segment: Images, encoded or painted.
            fatal: Place in the segment -> error, of images that may not be touched.
        """
        watch = _Stopwatch()
        images = [_Image() for _ in segment.data]
        for index, error in segment.errors().items():
            images[index].take(error)
        for index, error in (fatal or {}).items():
            images[index].take(error)
        try:
            self._run(segment, images, watch)
        except BaseException:
            self._runner.forget()
            raise
        rows, detections = self._tables(segment, images)
        watch.lap("rows")
        return LabelledSegment(
            segment.shard_index,
            segment.shard_id,
            segment.segment_index,
            segment.last,
            rows,
            detections,
            watch.times_s,
            segment.passed_over,
        )

    def _run(self, segment: Segment, images: list[_Image], watch: _Stopwatch) -> None:
        good = [i for i, image in enumerate(images) if image.error_code is None]
        waiting: dict[tuple[int, int], Batch] = {}
        for index, picture in zip(good, self._decoder.pictures(segment.data[i] for i in good), strict=True):
            image = images[index]
            if isinstance(picture, ImageError):
                image.take(picture)
                continue
            image.width_px, image.height_px = picture.width_px, picture.height_px
            letterbox = self._detector.letterbox(image.width_px, image.height_px)
            batch = waiting.get(letterbox.canvas)
            if batch is None:
                batch = waiting[letterbox.canvas] = self._runner.new(letterbox.canvas)
            batch.add(index, letterbox, picture.put, self._pool)
            watch.lap("decode")
            if len(batch) >= self._runner.rows or len(batch) == len(batch.canvases):
                self._take(segment, images, self._runner.run(waiting.pop(letterbox.canvas)))
                watch.lap("infer")
        watch.lap("decode")
        for batch in waiting.values():
            self._take(segment, images, self._runner.run(batch))
        self._take(segment, images, self._runner.finish())
        watch.lap("infer")

    def _take(self, segment: Segment, images: list[_Image], outcomes: Iterable[Outcome]) -> None:
        for place, outcome in outcomes:
            images[place].take(outcome)
            if isinstance(outcome, SenselessOutput):
                outcome = outcome.about(f"for the image {segment.members['uri'][place]}")
            self.sense.take(outcome)

    def _tables(self, segment: Segment, images: list[_Image]) -> tuple[pa.Table, pa.Table]:
        members = segment.members
        ids = [
            image_id(shard_uri, member)
            for shard_uri, member in zip(members["shard_uri"].to_pylist(), members["member"].to_pylist(), strict=True)
        ]
        found = [image.detections if image.detections is not None else Detections.empty() for image in images]
        counts = np.array([len(d) for d in found], np.int32)
        made: dict[str, Any] = {
            "run_id": [self._run_id] * len(images),
            "image_id": ids,
            "width_px": [image.width_px for image in images],
            "height_px": [image.height_px for image in images],
            "status": [STATUS_OK if image.error_code is None else STATUS_FAILED for image in images],
            "error_code": [image.error_code for image in images],
            "error_message": [image.error_message for image in images],
            "detection_count": counts,
            "max_score": [float(d.scores.max()) if len(d) else None for d in found],
        }
        schema = schema_of("images", self._detector.features)
        if FEATURES in schema.names:
            made[FEATURES] = _vectors([d.image_features for d in found], schema.field(FEATURES).type)
        columns = [
            pa.array(made[field.name], field.type) if field.name in made else members[field.name] for field in schema
        ]
        carried = [members.schema.field(i) for i in range(len(MEMBERS), members.num_columns)]
        rows = pa.Table.from_arrays(
            [*columns, *(members[f.name] for f in carried)], schema=pa.schema([*schema, *carried])
        )
        return rows, self._detections(ids, found, counts)

    def _detections(self, ids: list[str], found: list[Detections], counts: npt.NDArray[np.int32]) -> pa.Table:
        total = int(counts.sum())
        boxes = np.concatenate([d.boxes_xyxy for d in found]) if found else np.zeros((0, 4), np.float32)
        class_ids = np.concatenate([d.class_ids for d in found]) if found else np.zeros(0, np.int32)
        scores = np.concatenate([d.scores for d in found]) if found else np.zeros(0, np.float32)
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        arrays = [
            pa.repeat(self._run_id, total),
            pa.array(ids, pa.string()).take(pa.array(np.repeat(np.arange(len(ids)), counts), pa.int64())),
            pa.array((np.arange(total) - starts).astype(np.int32)),
            pa.array(class_ids),
            pa.array([self._detector.label(int(i)) for i in class_ids], pa.string()),
            pa.array(scores),
            *(pa.array(np.ascontiguousarray(boxes[:, i])) for i in range(4)),
        ]
        schema = schema_of("detections", self._detector.features)
        if FEATURES in schema.names:
            vectors = [vector for d in found if d.features is not None for vector in d.features]
            arrays.append(_vectors(vectors, schema.field(FEATURES).type))
        return pa.Table.from_arrays(arrays, schema=schema)


def _vectors(vectors: Sequence[npt.NDArray[np.float32] | None], type_: pa.DataType) -> pa.Array:
    """Make a column of vectors of one length."""
    room = np.zeros((len(vectors), type_.list_size), type_.value_type.to_pandas_dtype())
    missing = np.array([vector is None for vector in vectors], bool)
    for place, vector in zip(room, vectors, strict=True):
        if vector is not None:
            place[:] = vector
    mask = pa.array(missing) if missing.any() else None
    return pa.FixedSizeListArray.from_arrays(pa.array(room.ravel()), type=type_, mask=mask)


def load_labeller(
    spec: JobSpec,
    model_sha256: str,
    run_id: str,
    batch_rows: int,
    device: Device,
    threads: int,
    step: Callable[[int], None] = lambda images: None,
    rehearsed: Rehearsed | None = None,
) -> SegmentLabeller:
    """Load the model in this process.

    Args:
        spec: The job.
        model_sha256: The digest that the driver saw; another one is refused.
        run_id: Goes into every row.
        batch_rows: Images given to the model at once.
        device: ``cpu`` or ``gpu``.
        threads: Threads for arithmetic, and on GPU for decoding.
        step: As in :class:`SegmentLabeller`.
        rehearsed: What the model has shown elsewhere; None tries it on empty canvases.

    Raises:
        ModelError: The model does not load, or is another one.
    """
    import cv2

    cv2.setNumThreads(1)  # the actor's share of the machine is one core; OpenCV would take them all
    local = fetch_asked(spec.model, model_sha256)
    largest = largest_batch(spec.compute)  # one engine for all processes of a job that load the model
    detector = Detector(
        spec.model, local.path, local.sha256, device, threads if device == "cpu" else 1, largest, rehearsed
    )
    on_gpu = device == "gpu"
    return SegmentLabeller(
        detector,
        run_id,
        batch_rows,
        spec.source.max_pixels,
        threads if on_gpu else 1,
        step,
        pinned_buffer if on_gpu else plain_buffer,
        spec.model.canvas.decode == "reduced",
    )
