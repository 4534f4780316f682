"""Training on a COCO data set: what learns, what stays, going on, stopping."""

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from batchdet.errors import Interrupted, SpecError  # noqa: E402
from batchdet.sample.dataset import write_sample  # noqa: E402
from batchdet.training import finetune  # noqa: E402
from batchdet.training.batches import CocoSource, read_pixels  # noqa: E402
from batchdet.training.coco import read_coco  # noqa: E402
from batchdet.training.crew import Crew  # noqa: E402
from batchdet.training.interrupt import noted_signals  # noqa: E402
from batchdet.training.loop import Trainer  # noqa: E402
from batchdet.training.own_net import OwnNet, own_canvases  # noqa: E402
from batchdet.training.plan import TrainingPlan, agreed_plan  # noqa: E402

SIZES = own_canvases(96)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_sample(str(tmp_path_factory.mktemp("scenes")), 12, "folder", seed=3, kinds="new").uri


def plan(data: str, **settings: Any) -> TrainingPlan:
    return TrainingPlan(data, **{"batch_rows": 4, "canvas_px": 96, "epochs": 2.4, **settings})  # 6 steps of 10 images


def quiet(line: str) -> None:
    """Say nothing."""


def stopping_after(steps: int) -> Crew:
    asked = iter(range(1, 1000))
    return Crew(lambda: next(asked) >= steps)


def same(first: Trainer, second: Trainer) -> bool:
    pairs = [(first.net, second.net), (first.mean, second.mean)]
    return all(torch.equal(v, b.state_dict()[k]) for a, b in pairs for k, v in a.state_dict().items())


def test_batches_repeat_shares_make_up_a_batch_and_epochs_show_all(data: str) -> None:
    truth = read_coco(data)
    whole = CocoSource(truth, seed=1, batch_rows=4, canvases=SIZES)
    images, objects = whole.batch(5)
    assert torch.equal(whole.batch(5)[0], images)
    assert not torch.equal(CocoSource(truth, seed=2, batch_rows=4, canvases=SIZES).batch(5)[0][0], images[0])
    for rank in range(2):
        part, found = CocoSource(truth, seed=1, batch_rows=4, canvases=SIZES, rank=rank, size=2).batch(5)
        assert torch.equal(part, images[rank::2])
        assert found.present.sum() == objects.present[rank::2].sum()
    names = [whole._image(position).name for position in range(24)]
    assert set(names[:12]) == set(names[12:]) == {image.name for image in truth.images}
    assert names[:12] != names[12:]


def test_a_frozen_backbone_stays_to_the_last_bit_and_the_rest_learns(data: str, tmp_path: Path) -> None:
    prepared = finetune.prepare(plan(data, init="builtin:sample", freeze="backbone"))
    begun = finetune.begin(prepared, quiet)
    trainer = finetune.train(prepared, tmp_path, False, Crew(), quiet)
    assert trainer.step == 6
    for before, after in [(begun.net, trainer.net), (begun.mean, trainer.mean)]:
        for name, value in before.backbone.state_dict().items():  # batch norm's statistics and counters are among them
            assert torch.equal(value, after.backbone.state_dict()[name]), name
        moved = [
            name
            for name, value in before.neck.named_parameters()
            if not torch.equal(value, after.neck.get_parameter(name))
        ]
        assert len(moved) == len(list(before.neck.parameters()))
    assert not torch.equal(begun.net.neck.laterals[0][1].running_mean, trainer.net.neck.laterals[0][1].running_mean)
    free = finetune.train(finetune.prepare(plan(data, init="builtin:sample")), tmp_path, False, Crew(), quiet)
    assert not torch.equal(begun.net.backbone.stem[1].running_mean, free.net.backbone.stem[1].running_mean)


def test_a_training_that_was_stopped_goes_on_to_the_same_bits(data: str, tmp_path: Path) -> None:
    prepared = finetune.prepare(plan(data, width=0.5))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    straight = finetune.train(prepared, whole, False, Crew(), quiet)
    first = finetune.train(prepared, parts, False, stopping_after(2), quiet)
    assert (first.step, finetune.finished(first)) == (2, False)
    assert not same(first, straight)
    second = finetune.train(prepared, parts, True, Crew(), quiet)
    assert (second.step, finetune.finished(second)) == (6, True)
    assert same(second, straight)
    assert same(Trainer.restore(parts / finetune.STATE), straight)


def test_a_signal_lets_the_step_end_and_then_stops(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with noted_signals() as stop:
        assert not stop.wanted()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wanted()
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(Interrupted, match="stopped by SIGTERM; kept") as caught:
        stop.raise_interrupted("kept")
    assert caught.value.exit_status == 143


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"freeze": "backbone"}, "needs --init"),
        ({"freeze": "head"}, "one of none, backbone"),
        ({"minutes": 1.0}, "exclude each other"),
        ({"epochs": 0.0}, "above 0"),
        ({"batch_rows": 3, "workers": 2}, "2 images or more"),
        ({"canvas_px": 100}, "multiple of 32"),
        ({"val": "1.5"}, "below 1"),
        ({"device": "tpu"}, "auto, cpu or gpu"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        plan("data", **settings)


def test_resuming_takes_the_settings_it_was_begun_with(tmp_path: Path) -> None:
    begun = plan("data", seed=4)
    begun.save(tmp_path / "training.json", "abc")
    assert TrainingPlan.load(tmp_path / "training.json") == (begun, "abc")
    assert agreed_plan(begun, {"seed": 4, "data": None}) is begun
    with pytest.raises(SpecError, match="goes on with seed 4, as it was begun; found 5"):
        agreed_plan(begun, {"seed": 5})
    with pytest.raises(SpecError, match="no training to resume"):
        TrainingPlan.load(tmp_path / "gone.json")


def test_parts_of_the_first_weights_are_kept_unless_others_are_named(data: str) -> None:
    prepared = finetune.prepare(plan(data, init="builtin:sample", neck="fpn", canvas_px=None))
    assert isinstance(prepared.trainee, OwnNet)
    assert (prepared.trainee.composition.backbone, prepared.trainee.composition.neck) == ("csp", "fpn")
    assert prepared.canvas_px == 320
    assert finetune.properties(prepared)["license"] == "Apache-2.0"
    assert finetune.prepare(plan(data)).canvas_px == 96


def test_an_image_of_another_size_than_the_truth_says_is_refused(data: str) -> None:
    image = read_coco(data).images[0]
    with pytest.raises(SpecError, match="its boxes would be wrong"):
        read_pixels(dataclasses.replace(image, width_px=image.width_px + 1))


@pytest.mark.parametrize(("minutes", "share"), [(1.0, 0.1), (50.0, 0.1), (500.0, 0.01)])
def test_with_minutes_the_warm_up_is_a_share_of_the_time(data: str, minutes: float, share: float) -> None:
    schedule = finetune.prepare(plan(data, epochs=None, minutes=minutes)).schedule
    assert (schedule.steps, schedule.warmup_share) == (None, pytest.approx(share))
