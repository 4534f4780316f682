import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchdet.geometry.letterbox import Letterbox
from batchdet.model.placement import MOST_LOOSE, Placement, nearest
from batchdet.model.preprocess import Preprocess

FEW = ((480, 640), (640, 480), (640, 640))
TIGHT = Placement(Preprocess(), (640, 640), 32)
LOOSE = Placement(Preprocess(), (640, 640), 32, FEW)


@pytest.mark.parametrize(
    ("own", "stands"),
    [
        ((640, 480), (640, 480)),
        ((640, 448), (640, 480)),
        ((448, 640), (480, 640)),
        ((640, 320), (640, 480)),  # half more, and no more
        ((640, 288), (640, 288)),
        ((640, 512), (640, 640)),
        ((512, 640), (640, 640)),
        ((96, 96), (96, 96)),
    ],
)
def test_an_image_stands_on_the_nearest_canvas(own: tuple[int, int], stands: tuple[int, int]) -> None:
    assert nearest(own, FEW) == stands
    assert nearest(own, FEW[::-1]) == stands
    assert nearest(own, ()) == own


@given(st.tuples(st.integers(1, 9000), st.integers(1, 9000)), st.sampled_from(["centred", "top_left"]))
def test_on_a_looser_canvas_an_image_is_moved_by_whole_strides(source: tuple[int, int], letterbox: str) -> None:
    fed = Preprocess(letterbox=letterbox)  # type: ignore[arg-type]
    tight = Placement(fed, (640, 640), 32).letterbox(*source)
    loose = Placement(fed, (640, 640), 32, FEW).letterbox(*source)
    assert (loose.source, loose.content) == (tight.source, tight.content)
    assert loose.canvas == nearest(tight.canvas, FEW)
    moved = np.subtract(loose.pad, tight.pad)
    added = np.subtract(loose.canvas, tight.canvas)
    assert (added % 32 == 0).all()
    np.testing.assert_array_equal(moved, added if letterbox == "centred" else (0, 0))
    assert np.prod(tight.canvas) <= np.prod(loose.canvas) <= MOST_LOOSE * np.prod(tight.canvas)
    boxes = np.array([[0, 0, *source]], np.float32)
    np.testing.assert_allclose(loose.to_image(loose.to_canvas(boxes)), boxes, rtol=1e-5)


def test_without_a_stride_canvases_stay_whole() -> None:
    whole = Placement(Preprocess(), (320, 320), None, ((384, 320), (640, 640)))
    assert whole.letterbox(640, 427) == Letterbox.centred((640, 427), (320, 320))


@pytest.mark.parametrize("placement", [TIGHT, LOOSE, Placement(Preprocess(mean=(1, 2, 3)), (300, 200), None)])
def test_another_process_places_alike(placement: Placement) -> None:
    assert Placement.of(json.loads(json.dumps(asdict(placement)))) == placement


def test_what_the_model_cannot_have_is_not_looked_at() -> None:
    other = Placement(Preprocess(), (640, 640), 32, ((672, 672), (640, 450), (640, 480)))
    assert other.letterbox(640, 427).canvas == (640, 480)
    assert other.letterbox(640, 640).canvas == (640, 640)


def test_tight_is_the_rule() -> None:
    assert TIGHT.letterbox(640, 427).canvas == (640, 448)
    assert LOOSE.letterbox(640, 427).canvas == (640, 480)
