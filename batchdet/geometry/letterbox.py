"""The map from an image onto the model's canvas, with its inverse. The only letterbox in the project."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from batchdet.geometry.boxes import Boxes, as_boxes, clip

PAD_VALUE: Final = 114
"""The gray that YOLO models are trained with around an image."""

Size = tuple[int, int]
Reduction = Literal[1, 2, 4, 8]
"""By how much an image is decoded smaller."""
REDUCTIONS: Final[tuple[Reduction, ...]] = (8, 4, 2)
Resample = Literal["linear", "bilinear", "bicubic"]
"""How pixels are made: OpenCV's linear interpolation between neighbours, or Pillow's filters, which smooth first.

YOLO models are trained with the first. DETR models are trained with the second and lose by the first: DEIMv2-atto
reaches an AP of 0.275 on coco120 with Pillow's and 0.268 with OpenCV's.
"""


@dataclass(frozen=True)
class Letterbox:
    """Where an image stands on a canvas. All sizes are ``(width_px, height_px)``.

    Args:
        source: Size of the upright original.
        canvas: Size of the canvas.
        content: Size that the original is resized to.
        pad: ``(left_px, top_px)``: where the content begins on the canvas.
        pad_value: Gray of the canvas around the content, 0..255.
        resample: How the content's pixels are made.

    Raises:
        ValueError: A size is not positive, or the content does not lie on the canvas.
    """

    source: Size
    canvas: Size
    content: Size
    pad: Size = (0, 0)
    pad_value: int = PAD_VALUE
    resample: Resample = "linear"

    def __post_init__(self) -> None:
        if min(*self.source, *self.canvas, *self.content) < 1:
            raise ValueError(f"sizes must be positive: source {self.source}, canvas {self.canvas}")
        if not all(p >= 0 and p + n <= c for p, n, c in zip(self.pad, self.content, self.canvas, strict=True)):
            raise ValueError(f"content {self.content} at {self.pad} does not lie on the canvas {self.canvas}")

    @classmethod
    def centred(cls, source: Size, canvas: Size, pad_value: int = PAD_VALUE) -> "Letterbox":
        """Keep the aspect ratio and centre the content; an odd pixel of padding goes right or below.

        Source: the YOLO family since YOLOv5; sides and padding are rounded as there.
        """
        content = _content(source, canvas)
        left, top = (max(0, round((c - n) / 2 - 0.1)) for c, n in zip(canvas, content, strict=True))
        return cls(source, canvas, content, (left, top), pad_value)

    @classmethod
    def top_left(cls, source: Size, canvas: Size, pad_value: int = PAD_VALUE) -> "Letterbox":
        """Keep the aspect ratio and begin in the corner; sides are rounded as in :meth:`centred`.

        Source: Ge et al., "YOLOX: Exceeding YOLO Series in 2021", arXiv:2107.08430. Its code rounds sides down,
        which is at most one pixel less and makes no difference that can be told from noise.
        """
        return cls(source, canvas, _content(source, canvas), (0, 0), pad_value)

    @classmethod
    def stretch(cls, source: Size, canvas: Size, resample: Resample = "linear") -> "Letterbox":
        """Fill the canvas, without regard to the aspect ratio, as DETR exports want it."""
        return cls(source, canvas, canvas, resample=resample)

    @property
    def scale(self) -> tuple[float, float]:
        """Canvas pixels per original pixel, along x and y."""
        return self.content[0] / self.source[0], self.content[1] / self.source[1]

    @property
    def reduction(self) -> Reduction:
        """By how much the image may be decoded smaller, so that neither side is shorter than the content's.

        Always 1 for Pillow's filters: they smooth themselves, and are there to equal what the model was trained with.
        """
        if self.resample == "linear":
            for reduction in REDUCTIONS:
                width, height = reduced(self.source, reduction)
                if width >= self.content[0] and height >= self.content[1]:
                    return reduction
        return 1

    def to_canvas(self, xyxy: npt.ArrayLike) -> Boxes:
        """Map boxes from the original image to the canvas.

        Args:
            xyxy: ``(N, 4)`` original pixels.

        Returns:
            ``(N, 4)`` float32, canvas pixels.
        """
        scale, shift = self._affine()
        return (as_boxes(xyxy) * scale + shift).astype(np.float32)

    def to_image(self, xyxy: npt.ArrayLike) -> Boxes:
        """Map boxes from the canvas to the original image and clip them to it.

        Args:
            xyxy: ``(N, 4)`` canvas pixels.

        Returns:
            ``(N, 4)`` float32, original pixels, inside ``[0, width_px] x [0, height_px]``.
        """
        scale, shift = self._affine()
        return clip((as_boxes(xyxy) - shift) / scale, *self.source)

    def _affine(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        return np.array(self.scale * 2), np.array(self.pad * 2, np.float64)


def reduced(size: Size, reduction: Reduction) -> Size:
    """Return the size of an image decoded smaller: each side to the nearest pixel, one at least.

    A last column or row that is less than half full is left out, because it would be stretched to a whole one.
    """
    width, height = (max(1, (2 * side + reduction) // (2 * reduction)) for side in size)
    return width, height


def _content(source: Size, canvas: Size) -> Size:
    """Return the largest size of the source's aspect ratio that fits the canvas, to the nearest pixel."""
    if min(*source, *canvas) < 1:
        raise ValueError(f"sizes must be positive: source {source}, canvas {canvas}")
    ratios = sorted(c / n for c, n in zip(canvas, source, strict=True))
    for ratio in reversed(ratios):  # the larger one fits when the other side is only rounded away from the canvas's
        width, height = (max(1, round(side * ratio)) for side in source)
        if width <= canvas[0] and height <= canvas[1]:
            break
    return width, height


def rectangle_canvas(source: Size, size_px: int, stride: int) -> Size:
    """Return the smallest canvas whose longer side is ``size_px`` and that a letterboxed image fits.

    Args:
        source: ``(width_px, height_px)`` of the original.
        size_px: The canvas's longer side, a multiple of ``stride``.
        stride: Both sides are multiples of it.

    Returns:
        ``(width_px, height_px)``.
    """
    width, height = (-(-side // stride) * stride for side in _content(source, (size_px, size_px)))
    return width, height
