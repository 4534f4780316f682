"""What the contenders without a detector of their own share: letterbox, boxes, columns, a clock for the steady state.

NumPy and OpenCV only, and nothing of batchdet: this is what its user would write without it.
"""

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

SIZE_PX = 640
SCORE_THRESHOLD = 0.25
BATCH_ROWS = 8
SCHEMA = pa.schema(
    [("image", pa.string()), ("class_id", pa.int32())]
    + [(name, pa.float32()) for name in ("score", "x_min", "y_min", "x_max", "y_max")]
)


@dataclass(frozen=True)
class Canvas:
    """A square canvas and how the image came onto it.

    Args:
        pixels: ``(640, 640, 3)`` uint8, RGB.
        scale: Canvas pixels per image pixel.
        shift: ``(left, top)`` in canvas pixels.
        size: ``(width, height)`` of the image.
    """

    pixels: npt.NDArray[np.uint8]
    scale: float
    shift: tuple[int, int]
    size: tuple[int, int]


def arguments() -> argparse.Namespace:
    """Read the command line that every contender has: a folder of images, a model, a folder for the results."""
    parser = argparse.ArgumentParser()
    for name in ("--images", "--model", "--output"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def letterbox(rgb: npt.NDArray[np.uint8]) -> Canvas:
    """Resize an image to fit the canvas and centre it on gray."""
    height, width = rgb.shape[:2]
    scale = min(SIZE_PX / width, SIZE_PX / height)
    w, h = round(width * scale), round(height * scale)
    left, top = (SIZE_PX - w) // 2, (SIZE_PX - h) // 2
    pixels = np.full((SIZE_PX, SIZE_PX, 3), 114, np.uint8)
    content = rgb if (w, h) == (width, height) else cv2.resize(rgb, (w, h), interpolation=cv2.INTER_LINEAR)
    pixels[top : top + h, left : left + w] = content
    return Canvas(pixels, scale, (left, top), (width, height))


def to_input(canvases: list[Canvas]) -> npt.NDArray[np.float32]:
    """Stack canvases to what the model takes: ``(N, 3, 640, 640)`` float32 in [0, 1]."""
    planes = np.stack([canvas.pixels for canvas in canvases]).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(planes).astype(np.float32) / np.float32(255)


def to_rows(image: str, output: npt.NDArray[np.float32], canvas: Canvas) -> list[dict[str, object]]:
    """Turn an image's ``(300, 6)`` output into rows, in pixels of the image."""
    kept = output[output[:, 4] >= SCORE_THRESHOLD]
    boxes = (kept[:, :4] - np.tile(canvas.shift, 2)) / canvas.scale
    boxes = np.clip(boxes, 0, np.tile(canvas.size, 2))
    return [
        {"image": image, "class_id": int(row[5]), "score": float(row[4])}
        | dict(zip(("x_min", "y_min", "x_max", "y_max"), map(float, box), strict=True))
        for row, box in zip(kept, boxes, strict=True)
    ]


def tick(images: int) -> None:
    """Note that so many images are labelled now, from whichever process: the benchmark reads the steady rate off it."""
    if path := os.environ.get("BENCH_TICKS"):
        with Path(path).open("a") as file:
            file.write(f"{time.time():.4f} {images}\n")
