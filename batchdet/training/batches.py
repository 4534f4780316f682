"""A COCO data set as a source of batches."""

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np
import torch

from batchdet import storage
from batchdet.decode.canvas import Pixels
from batchdet.decode.image import decode_image
from batchdet.errors import ImageError, SpecError
from batchdet.geometry.letterbox import Letterbox, Size
from batchdet.training.augment import vary
from batchdet.training.coco import CocoData, TruthImage
from batchdet.training.stream import Batch, pad_truth

_MAX_PIXELS = 100_000_000
_AHEAD = 4


class CocoSource:
    """Batches of varied views; every image comes once an epoch, in an order of its own.

    Batch ``i`` is fixed by ``(seed, i)``, whatever came before, so that a training goes on as it was begun.
    Threads decode and paint a few batches ahead (the codecs let go of the interpreter).

    Args:
        data: The images to learn from.
        seed: Of order and variation.
        batch_rows: Images in a batch.
        canvases: ``(width_px, height_px)`` of the canvases that batches draw from.
        place: Places an image on a canvas.
        flip: Whether images may be mirrored.
        rank: Which share of each batch this worker takes.
        size: How many shares there are.
    """

    def __init__(
        self,
        data: CocoData,
        seed: int,
        batch_rows: int,
        canvases: Sequence[Size],
        place: Callable[[Size, Size], Letterbox] = Letterbox.centred,
        flip: bool = True,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self._data, self._seed, self._rows, self._flip = data, seed, batch_rows, flip
        self._rank, self._size = rank, size
        self._canvases, self._place = tuple(canvases), place

    def open(self, start: int) -> Generator[Batch, None, None]:
        """Yield batches without end, from the one of index ``start``; closing it ends its threads."""
        cv2.setNumThreads(1)
        waiting: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 1) // 2)), "batches") as threads:
            try:
                index = start
                while True:
                    while len(waiting) < _AHEAD:
                        waiting.append(threads.submit(self.batch, index))
                        index += 1
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def batch(self, index: int) -> Batch:
        """Make this worker's share of one batch: canvases (N, 3, H, W) uint8 and their truth."""
        width, height = self._canvases[int(np.random.default_rng([self._seed, index, 1]).integers(len(self._canvases)))]
        rows = range(self._rank, self._rows, self._size)
        canvases = np.empty((len(rows), height, width, 3), np.uint8)
        boxes, class_ids = [], []
        for place, row in enumerate(rows):
            position = index * self._rows + row
            image = self._image(position)
            single = ~image.crowd
            rng = np.random.default_rng([self._seed, position, 3])
            rgb = read_pixels(image)
            view = vary(rng, rgb, image.boxes_xyxy[single], canvases[place], self._flip, self._place)
            boxes.append(torch.from_numpy(view.boxes_xyxy))
            class_ids.append(torch.from_numpy(image.class_ids[single][view.kept]))
        images = torch.from_numpy(canvases).permute(0, 3, 1, 2)  # channels last in memory, as the net wants it
        return images, pad_truth(boxes, class_ids)

    def _image(self, position: int) -> TruthImage:
        """Return the image at a position of the endless row of epochs."""
        epoch, place = divmod(position, len(self._data.images))
        order = np.random.default_rng([self._seed, epoch, 2]).permutation(len(self._data.images))
        return self._data.images[int(order[place])]


def read_pixels(image: TruthImage) -> Pixels:
    """Read and decode an image of a data set, ``(H, W, 3)`` uint8 RGB.

    Raises:
        SpecError: It cannot be decoded, or is of another size than the truth says.
    """
    try:
        rgb = decode_image(storage.read_bytes(image.uri), _MAX_PIXELS)
    except ImageError as error:
        raise SpecError(f"{image.uri}: not an image that can be learned from: {error.message}") from error
    if rgb.shape[:2] != (image.height_px, image.width_px):
        raise SpecError(
            f"{image.uri}: the upright image is {rgb.shape[1]} x {rgb.shape[0]} px, the truth says "
            f"{image.width_px} x {image.height_px}; its boxes would be wrong"
        )
    return rgb
