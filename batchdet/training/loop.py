"""The training loop: AdamW, warm-up and cosine, and a running mean of the weights.

Where the batches come from is a `Source`: drawn scenes or a COCO data set.
"""

import contextlib
import copy
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from batchdet.errors import SpecError
from batchdet.model.nets.detector_net import Composition
from batchdet.training.assignment import SCORE_POWER, Truth
from batchdet.training.crew import Crew
from batchdet.training.own_net import OwnNet
from batchdet.training.stream import Source
from batchdet.training.trainee import Trainee


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn.

    Attributes:
        steps: batches in all, or None to go by ``minutes``.
        minutes: length in minutes where ``steps`` is None.
        seed: of the first weights and the stream of scenes.
        batch_rows: images in a batch.
        rate: highest learning rate.
        warmup_steps: batches over which the rate rises, where ``warmup_share`` is 0.
        warmup_share: share of the training over which the rate rises, so that it follows the time given.
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
    warmup_share: float = 0.0

    def progress(self, step: int, elapsed_s: float) -> float:
        """Say how far the training is, from 0 to 1."""
        return min(1.0, step / self.steps if self.steps else elapsed_s / (60 * self.minutes))

    def rate_at(self, step: int, progress: float) -> float:
        """Return the learning rate: a linear warm-up, then half a cosine to a hundredth."""
        cosine = 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2
        risen = progress / self.warmup_share if self.warmup_share else (step + 1) / self.warmup_steps
        return self.rate * min(1.0, max(risen, 0.01)) * cosine


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

    Args:
        schedule: how long and how fast to learn.
        trainee: what the network is, and its loss; that of ``builtin:sample`` when None.
        frozen: parts of the network (``backbone``) that do not learn, statistics of their batch norm included.
        device: ``cpu`` or ``cuda``.

    Attributes:
        earlier: the stages whose weights this training began with, oldest first.
    """

    def __init__(
        self,
        schedule: Schedule,
        trainee: Trainee | None = None,
        frozen: Sequence[str] = (),
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(schedule.seed)
        self.schedule = schedule
        self.trainee: Trainee = trainee or OwnNet()
        self.frozen = tuple(frozen)
        self.device = torch.device(device)
        self.net = self.trainee.build().to(self.device)
        for part in self.frozen:
            self.trainee.part(self.net, part).requires_grad_(False)
        self.mean: nn.Module = copy.deepcopy(self.net).requires_grad_(False)
        learning = [p for p in self.net.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in learning if p.ndim > 1], "weight_decay": schedule.decay},
            {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.99))
        self.step = 0
        self.elapsed_s = 0.0
        self.processor = processor() if device == "cpu" else torch.cuda.get_device_name()
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
            **self.trainee.record(),
            "frozen": list(self.frozen),
            "processor": self.processor,
            "earlier": [asdict(stage) for stage in self.earlier],
        }
        torch.save(state, partial)
        partial.replace(path)

    @classmethod
    def restore(cls, path: Path, device: str = "cpu", trainee: Trainee | None = None) -> "Trainer":
        """Read a checkpoint, to resume from it or to export it; the schedule is its own.

        Args:
            path: As `save` writes it.
            device: As of `Trainer`.
            trainee: What was trained; None for a net of batchdet's own, which the checkpoint describes.

        Raises:
            SpecError: The weights are those of another trainee.
        """
        state = torch.load(path, weights_only=True, map_location=device)
        if trainee is None:
            trainee = OwnNet(Composition(**state["composition"])) if "composition" in state else OwnNet()
        elif any(state.get(key) != value for key, value in trainee.record().items()):
            raise SpecError(f"{path} is the state of another net; --init is not what the training was begun with")
        trainer = cls(Schedule(**state["schedule"]), trainee, state.get("frozen", ()), device)
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
        trainer = cls(schedule, before.trainee)
        trainer.begin_with(before.mean)
        trainer.earlier = stages
        return trainer

    def begin_with(self, net: nn.Module) -> None:
        """Take over the weights of a net of the same kind."""
        self.net.load_state_dict(net.state_dict())
        self.mean.load_state_dict(net.state_dict())

    def stages(self) -> list[Stage]:
        """Tell all stages, oldest first, this one being the last."""
        return [*self.earlier, Stage(self.schedule, self.step, self.elapsed_s, self.processor)]

    def run(
        self,
        checkpoint: Path,
        source: Source,
        report_every_s: float = 10.0,
        save_every_s: float = 60.0,
        say: Callable[[str], None] | None = None,
        crew: Crew | None = None,
    ) -> nn.Module:
        """Train to the end of the schedule, or until the crew is told to stop.

        Args:
            checkpoint: file to write now and then, and at the end.
            source: of the batches, from the step that this trainer is at.
            report_every_s: seconds between lines about the progress.
            save_every_s: seconds between checkpoints.
            say: takes these lines; standard error by default.
            crew: the workers that share each batch, and who may stop them; none by default.

        Returns:
            The running mean of the network.
        """
        say = say or _to_stderr
        crew = crew or Crew()
        learner = crew.share(_Learner(self.trainee, self.net, self.schedule.score_power))
        before_s, begin_s = self.elapsed_s, time.monotonic()
        lately = _Lately(self.step, begin_s)
        saved_s = begin_s
        with contextlib.closing(source.open(self.step)) as batches:
            self._set_mode()
            while (progress := crew.agree(self.schedule.progress(self.step, self.elapsed_s))) < 1.0:
                images, truth = next(batches)
                rate = self.schedule.rate_at(self.step, progress)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                self._seed_step(crew.rank)
                loss = learner(images.to(self.device), Truth(*(x.to(self.device) for x in truth)))
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.net.parameters(), self.trainee.clip_norm)
                self.optimizer.step()
                self.step += 1
                self._average()
                now_s = time.monotonic()
                self.elapsed_s = before_s + now_s - begin_s
                lately.loss += float(loss.detach())
                if crew.leads and now_s - lately.since_s >= report_every_s:
                    say(self._line(lately, now_s, rate))
                    lately = _Lately(self.step, now_s)
                if crew.leads and now_s - saved_s >= save_every_s:
                    self.save(checkpoint)
                    saved_s = now_s
                if crew.stopped():
                    break
        if crew.leads:
            self.save(checkpoint)
        return self.mean

    def _set_mode(self) -> None:
        """Let all parts learn but for the frozen ones, whose batch norm must not follow the batches either."""
        self.net.train()
        for part in self.frozen:
            self.trainee.part(self.net, part).eval()

    def _seed_step(self, rank: int) -> None:
        """Fix what a step draws (dropout, denoising queries), so that a resumed training draws the same."""
        torch.manual_seed((self.schedule.seed * 1_000_003 + self.step) * 1_009 + rank)

    def _line(self, lately: "_Lately", now_s: float, rate: float) -> str:
        """Write a line about the progress."""
        steps = self.step - lately.step
        progress = self.schedule.progress(self.step, self.elapsed_s)
        images_per_s = steps * self.schedule.batch_rows / (now_s - lately.since_s)
        left_s = self.elapsed_s * (1 / max(1e-6, progress) - 1)
        return (
            f"step {self.step}{f' of {self.schedule.steps}' if self.schedule.steps else ''} ({progress:.0%})  "
            f"loss {lately.loss / steps:.3f}  rate {rate:.2e}  {images_per_s:.1f} images/s  "
            f"elapsed {_clock(self.elapsed_s)}  left {_clock(left_s)}"
        )

    @torch.no_grad()
    def _average(self) -> None:
        """Move the running mean towards the network; quickly at first, then by a thousandth a step."""
        keep = 0.999 * (1 - math.exp(-self.step / 500))
        means, nows = ([*net.parameters(), *net.buffers()] for net in (self.mean, self.net))  # tied ones once
        for mean, now in zip(means, nows, strict=True):
            if mean.dtype.is_floating_point:
                mean.lerp_(now, 1 - keep)
            else:
                mean.copy_(now)


class _Learner(nn.Module):
    """A net with its loss as one module, whose gradients several processes can share."""

    def __init__(self, trainee: Trainee, net: nn.Module, score_power: float) -> None:
        super().__init__()
        self.trainee, self.net, self.score_power = trainee, net, score_power

    def forward(self, images: torch.Tensor, truth: Truth) -> torch.Tensor:
        """Compute the loss of a batch, see `Trainee.loss`."""
        return self.trainee.loss(self.net, images, truth, self.score_power)


@dataclass
class _Lately:
    """What went on since the last line: it began at this step and time; losses add up."""

    step: int
    since_s: float
    loss: float = 0.0


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def processor() -> str:
    """Name this machine's processor and its cores."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{os.cpu_count()} cores of {name}"
