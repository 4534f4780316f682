"""Which canvases get graphs of their own, in a runtime that compiles one for each."""

from collections.abc import Collection, Mapping
from typing import Final

from batchdet.geometry.letterbox import Size
from batchdet.model.placement import nearest

_GRAPH_IMAGES: Final = 30
"""A graph takes as long as so many images on the largest canvas: OpenVINO's, with a rational SiLU, is compiled in 1.2 s
once on a node and read in 0.35 s by each actor, and an image takes 20 ms. Without that all three are less, alike."""
_WITHOUT_GRAPH: Final = 2.0
"""So many times as long takes an image without a graph of its own canvas."""
_MOST_TIGHT: Final = 12
_MOST_LOOSE: Final = 6
"""More save hardly 1 % of 20,000 photographs, and take some 50 MiB each."""


def choose_canvases(images: Mapping[Size, float], largest: Size, loose: bool) -> tuple[Size, ...]:
    """Choose the canvases for which a graph saves more than it takes.

    Starting with none, the one is added, or dropped again, that saves most, as long as one does. Of 4,000 random jobs
    this came within 2 % of the best choice in all but one; a search for the worst found one 16 % off.

    Args:
        images: Canvas ``(width_px, height_px)`` -> how many images of an actor have it as their own, by estimate.
        largest: The largest canvas that there is.
        loose: Whether an image may stand on a larger canvas than its own, see
            :func:`batchdet.model.placement.nearest`.

    Returns:
        Those first that most images have as their own.
    """
    graph = _GRAPH_IMAGES * _pixels(largest)

    def cost(graphs: Collection[Size]) -> float:
        """Return what graphs and images take, in pixels of canvases that have graphs."""
        total = float(graph * len(graphs))
        for own, count in images.items():
            stands = nearest(own, graphs) if loose else own
            total += count * _pixels(stands) * (1.0 if stands in graphs else _WITHOUT_GRAPH)
        return total

    candidates = sorted({*images, largest})
    chosen: frozenset[Size] = frozenset()
    most = _MOST_LOOSE if loose else _MOST_TIGHT
    while True:
        steps = [chosen ^ {canvas} for canvas in candidates]
        best = min((step for step in steps if len(step) <= most), key=cost)
        if cost(best) >= cost(chosen):
            break
        chosen = best
    return tuple(sorted(chosen, key=lambda canvas: (-images.get(canvas, 0.0), canvas)))


def _pixels(canvas: Size) -> int:
    return canvas[0] * canvas[1]
