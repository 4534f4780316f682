"""What a sample scene shows behind, between and over its objects: ground, clutter, noise."""

from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from batchdet.sample.shapes import Colour, Rng, hsv, shade

Image = npt.NDArray[np.uint8]

_NOISE_SIDE_PX = 704  # the largest image and a margin to shift within


def muted(rng: Rng) -> Colour:
    """Draw an RGB colour of low or middling saturation, for grounds."""
    return hsv(rng.uniform(0, 1), rng.uniform(0.03, 0.5), rng.uniform(0.25, 1.0))


def paint_backdrop(rng: Rng, width_px: int, height_px: int) -> Image:
    """Paint a ground of one of five sorts: gradient, clouds, landscape, pattern or texture.

    Returns:
        ``(height_px, width_px, 3)`` uint8 RGB.
    """
    size_px = (width_px, height_px)
    first = np.array(muted(rng), dtype=np.float32)
    second = np.array(muted(rng), dtype=np.float32)
    sort = int(rng.integers(5))
    if sort == 1:
        grid = rng.random((int(rng.integers(3, 8)), int(rng.integers(3, 8)), 1), dtype=np.float32)
        small = cv2.resize(grid, (64, 64), interpolation=cv2.INTER_CUBIC)[:, :, None].clip(0, 1)
        return _enlarge(first + (second - first) * small, size_px)
    if sort == 3:
        second = first * np.float32(0.8) + second * np.float32(0.2) + np.float32(rng.uniform(-12, 12))
        return _pattern(rng, size_px, _colour(first), _colour(second))
    angle = rng.uniform(0, 2 * np.pi) if sort != 2 else np.pi / 2
    y, x = np.mgrid[0:32, 0:32].astype(np.float32) / 31 - 0.5
    ramp = (x * np.cos(angle) + y * np.sin(angle))[:, :, None].astype(np.float32) / 1.42 + 0.5
    if sort == 4:
        second = first * rng.uniform(0.7, 1.0)
    image = _enlarge(first + (second - first) * ramp, size_px)
    if sort == 2:
        _hills(rng, image)
    if sort == 4:
        cell_px = float(rng.uniform(3, 14))
        shape = (max(2, int(height_px / cell_px)), max(2, int(width_px / cell_px)))
        grain = cv2.resize(rng.random(shape, dtype=np.float32), size_px, interpolation=cv2.INTER_LINEAR)
        grain = ((grain - 0.5) * rng.uniform(15, 60)).astype(np.int16)
        image = _image(cv2.add(image, cv2.merge([grain, grain, grain]), dtype=cv2.CV_8U))
    return image


def scatter_clutter(rng: Rng, image: Image) -> None:
    """Draw up to a dozen blobs, strokes, frames and arcs, none of them a kind of object, in place."""
    height_px, width_px = image.shape[:2]
    for _ in range(int(rng.integers(0, 13))):
        x, y = int(rng.integers(width_px)), int(rng.integers(height_px))
        reach_px = float(rng.uniform(8, 70))
        colour = muted(rng)
        sort = int(rng.integers(5))
        if sort == 0:
            end = (x + int(rng.uniform(-3, 3) * reach_px), y + int(rng.uniform(-3, 3) * reach_px))
            cv2.line(image, (x, y), end, colour, int(rng.integers(1, 7)), cv2.LINE_AA)
        elif sort == 1:
            angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
            radii = reach_px * rng.uniform(0.4, 1.0, angles.size)
            points = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)
            cv2.fillPoly(image, [np.round(points).astype(np.int32)], colour, cv2.LINE_AA)
        elif sort == 2:
            axes = (int(reach_px * rng.uniform(0.3, 1)), int(reach_px * rng.uniform(0.3, 1)))
            turn = float(rng.uniform(0, 180))
            cv2.ellipse(image, (x, y), axes, turn, 0, 360, colour, -1, cv2.LINE_AA)
        elif sort == 3:
            corner = (x + int(reach_px * rng.uniform(0.3, 1.5)), y + int(reach_px * rng.uniform(0.3, 1.5)))
            cv2.rectangle(image, (x, y), corner, colour, int(rng.choice([-1, 2, 4])), cv2.LINE_AA)
        else:
            start = float(rng.uniform(0, 360))
            axes = (int(reach_px), int(reach_px * rng.uniform(0.4, 1)))
            end_angle = start + float(rng.uniform(60, 240))
            width = int(rng.integers(1, 6))
            cv2.ellipse(image, (x, y), axes, start, 0, end_angle - start, colour, width, cv2.LINE_AA)


def develop(rng: Rng, image: Image) -> Image:
    """Do what a camera does: exposure and contrast, some blur, some sensor noise."""
    if rng.random() < 0.7:
        gain, offset = rng.uniform(0.7, 1.2), rng.uniform(-18, 18)
        levels = np.clip(np.arange(256) * gain + offset, 0, 255).astype(np.uint8)
        image = _image(cv2.LUT(image, levels))
    if rng.random() < 0.35:
        image = _image(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.2))))
    if rng.random() < 0.5:
        height_px, width_px = image.shape[:2]
        top, left = rng.integers(0, _NOISE_SIDE_PX - 640 + 1, 2)
        noise = _noise(int(rng.integers(1, 6)))[top : top + height_px, left : left + width_px]
        image = _image(cv2.add(image, noise, dtype=cv2.CV_8U))
    return image


@cache
def _noise(strength: int) -> npt.NDArray[np.int16]:
    """Return one fixed field of normal noise of ``2.5 * strength`` grey levels; scenes shift within it."""
    rng = np.random.default_rng(20260)
    field = rng.standard_normal((_NOISE_SIDE_PX, _NOISE_SIDE_PX, 3), dtype=np.float32)
    return np.round(field * 2.5 * strength).astype(np.int16)


def _enlarge(small: npt.NDArray[np.float32], size_px: tuple[int, int]) -> Image:
    return _image(cv2.resize(small.clip(0, 255).astype(np.uint8), size_px, interpolation=cv2.INTER_CUBIC))


def _pattern(rng: Rng, size_px: tuple[int, int], first: Colour, second: Colour) -> Image:
    width_px, height_px = size_px
    image = np.empty((height_px, width_px, 3), dtype=np.uint8)
    image[:] = first
    step_px = int(rng.integers(14, 48))
    sort = int(rng.integers(3))
    if sort == 0:
        slope_px = int(rng.uniform(-1, 1) * height_px)
        for x in range(-height_px, width_px + height_px, 2 * step_px):
            cv2.line(image, (x, 0), (x + slope_px, height_px), second, max(2, step_px // 2), cv2.LINE_AA)
    elif sort == 1:
        rows, columns = -(-height_px // step_px), -(-width_px // step_px)
        board = (np.add.outer(np.arange(rows), np.arange(columns)) % 2).astype(bool)
        cells = np.where(board[:, :, None], np.array(first, np.uint8), np.array(second, np.uint8))
        big = cells.repeat(step_px, axis=0).repeat(step_px, axis=1)[:height_px, :width_px]
        image = np.ascontiguousarray(big)
    else:
        for y in range(0, height_px + step_px, step_px):
            for x in range(0, width_px + step_px, step_px):
                cv2.circle(image, (x, y), max(2, step_px // 5), second, -1, cv2.LINE_AA)
    return image


def _hills(rng: Rng, image: Image) -> None:
    height_px, width_px = image.shape[:2]
    ground = hsv(rng.uniform(0.08, 0.45), rng.uniform(0.15, 0.5), rng.uniform(0.35, 0.8))
    x = np.linspace(0, width_px, 24)
    for step in range(int(rng.integers(1, 4))):
        base = height_px * (rng.uniform(0.45, 0.65) + 0.12 * step)
        y = base + height_px * rng.uniform(0.01, 0.08) * np.sin(x / width_px * rng.uniform(3, 12) + rng.uniform(0, 6))
        line = np.concatenate([np.stack([x, y], axis=1), [[width_px, height_px], [0, height_px]]])
        cv2.fillPoly(image, [np.round(line).astype(np.int32)], shade(ground, 1.15 - 0.15 * step), cv2.LINE_AA)


def _colour(value: npt.NDArray[np.float32]) -> Colour:
    red, green, blue = (int(channel) for channel in value.clip(0, 255))
    return red, green, blue


def _image(array: object) -> Image:
    return np.asarray(array, dtype=np.uint8)
