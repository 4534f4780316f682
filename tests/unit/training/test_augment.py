import numpy as np
import pytest

from batchdet.training.augment import vary

COLOUR = np.array([250, 10, 10])


def test_boxes_stay_on_what_they_are_of() -> None:
    """A red rectangle is looked for in the pixels of a hundred views."""
    seen = mirrored = 0
    for seed in range(100):
        rgb = np.full((90, 120, 3), 114, np.uint8)
        rgb[20:60, 60:110] = COLOUR
        out = np.empty((96, 128, 3), np.uint8)
        view = vary(np.random.default_rng(seed), rgb, np.array([[60, 20, 110, 60]], np.float32), out)
        red = out[:, :, 0].astype(int) - out[:, :, 1] > 60
        ys, xs = np.nonzero(red)
        if not len(view.kept):
            assert red.sum() < 0.45 * 40 * 50 * 1.8
            continue
        seen += 1
        found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert np.abs(view.boxes_xyxy[0] - found).max() < 2.5, seed
        mirrored += found[0] + found[2] < 128
        assert (view.boxes_xyxy[0] >= 0).all()
        assert (view.boxes_xyxy[0] <= [128, 96, 128, 96]).all()
    assert seen > 80
    assert 20 < mirrored < 80


def test_without_flip_nothing_is_mirrored_and_views_repeat() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    rgb[:, :20] = 0
    for seed in range(20):
        out, again = (np.empty((64, 64, 3), np.uint8) for _ in range(2))
        vary(np.random.default_rng(seed), rgb, np.zeros((0, 4), np.float32), out, flip=False)
        view = vary(np.random.default_rng(seed), rgb, np.zeros((0, 4), np.float32), again, flip=False)
        assert (out == again).all()
        assert view.boxes_xyxy.shape == (0, 4)


@pytest.mark.parametrize("shape", [(8, 8, 3), (1000, 9, 3), (9, 2000, 3)])
def test_odd_shapes_are_taken(shape: tuple[int, int, int]) -> None:
    for seed in range(10):
        out = np.empty((64, 64, 3), np.uint8)
        vary(np.random.default_rng(seed), np.zeros(shape, np.uint8), np.array([[0, 0, 8, 8]], np.float32), out)
