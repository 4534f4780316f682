"""Do two detectors' tables hold the same boxes, and how good are they: matching both ways, and COCO's AP."""

import contextlib
import io
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

COLUMNS = ("class_id", "score", "x_min", "y_min", "x_max", "y_max")
MIN_IOU = 0.9
SCORE_TOLERANCE = 0.05
Boxes = Mapping[str, npt.NDArray[np.float64]]
"""Name of an image -> ``(N, 6)``: the columns above."""

_NONE = np.zeros((0, 6))


def by_image(table: pa.Table) -> dict[str, npt.NDArray[np.float64]]:
    """Split a table with ``image`` and the columns above by image."""
    table = table.sort_by("image")
    values = np.stack([table[name].to_numpy().astype(np.float64) for name in COLUMNS], axis=1)
    names, starts = np.unique(np.asarray(table["image"].to_pylist(), dtype=str), return_index=True)
    return dict(zip(map(str, names), np.split(values, starts[1:]), strict=True)) if len(names) else {}


def above(boxes: Boxes, score: float) -> Boxes:
    """Keep boxes with at least this score."""
    return {name: rows[rows[:, 1] >= score] for name, rows in boxes.items()}


def share_matched(boxes: Boxes, others: Boxes, original: Mapping[str, str] | None = None) -> float:
    """Return the share of ``boxes`` that have a partner of their own among ``others``.

    Partners have the same class, an IoU above 0.9 and scores less than 0.05 apart; the best overlap is taken first.

    Args:
        boxes: What is looked for.
        others: Where it is looked for.
        original: Name in ``boxes`` -> name in ``others``; null where they are the same.
    """
    total = matched = 0
    for name, rows in boxes.items():
        partners = others.get(original[name] if original else name, _NONE)
        total += len(rows)
        if not len(rows) or not len(partners):
            continue
        low = np.maximum(rows[:, None, 2:4], partners[None, :, 2:4])
        high = np.minimum(rows[:, None, 4:6], partners[None, :, 4:6])
        shared = np.prod(np.maximum(high - low, 0), axis=2)
        iou = shared / np.maximum(_areas(rows)[:, None] + _areas(partners)[None] - shared, 1e-9)
        same = (rows[:, None, 0] == partners[None, :, 0]) & (iou > MIN_IOU)
        same &= np.abs(rows[:, None, 1] - partners[None, :, 1]) < SCORE_TOLERANCE
        iou = np.where(same, iou, 0.0)
        while iou.any():
            row, column = np.unravel_index(int(iou.argmax()), iou.shape)
            iou[row, :] = iou[:, column] = 0.0
            matched += 1
    return matched / total if total else 1.0


def _areas(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return (rows[:, 4] - rows[:, 2]) * (rows[:, 5] - rows[:, 3])


def average_precision(boxes: Boxes, truth: Path, images: Collection[str]) -> float:
    """Return COCO's AP (IoU 0.50 to 0.95) on some images of a truth; the n-th class is the n-th category."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        categories = sorted(coco.getCatIds())
        found = []
        chosen = [image for image in coco.dataset["images"] if image["file_name"] in images]
        for image in chosen:
            for class_id, score, x_min, y_min, x_max, y_max in boxes.get(image["file_name"], _NONE).tolist():
                bbox = [x_min, y_min, x_max - x_min, y_max - y_min]
                category_id = categories[int(class_id)]
                found.append({"image_id": image["id"], "category_id": category_id, "bbox": bbox, "score": score})
        if not found:
            return 0.0
        measure = COCOeval(coco, coco.loadRes(found), "bbox")
        measure.params.imgIds = [image["id"] for image in chosen]
        measure.evaluate()
        measure.accumulate()
        measure.summarize()
    return float(measure.stats[0])
