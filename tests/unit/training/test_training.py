from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from batchdet.errors import SpecError  # noqa: E402
from batchdet.model.nets.detector_net import Composition, compose  # noqa: E402
from batchdet.sample.scene import TRAINING_SEED_START, render_scene  # noqa: E402
from batchdet.training import embedded  # noqa: E402
from batchdet.training.assignment import Truth  # noqa: E402
from batchdet.training.loop import Schedule, Stage, Trainer  # noqa: E402
from batchdet.training.loss import dual_loss  # noqa: E402
from batchdet.training.stream import CANVASES_WH_PX, SceneStream  # noqa: E402


def test_batches_repeat_and_come_from_training_seeds() -> None:
    images, truth = SceneStream(seed=2, batch_rows=3).batch(4)
    again, _ = SceneStream(seed=2, batch_rows=3).batch(4)
    assert torch.equal(images, again)
    assert images.dtype == torch.uint8
    assert tuple(images.shape[:1:-1]) in CANVASES_WH_PX
    for row in range(3):
        scene = render_scene(TRAINING_SEED_START + 2, 4 * 3 + row)
        assert truth.present[row].sum() == len(scene.class_ids)
    sides = truth.boxes_xyxy[truth.present]
    assert (sides[:, 2:] <= torch.tensor(images.shape[:1:-1]) + 0.01).all()


def test_a_few_steps_on_one_batch_reduce_the_loss() -> None:
    torch.manual_seed(0)
    boxes_xyxy = torch.tensor([[[10.0, 12.0, 60.0, 50.0], [50.0, 30.0, 90.0, 90.0]]])
    truth = Truth(boxes_xyxy, torch.tensor([[3, 7]]), torch.tensor([[True, True]]))
    images = torch.rand(1, 3, 96, 96)
    net = compose(Composition(12)).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = dual_loss(net(images), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.6 * losses[0]


def test_loss_is_finite_without_objects() -> None:
    net = compose(Composition(12)).train()
    _, truth = SceneStream(seed=0, batch_rows=2).batch(0)
    nobody = type(truth)(truth.boxes_xyxy, truth.class_ids, torch.zeros_like(truth.present))
    loss = dual_loss(net(torch.rand(2, 3, 64, 64)), nobody)
    assert torch.isfinite(loss)
    loss.backward()


def test_the_rate_rises_and_falls() -> None:
    schedule = Schedule(steps=1000, warmup_steps=100)
    rates = [schedule.rate_at(step, schedule.progress(step, 0.0)) for step in range(1001)]
    assert rates[0] < rates[50] < max(rates)
    assert max(rates) == pytest.approx(schedule.rate, rel=0.05)
    assert rates[-1] == pytest.approx(schedule.rate / 100)


@pytest.mark.parametrize("step_s", [0.05, 20.0])
def test_the_rate_rises_and_falls_with_the_time_given_however_slow_a_step_is(step_s: float) -> None:
    schedule = Schedule(steps=None, minutes=10, warmup_share=0.1)
    times = [step_s * n for n in range(int(600 / step_s) + 1)]
    rates = [schedule.rate_at(n, schedule.progress(n, s)) for n, s in enumerate(times)]
    top = rates.index(max(rates))
    assert times[top] == pytest.approx(60, abs=20)
    assert rates[top] == pytest.approx(schedule.rate, rel=0.05)
    assert 0 < rates[0] < rates[top] / 50
    assert rates[-1] == pytest.approx(schedule.rate / 100)
    resumed = schedule.rate_at(3, schedule.progress(3, times[top]))  # few steps since, the same time
    assert resumed == pytest.approx(rates[top])


def test_a_checkpoint_restores_all(tmp_path: Path) -> None:
    trainer = Trainer(Schedule(steps=10, seed=5))
    trainer.step, trainer.elapsed_s = 4, 2.5
    trainer.save(tmp_path / "checkpoint.pt")
    again = Trainer.restore(tmp_path / "checkpoint.pt")
    assert again.schedule == trainer.schedule
    assert (again.step, again.elapsed_s, again.processor) == (4, 2.5, trainer.processor)
    for name, value in trainer.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], value)


def test_a_further_stage_begins_with_the_mean_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Trainer(Schedule(steps=10, seed=5))
    first.step, first.elapsed_s = 10, 2.5
    with torch.no_grad():
        for mean in first.mean.parameters():
            mean += 1
    first.save(tmp_path / "checkpoint.pt")
    begun: list[Trainer] = []
    monkeypatch.setattr(Trainer, "run", lambda self, checkpoint, source: (begun.append(self), self.save(checkpoint)))
    options = "--steps 3 --rate 0.001 --warmup 7 --score-power 2 --seed 6"
    out = ["--init", str(tmp_path / "checkpoint.pt"), "--out", str(tmp_path / "further")]
    embedded.main([*options.split(), *out])
    again = Trainer.restore(tmp_path / "further" / "checkpoint.pt")
    assert again.schedule == Schedule(steps=3, minutes=55.0, rate=0.001, warmup_steps=7, score_power=2.0, seed=6)
    assert again.earlier == first.stages()
    assert [stage.steps for stage in again.stages()] == [10, 0]
    assert not begun[0].optimizer.state
    for part in (again.net, again.mean):
        for name, value in first.mean.state_dict().items():
            assert torch.equal(part.state_dict()[name], value)


def test_a_further_stage_needs_new_scenes(tmp_path: Path) -> None:
    Trainer(Schedule(seed=5)).save(tmp_path / "checkpoint.pt")
    with pytest.raises(SpecError, match="seed 5"):
        Trainer.begin_from(tmp_path / "checkpoint.pt", Schedule(seed=5))


def test_a_checkpoint_from_before_there_were_stages_is_read(tmp_path: Path) -> None:
    trainer = Trainer(Schedule(steps=10, seed=5))
    trainer.save(tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["earlier"], state["schedule"]["score_power"]
    torch.save(state, tmp_path / "checkpoint.pt")
    again = Trainer.restore(tmp_path / "checkpoint.pt")
    assert again.stages() == trainer.stages()


def test_the_card_gives_the_commands_of_all_stages() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("pycocotools")
    from batchdet.training.publish import _commands, _stage_rows

    first = Stage(Schedule(minutes=55, seed=0), 3885, 3300.0, "2 cores")
    further = Stage(Schedule(minutes=36, seed=1, rate=1.5e-3, warmup_steps=100, score_power=2), 2000, 2160.0, "2 cores")
    commands = _commands([first, further], images=10, seed=7)
    train = "python -m batchdet.training.embedded"
    assert commands == [
        f"{train} --minutes 55 --seed 0 --out /tmp/stage1",
        f"{train} --minutes 36 --rate 0.0015 --warmup 100 --score-power 2 --seed 1 "
        "--init /tmp/stage1/checkpoint.pt --out /tmp/stage2",
        "python -m batchdet.training.publish --checkpoint /tmp/stage2/checkpoint.pt --seed 7 --images 10",
    ]
    assert "| 2 | stage 1 | 32,000 |" in _stage_rows([first, further])[1]
