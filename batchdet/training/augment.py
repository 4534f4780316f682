"""Varied views of an image for training: mirrored, larger or smaller, cut, in other colours.

Source: the scale jitter and crop of SSD, arXiv:1512.02325, simplified.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from batchdet.decode.canvas import Pixels, paint
from batchdet.geometry.boxes import area
from batchdet.geometry.letterbox import Letterbox, Size

_SIZE = (0.6, 1.6)
"""Range of the factor on the size that a plain letterbox would give."""
_MIN_VISIBLE = 0.35
"""An object of which a cut leaves less is not asked for any more."""
_MIN_SIDE_PX = 3.0
_PLAIN = 0.2
"""Share of the images that are shown as labelling will show them."""


@dataclass(frozen=True)
class View:
    """An image on its canvas.

    Attributes:
        boxes_xyxy: ``(K, 4)`` float32 canvas pixels.
        kept: ``(K,)`` int64, which of the objects these are.
    """

    boxes_xyxy: npt.NDArray[np.float32]
    kept: npt.NDArray[np.int64]


def vary(
    rng: np.random.Generator,
    rgb: Pixels,
    boxes_xyxy: npt.NDArray[np.float32],
    out: Pixels,
    flip: bool = True,
    place: Callable[[Size, Size], Letterbox] = Letterbox.centred,
) -> View:
    """Paint a varied view of an image.

    Args:
        rng: decides how it is varied.
        rgb: ``(h, w, 3)`` uint8.
        boxes_xyxy: ``(M, 4)`` pixels of the image.
        out: ``(H, W, 3)`` uint8 canvas, overwritten whole.
        flip: whether it may be mirrored; left and right must then mean nothing.
        place: places what is cut out on the canvas.
    """
    height, width = rgb.shape[:2]
    canvas = (out.shape[1], out.shape[0])
    boxes = boxes_xyxy.astype(np.float32)
    factor = 1.0 if rng.random() < _PLAIN else float(np.exp(rng.uniform(*np.log(_SIZE))))
    cut_w, cut_h = (max(8, min(side, round(side / factor))) for side in (width, height))
    left, top = (int(rng.integers(0, side - cut + 1)) for side, cut in ((width, cut_w), (height, cut_h)))
    letterbox = place((cut_w, cut_h), canvas)
    if factor < 1.0:
        content = tuple(max(1, round(side * factor)) for side in letterbox.content)
        pad = tuple(int(rng.integers(0, side - inner + 1)) for side, inner in zip(canvas, content, strict=True))
        letterbox = replace(letterbox, content=(content[0], content[1]), pad=(pad[0], pad[1]))
    paint(rgb[top : top + cut_h, left : left + cut_w], letterbox, out)
    shifted = boxes - np.array([left, top, left, top], np.float32)
    inside = np.clip(shifted, 0, np.array([cut_w, cut_h, cut_w, cut_h], np.float32))
    on_canvas = letterbox.to_canvas(inside)
    sides = on_canvas[:, 2:] - on_canvas[:, :2]
    visible = area(inside) / np.maximum(area(boxes), 1e-6)
    kept = np.flatnonzero((visible >= _MIN_VISIBLE) & (sides.min(axis=1, initial=np.inf) >= _MIN_SIDE_PX))
    on_canvas = on_canvas[kept]
    if flip and rng.random() < 0.5:
        out[:] = out[:, ::-1].copy()
        on_canvas[:, [0, 2]] = canvas[0] - on_canvas[:, [2, 0]]
    _recolour(rng, out)
    return View(on_canvas, kept.astype(np.int64))


def _recolour(rng: np.random.Generator, out: Pixels) -> None:
    """Change brightness, contrast and saturation a little; half of the images stay as they are."""
    if rng.random() < 0.5:
        return
    contrast, brightness = rng.uniform(0.75, 1.25), rng.uniform(-24, 24)
    saturation = rng.uniform(0.6, 1.4)
    pixels = out.astype(np.float32)
    gray = cv2.cvtColor(out, cv2.COLOR_RGB2GRAY)[:, :, None].astype(np.float32)
    varied = (gray + saturation * (pixels - gray) - 114) * contrast + 114 + brightness
    out[:] = np.clip(varied, 0, 255).astype(np.uint8)
