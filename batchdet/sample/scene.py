"""Sample scenes: drawn images of a dozen kinds of object, with their exact boxes.

A scene depends on nothing but ``(seed, index)``, so any subset can be drawn again, in any order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from batchdet.sample.backdrop import develop, paint_backdrop, scatter_clutter
from batchdet.sample.new_shapes import NEW_KINDS
from batchdet.sample.shapes import KINDS, Kind, Part, Rng, shade

CLASSES: tuple[str, ...] = tuple(kind.label for kind in KINDS)
"""Labels in the order of their class_id."""

KIND_SETS: Final[Mapping[str, tuple[Kind, ...]]] = {"known": KINDS, "new": NEW_KINDS}
"""The kinds that the embedded model knows, and others to train on."""

TRAINING_SEED_START = 1_000_000
"""Seeds from here on are for training; those below, ``batchdet sample``'s, are never trained on."""

EMPTY_FRACTION = 0.05
HIDDEN_FRACTION_MAX = 0.35

_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Scene:
    """One drawn image and what it shows.

    Attributes:
        rgb: ``(H, W, 3)`` uint8, RGB.
        boxes_xyxy: ``(N, 4)`` float32, pixels, tight around what is visible of each object.
        class_ids: ``(N,)`` int64, positions in the kinds it was drawn from; `CLASSES` by default.
    """

    rgb: npt.NDArray[np.uint8]
    boxes_xyxy: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int64]


def render_scene(seed: int, index: int, kinds: Sequence[Kind] = KINDS) -> Scene:
    """Draw scene ``index`` of the stream ``seed``.

    Args:
        seed: stream of scenes, 0 or more.
        index: position in the stream, 0 or more.
        kinds: what to draw.

    Returns:
        The scene; about one in twenty shows no object.
    """
    rng = np.random.default_rng([seed, index])
    width_px, height_px = _draw_size(rng)
    image = paint_backdrop(rng, width_px, height_px)
    scatter_clutter(rng, image)
    owners = np.zeros((height_px, width_px), dtype=np.uint8)  # 0 is nobody, k is the k-th object placed
    class_ids: list[int] = []
    areas_px: list[int] = []
    wanted = 0 if rng.random() < EMPTY_FRACTION else int(rng.integers(1, 9))
    for _ in range(wanted):
        class_id = int(rng.integers(len(kinds)))
        area_px = _place(rng, image, owners, areas_px, kinds[class_id])
        if area_px:
            class_ids.append(class_id)
            areas_px.append(area_px)
    boxes = [_visible_box(owners, owner) for owner in range(1, len(areas_px) + 1)]
    return Scene(
        rgb=develop(rng, image),
        boxes_xyxy=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        class_ids=np.array(class_ids, dtype=np.int64),
    )


def _draw_size(rng: Rng) -> tuple[int, int]:
    """Draw width and height: landscape, portrait or square, 320 to 640 px a side."""
    long_px = int(rng.integers(400, 641))
    short_px = max(320, round(long_px * rng.uniform(0.6, 0.85)))
    form = rng.random()
    if form < 0.5:
        return long_px, short_px
    if form < 0.75:
        return short_px, long_px
    side_px = int(rng.integers(320, 641))
    return side_px, side_px


def _place(
    rng: Rng, image: npt.NDArray[np.uint8], owners: npt.NDArray[np.uint8], areas_px: list[int], kind: Kind
) -> int:
    """Paint one object where it hides no other too much; return its area in pixels, 0 if it found no place."""
    height_px, width_px = owners.shape
    parts = kind.draw(rng)
    for _ in range(8):
        size_px = max(height_px, width_px) * float(np.exp(rng.uniform(np.log(0.085), np.log(0.36))))
        outline_px = max(1, round(size_px * rng.uniform(0.012, 0.035)))
        shapes = _pose(rng, parts, size_px, kind.lean)
        corners = np.concatenate(shapes)
        margin = outline_px + 2
        low, high = corners.min(axis=0) - margin, corners.max(axis=0) + margin
        room = np.array([width_px, height_px]) - (high - low)
        if room.min() <= 0:
            continue
        shift = rng.uniform(0, 1, 2) * room - low
        shapes = [shape + shift for shape in shapes]
        left, top = np.floor(low + shift).astype(int)
        right, bottom = np.ceil(high + shift).astype(int)
        window = (slice(max(0, top), bottom), slice(max(0, left), right))
        mask = np.zeros_like(owners[window])
        origin = np.array([max(0, left), max(0, top)])
        local = [_fixed(shape - origin) for shape in shapes]
        edges = [points for points, part in zip(local, parts, strict=True) if part.edge]
        for points in edges:
            _fill(mask, points, 1, outline_px, cv2.LINE_8)
        if _hides_too_much(owners, window, mask, areas_px):
            continue
        owners[window][mask > 0] = len(areas_px) + 1
        canvas = np.ascontiguousarray(image[window])
        line = (250, 250, 250) if rng.random() < 0.25 else shade(parts[0].colour, rng.uniform(0.1, 0.45))
        for points in edges:
            _fill(canvas, points, line, outline_px, cv2.LINE_AA)
        for points, part in zip(local, parts, strict=True):
            cv2.fillPoly(canvas, [points], part.colour, cv2.LINE_AA, _SUBPIXEL_BITS)
        image[window] = canvas
        return int(np.count_nonzero(mask))
    return 0


def _pose(rng: Rng, parts: list[Part], size_px: float, lean: float) -> list[npt.NDArray[np.float64]]:
    """Stretch, mirror, turn and scale the parts of an object; the middle of its frame stays at the origin."""
    stretch = np.sqrt(rng.uniform(0.8, 1.25))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    angle = np.radians(rng.uniform(-lean, lean))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    frame = np.diag([mirror * stretch, 1 / stretch]) @ turn * size_px
    return [part.points @ frame for part in parts]


def _hides_too_much(
    owners: npt.NDArray[np.uint8],
    window: tuple[slice, slice],
    mask: npt.NDArray[np.uint8],
    areas_px: list[int],
) -> bool:
    """Tell whether painting ``mask`` would leave an earlier object with too little to see."""
    hit = np.bincount(owners[window][mask > 0], minlength=len(areas_px) + 1)
    if not hit[1:].any():
        return False
    seen = np.bincount(owners.ravel(), minlength=len(areas_px) + 1)
    return any(
        hit[owner] and seen[owner] - hit[owner] < (1 - HIDDEN_FRACTION_MAX) * area_px
        for owner, area_px in enumerate(areas_px, start=1)
    )


def _visible_box(owners: npt.NDArray[np.uint8], owner: int) -> tuple[int, int, int, int]:
    left, top, width_px, height_px = cv2.boundingRect((owners == owner).view(np.uint8))
    return left, top, left + width_px, top + height_px


def _fixed(points: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Turn float points into OpenCV's fixed point."""
    return np.round(points * (1 << _SUBPIXEL_BITS)).astype(np.int32)


def _fill(
    image: npt.NDArray[np.uint8],
    points: npt.NDArray[np.int32],
    colour: int | tuple[int, int, int],
    outline_px: int,
    line: int,
) -> None:
    """Fill a polygon grown by ``outline_px``, so that together the parts get one common outline."""
    value = (colour,) if isinstance(colour, int) else colour
    cv2.fillPoly(image, [points], value, line, _SUBPIXEL_BITS)
    cv2.polylines(image, [points], True, value, 2 * outline_px, line, _SUBPIXEL_BITS)
