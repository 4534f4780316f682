"""Drawn boxes: at the right place, in colours that differ, at a size at which tags can be read."""

import numpy as np
import pytest

from batchdet.results.draw import Box, colour, contact_sheet, draw_boxes


def near(pixels, wanted):
    return np.abs(pixels.astype(int) - np.array(wanted)).max(axis=-1) < 25


def test_a_box_is_drawn_where_it_is_and_the_image_is_left_alone():
    grey = np.full((480, 640, 3), 128, np.uint8)
    drawn = draw_boxes(grey, [Box((100, 200, 300, 400), "car", 0, 0.5)])
    assert drawn.shape == grey.shape
    assert (grey == 128).all()
    for x, y in ((100, 300), (300, 300), (200, 200), (200, 400)):
        assert near(drawn[y, x], colour(0))
    changed = np.argwhere((drawn != 128).any(axis=-1))
    assert changed.min(axis=0)[1] >= 97
    assert changed.max(axis=0).tolist() <= [403, 303]
    assert (drawn[250:380, 150:280] == 128).all()


def test_no_boxes_change_nothing():
    grey = np.full((480, 640, 3), 7, np.uint8)
    assert (draw_boxes(grey, []) == grey).all()


@pytest.mark.parametrize(
    ("shape", "side"), [((50, 100), 640), ((1, 1), 640), ((3000, 1000), 1600), ((700, 800), 800), ((2, 5000), 1600)]
)
def test_pictures_have_a_readable_size(shape, side):
    drawn = draw_boxes(np.zeros((*shape, 3), np.uint8), [Box((0, 0, shape[1], shape[0]), "car", 3, 0.9)])
    assert max(drawn.shape[:2]) == side


def test_boxes_and_tags_stay_within_the_image():
    boxes = [Box((-50, -50, 2000, 2000), "x" * 300, 5, 1.0), Box((639, 479, 640, 480), "corner", 900, 0.1)]
    assert draw_boxes(np.zeros((480, 640, 3), np.uint8), boxes).shape == (480, 640, 3)


def test_tags_of_neighbours_do_not_cover_each_other():
    grey = np.full((480, 640, 3), 128, np.uint8)
    boxes = [Box((200, 200, 400, 300), "first", 0, 0.9), Box((200, 200, 600, 450), "second", 1, 0.8)]
    both = draw_boxes(grey, boxes)
    for box in boxes:
        alone = near(draw_boxes(grey, [box]), colour(box.class_id)).sum()
        assert near(both, colour(box.class_id)).sum() > 0.75 * alone


def test_truth_is_dashed_and_below():
    black = np.zeros((480, 640, 3), np.uint8)
    drawn = draw_boxes(black, [], [Box((100, 100, 300, 300), "car", 0)])
    line = near(drawn[100, 100:300], (255, 255, 255))
    assert 0.3 < line.mean() < 0.8
    found = draw_boxes(black, [Box((100, 100, 300, 300), "car", 0, 0.5)], [Box((100, 100, 300, 300), "car", 0)])
    assert not near(found[200, 100:102], (255, 255, 255)).any()


def test_colours_differ():
    colours = [np.array(colour(k)) for k in range(16)]
    nearest = min(np.abs(a - b).sum() for n, a in enumerate(colours) for b in colours[:n])
    assert nearest > 60
    assert len({colour(k) for k in range(80)}) == 80
    assert all(0 <= c <= 255 for k in range(2000) for c in colour(k))


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (2, (1, 2)), (5, (2, 3)), (12, (3, 4)), (30, (8, 4))])
def test_contact_sheet(count, shape):
    pictures = [(f"{'long/' * 20}{n}.jpg", np.full((480, 640, 3), 200, np.uint8)) for n in range(count)]
    sheet = contact_sheet(pictures)
    rows, columns = shape
    assert sheet.shape == (rows * 336 + 12, columns * 412 + 12, 3)
    assert near(sheet, (200, 200, 200)).sum() > count * 400 * 300 * 0.95


def test_contact_sheet_takes_any_shape():
    odd = [(str(s), np.zeros((*s, 3), np.uint8)) for s in ((1, 640), (640, 1), (1600, 3), (300, 400))]
    assert contact_sheet(odd).ndim == 3
