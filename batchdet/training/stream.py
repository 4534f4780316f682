"""An endless stream of freshly drawn canvases; no scene is ever seen twice."""

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from batchdet.sample.scene import TRAINING_SEED_START, render_scene
from batchdet.training.assignment import Truth

PAD_GREY = 114
CANVASES_WH_PX = (
    (320, 320), (320, 320), (320, 256), (320, 224), (224, 320), (256, 256), (224, 224), (416, 416)
)  # fmt: skip
"""Width and height of the canvases that batches draw from; small ones are cheap, large ones add sizes."""

JPEG_FRACTION = 0.3

Batch = tuple[Tensor, Truth]


class SceneStream(IterableDataset[Batch]):
    """Batches of training scenes, each batch on one canvas shape, fixed by ``(seed, batch index)``.

    Args:
        seed: added to `TRAINING_SEED_START`.
        batch_rows: images in a batch.
        start: index of the first batch, to go on where an earlier training stopped.
    """

    def __init__(self, seed: int, batch_rows: int, start: int = 0) -> None:
        self.seed = TRAINING_SEED_START + seed
        self.batch_rows = batch_rows
        self.start = start

    def __iter__(self) -> Iterator[Batch]:
        """Yield canvases (N, 3, H, W) uint8 and their truth, for ever."""
        cv2.setNumThreads(1)
        index = self.start
        while True:
            yield self.batch(index)
            index += 1

    def batch(self, index: int) -> Batch:
        """Draw one batch."""
        rng = np.random.default_rng([self.seed, index, 1])
        width_px, height_px = CANVASES_WH_PX[int(rng.integers(len(CANVASES_WH_PX)))]
        canvases, boxes, class_ids = [], [], []
        for row in range(self.batch_rows):
            scene = render_scene(self.seed, index * self.batch_rows + row)
            rgb = _through_jpeg(rng, scene.rgb) if rng.random() < JPEG_FRACTION else scene.rgb
            canvas, scale, left_px, top_px = letterbox(rgb, width_px, height_px)
            canvases.append(torch.from_numpy(canvas))
            shift = np.array([left_px, top_px, left_px, top_px], dtype=np.float32)
            boxes.append(torch.from_numpy(scene.boxes_xyxy * np.float32(scale) + shift))
            class_ids.append(torch.from_numpy(scene.class_ids))
        images = torch.stack(canvases).permute(0, 3, 1, 2)  # channels last in memory, as the net wants it
        return images, pad_truth(boxes, class_ids)


def open_stream(stream: SceneStream, ahead: int = 8) -> Iterator[Batch]:
    """Draw a stream's batches in a process of its own, a few ahead."""
    loader = DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=ahead)
    return iter(loader)


def pad_truth(boxes_xyxy: list[Tensor], class_ids: list[Tensor]) -> Truth:
    """Stack objects of several canvases, (M_i, 4) and (M_i,), into one `Truth`."""
    most = max((len(ids) for ids in class_ids), default=0)
    truth = Truth(
        torch.zeros(len(class_ids), most, 4),
        torch.zeros(len(class_ids), most, dtype=torch.int64),
        torch.zeros(len(class_ids), most, dtype=torch.bool),
    )
    for row, (boxes, ids) in enumerate(zip(boxes_xyxy, class_ids, strict=True)):
        truth.boxes_xyxy[row, : len(ids)] = boxes
        truth.class_ids[row, : len(ids)] = ids
        truth.present[row, : len(ids)] = True
    return truth


def _through_jpeg(rng: np.random.Generator, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    quality = int(rng.integers(70, 97))
    _, code = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), dtype=np.uint8)


def letterbox(
    rgb: npt.NDArray[np.uint8], width_px: int, height_px: int
) -> tuple[npt.NDArray[np.uint8], float, int, int]:
    """Fit an image onto a canvas as inference does: aspect kept, centred, the rest grey.

    Returns:
        The (height_px, width_px, 3) uint8 canvas, the scale, and the left and top offset in pixels.
    """
    scale = min(width_px / rgb.shape[1], height_px / rgb.shape[0])
    inner_w, inner_h = min(width_px, round(rgb.shape[1] * scale)), min(height_px, round(rgb.shape[0] * scale))
    left_px, top_px = (width_px - inner_w) // 2, (height_px - inner_h) // 2
    canvas = np.full((height_px, width_px, 3), PAD_GREY, dtype=np.uint8)
    canvas[top_px : top_px + inner_h, left_px : left_px + inner_w] = cv2.resize(
        rgb, (inner_w, inner_h), interpolation=cv2.INTER_LINEAR
    )
    return canvas, scale, left_px, top_px
