"""Three further kinds of object, which the embedded model does not know: something to train on."""

from batchdet.sample.shapes import Kind, Part, Rng, band, ellipse, hsv, polygon, rectangle, shade, vivid


def snowman(rng: Rng) -> list[Part]:
    """Three balls with a hat, buttons and a carrot."""
    snow = hsv(rng.uniform(0.5, 0.65), rng.uniform(0.0, 0.2), rng.uniform(0.85, 1.0))
    hat, scarf = vivid(rng), vivid(rng)
    parts = [
        Part(ellipse(0.0, 0.29, 0.27, 0.21), snow, True),
        Part(ellipse(0.0, 0.0, 0.2, 0.17), snow, True),
        Part(ellipse(0.0, -0.23, 0.145, 0.14), snow, True),
        Part(rectangle(-0.19, -0.37, 0.19, -0.32), hat, True),
        Part(rectangle(-0.115, -0.5, 0.115, -0.34), hat, True),
        Part(rectangle(-0.15, -0.14, 0.15, -0.085), scarf),
        Part(polygon((0.0, -0.23), (0.14, -0.2), (0.0, -0.185)), hsv(0.07, 0.95, 0.95)),
    ]
    dots = [(-0.05, -0.265, 0.02), (0.06, -0.265, 0.02), (0.0, -0.02, 0.025), (0.0, 0.07, 0.025), (0.0, 0.27, 0.03)]
    return parts + [Part(ellipse(x, y, radius, radius), (30, 30, 36)) for x, y, radius in dots]


def kite(rng: Rng) -> list[Part]:
    """Four coloured panels on a cross, and a tail with bows."""
    first, second, bow = vivid(rng), vivid(rng), vivid(rng)
    top, bottom, left, right, middle = (0.0, -0.5), (0.0, 0.2), (-0.27, -0.22), (0.27, -0.22), (0.0, -0.22)
    parts = [
        Part(polygon(top, right, bottom, left), first, True),
        Part(band(0.06, 0.32, 0.1, 0.03, 90, 270, 1.2), shade(first, 0.6), True),
        Part(polygon(top, right, middle), second),
        Part(polygon(left, middle, bottom), second),
    ]
    for x, y in ((-0.035, 0.28), (0.0, 0.42)):
        wings = polygon((x - 0.09, y - 0.05), (x + 0.09, y + 0.05), (x + 0.09, y - 0.05), (x - 0.09, y + 0.05))
        parts.append(Part(wings, bow, True))
    return parts


def anchor(rng: Rng) -> list[Part]:
    """A ring, a stock, a shank and two arms with flukes."""
    metal = vivid(rng) if rng.random() < 0.6 else (120, 128, 142)
    parts = [
        Part(rectangle(-0.045, -0.3, 0.045, 0.42), metal, True),
        Part(rectangle(-0.22, -0.24, 0.22, -0.165), metal, True),
        Part(band(0.0, -0.39, 0.08, 0.05, -2, 182), metal, True),
        Part(band(0.0, -0.39, 0.08, 0.05, 178, 362), metal, True),
        Part(band(0.0, 0.1, 0.33, 0.08, 10, 170), metal, True),
        Part(polygon((-0.44, 0.2), (-0.35, 0.02), (-0.22, 0.17)), metal, True),
        Part(polygon((0.44, 0.2), (0.35, 0.02), (0.22, 0.17)), metal, True),
    ]
    return [*parts, Part(rectangle(-0.02, -0.16, 0.0, 0.36), shade(metal, 1.4))]


NEW_KINDS: tuple[Kind, ...] = (Kind("snowman", snowman, 20), Kind("kite", kite, 40), Kind("anchor", anchor, 30))
"""Every new kind, in the order of its class_id."""
