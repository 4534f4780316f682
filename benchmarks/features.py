"""What features cost, and what they are good for, on the photographs of the shared data.

make bench-features                          all models; about two minutes on 2 cores
make bench-features BENCH="--models yolo26n"

Cost: one process, one thread, one image at a time, decoding left out; the detector alone, with vectors of images, with
vectors of boxes, taking turns (A B C A B C); the median of the images. Use: each photograph is cropped by 5 % on two
sides and compressed to JPEG quality 50, and looked for among all by the cosine of its vector; each box likewise among
the boxes of all photographs, and the nearest box of another photograph is asked for its class.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from batchdet.decode.canvas import painted
from batchdet.geometry.boxes import iou_matrix
from batchdet.model.detector import Detector, open_detector
from batchdet.model.runtimes.openvino import has_bf16
from batchdet.spec import ModelSpec
from tests.coco120 import photographs

SHARED = Path(os.environ.get("BATCHDET_SHARED", Path(__file__).parents[2] / "shared"))
MODELS = ("yolo26n", "yolo11n_320", "yolox_nano_416", "deimv2_atto_320")


def twisted(rgb: Any) -> Any:
    """Cut 5 % off above and on the right, and compress."""
    height, width = rgb.shape[:2]
    cut = rgb[int(0.05 * height) :, : int(0.95 * width)]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(cut, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 50])
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def opened(name: str, **settings: Any) -> Detector:
    runtime = {"runtime": "openvino", "precision": "bf16" if has_bf16() else "fp32"}
    return open_detector(
        ModelSpec.model_validate({"uri": str(SHARED / "models" / f"{name}.onnx"), **runtime, **settings})
    )


def detect(detector: Detector, rgb: Any) -> Any:
    letterbox = detector.letterbox(rgb.shape[1], rgb.shape[0])
    return detector.detect(painted(rgb, letterbox)[None], [letterbox])[0]


def unit(vectors: Any) -> Any:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def cost(name: str, images: list[Any]) -> dict[str, float]:
    """Return images per second by kind of features."""
    detectors = {kind: opened(name, features=kind) for kind in ("none", "image", "boxes")}
    for detector in detectors.values():
        for rgb in images[:8]:
            detect(detector, rgb)
    taken: dict[str, list[float]] = {kind: [] for kind in detectors}
    for rgb in images:
        for kind, detector in detectors.items():
            letterbox = detector.letterbox(rgb.shape[1], rgb.shape[0])
            canvas = painted(rgb, letterbox)[None]
            started = time.perf_counter()
            detector.detect(canvas, [letterbox])
            taken[kind].append(time.perf_counter() - started)
    return {kind: 1 / statistics.median(seconds) for kind, seconds in taken.items()}


def found_again(name: str, part: str, images: list[Any]) -> tuple[float, float, float]:
    """Return the shares of images found again, of boxes found again, and of nearest boxes with the same class."""
    detector = opened(name, features="image", features_from=part)
    first = unit(np.array([detect(detector, rgb).image_features for rgb in images]))
    again = unit(np.array([detect(detector, twisted(rgb)).image_features for rgb in images]))
    of_images = float(((again @ first.T).argmax(axis=1) == np.arange(len(images))).mean())
    detector = opened(name, features="boxes", features_from=part)
    found, seen = ([detect(detector, rgb) for rgb in some] for some in (images, map(twisted, images)))
    vectors = unit(np.concatenate([d.features for d in found]))
    starts = np.cumsum([0, *map(len, found)])
    hits = []
    for k, (one, two, rgb) in enumerate(zip(found, seen, images, strict=True)):
        if len(one) and len(two):
            moved = two.boxes_xyxy + np.array([0, int(0.05 * rgb.shape[0])] * 2, np.float32)
            overlap = iou_matrix(moved, one.boxes_xyxy) * (two.class_ids[:, None] == one.class_ids[None])
            nearest = (unit(two.features) @ vectors.T).argmax(axis=1)
            known = overlap.max(axis=1) > 0.8
            hits += list((nearest == starts[k] + overlap.argmax(axis=1))[known])
    of = np.repeat(np.arange(len(found)), [len(d) for d in found])
    classes = np.concatenate([d.class_ids for d in found])
    cosines = vectors @ vectors.T
    cosines[of[:, None] == of[None]] = -1
    return of_images, float(np.mean(hits)), float((classes[cosines.argmax(axis=1)] == classes).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    images = list(photographs(SHARED).values())
    print("| model | none, images/s | image | boxes |\n|---|---|---|---|")
    for name in options.models:
        rates = cost(name, images)
        print(f"| {name} | {' | '.join(f'{rate:.1f}' for rate in rates.values())} |", flush=True)
    print("\n| model | pooled from | images found again | boxes found again | nearest box of the same class |")
    print("|---|---|---|---|---|")
    for name in options.models:
        for part in ("backbone", "neck"):
            shares = " | ".join(f"{share:.1%}" for share in found_again(name, part, images))
            print(f"| {name} | {part} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
