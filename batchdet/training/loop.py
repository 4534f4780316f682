"""The training loop: AdamW, warm-up and cosine, and a running mean of the weights."""

import contextlib
import copy
import math
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from batchdet.errors import SpecError
from batchdet.model.nets.detector_net import DetectorNet
from batchdet.sample.scene import CLASSES
from batchdet.training.assignment import SCORE_POWER
from batchdet.training.loss import dual_loss
from batchdet.training.stream import SceneStream, open_stream


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn.

    Attributes:
        steps: batches in all, or None to go by ``minutes``.
        minutes: length in minutes where ``steps`` is None.
        seed: of the first weights and the stream of scenes.
        batch_rows: images in a batch.
        rate: highest learning rate.
        warmup_steps: batches over which the rate rises.
        decay: AdamW's weight decay, for convolution weights alone.
        score_power: of the one-to-one branch's assignment, see `assign`.
    """

    steps: int | None = None
    minutes: float = 45.0
    seed: int = 0
    batch_rows: int = 16
    rate: float = 3e-3
    warmup_steps: int = 200
    decay: float = 0.02
    score_power: float = SCORE_POWER

    def progress(self, step: int, elapsed_s: float) -> float:
        """Say how far the training is, from 0 to 1."""
        return min(1.0, step / self.steps if self.steps else elapsed_s / (60 * self.minutes))

    def rate_at(self, step: int, progress: float) -> float:
        """Return the learning rate: a linear warm-up, then half a cosine to a hundredth."""
        cosine = 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2
        return self.rate * min(1.0, (step + 1) / self.warmup_steps) * cosine


@dataclass(frozen=True)
class Stage:
    """One training from start to end, as the card tells it.

    Attributes:
        schedule: what it went by.
        steps: batches it took.
        elapsed_s: how long it took.
        processor: where.
    """

    schedule: Schedule
    steps: int
    elapsed_s: float
    processor: str

    @classmethod
    def read(cls, state: dict[str, Any]) -> "Stage":
        """Turn back what `asdict` made of a stage."""
        return cls(Schedule(**state["schedule"]), state["steps"], state["elapsed_s"], state["processor"])


class Trainer:
    """A network, its running mean and its optimiser, with checkpoints.

    Attributes:
        earlier: the stages whose weights this training began with, oldest first.
    """

    def __init__(self, schedule: Schedule) -> None:
        torch.manual_seed(schedule.seed)
        self.schedule = schedule
        self.net = DetectorNet(len(CLASSES))
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        self.mean: DetectorNet = copy.deepcopy(self.net).requires_grad_(False)
        matrices = [p for p in self.net.parameters() if p.ndim > 1]
        others = [p for p in self.net.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": schedule.decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.99))
        self.step = 0
        self.elapsed_s = 0.0
        self.processor = processor()
        self.earlier: list[Stage] = []

    def save(self, path: Path) -> None:
        """Write a checkpoint, so that a reader never sees half of it."""
        partial = path.with_suffix(".partial")
        state = {
            "net": self.net.state_dict(),
            "mean": self.mean.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "schedule": asdict(self.schedule),
            "processor": self.processor,
            "earlier": [asdict(stage) for stage in self.earlier],
        }
        torch.save(state, partial)
        partial.replace(path)

    @classmethod
    def restore(cls, path: Path) -> "Trainer":
        """Read a checkpoint, to go on from it or to export it; the schedule is its own."""
        state = torch.load(path, weights_only=True)
        trainer = cls(Schedule(**state["schedule"]))
        trainer.net.load_state_dict(state["net"])
        trainer.mean.load_state_dict(state["mean"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.step, trainer.elapsed_s = int(state["step"]), float(state["elapsed_s"])
        trainer.processor = state["processor"]
        trainer.earlier = [Stage.read(stage) for stage in state.get("earlier", [])]
        return trainer

    @classmethod
    def begin_from(cls, path: Path, schedule: Schedule) -> "Trainer":
        """Begin a further stage: the running mean of a checkpoint, a new schedule and a fresh optimiser.

        Raises:
            SpecError: if an earlier stage has drawn the same scenes.
        """
        before = cls.restore(path)
        stages = before.stages()
        if schedule.seed in {stage.schedule.seed for stage in stages}:
            raise SpecError(f"seed {schedule.seed} drew the scenes of an earlier stage; a further one needs new scenes")
        trainer = cls(schedule)
        trainer.net.load_state_dict(before.mean.state_dict())
        trainer.mean.load_state_dict(before.mean.state_dict())
        trainer.earlier = stages
        return trainer

    def stages(self) -> list[Stage]:
        """Tell all stages, oldest first, this one being the last."""
        return [*self.earlier, Stage(self.schedule, self.step, self.elapsed_s, self.processor)]

    def run(self, checkpoint: Path, report_every: int = 50, save_every: int = 500) -> DetectorNet:
        """Train to the end of the schedule.

        Args:
            checkpoint: file to write now and then, and at the end.
            report_every: steps between progress lines on standard error.
            save_every: steps between checkpoints.

        Returns:
            The running mean of the network.
        """
        batches = open_stream(SceneStream(self.schedule.seed, self.schedule.batch_rows, self.step))
        before_s, recent, recent_step, report_s = self.elapsed_s, 0.0, self.step, time.monotonic()
        begin_s = report_s
        self.net.train()
        while (progress := self.schedule.progress(self.step, self.elapsed_s)) < 1.0:
            images, truth = next(batches)
            rate = self.schedule.rate_at(self.step, progress)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16):
                predictions = self.net(images.float().div_(255).contiguous(memory_format=torch.channels_last))
            loss = dual_loss(predictions, truth, self.schedule.score_power)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.net.parameters(), 10.0)
            self.optimizer.step()
            self.step += 1
            self._average()
            recent += float(loss.detach())
            now_s = time.monotonic()
            self.elapsed_s = before_s + now_s - begin_s
            if self.step % report_every == 0:
                images_per_s = (self.step - recent_step) * self.schedule.batch_rows / (now_s - report_s)
                left_s = self.elapsed_s * (1 / max(1e-6, self.schedule.progress(self.step, self.elapsed_s)) - 1)
                print(
                    f"step {self.step}  loss {recent / (self.step - recent_step):.3f}  rate {rate:.2e}  "
                    f"{images_per_s:.1f} images/s  elapsed {self.elapsed_s:.0f} s  left {left_s:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
                recent, recent_step, report_s = 0.0, self.step, now_s
            if self.step % save_every == 0:
                self.save(checkpoint)
        self.save(checkpoint)
        return self.mean

    @torch.no_grad()
    def _average(self) -> None:
        """Move the running mean towards the network; quickly at first, then by a thousandth a step."""
        keep = 0.999 * (1 - math.exp(-self.step / 500))
        for mean, now in zip(self.mean.state_dict().values(), self.net.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point:
                mean.lerp_(now, 1 - keep)
            else:
                mean.copy_(now)


def processor() -> str:
    """Name this machine's processor and its cores."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{os.cpu_count()} cores of {name}"
