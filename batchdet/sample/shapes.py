"""The twelve kinds of object that a sample scene shows, as outlines in unit coordinates.

An object is a list of parts, painted in order. A part is a filled polygon in a frame whose x runs
right and y runs down, both from about -0.5 to 0.5; parts with ``edge=True`` make up the silhouette
and get the outline, the others are inner details.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Colour = tuple[int, int, int]
Rng = np.random.Generator


@dataclass(frozen=True)
class Part:
    """One filled polygon of an object: ``points`` is ``(K, 2)`` float64 x, y in unit coordinates."""

    points: Points
    colour: Colour
    edge: bool = False


def vivid(rng: Rng, hue_low: float = 0.0, hue_high: float = 1.0) -> Colour:
    """Draw a saturated RGB colour whose hue lies in ``[hue_low, hue_high]`` (a turn is 1)."""
    hue = rng.uniform(hue_low, hue_high) % 1.0
    return hsv(hue, rng.uniform(0.5, 0.95), rng.uniform(0.62, 1.0))


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Return the RGB colour, 0 to 255, of a hue, a saturation and a value in ``[0, 1]``."""
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def shade(colour: Colour, factor: float) -> Colour:
    """Darken a colour (factor below 1) or lighten it towards white (above 1)."""
    if factor <= 1.0:
        red, green, blue = (round(value * factor) for value in colour)
    else:
        red, green, blue = (round(255 - (255 - value) * (2.0 - factor)) for value in colour)
    return red, green, blue


def polygon(*points: tuple[float, float]) -> Points:
    """Make ``(K, 2)`` points from corners."""
    return np.array(points, dtype=np.float64)


def rectangle(x_min: float, y_min: float, x_max: float, y_max: float) -> Points:
    """Make an upright rectangle."""
    return polygon((x_min, y_min), (x_max, y_min), (x_max, y_max), (x_min, y_max))


def ellipse(x: float, y: float, radius_x: float, radius_y: float, start: float = 0.0, end: float = 360.0) -> Points:
    """Make an ellipse, or the pie-less arc of one between two angles in degrees (90 points down)."""
    angles = np.radians(np.linspace(start, end, 25))
    return np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1)


def band(x: float, y: float, radius: float, width: float, start: float, end: float, tall: float = 1.0) -> Points:
    """Make a thick arc between two angles in degrees; ``tall`` stretches it along y."""
    outer = ellipse(x, y, radius + width / 2, (radius + width / 2) * tall, start, end)
    inner = ellipse(x, y, radius - width / 2, (radius - width / 2) * tall, end, start)
    return np.concatenate([outer, inner])


def car(rng: Rng) -> list[Part]:
    """Side view with a cabin, windows and two wheels."""
    paint, glass, tyre = vivid(rng), hsv(0.55, 0.25, rng.uniform(0.8, 1.0)), (40, 40, 46)
    body = polygon((-0.5, 0.0), (-0.46, -0.06), (-0.3, -0.09), (-0.18, -0.26), (0.14, -0.26), (0.29, -0.08),
                   (0.46, -0.04), (0.5, 0.05), (0.49, 0.16), (-0.49, 0.16))  # fmt: skip
    parts = [Part(body, paint, True)]
    parts += [Part(ellipse(x, 0.15, 0.11, 0.11), tyre, True) for x in (-0.27, 0.28)]
    parts += [
        Part(polygon((-0.23, -0.09), (-0.14, -0.21), (-0.03, -0.21), (-0.03, -0.09)), glass),
        Part(polygon((0.01, -0.09), (0.01, -0.21), (0.12, -0.21), (0.22, -0.09)), glass),
        Part(rectangle(-0.48, 0.04, 0.49, 0.075), shade(paint, 0.7)),
        Part(ellipse(0.46, 0.0, 0.03, 0.035), (255, 236, 150)),
        Part(rectangle(-0.5, -0.02, -0.45, 0.03), (214, 40, 40)),
    ]
    parts += [Part(ellipse(x, 0.15, 0.11, 0.11), tyre) for x in (-0.27, 0.28)]
    return parts + [Part(ellipse(x, 0.15, 0.05, 0.05), (205, 208, 214)) for x in (-0.27, 0.28)]


def house(rng: Rng) -> list[Part]:
    """Front view with a pitched roof, a chimney, a door and windows."""
    wall = hsv(rng.uniform(0, 1), rng.uniform(0.08, 0.45), rng.uniform(0.82, 1.0))
    roof, door = vivid(rng), vivid(rng)
    pane = (255, 230, 140) if rng.random() < 0.4 else (150, 205, 240)
    parts = [
        Part(rectangle(0.17, -0.45, 0.29, -0.15), shade(roof, 0.7), True),
        Part(rectangle(-0.37, -0.1, 0.37, 0.48), wall, True),
        Part(polygon((-0.5, -0.06), (0.0, -0.5), (0.5, -0.06)), roof, True),
        Part(rectangle(-0.09, 0.16, 0.09, 0.48), door),
        Part(ellipse(0.05, 0.33, 0.017, 0.017), (250, 240, 200)),
        Part(ellipse(0.0, -0.2, 0.075, 0.075), pane),
    ]
    for x in (-0.235, 0.235):
        parts.append(Part(rectangle(x - 0.09, 0.04, x + 0.09, 0.22), shade(wall, 0.6)))
        parts.append(Part(rectangle(x - 0.07, 0.06, x + 0.07, 0.2), pane))
        parts.append(Part(rectangle(x - 0.01, 0.06, x + 0.01, 0.2), shade(wall, 0.6)))
    return parts


def tree(rng: Rng) -> list[Part]:
    """A fir of three tiers, or a broad-leaved tree with a round crown."""
    leaf = hsv(rng.uniform(0.22, 0.42), rng.uniform(0.5, 0.9), rng.uniform(0.4, 0.85))
    if rng.random() < 0.2:
        leaf = hsv(rng.uniform(0.03, 0.12), 0.85, 0.9)
    trunk = hsv(0.07, rng.uniform(0.45, 0.7), rng.uniform(0.35, 0.6))
    parts = [Part(rectangle(-0.065, 0.15, 0.065, 0.5), trunk, True)]
    if rng.random() < 0.5:
        for step, (low, high, half) in enumerate([(0.32, -0.1, 0.36), (0.1, -0.3, 0.29), (-0.13, -0.5, 0.21)]):
            corners = polygon((-half, low), (0.0, high), (half, low))
            parts.append(Part(corners, shade(leaf, 0.8 + 0.15 * step), True))
        return parts
    lobes = [(-0.2, 0.02, 0.2), (0.2, 0.02, 0.2), (0.0, -0.24, 0.24), (-0.13, -0.16, 0.18), (0.14, -0.14, 0.18),
             (0.0, 0.06, 0.2)]  # fmt: skip
    parts += [Part(ellipse(x, y, radius, radius), leaf, True) for x, y, radius in lobes]
    parts.append(Part(ellipse(-0.08, -0.26, 0.11, 0.1), shade(leaf, 1.3)))
    fruit = hsv(0.99, 0.85, 0.9) if rng.random() < 0.5 else shade(leaf, 0.75)
    spots = [(0.12, -0.12), (-0.2, 0.02), (0.03, 0.08), (0.22, 0.04), (-0.05, -0.09)]
    return parts + [Part(ellipse(x, y, 0.033, 0.033), fruit) for x, y in spots]


def fish(rng: Rng) -> list[Part]:
    """Side view with a forked tail, fins, stripes and an eye."""
    scale, fin = vivid(rng), vivid(rng)
    parts = [
        Part(polygon((0.2, 0.0), (0.5, -0.24), (0.42, 0.0), (0.5, 0.24)), fin, True),
        Part(polygon((-0.15, -0.15), (0.02, -0.33), (0.16, -0.27), (0.15, -0.08)), fin, True),
        Part(polygon((-0.08, 0.16), (0.04, 0.3), (0.12, 0.12)), fin, True),
        Part(ellipse(-0.11, 0.0, 0.39, 0.22), scale, True),
    ]
    for x in (-0.06, 0.07, 0.18)[: int(rng.integers(1, 4))]:
        half = 0.2 * float(np.sqrt(max(0.0, 1 - ((x + 0.11) / 0.39) ** 2)))
        parts.append(Part(ellipse(x, 0.0, 0.032, half), shade(fin, 1.2)))
    return [
        *parts,
        Part(ellipse(-0.32, -0.05, 0.058, 0.058), (255, 255, 255)),
        Part(ellipse(-0.335, -0.05, 0.03, 0.03), (20, 20, 30)),
        Part(polygon((-0.5, 0.03), (-0.4, 0.06), (-0.4, 0.085), (-0.49, 0.05)), shade(scale, 0.5)),
    ]


def star(rng: Rng) -> list[Part]:
    """Five points, with a paler star inside."""
    colour = vivid(rng, 0.08, 0.17) if rng.random() < 0.5 else vivid(rng)
    angles = np.radians(np.arange(10) * 36 - 90)
    radii = np.where(np.arange(10) % 2 == 0, 0.5, 0.5 * rng.uniform(0.4, 0.5))
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    return [Part(points, colour, True), Part(points * 0.6, shade(colour, 1.35))]


def key(rng: Rng) -> list[Part]:
    """A bow with a hole, a shaft and two or three teeth."""
    metal = vivid(rng, 0.09, 0.15) if rng.random() < 0.45 else vivid(rng)
    if rng.random() < 0.25:
        metal = (178, 184, 194)
    parts = [
        Part(rectangle(-0.13, -0.05, 0.5, 0.05), metal, True),
        Part(rectangle(0.4, 0.0, 0.5, 0.2), metal, True),
        Part(rectangle(0.23, 0.0, 0.32, 0.16), metal, True),
        Part(band(-0.3, 0.0, 0.15, 0.1, -2, 182), metal, True),
        Part(band(-0.3, 0.0, 0.15, 0.1, 178, 362), metal, True),
    ]
    if rng.random() < 0.5:
        parts.append(Part(rectangle(0.08, 0.0, 0.16, 0.12), metal, True))
    return [
        *parts,
        Part(rectangle(-0.08, -0.03, 0.46, -0.01), shade(metal, 1.4)),
        Part(band(-0.3, 0.0, 0.165, 0.03, 190, 280), shade(metal, 1.4)),
    ]


def cup(rng: Rng) -> list[Part]:
    """A mug with a handle, a drink in it and a band around it."""
    clay, ring = vivid(rng), vivid(rng)
    drink = hsv(0.07, 0.7, 0.35) if rng.random() < 0.6 else hsv(0.1, 0.6, 0.8)
    wall = polygon((-0.42, -0.3), (0.22, -0.3), (0.18, 0.33), (0.12, 0.4), (-0.32, 0.4), (-0.38, 0.33))
    return [
        Part(band(0.22, 0.02, 0.2, 0.085, -100, 100, 0.95), clay, True),
        Part(wall, clay, True),
        Part(ellipse(-0.1, -0.3, 0.32, 0.1), shade(clay, 1.25), True),
        Part(ellipse(-0.1, -0.29, 0.26, 0.07), drink),
        Part(polygon((-0.405, -0.04), (0.205, -0.04), (0.195, 0.12), (-0.395, 0.12)), ring),
        Part(polygon((-0.34, -0.15), (-0.28, -0.13), (-0.26, 0.3), (-0.31, 0.3)), shade(clay, 1.4)),
    ]


def umbrella(rng: Rng) -> list[Part]:
    """An open canopy of coloured panels with a scalloped hem and a crook."""
    first, second = vivid(rng), vivid(rng)
    if rng.random() < 0.4:
        second = (248, 246, 240)
    wood = hsv(0.07, 0.6, 0.45) if rng.random() < 0.6 else (60, 62, 70)
    parts = [
        Part(rectangle(-0.022, -0.5, 0.022, 0.4), wood, True),
        Part(band(0.09, 0.38, 0.09, 0.045, 0, 180), wood, True),
    ]
    edges = np.array([-0.5, -0.29, 0.0, 0.29, 0.5])
    dome = ellipse(0.0, 0.02, 0.5, 0.45, 180, 360)
    scallops = [ellipse((a + b) / 2, 0.02, (a - b) / 2, 0.07, 180, 360) for a, b in zip(edges[1:], edges, strict=False)]
    parts.append(Part(np.concatenate([dome, *scallops[::-1]]), first, True))
    for low, high in ((-0.29, 0.0), (0.29, 0.5)):
        side_low = ellipse(0.0, 0.02, abs(low), 0.45, 270, 180 if low < 0 else 360)
        side_high = ellipse(0.0, 0.02, abs(high), 0.45, 270, 180 if high < 0 else 360)
        hem = ellipse((low + high) / 2, 0.02, (low - high) / 2, 0.07, 180, 360)
        parts.append(Part(np.concatenate([side_low, hem, side_high[::-1]]), second))
    return parts


def boat(rng: Rng) -> list[Part]:
    """A sailing boat with a main sail, a jib and a pennant."""
    hull, sail = vivid(rng), hsv(rng.uniform(0, 1), rng.uniform(0.0, 0.35), rng.uniform(0.9, 1.0))
    jib = vivid(rng) if rng.random() < 0.5 else sail
    return [
        Part(rectangle(-0.05, -0.48, -0.015, 0.22), hsv(0.07, 0.55, 0.45), True),
        Part(polygon((0.01, -0.43), (0.4, 0.14), (0.01, 0.14)), sail, True),
        Part(polygon((-0.08, -0.32), (-0.08, 0.14), (-0.38, 0.14)), jib, True),
        Part(polygon((-0.05, -0.5), (-0.05, -0.4), (-0.2, -0.45)), (220, 50, 50), True),
        Part(polygon((-0.5, 0.2), (0.5, 0.2), (0.42, 0.34), (0.32, 0.43), (-0.32, 0.43), (-0.42, 0.34)), hull, True),
        Part(polygon((-0.485, 0.23), (0.48, 0.23), (0.455, 0.28), (-0.455, 0.28)), shade(hull, 1.5)),
    ]


def heart(rng: Rng) -> list[Part]:
    """The usual heart with a highlight."""
    colour = vivid(rng, 0.9, 1.03) if rng.random() < 0.5 else vivid(rng)
    turn = np.linspace(0, 2 * np.pi, 41)[:-1]
    x = 16 * np.sin(turn) ** 3
    y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
    points = np.stack([x / 33, (y - 2.5) / 33], axis=1)
    return [Part(points, colour, True), Part(band(-0.22, -0.15, 0.13, 0.05, 175, 265), shade(colour, 1.5))]


def mushroom(rng: Rng) -> list[Part]:
    """A spotted cap on a pale stem."""
    cap = vivid(rng, -0.04, 0.1) if rng.random() < 0.5 else vivid(rng)
    stem = hsv(0.11, rng.uniform(0.05, 0.3), rng.uniform(0.85, 1.0))
    dome = np.concatenate([ellipse(0.0, 0.02, 0.48, 0.5, 180, 360), ellipse(0.0, 0.02, 0.48, 0.1, 0, 180)])
    trunk = polygon((-0.14, 0.05), (0.14, 0.05), (0.16, 0.3), (0.23, 0.46), (0.12, 0.5), (-0.12, 0.5), (-0.23, 0.46),
                    (-0.16, 0.3))  # fmt: skip
    spots = [(-0.25, -0.1, 0.08), (0.03, -0.3, 0.09), (0.27, -0.12, 0.075), (0.03, -0.05, 0.06)]
    return [
        Part(trunk, stem, True),
        Part(ellipse(0.0, 0.12, 0.17, 0.04), shade(stem, 0.8)),
        Part(dome, cap, True),
        *(Part(ellipse(x, y, radius, radius * 0.85), (252, 248, 238)) for x, y, radius in spots),
    ]


def rocket(rng: Rng) -> list[Part]:
    """A pointed hull with fins, a porthole and a flame."""
    hull = hsv(rng.uniform(0, 1), rng.uniform(0.0, 0.3), rng.uniform(0.85, 1.0))
    fin = vivid(rng)
    side = np.array([(0.0, -0.5), (0.07, -0.4), (0.13, -0.27), (0.155, -0.1), (0.15, 0.1), (0.11, 0.26)])
    body = np.concatenate([side, side[::-1] * [-1, 1]])
    nose = np.concatenate([side[:3], side[2::-1] * [-1, 1]])
    flame = vivid(rng, 0.02, 0.12)
    return [
        Part(polygon((-0.09, 0.25), (0.09, 0.25), (0.05, 0.4), (0.0, 0.5), (-0.05, 0.4)), flame, True),
        Part(polygon((-0.04, 0.26), (0.04, 0.26), (0.0, 0.4)), (255, 240, 160)),
        Part(polygon((-0.13, 0.0), (-0.3, 0.2), (-0.3, 0.38), (-0.1, 0.24)), fin, True),
        Part(polygon((0.13, 0.0), (0.3, 0.2), (0.3, 0.38), (0.1, 0.24)), fin, True),
        Part(body, hull, True),
        Part(nose, fin),
        Part(rectangle(-0.115, 0.2, 0.115, 0.25), shade(hull, 0.6)),
        Part(ellipse(0.0, -0.08, 0.09, 0.09), shade(fin, 0.6)),
        Part(ellipse(0.0, -0.08, 0.06, 0.06), (140, 210, 250)),
    ]


@dataclass(frozen=True)
class Kind:
    """One kind of object: its label, how to draw it and how far it may lean either way, in degrees."""

    label: str
    draw: Callable[[Rng], list[Part]]
    lean: float


KINDS: tuple[Kind, ...] = (
    Kind("car", car, 20),
    Kind("house", house, 12),
    Kind("tree", tree, 15),
    Kind("fish", fish, 40),
    Kind("star", star, 180),
    Kind("key", key, 180),
    Kind("cup", cup, 20),
    Kind("umbrella", umbrella, 40),
    Kind("boat", boat, 18),
    Kind("heart", heart, 35),
    Kind("mushroom", mushroom, 25),
    Kind("rocket", rocket, 180),
)
"""Every kind, in the order of its class_id."""
