"""Painting an image onto the model's canvas."""

from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from batchdet.decode.image import Buffer, decode_reduced
from batchdet.geometry.letterbox import REDUCTIONS, Letterbox, reduced

Pixels = npt.NDArray[np.uint8]
_PILLOW: Final = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def decoded_onto_canvas(
    data: Buffer, max_pixels: int, place: Callable[[int, int], Letterbox], reduce: bool
) -> tuple[Pixels, Letterbox]:
    """Decode an image and paint it on a canvas of its own.

    Args:
        data: The encoded image.
        max_pixels: Larger ones are errors.
        place: Gives the letterbox for ``(width_px, height_px)`` of an upright original.
        reduce: JPEGs are decoded no larger than their place on the canvas takes.

    Returns:
        ``(H, W, 3)`` uint8, and how the image came onto it.

    Raises:
        ImageError: It cannot be decoded.
    """
    rgb, size = decode_reduced(data, max_pixels, lambda size: place(*size).reduction if reduce else 1)
    letterbox = place(*size)
    return painted(rgb, letterbox), letterbox


def painted(rgb: Pixels, letterbox: Letterbox) -> Pixels:
    """Return an image on a canvas of its own, ``(H, W, 3)`` uint8; arguments and errors as of :func:`paint`."""
    canvas = np.empty((letterbox.canvas[1], letterbox.canvas[0], 3), np.uint8)
    paint(rgb, letterbox, canvas)
    return canvas


def paint(rgb: Pixels, letterbox: Letterbox, out: Pixels) -> None:
    """Resize an image into its place on a canvas and fill the rest with the letterbox's gray.

    Args:
        rgb: ``(h, w, 3)`` uint8, the upright original, or decoded smaller by 2, 4 or 8.
        letterbox: Where it goes; made for the original's size.
        out: ``(H, W, 3)`` uint8, C-contiguous (a slice of a batch is); overwritten whole.

    Raises:
        ValueError: ``rgb`` or ``out`` is of another size than the letterbox says.
    """
    size = rgb.shape[1::-1]
    sizes = (letterbox.source, *(reduced(letterbox.source, reduction) for reduction in REDUCTIONS))
    if rgb.shape[2:] != (3,) or size not in sizes:
        raise ValueError(f"the letterbox is for an image {letterbox.source}, got an array {rgb.shape}")
    if out.shape != (letterbox.canvas[1], letterbox.canvas[0], 3):
        raise ValueError(f"the letterbox is for a canvas {letterbox.canvas}, got an array {out.shape}")
    (left, top), (width, height) = letterbox.pad, letterbox.content
    out[:top] = out[top + height :] = letterbox.pad_value
    out[top : top + height, :left] = out[top : top + height, left + width :] = letterbox.pad_value
    place = out[top : top + height, left : left + width]
    if size == letterbox.content:
        place[:] = rgb
    elif letterbox.resample != "linear":
        place[:] = np.asarray(Image.fromarray(rgb).resize((width, height), _PILLOW[letterbox.resample]))
    else:
        place[:] = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)
