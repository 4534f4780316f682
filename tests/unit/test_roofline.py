"""What a pool could do, what it did, and what is to blame."""

from dataclasses import replace
from itertools import count

import pytest

from batchdet.roofline import Alone, Pace, Pool, Spread, roofline

ALONE = Alone(
    "cpu", 1, 12, 3, 0.5, *(Spread(ms, 0.05) for ms in (5.0, 15.0, 20.0, 50_000.0)), 600_000.0, 0.0, Spread(2, 0.1)
)
TWO_CORES = Pool("cpu", 2, 0, 2)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def pace(rate: float, segments: int = 40, start_up_s: float = 5.0, **step_ms: float) -> Pace:
    """A run of 64 images a segment, staged one after the other at this rate; steps as milliseconds an image."""
    clock = Clock()
    found = Pace(clock.now, clock)
    times_s = {step: ms * 64 / 1e3 for step, ms in step_ms.items()}
    clock.now += start_up_s + sum(times_s.get(step, 0.0) for step in ("decode", "infer", "rows", "stage"))
    for _ in range(segments):
        found.add(64, times_s)
        clock.now += 64 / rate
    return found


def test_the_ceiling_is_what_all_actors_do_without_loss() -> None:
    found = roofline(TWO_CORES, ALONE, "", pace(95, read=0.4, decode=5, infer=15.5, rows=0.2, stage=0.2, idle=0.1))
    assert found["ceiling_images_per_s"] == pytest.approx(2 / 0.020)
    assert found["attained_images_per_s"] == pytest.approx(95)
    assert found["share"] == pytest.approx(0.95)
    assert found["rates_images_per_s"] == {"read_only": 5000.0, "decode_only": 400.0, "model_only": 133.333}
    assert (found["bottleneck"], found["steady"]) == ("model", True)
    assert found["alone"]["work_ms"] == {"mean": 20.0, "error": 0.05}


def test_decoding_beside_the_model_is_not_added_to_it() -> None:
    gpu = replace(ALONE, device="gpu", decode_ms=Spread(8, 0.1), model_ms=Spread(0.5, 0.1))
    found = roofline(Pool("gpu", 2, 16, 2), gpu, "", pace(1900, start_up_s=0.5, decode=0.9, infer=0.1, read=0.2))
    assert found["ceiling_images_per_s"] == pytest.approx(2000)  # 16 threads decode 2,000 images/s, two GPUs do 4,000
    assert found["bottleneck"] == "decode"


def test_two_actors_of_a_gpu_take_turns() -> None:
    gpu = replace(ALONE, device="gpu", decode_ms=Spread(1, 0.1), model_ms=Spread(0.5, 0.1))
    steps = pace(1900, start_up_s=0.5, decode=0.1, infer=1.0, read=0.2)
    found = roofline(Pool("gpu", 2, 16, 2, per_device=2), gpu, "", steps)
    assert (found["rates_images_per_s"]["model_only"], found["ceiling_images_per_s"]) == (2000, 2000)
    assert found["bottleneck"] == "model"
    without = roofline(Pool("gpu", 2, 16, 2, per_device=2), None, "none", steps)
    assert without["rates_images_per_s"]["model_only"] == 2000, "in the pool each saw the other's turns"


@pytest.mark.parametrize(
    ("rate", "steps", "name"),
    [
        (95, {"decode": 5, "infer": 15}, "model"),
        (50, {"decode": 10, "infer": 29}, "contention"),
        (50, {"decode": 5, "infer": 15, "idle": 18}, "read"),
        (50, {"decode": 5, "infer": 15, "stage": 19}, "stage"),
        (49, {"decode": 5, "infer": 15, "read": 40}, "read"),
        (60, {"decode": 5, "infer": 15, "idle": 1, "stage": 1}, "model"),
    ],
)
def test_the_bottleneck_is_named(rate: float, steps: dict[str, float], name: str) -> None:
    assert roofline(TWO_CORES, ALONE, "", pace(rate, **steps))["bottleneck"] == name


def test_actors_that_slow_each_other_down_are_seen_only_with_figures_of_one_alone() -> None:
    """Two actors on one core: each step takes twice as long, and the shares of the steps stay the same."""
    run = pace(50, decode=10, infer=30)
    assert roofline(TWO_CORES, ALONE, "", run)["share"] == pytest.approx(0.5)
    assert "40.0 ms an image in the pool, 20.0 alone" in roofline(TWO_CORES, ALONE, "", run)["why"]
    without = roofline(TWO_CORES, None, "no image can be read", run)
    assert (without["bottleneck"], without["share"]) == ("model", pytest.approx(1.0))
    assert (without["alone"], without["alone_missing"]) == (None, "no image can be read")


def test_a_probe_that_was_disturbed_does_not_lower_the_ceiling() -> None:
    found = roofline(TWO_CORES, ALONE, "", pace(190, decode=4, infer=6))
    assert found["ceiling_images_per_s"] == pytest.approx(2 / 0.010)
    assert found["share"] == pytest.approx(0.95)


def test_a_job_that_is_mostly_start_up_says_so() -> None:
    found = roofline(TWO_CORES, ALONE, "", pace(90, segments=3, start_up_s=9.0, decode=5, infer=15))
    assert (found["bottleneck"], found["steady"]) == ("start-up", False)
    assert found["why"].startswith("9.0 s of start-up")


def test_the_steady_rate_leaves_out_a_slow_beginning_and_a_slow_end() -> None:
    clock = Clock()
    run = Pace(clock.now, clock)
    for i in range(100):
        clock.now += 10.0 if i < 5 or i >= 95 else 1.0
        run.add(10, {"infer": 1.0})
    assert run.rate(2) == (pytest.approx(10.0), True)
    assert run.start_up_s == pytest.approx(9.0)
    assert run.labelling_s == pytest.approx(1 + 4 * 10 + 90 * 1 + 5 * 10)


def test_what_is_kept_does_not_grow_with_the_run() -> None:
    ticks = count()
    run = Pace(0.0, lambda: float(next(ticks)))
    for _ in range(50_000):
        run.add(4, {"infer": 0.5, "idle": 0.5})
    assert len(run._marks) <= 1024
    assert run.rate(8) == (pytest.approx(4.0), True)
    assert run.step_ms("idle") == pytest.approx(125.0)


def test_images_of_one_shard_count_as_less_than_as_many_shards() -> None:
    alike = Spread.of([[10, 10, 10, 10], [20, 20, 20, 20]])
    assert alike.mean == 15
    assert alike.error == pytest.approx(7.071 / 2**0.5 / 15, rel=1e-3)
    assert Spread.of([[10, 20, 10, 20, 10, 20, 10, 20]]).error < alike.error
    assert Spread.of([[7.0]]) == Spread(7.0, 0.5)
    assert Spread.of([[0, 0], []]) == Spread(0, 0.5)
