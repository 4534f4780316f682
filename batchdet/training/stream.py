"""Sources of batches; the one here draws an endless stream of fresh canvases, no scene seen twice."""

from collections.abc import Generator, Iterator
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from batchdet.decode.canvas import paint
from batchdet.geometry.letterbox import Letterbox
from batchdet.sample.scene import TRAINING_SEED_START, render_scene
from batchdet.training.assignment import Truth

CANVASES_WH_PX = (
    (320, 320), (320, 320), (320, 256), (320, 224), (224, 320), (256, 256), (224, 224), (416, 416)
)  # fmt: skip
"""Width and height of the canvases that batches draw from; small ones are cheap, large ones add sizes."""

JPEG_FRACTION = 0.3

Batch = tuple[Tensor, Truth]


class Source(Protocol):
    """Where batches come from; the batch of an index is always the same."""

    def open(self, start: int) -> Generator[Batch, None, None]:
        """Yield batches without end, from the one of index ``start``; closing it ends its helpers."""


class SceneSource:
    """Freshly drawn scenes, drawn in a process of its own, a few batches ahead; see `SceneStream`."""

    def __init__(self, seed: int, batch_rows: int, ahead: int = 8) -> None:
        self.seed, self.batch_rows, self.ahead = seed, batch_rows, ahead

    def open(self, start: int) -> Generator[Batch, None, None]:
        """Yield batches without end, from the one of index ``start``."""
        stream = SceneStream(self.seed, self.batch_rows, start)
        yield from DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=self.ahead)


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
        canvas_px = CANVASES_WH_PX[int(rng.integers(len(CANVASES_WH_PX)))]
        canvases = np.empty((self.batch_rows, canvas_px[1], canvas_px[0], 3), dtype=np.uint8)
        boxes, class_ids = [], []
        for row in range(self.batch_rows):
            scene = render_scene(self.seed, index * self.batch_rows + row)
            rgb = _through_jpeg(rng, scene.rgb) if rng.random() < JPEG_FRACTION else scene.rgb
            letterbox = Letterbox.centred((rgb.shape[1], rgb.shape[0]), canvas_px)
            paint(rgb, letterbox, canvases[row])
            boxes.append(torch.from_numpy(letterbox.to_canvas(scene.boxes_xyxy)))
            class_ids.append(torch.from_numpy(scene.class_ids))
        images = torch.from_numpy(canvases).permute(0, 3, 1, 2)  # channels last in memory, as the net wants it
        return images, pad_truth(boxes, class_ids)


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
