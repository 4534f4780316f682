"""From a plan to a trained model: data, first weights, the loop, and the files that it leaves.

A training's folder holds ``training.json`` (the settings), ``state.pt`` (to resume from), and in the end the model's
files (``model.safetensors`` and ``model.onnx``, or those of a Hugging Face folder), ``model.md`` (its card),
``metrics.json`` and ``label.yaml`` (a job that labels).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import batchdet
from batchdet.errors import ClusterError, SpecError
from batchdet.model.nets.detector_net import Composition
from batchdet.text import counted
from batchdet.training.batches import CocoSource
from batchdet.training.coco import CocoData, read_coco
from batchdet.training.crew import Crew
from batchdet.training.hf_detector import holds_detector, open_folder
from batchdet.training.initial import Initial, open_initial
from batchdet.training.loop import Schedule, Trainer
from batchdet.training.own_net import OwnNet
from batchdet.training.plan import TrainingPlan
from batchdet.training.trainee import Trainee

SETTINGS, STATE = "training.json", "state.pt"
_LONGEST_WARMUP_MINUTES = 5.0


@dataclass(frozen=True)
class Prepared:
    """All that a training needs before its first step.

    Args:
        plan: The settings.
        train: Images to learn from.
        val: Images to measure on.
        trainee: What is trained.
        schedule: How long and how fast.
    """

    plan: TrainingPlan
    train: CocoData
    val: CocoData
    trainee: Trainee
    schedule: Schedule

    @property
    def canvas_px(self) -> int:
        """Longest side of the canvases."""
        return max(self.trainee.canvases[0])

    @property
    def device(self) -> str:
        """The device, by its name in torch.

        Raises:
            ClusterError: A GPU is asked for, and torch has none.
        """
        has_gpu = torch.cuda.is_available()
        if self.plan.device == "gpu" and not has_gpu:
            raise ClusterError("--device is gpu, but torch finds none here; use --device cpu, or a torch with CUDA")
        return "cuda" if has_gpu and self.plan.device != "cpu" and self.plan.workers == 1 else "cpu"

    def source(self, crew: Crew) -> CocoSource:
        """Return the batches of one worker."""
        plan, trainee = self.plan, self.trainee
        return CocoSource(
            self.train, plan.seed, plan.batch_rows, trainee.canvases, trainee.place, plan.flip, crew.rank, crew.size
        )


def prepare(plan: TrainingPlan) -> Prepared:
    """Read data and first weights, and settle what the plan leaves open.

    Raises:
        SpecError: Data or a setting is wrong.
        ModelError: ``init`` is no checkpoint.
        MissingExtra: A package that ``init`` needs is not installed.
    """
    data = read_coco(plan.data, plan.images)
    fraction = plan.val_fraction
    train, val = (
        (data, read_coco(plan.val, labels=data.labels)) if fraction is None else data.split(fraction, plan.seed)
    )
    if not train.objects:
        raise SpecError(f"{data.uri}: no object is left for training; hold back less with --val")
    trainee = _trainee(plan, data.labels)
    steps = None
    if plan.minutes is None:
        steps = max(1, math.ceil((plan.epochs or 30.0) * len(train.images) / plan.batch_rows))
    schedule = Schedule(
        steps=steps,
        minutes=plan.minutes or 0.0,
        seed=plan.seed,
        batch_rows=plan.batch_rows,
        rate=plan.rate or trainee.rate,
        warmup_steps=1 if steps is None else max(1, min(200, steps // 10)),
        decay=trainee.decay,
        warmup_share=0.0 if plan.minutes is None else min(0.1, _LONGEST_WARMUP_MINUTES / plan.minutes),
    )
    return Prepared(plan, train, val, trainee, schedule)


def _trainee(plan: TrainingPlan, labels: Sequence[str]) -> Trainee:
    """Find what is trained: the detector of a Hugging Face folder, or a net of batchdet's own."""
    if plan.init is not None and holds_detector(plan.init):
        _refuse_parts(plan)
        return open_folder(plan.init, labels, plan.canvas_px)
    initial = open_initial(plan.init) if plan.init else None
    before = initial.composition if initial else Composition(classes=1)
    composition = Composition(
        classes=len(labels),
        backbone=plan.backbone or before.backbone,
        neck=plan.neck or before.neck,
        head=plan.head or before.head,
        width=plan.width or before.width,
    )
    canvas_px = plan.canvas_px or _canvas_px(initial)
    return OwnNet(composition, tuple(labels), initial, canvas_px, plan.freeze != "none")


def _refuse_parts(plan: TrainingPlan) -> None:
    """Refuse settings that are for batchdet's own nets."""
    for option in ("backbone", "neck", "head", "width"):
        if getattr(plan, option) is not None:
            raise SpecError(
                f"--{option} is for batchdet's own nets; the detector of {plan.init} has its own parts: leave it out",
                code="train.parts_of_init",
                key=f"--{option}",
            )
    if plan.workers > 1:
        raise SpecError(
            f"--workers is {plan.workers}; a Hugging Face detector is trained in one process: leave it out",
            code="train.workers_of_init",
            key="--workers",
        )


def begin(prepared: Prepared, say: Callable[[str], None]) -> Trainer:
    """Make a trainer at step 0, with the weights that it begins with."""
    frozen = () if prepared.plan.freeze == "none" else (prepared.plan.freeze,)
    trainer = Trainer(prepared.schedule, prepared.trainee, frozen, prepared.device)
    source = prepared.source(Crew())
    taken = prepared.trainee.begin(trainer.mean, lambda index: source.batch(index)[0].to(trainer.device))
    if taken:
        say(f"beginning with {taken}")
        trainer.begin_with(trainer.mean)
    return trainer


def train(prepared: Prepared, folder: Path, resume: bool, crew: Crew, say: Callable[[str], None]) -> Trainer:
    """Train, or go on, until the plan is fulfilled or the crew is stopped; the state is in the folder then.

    Args:
        prepared: The same in every process of the crew.
        folder: The training's folder.
        resume: Go on from its state.
        crew: Who trains together.
        say: Takes a line about the progress.
    """
    state = folder / STATE
    if resume:
        trainer = Trainer.restore(state, prepared.device, prepared.trainee)
        if crew.leads:
            say(f"going on from step {trainer.step} of {state}")
    else:
        trainer = begin(prepared, say if crew.leads else _silent)
    if crew.leads:
        say(
            f"training {prepared.trainee.name} "
            f"on {counted(len(prepared.train.images), 'image')} with {counted(prepared.train.objects, 'object')} of "
            f"{counted(len(prepared.trainee.labels), 'class')}; {counted(len(prepared.val.images), 'image')} held back"
        )
    trainer.run(state, prepared.source(crew), say=say, crew=crew)
    return trainer


def finished(trainer: Trainer) -> bool:
    """Say whether a training came to the end of its schedule."""
    return trainer.schedule.progress(trainer.step, trainer.elapsed_s) >= 1.0


def properties(prepared: Prepared) -> dict[str, str]:
    """Describe the new model inside its files, in the keys that YOLO exports use and a few of our own."""
    began = prepared.trainee.began_with
    return {
        **prepared.trainee.texts(),
        "license": prepared.plan.licence or (began[1] if began else ""),
        "names": str(dict(enumerate(prepared.train.labels))),
        "task": "detect",
        "trained_on": f"{len(prepared.train.images)} images of {prepared.train.uri} "
        f"(licence: {', '.join(prepared.train.licences) or 'not stated in the file'})",
        "version": batchdet.__version__,
        **({"init": began[0], "init_license": began[1]} if began else {}),
    }


def _canvas_px(initial: Initial | None) -> int:
    """Read the canvas that the first weights were made for."""
    digits = (initial.properties.get("imgsz", "") if initial else "").strip("[]").split(",")[0]
    return int(digits) if digits.isdigit() else 320


def _silent(line: str) -> None:
    """Say nothing."""
