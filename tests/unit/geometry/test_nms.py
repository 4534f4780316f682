import time

import numpy as np
import pytest

from batchdet.geometry.nms import nms

PAIR = [[0, 0, 10, 10], [1, 0, 11, 10]]  # IoU 0.818


def test_nothing_stays_nothing() -> None:
    assert nms([], [], [], 0.5, 10).tolist() == []


def test_the_weaker_of_two_that_overlap_goes() -> None:
    assert nms(PAIR, [0.5, 0.9], [1, 1], 0.7, 10).tolist() == [1]
    assert nms(PAIR, [0.5, 0.9], [1, 1], 0.9, 10).tolist() == [1, 0]


def test_classes_do_not_suppress_each_other() -> None:
    assert nms(PAIR, [0.5, 0.9], [1, 2], 0.7, 10).tolist() == [1, 0]


def test_equal_scores_are_taken_in_order() -> None:
    assert nms([PAIR[0]] * 3, [0.5] * 3, [0] * 3, 0.7, 10).tolist() == [0]


def test_a_suppressed_box_suppresses_nothing() -> None:
    chain = [[0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]]  # neighbours 0.54, ends 0.25
    assert nms(chain, [0.9, 0.8, 0.7], [0] * 3, 0.5, 10).tolist() == [0, 2]


def test_at_most_so_many() -> None:
    apart = np.arange(20)[:, None] * 100 + np.array([0, 0, 10, 10])
    assert nms(apart, np.linspace(0.1, 0.9, 20), np.zeros(20), 0.5, 3).tolist() == [19, 18, 17]


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 boxes, 1 scores, 2 class ids"):
        nms(PAIR, [0.5], [1, 1], 0.5, 10)


def test_eight_thousand_candidates_take_a_moment() -> None:
    random = np.random.default_rng(0)
    corner = random.uniform(0, 600, (8400, 2))
    boxes = np.concatenate([corner, corner + random.uniform(5, 100, (8400, 2))], axis=1)
    start = time.perf_counter()
    kept = nms(boxes, random.random(8400), random.integers(0, 80, 8400), 0.7, 300)
    assert len(kept) == 300
    assert time.perf_counter() - start < 2
