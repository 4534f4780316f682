import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchdet.model.placement import nearest
from batchdet.pipeline.canvases import choose_canvases

LARGEST = (640, 640)
COCO = {
    (640, 480): 680,
    (640, 448): 612,
    (480, 640): 255,
    (448, 640): 136,
    (640, 640): 119,
    (640, 416): 68,
    (640, 384): 51,
    (640, 512): 34,
    (640, 320): 17,
    (384, 640): 17,
}
"""Of 2,040 photographs, most of them."""


def of_photographs(count: int) -> dict[tuple[int, int], float]:
    return {canvas: share * count / sum(COCO.values()) for canvas, share in COCO.items()}


@pytest.mark.parametrize(
    ("count", "loose", "tight"),
    [
        (50, 0, 0),
        (120, 1, 1),
        (1_000, 3, 5),
        (5_000, 4, 8),
        (10**6, 6, 10),
    ],
)
def test_few_loose_canvases_do_for_many_tight_ones(count: int, loose: int, tight: int) -> None:
    images = of_photographs(count)
    assert len(choose_canvases(images, LARGEST, loose=True)) == loose
    assert len(choose_canvases(images, LARGEST, loose=False)) == tight


def test_the_three_of_a_thousand_photographs() -> None:
    assert choose_canvases(of_photographs(1_000), LARGEST, loose=True) == ((640, 480), (480, 640), (640, 640))


def test_a_canvas_that_no_image_has_may_serve_several() -> None:
    images = {(640, 576): 40.0, (640, 608): 40.0, (576, 640): 40.0, (608, 640): 40.0}
    assert choose_canvases(images, LARGEST, loose=True) == (LARGEST,)
    assert len(choose_canvases(images, LARGEST, loose=False)) == 4


def test_no_more_than_a_process_should_hold() -> None:
    images = {(32 * width, 640): 1e6 for width in range(1, 21)}
    assert len(choose_canvases(images, LARGEST, loose=True)) == 6
    assert len(choose_canvases(images, LARGEST, loose=False)) == 12


SIDES = st.integers(1, 6).map(lambda n: 32 * n)
IMAGES = st.dictionaries(st.tuples(SIDES, SIDES), st.floats(0, 3000), max_size=6)


@given(IMAGES, st.booleans())
def test_it_is_about_as_good_as_the_best_of_all_choices(images: dict[tuple[int, int], float], loose: bool) -> None:
    largest = (192, 192)

    def cost(graphs: tuple[tuple[int, int], ...]) -> float:
        total = 30.0 * 192 * 192 * len(graphs)
        for own, count in images.items():
            width, height = nearest(own, graphs) if loose else own
            total += count * width * height * (1 if (width, height) in graphs else 2)
        return total

    chosen = choose_canvases(images, largest, loose)
    candidates = {*images, largest}
    best = min(cost(some) for n in range(len(candidates) + 1) for some in itertools.combinations(candidates, n))
    assert set(chosen) <= candidates
    assert cost(chosen) <= 1.2 * best
    assert choose_canvases(dict(reversed(images.items())), largest, loose) == chosen
