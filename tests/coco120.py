"""Running a detector over the 120 real photographs, and comparing what it finds with a reference."""

import contextlib
import functools
import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from batchdet.decode.canvas import paint
from batchdet.decode.image import decode_image
from batchdet.geometry.boxes import iou_matrix, xyxy_to_xywh
from batchdet.model.detector import Detector
from batchdet.records.detections import Detections

Rows = npt.NDArray[np.float64]
"""``(N, 6)``: x_min, y_min, x_max, y_max, score, class_id."""


@functools.cache
def photographs(shared: Path) -> dict[str, npt.NDArray[np.uint8]]:
    """Return file name -> upright RGB, decoded once."""
    folder = shared / "images" / "coco120" / "images"
    return {p.name: decode_image(p.read_bytes(), 100_000_000) for p in sorted(folder.iterdir())}


def detect_all(
    detector: Detector, shared: Path, batch_rows: int = 4, first: int | None = None
) -> dict[str, Detections]:
    """Label the photographs (or the first few), batched by canvas shape."""
    groups: dict[tuple[int, int], list[str]] = {}
    images = dict(list(photographs(shared).items())[:first])
    boxes = {name: detector.letterbox(rgb.shape[1], rgb.shape[0]) for name, rgb in images.items()}
    for name, box in boxes.items():
        groups.setdefault(box.canvas, []).append(name)
    found: dict[str, Detections] = {}
    for (width, height), names in groups.items():
        for start in range(0, len(names), batch_rows):
            batch = names[start : start + batch_rows]
            canvases = np.empty((len(batch), height, width, 3), np.uint8)
            for name, canvas in zip(batch, canvases, strict=True):
                paint(images[name], boxes[name], canvas)
            found.update(zip(batch, detector.detect(canvases, [boxes[n] for n in batch]), strict=True))
    return {name: found[name] for name in images}


def average_precision(found: Mapping[str, Detections], shared: Path) -> tuple[float, float]:
    """Return (AP, AP50) by pycocotools; class numbers are places among the sorted category ids."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(shared / "images" / "coco120" / "instances.json")
        image_ids = {image["file_name"]: image["id"] for image in truth.dataset["images"]}
        categories = sorted(truth.cats)
        rows = [
            {"image_id": image_ids[name], "category_id": categories[c], "bbox": box, "score": score}
            for name, d in found.items()
            for box, score, c in zip(
                xyxy_to_xywh(d.boxes_xyxy).tolist(), d.scores.tolist(), d.class_ids.tolist(), strict=True
            )
        ]
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        # of objects of all sizes and with up to 100 boxes; by size and with fewer boxes nobody asks
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]  # by IoU threshold (0.5, 0.55, ...), recall, class, size, number of boxes
    return tuple(float(each[each > -1].mean()) for each in (precision, precision[0]))


def as_rows(found: Mapping[str, Detections], threshold: float) -> dict[str, Rows]:
    """Return the detections of each photograph that reach a score."""
    return {
        name: np.column_stack([d.boxes_xyxy, d.scores, d.class_ids]).astype(np.float64)[d.scores >= threshold]
        for name, d in found.items()
    }


def expected_rows(shared: Path, name: str) -> dict[str, Rows]:
    """Return the reference's detections of each photograph."""
    data = json.loads((shared / "expected" / f"{name}_coco120.json").read_text())
    return {image: np.array(rows, np.float64).reshape(-1, 6) for image, rows in data["detections"].items()}


def matched(these: Mapping[str, Rows], those: Mapping[str, Rows], iou: float = 0.95, score: float = 0.01) -> float:
    """Return the share of these detections that one of those equals: same class, IoU and score near enough."""
    hits = total = 0
    for name, rows in these.items():
        others = those[name]
        near = iou_matrix(rows[:, :4], others[:, :4]) >= iou
        near &= rows[:, None, 5] == others[None, :, 5]
        near &= np.abs(rows[:, None, 4] - others[None, :, 4]) <= score
        hits += int(near.any(axis=1).sum())
        total += len(rows)
    return hits / total
