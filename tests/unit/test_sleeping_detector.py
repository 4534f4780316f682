"""The detector of `make bench-control-plane` stands for the real one: trial and labeller must get by with it."""

import pytest

from batchdet.pipeline import labeller, trial
from batchdet.spec import JobSpec
from benchmarks import sleeping_detector
from benchmarks.sleeping_detector import DETECTIONS, SleepingDetector


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sleeping_detector.RATE, "100000")
    for module in (labeller, trial):
        monkeypatch.setattr(module, "Detector", SleepingDetector)


def _spec() -> JobSpec:
    return JobSpec.model_validate(
        {"name": "n", "source": {"uri": "in"}, "model": {"uri": "builtin:sample"}, "output": {"uri": "out"}}
    )


def test_the_trial_loads_it(simulated: None) -> None:
    loaded = trial.Trial(_spec(), "", None, False, 1, 1).load("cpu")
    assert loaded.placement == SleepingDetector.placement
    assert loaded.card["name"] == "sleeping"


def test_it_finds_the_same_in_every_image(simulated: None) -> None:
    detector = SleepingDetector(_spec().model, "path", "0" * 64)
    letterbox = detector.letterbox(64, 48)
    assert letterbox.canvas == detector.card.canvas_px
    found = detector.detect(None, [letterbox, letterbox])  # type: ignore[arg-type]
    assert [len(each) for each in found] == [DETECTIONS, DETECTIONS]
