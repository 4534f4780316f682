"""Predictions before a run, and what came."""

import math

import pytest

from batchdet.prediction import ATTAINED_SHARE, Amount, Basis, Estimate, Past, StartUp, compare, predict
from batchdet.results.speed import prediction_rows, speed_rows, summary
from batchdet.roofline import Alone, Pool, Spread

ALONE = Alone(
    "cpu",
    1,
    12,
    3,
    0.5,
    *(Spread(ms, 0.05) for ms in (5.0, 15.0, 20.0)),
    Spread(50_000, 0.1),
    600_000.0,
    0.0,
    Spread(2, 0.1),
)
POOL = Pool("cpu", 4, 0, 4)
BASIS = Basis.of_alone(ALONE, POOL, StartUp(0.0, 8.0))


def test_an_interval_holds_four_of_five_cases() -> None:
    found = Estimate.around(100.0, 0.1)
    assert (found.low, found.high) == (pytest.approx(100 / math.exp(0.12816), 1e-3), pytest.approx(113.67, 1e-3))
    assert Estimate.around(100.0, 0.3, 0.4) == Estimate.around(100.0, 0.5)
    assert Estimate.around(100.0) == Estimate(100.0, 100.0, 100.0)


def test_counted_images_leave_only_the_rate_open() -> None:
    amount = Amount(10_000, 0)
    found = predict(BASIS, amount, amount, POOL, "cpu", 64, 10)
    assert (found.images.low, found.images.high) == (10_000, 10_000)
    assert found.images_per_s.likely == pytest.approx(4 / 0.020 * ATTAINED_SHARE)
    assert found.time_s.likely == pytest.approx(8 + 10_000 / found.images_per_s.likely + 1.5)
    assert found.hours.likely == pytest.approx(10_000 * 0.020 / ATTAINED_SHARE / 3600)
    assert found.time_s.low < found.time_s.likely < found.time_s.high
    assert (found.hours_of, found.actors) == ("core", 4)


def test_images_are_estimated_from_bytes_and_what_was_seen_of_them_is_certain() -> None:
    far = Amount(None, 50_000 * 100_000).estimate(BASIS)
    assert far == (100_000, pytest.approx(0.1, rel=0.01))
    assert Amount(None, 600_000).estimate(BASIS) == (12, 0.0)
    assert Amount(None, 1_200_000).estimate(BASIS) == (24, pytest.approx(0.1 * 0.5**0.5))
    assert Amount(None, 1_200_000, staged_images=20).estimate(BASIS)[0] == 4
    assert Amount(None, 0).estimate(BASIS) == (0.0, 0.0)


def test_a_job_of_few_segments_keeps_few_actors_busy() -> None:
    small = Amount(100, 0)
    found = predict(BASIS, small, small, Pool("cpu", 64, 0, 64), "cpu", 64, 1)
    assert found.images_per_s.likely == pytest.approx(2 / 0.020 * ATTAINED_SHARE)


def test_without_a_known_cluster_the_hours_stand_and_the_time_is_that_of_one_actor() -> None:
    amount = Amount(10_000, 0)
    known, unknown = (predict(BASIS, amount, amount, pool, "cpu", 64, 10) for pool in (POOL, None))
    assert unknown.hours == known.hours
    assert unknown.time_s.likely == pytest.approx(8 + 4 * (known.time_s.likely - 9.5) + 1.5)
    assert any(text.startswith("for one actor, with 8.0 s") for _, text in prediction_rows(unknown.to_dict()))


def _stats(attained: float = 100.0, steady: bool = True) -> dict[str, object]:
    return {
        "roofline": {"steady": steady, "attained_images_per_s": attained, "pool": {"actors": 2, "device": "cpu"}},
        "run": {"start_up_s": 6.0},
        "images": {"size_bytes": 4_000_000, "listed": 100},
    }


def test_an_earlier_run_is_the_better_source() -> None:
    past = Past.read("r1", 30_000, _stats())
    assert past == Past("r1", 20.0, 6.0, 40_000.0, 300.0)
    assert Past.read("r1", 0, _stats(steady=False)) is None
    assert Past.read("r1", 0, {"images": {"size_bytes": 1, "listed": 1}}) is None
    other = Past.read("r0", 30_000, _stats(50.0))
    assert past is not None
    assert other is not None
    assert Basis.of_past([past]).actor_ms == pytest.approx(20.0)
    both = Basis.of_past([past, other])
    assert both.actor_ms == pytest.approx(20 * 2**0.5)
    assert both.actor_error == pytest.approx(math.log(2) / 2**0.5)
    assert "the last 2 runs, r1 the newest" in both.why
    assert (both.start_up.left_s, Basis.of_past([past], StartUp(1.0, 3.5)).start_up.left_s) == (6.0, 3.5)


def stats_of_a_short_run() -> dict[str, object]:
    rates = {"read_only": 9.0, "decode_only": 8.0, "model_only": 7.0}
    return {
        "attained_images_per_s": 20.0,
        "ceiling_images_per_s": 200.0,
        "share": 0.1,
        "steady": False,
        "bottleneck": "start-up",
        "why": "it was short",
        "rates_images_per_s": rates,
    }


def test_predicted_and_actual_stand_side_by_side() -> None:
    amount = Amount(10_000, 0)
    found = predict(BASIS, amount, amount, POOL, "cpu", 64, 10)
    actual = {"images": 10_000, "images_per_s": 171.0, "time_s": 600.0, "hours": 0.065, "output_bytes": 1_200_000}
    both = compare(found, actual)
    assert both["within"] == {key: key != "time_s" for key in actual}
    rows = dict.fromkeys(text for _, text in speed_rows({"prediction": both}))
    (time,) = (text for text in rows if text.startswith("time"))
    assert "10 min 00 s, predicted 59.5 s" in time
    assert time.endswith("outside the interval")
    assert len(rows) == 5
    slow = compare(found, actual | {"images_per_s": 20.0})
    (rate,) = (row for _, row in speed_rows({"prediction": slow}) if row.startswith("rate"))
    assert rate.endswith("outside the interval")
    assert "10,000, time 59.5 s" in summary(found.to_dict())
    assert speed_rows({}) == speed_rows({"prediction": None}) == []


def test_a_run_that_is_too_short_is_not_judged() -> None:
    amount = Amount(10, 0)
    actual = {"images": 10, "images_per_s": 20.0, "time_s": 9.0, "hours": 0.0002, "output_bytes": 12_000}
    both = compare(predict(BASIS, amount, amount, POOL, "cpu", 64, 10), actual, judged=False)
    assert both["within"] is None
    short = stats_of_a_short_run()
    assert speed_rows({"prediction": both, "roofline": short | {"judged": False}}) == [
        ("Rate", "20.0 images/s, too short a run to judge")
    ]
    assert [name for name, _ in speed_rows({"roofline": short | {"judged": True}})] == [
        "Roofline",
        "Bottleneck",
        "Each alone",
    ]
    assert speed_rows({"roofline": short})[0][0] == "Rate", "as written by an earlier version"


def test_what_has_gone_by_of_a_start_is_known() -> None:
    started = StartUp.under_way(passed_s=10.0, ray_s=8.0)
    found = started.estimate()
    assert found.likely == pytest.approx(10 + 1.2 * 8)
    assert found.low > 10
    assert found.high < 10 + 1.2 * 8 * 1.5
    assert StartUp.under_way(2.0, 0.0).left_s == 2.0
