"""Average precision of an ONNX file on images that it never saw, by pycocotools."""

import contextlib
import io
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from batchdet.decode.canvas import paint
from batchdet.geometry.boxes import iou_matrix, xyxy_to_xywh
from batchdet.geometry.letterbox import Letterbox
from batchdet.sample.dataset import write_sample
from batchdet.training.batches import read_pixels
from batchdet.training.coco import CocoData, read_coco
from batchdet.training.trainee import Detect

CONFIDENT = 0.25
"""The score that `batchdet` asks for by default."""


@dataclass(frozen=True)
class Report:
    """How good a model is.

    Attributes:
        images: images measured on.
        objects: objects on them.
        seed: stream the scenes came from; 0 for other images.
        canvas_px: side of the square canvas.
        ap: mean over IoU 0.50 to 0.95, as COCO defines it.
        ap50: AP at IoU 0.50.
        ap75: AP at IoU 0.75.
        ap50_confident: AP at IoU 0.50 of the detections with score `CONFIDENT` or more.
        ap50_by_label: AP at IoU 0.50 for each class.
        doubled: share of the detections with score `CONFIDENT` or more that say again, at IoU 0.7 or more, what
            a better one of the same class has said; an NMS-free head should have none.
    """

    images: int
    objects: int
    seed: int
    canvas_px: int
    ap: float
    ap50: float
    ap75: float
    ap50_confident: float
    ap50_by_label: dict[str, float]
    doubled: float


def evaluate(model: Path, images: int, seed: int, canvas_px: int = 320, threads: int = 1) -> Report:
    """Write fresh scenes as JPEG files, detect, and compare with the ground truth.

    Args:
        model: ONNX file as `export_onnx` writes it.
        images: number of scenes.
        seed: stream of the scenes, below `TRAINING_SEED_START`.
        canvas_px: side of the canvas, a multiple of 32.
        threads: threads of ONNX Runtime.

    Returns:
        The measures.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_sample(folder, images, "folder", seed)
        return evaluate_data(detector_of_onnx(model, canvas_px, threads), read_coco(folder), canvas_px, seed)


def evaluate_data(detect: Detect, data: CocoData, canvas_px: int, seed: int = 0) -> Report:
    """Detect on all images of a data set and compare with its truth.

    Args:
        detect: finds objects of the data's classes.
        data: the images.
        canvas_px: for the report.
        seed: for the report.

    Returns:
        The measures; a class without an object has no entry.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = data.to_coco()
        truth.createIndex()
    found: list[dict[str, Any]] = []
    for image_id, image in enumerate(data.images):
        found += [{"image_id": image_id, **item} for item in detect(read_pixels(image))]
    return _measure(truth, found, len(data.images), seed, canvas_px)


def detector_of_onnx(model: Path, canvas_px: int, threads: int = 1) -> Detect:
    """Return what finds objects by an ONNX file.

    Args:
        model: as `export_onnx` writes it.
        canvas_px: side of the canvas, a multiple of 32.
        threads: threads of ONNX Runtime; 0 for all cores.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda rgb: detect(session, rgb, canvas_px)


def detect(session: onnxruntime.InferenceSession, rgb: npt.NDArray[np.uint8], canvas_px: int) -> list[dict[str, Any]]:
    """Detect objects on one image.

    Args:
        session: the model.
        rgb: (H, W, 3) uint8.
        canvas_px: side of the square canvas.

    Returns:
        COCO results without ``image_id``: ``bbox`` xywh in pixels of the image, ``score``, ``category_id``.
    """
    letterbox = Letterbox.centred((rgb.shape[1], rgb.shape[0]), (canvas_px, canvas_px))
    canvas = np.empty((canvas_px, canvas_px, 3), dtype=np.uint8)
    paint(rgb, letterbox, canvas)
    images = (canvas.astype(np.float32) / 255).transpose(2, 0, 1)[None]
    (output,) = session.run(None, {"images": np.ascontiguousarray(images)})
    boxes_xyxy = letterbox.to_image(output[0, :, :4])
    boxes_xywh = xyxy_to_xywh(boxes_xyxy)
    return [
        {"bbox": box, "score": score, "category_id": int(class_id)}
        for box, (score, class_id) in zip(boxes_xywh.tolist(), output[0, :, 4:].tolist(), strict=True)
    ]


def _measure(truth: Any, found: list[dict[str, Any]], images: int, seed: int, canvas_px: int) -> Report:
    scoring = _score(truth, found)
    confident = [item for item in found if item["score"] >= CONFIDENT]
    ap50_confident = float(_score(truth, confident).stats[1]) if confident else 0.0
    precision = scoring.eval["precision"][0, :, :, 0, -1]  # IoU 0.50: (recall, class)
    labels = {category["id"]: category["name"] for category in truth.dataset["categories"]}
    by_label = {
        labels[class_id]: float(precision[:, i].mean())
        for i, class_id in enumerate(scoring.params.catIds)
        if precision[:, i].min() >= 0
    }
    ap, ap50, ap75 = (float(value) for value in scoring.stats[:3])
    doubled = _doubled(confident)
    return Report(images, len(truth.anns), seed, canvas_px, ap, ap50, ap75, ap50_confident, by_label, doubled)


def _score(truth: Any, found: list[dict[str, Any]]) -> Any:
    """Run COCO's protocol."""
    with contextlib.redirect_stdout(io.StringIO()):
        scoring = COCOeval(truth, truth.loadRes(found) if found else COCO(), "bbox")
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    return scoring


def _doubled(confident: list[dict[str, Any]]) -> float:
    """Return the share of doubles, see `Report`; ``confident`` is best first within each image."""
    said: dict[tuple[int, int], list[npt.NDArray[np.float32]]] = defaultdict(list)
    for item in confident:
        x, y, width_px, height_px = item["bbox"]
        box_xyxy = np.array([x, y, x + width_px, y + height_px], dtype=np.float32)
        said[item["image_id"], item["category_id"]].append(box_xyxy)
    doubles = sum(int((np.triu(iou_matrix(boxes, boxes), 1) >= 0.7).any(axis=0).sum()) for boxes in said.values())
    return doubles / max(1, sum(map(len, said.values())))
