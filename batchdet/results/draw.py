"""Boxes drawn on photographs, so that a person can judge them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Rectangle = tuple[int, int, int, int]

_MIN_SIDE_PX: Final = 640
_MAX_SIDE_PX: Final = 1600
_FONT: Final = cv2.FONT_HERSHEY_SIMPLEX
_PALETTE: Final = (
    (230, 25, 75),
    (0, 130, 200),
    (255, 200, 25),
    (60, 180, 75),
    (245, 130, 48),
    (145, 30, 180),
    (70, 220, 220),
    (240, 50, 230),
    (190, 240, 60),
    (250, 160, 180),
    (0, 128, 128),
    (170, 110, 40),
    (60, 80, 255),
    (128, 0, 0),
    (150, 240, 180),
    (128, 128, 0),
)
_TRUTH: Final = (255, 255, 255)
_MARGIN: Final = (246, 246, 244)
_INK: Final = (40, 40, 40)


@dataclass(frozen=True)
class Box:
    """One box to draw.

    Args:
        xyxy: Pixels of the image.
        label: Its text.
        class_id: Chooses the colour.
        score: In [0, 1]; null for a box of the ground truth.
    """

    xyxy: tuple[float, float, float, float]
    label: str
    class_id: int
    score: float | None = None


def colour(class_id: int) -> tuple[int, int, int]:
    """Return the RGB colour of a class; neighbouring numbers get colours far apart."""
    if class_id < len(_PALETTE):
        return _PALETTE[class_id]
    hue = (class_id * 0.618033988749895) % 1.0 * 180
    value = (255, 200, 150)[class_id % 3]
    red, green, blue = cv2.cvtColor(np.array([[[hue, 200, value]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue


def draw_boxes(rgb: Pixels, found: Sequence[Box], truth: Sequence[Box] = ()) -> Pixels:
    """Draw boxes on a copy of an image, which is brought to a size at which the tags can be read.

    Args:
        rgb: ``(H, W, 3)`` uint8.
        found: Boxes with label and score, one colour per class.
        truth: Boxes of the ground truth, drawn as dashed white lines.

    Returns:
        ``(H', W', 3)`` uint8 with a longer side of 640 to 1600 pixels.
    """
    side = max(rgb.shape[:2])
    scale = min(max(side, _MIN_SIDE_PX), _MAX_SIDE_PX) / side
    size = (max(round(rgb.shape[1] * scale), 1), max(round(rgb.shape[0] * scale), 1))
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas: Pixels = np.array(cv2.resize(rgb, size, interpolation=kind), np.uint8)
    line = max(round(max(size) / 400), 2)
    for box in truth:
        _dashed(canvas, _scaled(box, scale), line)
    by_area = sorted(found, key=lambda b: (b.xyxy[0] - b.xyxy[2]) * (b.xyxy[3] - b.xyxy[1]))
    for box in by_area:
        x_min, y_min, x_max, y_max = _scaled(box, scale)
        cv2.rectangle(canvas, (x_min, y_min), (x_max, y_max), colour(box.class_id), line, cv2.LINE_AA)
    taken: list[Rectangle] = []
    for box in sorted(found, key=lambda b: -(b.score or 0.0)):
        taken.append(_tag(canvas, _scaled(box, scale), box, taken))
    return canvas


def draw_note(canvas: Pixels, text: str) -> None:
    """Write a note into the upper left corner of a picture, large enough for a contact sheet.

    Args:
        canvas: ``(H, W, 3)`` uint8; changed in place.
        text: A word or a number.
    """
    scale = max(canvas.shape[:2]) / 500
    thickness = max(round(scale * 2), 1)
    (width, height), baseline = cv2.getTextSize(text, _FONT, scale, thickness)
    pad = max(round(height * 0.4), 2)
    cv2.rectangle(canvas, (0, 0), (width + 2 * pad, height + baseline + 2 * pad), _INK, cv2.FILLED)
    cv2.putText(canvas, text, (pad, height + pad), _FONT, scale, _MARGIN, thickness, cv2.LINE_AA)


def _scaled(box: Box, scale: float) -> Rectangle:
    x_min, y_min, x_max, y_max = (round(v * scale) for v in box.xyxy)
    return x_min, y_min, x_max, y_max


def _tag(canvas: Pixels, box: Rectangle, what: Box, taken: Iterable[Rectangle]) -> Rectangle:
    """Write label and score beside a box, where no other tag is; return where."""
    text = what.label if what.score is None else f"{what.label} {what.score:.2f}"
    scale = max(canvas.shape[:2]) / 1600 + 0.06
    thickness = 1 if scale < 0.8 else 2
    (width, height), baseline = cv2.getTextSize(text, _FONT, scale, thickness)
    pad = max(round(height * 0.3), 2)
    wide, high = width + 2 * pad, height + baseline + pad
    rows, columns = canvas.shape[:2]
    x_min, y_min, x_max, y_max = box
    corners = (
        (x_min, y_min - high),
        (x_max - wide, y_min - high),
        (x_min, y_max),
        (x_max - wide, y_max),
        (x_min, y_min),
        (x_max - wide, y_max - high),
        (x_min, (y_min + y_max - high) // 2),
    )
    inside = [(min(max(x, 0), max(columns - wide, 0)), min(max(y, 0), max(rows - high, 0))) for x, y in corners]
    places = [(x, y, x + wide, y + high) for x, y in inside]
    place = min(places, key=lambda one: sum(_overlap(one, other) for other in taken))
    fill = colour(what.class_id)
    cv2.rectangle(canvas, place[:2], place[2:], fill, cv2.FILLED)
    dark = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2] > 140
    ink = (0, 0, 0) if dark else (255, 255, 255)
    cv2.putText(
        canvas, text, (place[0] + pad, place[1] + height + pad // 2 + 1), _FONT, scale, ink, thickness, cv2.LINE_AA
    )
    return place


def _overlap(a: Rectangle, b: Rectangle) -> int:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def _dashed(canvas: Pixels, box: Rectangle, line: int) -> None:
    x_min, y_min, x_max, y_max = box
    step = line * 4
    sides: list[tuple[Any, ...]] = [(x_min, y_min, x_max, y_min), (x_min, y_max, x_max, y_max)]
    sides += [(x_min, y_min, x_min, y_max), (x_max, y_min, x_max, y_max)]
    for x0, y0, x1, y1 in sides:
        dashes = max(math.ceil(max(x1 - x0, y1 - y0) / step), 1)
        for k in range(0, dashes, 2):
            a, b = k / dashes, min((k + 1) / dashes, 1.0)
            start = (round(x0 + (x1 - x0) * a), round(y0 + (y1 - y0) * a))
            end = (round(x0 + (x1 - x0) * b), round(y0 + (y1 - y0) * b))
            cv2.line(canvas, start, end, _TRUTH, line, cv2.LINE_AA)


def contact_sheet(pictures: Sequence[tuple[str, Pixels]], cell_px: tuple[int, int] = (400, 300)) -> Pixels:
    """Put pictures side by side, each with its name below.

    Args:
        pictures: Name and ``(H, W, 3)`` uint8, at least one.
        cell_px: Width and height of a cell.

    Returns:
        ``(H, W, 3)`` uint8, at most four cells wide.
    """
    columns = min(math.ceil(math.sqrt(len(pictures))), 4)
    rows = math.ceil(len(pictures) / columns)
    wide, high = cell_px
    gap, caption = 12, 24
    sheet = np.empty((rows * (high + caption + gap) + gap, columns * (wide + gap) + gap, 3), np.uint8)
    sheet[:] = _MARGIN
    for n, (name, rgb) in enumerate(pictures):
        x, y = gap + n % columns * (wide + gap), gap + n // columns * (high + caption + gap)
        scale = min(wide / rgb.shape[1], high / rgb.shape[0])
        w, h = max(int(rgb.shape[1] * scale), 1), max(int(rgb.shape[0] * scale), 1)
        left, top = x + (wide - w) // 2, y + (high - h) // 2
        sheet[top : top + h, left : left + w] = cv2.resize(rgb, (w, h), interpolation=cv2.INTER_AREA)
        text = name if len(name) <= 44 else f"...{name[-41:]}"
        cv2.putText(sheet, text, (x, y + high + caption - 7), _FONT, 0.45, _INK, 1, cv2.LINE_AA)
    return sheet
