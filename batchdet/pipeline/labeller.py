"""The step that turns a segment of encoded images into rows: decode, letterbox, infer, one row per image."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchdet.decode.canvas import Pixels, paint
from batchdet.decode.image import decode_image
from batchdet.errors import ClusterError, ImageError
from batchdet.failpoint import failpoint
from batchdet.geometry.letterbox import Letterbox
from batchdet.model.cache import fetch_model
from batchdet.model.detector import Detector
from batchdet.model.runtimes import Device
from batchdet.records.detections import Detections
from batchdet.records.schema import DETECTIONS, IMAGES, MEMBERS, STATUS_FAILED, STATUS_OK, image_id
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

    def fail(self, code: str, message: str) -> None:
        self.detections = None
        self.error_code, self.error_message = code, message


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

    Args:
        detector: The model, loaded.
        run_id: Goes into every row.
        batch_rows: Images given to the model at once.
        max_pixels: Larger images become failed rows.
        decode_threads: Images decoded at the same time; 1 decodes in the caller's thread.
        step: Called before each step that works on images, with their number.
    """

    def __init__(
        self,
        detector: Detector,
        run_id: str,
        batch_rows: int,
        max_pixels: int,
        decode_threads: int = 1,
        step: Callable[[int], None] = lambda images: None,
    ) -> None:
        self._detector = detector
        self._run_id = run_id
        self._batch_rows = batch_rows
        self._max_pixels = max_pixels
        self._pool = ThreadPoolExecutor(decode_threads, "decode") if decode_threads > 1 else None
        self._step = step

    def label(self, segment: Segment, fatal: Mapping[int, ImageError] | None = None) -> LabelledSegment:
        """Label every image of a segment; a bad one becomes a failed row and its neighbours go on.

        Args:
            segment: Images, still encoded.
            fatal: Place in the segment -> error, of images that may not be touched.
        """
        watch = _Stopwatch()
        images = [_Image() for _ in segment.data]
        codes = segment.members["error_code"].to_pylist()
        messages = segment.members["error_message"].to_pylist()
        for image, code, message in zip(images, codes, messages, strict=True):
            if code is not None:
                image.fail(code, message or "")
        for index, error in (fatal or {}).items():
            images[index].fail(error.code, error.message)
        waiting: dict[tuple[int, int], list[tuple[int, Letterbox, Pixels]]] = {}
        for index, rgb in self._decoded(segment, images):
            image = images[index]
            image.height_px, image.width_px = rgb.shape[:2]
            letterbox = self._detector.letterbox(image.width_px, image.height_px)
            shape = letterbox.canvas
            canvas = np.empty((shape[1], shape[0], 3), np.uint8)
            paint(rgb, letterbox, canvas)
            watch.lap("decode")
            batch = waiting.setdefault(shape, [])
            batch.append((index, letterbox, canvas))
            if len(batch) >= self._batch_rows:
                self._infer(waiting.pop(shape), images)
                watch.lap("infer")
        watch.lap("decode")
        for batch in waiting.values():
            self._infer(batch, images)
        watch.lap("infer")
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
        )

    def _decoded(self, segment: Segment, images: list[_Image]) -> Iterator[tuple[int, Pixels]]:
        """Yield (index, RGB pixels) of every image that can be decoded, in order."""
        good = [i for i, image in enumerate(images) if image.error_code is None]
        for i, result in zip(good, self._in_order([segment.data[i] for i in good]), strict=True):
            if isinstance(result, ImageError):
                images[i].fail(result.code, result.message)
            else:
                yield i, result

    def _in_order(self, encoded: list[Any]) -> Iterator[Pixels | ImageError]:
        """Decode in order; with threads at most two batches ahead, so that memory stays bounded."""
        if self._pool is None:
            for data in encoded:
                self._step(1)
                yield self._decode(data)
            return
        ahead: deque[Future[Any]] = deque()
        for data in encoded:
            ahead.append(self._pool.submit(self._decode, data))
            if len(ahead) >= 2 * self._batch_rows:
                self._step(1)
                yield ahead.popleft().result()
        while ahead:
            self._step(1)
            yield ahead.popleft().result()

    def _decode(self, data: Any) -> Pixels | ImageError:
        failpoint("decode", data)
        try:
            return decode_image(data, self._max_pixels)
        except ImageError as error:
            return error

    def _infer(self, batch: list[tuple[int, Letterbox, Pixels]], images: list[_Image]) -> None:
        """Run one batch; when the model fails on it, run its images one by one to find the one at fault."""
        canvases = np.stack([canvas for _, _, canvas in batch])
        self._step(len(batch))
        try:
            failpoint("infer")
            found = self._detector.detect(canvases, [letterbox for _, letterbox, _ in batch])
        except Exception as error:
            if len(batch) > 1:
                for item in batch:
                    self._infer([item], images)
                return
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
            self._check_alive(canvases, batch[0][1], text)
            images[batch[0][0]].fail("inference", text)
            return
        for (index, _, _), detections in zip(batch, found, strict=True):
            images[index].detections = detections

    def _check_alive(self, canvases: Pixels, letterbox: Letterbox, text: str) -> None:
        """Make sure that the model still works: a device that is lost would fail every image from here on.

        Raises:
            ClusterError: It fails on an empty canvas, too.
        """
        try:
            self._detector.detect(np.full_like(canvases, letterbox.pad_value), [letterbox])
        except Exception as error:
            raise ClusterError(f"the model has stopped working on this worker: {text}") from error

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
        columns = [
            pa.array(made[field.name], field.type) if field.name in made else members[field.name] for field in IMAGES
        ]
        carried = [members.schema.field(i) for i in range(len(MEMBERS), members.num_columns)]
        rows = pa.Table.from_arrays(
            [*columns, *(members[f.name] for f in carried)], schema=pa.schema([*IMAGES, *carried])
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
        return pa.Table.from_arrays(arrays, schema=DETECTIONS)


def load_labeller(
    spec: JobSpec,
    model_sha256: str,
    run_id: str,
    batch_rows: int,
    device: Device,
    threads: int,
    step: Callable[[int], None] = lambda images: None,
) -> SegmentLabeller:
    """Load the model in this process and try it on an empty canvas.

    Args:
        spec: The job.
        model_sha256: The digest that the driver saw; another one is refused.
        run_id: Goes into every row.
        batch_rows: Images given to the model at once.
        device: ``cpu`` or ``gpu``.
        threads: Threads for arithmetic, and on GPU for decoding.
        step: As in :class:`SegmentLabeller`.

    Raises:
        ModelError: The model does not load, or is another one.
    """
    import cv2

    cv2.setNumThreads(1)  # the actor's share of the machine is one core; OpenCV would take them all
    local = fetch_model(spec.model.uri, model_sha256)
    detector = Detector(spec.model, local.path, local.sha256, device, threads if device == "cpu" else 1)
    detector.probe()
    return SegmentLabeller(
        detector, run_id, batch_rows, spec.source.max_pixels, threads if device == "gpu" else 1, step
    )
