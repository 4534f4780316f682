"""What the golden files of the models hold, and how it is computed."""

from pathlib import Path
from typing import Final

import numpy as np

from batchdet.decode.canvas import paint
from batchdet.decode.image import decode_image
from batchdet.model.detector import Detector, open_detector
from batchdet.spec import ModelSpec

FILE: Final = Path(__file__).parent / "models.json"
MODELS: Final = ("yolo26n", "yolo11n_320", "yolox_nano_416", "deimv2_atto_320")
PHOTOGRAPHS: Final = ("bus.jpg", "zidane.jpg")
TOLERANCE: Final = {"box_px": 1.0, "score": 0.005}
"""Per field: other CPUs round differently."""

Golden = dict[str, dict[str, list[list[float]]]]
"""Model -> photograph -> rows of x_min, y_min, x_max, y_max, score, class_id."""


def detect(detector: Detector, path: Path) -> list[list[float]]:
    """Return what a detector finds in one photograph, rounded for the file."""
    rgb = decode_image(path.read_bytes(), 100_000_000)
    letterbox = detector.letterbox(rgb.shape[1], rgb.shape[0])
    canvas = np.empty((1, letterbox.canvas[1], letterbox.canvas[0], 3), np.uint8)
    paint(rgb, letterbox, canvas[0])
    (found,) = detector.detect(canvas, [letterbox])
    return [
        [*(round(v, 2) for v in box), round(score, 4), class_id]
        for box, score, class_id in zip(
            found.boxes_xyxy.tolist(), found.scores.tolist(), found.class_ids.tolist(), strict=True
        )
    ]


def compute(shared: Path, model: str) -> dict[str, list[list[float]]]:
    """Return what a model finds in every photograph, with default settings."""
    detector = open_detector(ModelSpec(uri=str(shared / "models" / f"{model}.onnx")))
    return {name: detect(detector, shared / "images" / name) for name in PHOTOGRAPHS}
