"""From a plan to a trained model: data, first weights, the loop, and the files that it leaves.

A training's folder holds ``training.json`` (the settings), ``state.pt`` (to go on from), and in the end
``model.safetensors``, ``model.onnx``, ``model.md`` (its card), ``metrics.json`` and ``label.yaml`` (a job that labels).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import batchdet
from batchdet.errors import ClusterError, SpecError
from batchdet.model.nets.detector_net import Composition
from batchdet.training.batches import CocoSource
from batchdet.training.coco import CocoData, read_coco
from batchdet.training.crew import Crew
from batchdet.training.initial import Initial, calibrate, open_initial, take_over
from batchdet.training.loop import Schedule, Trainer
from batchdet.training.plan import STRIDE_PX, TrainingPlan

SETTINGS, STATE = "training.json", "state.pt"
_CALIBRATION_BATCHES = 4
_LONGEST_WARMUP_MINUTES = 5.0


@dataclass(frozen=True)
class Prepared:
    """All that a training needs before its first step.

    Args:
        plan: The settings.
        train: Images to learn from.
        val: Images to measure on.
        initial: Weights to begin with, if any.
        composition: Of the net.
        canvas_px: Longer side of the canvases.
        schedule: How long and how fast.
    """

    plan: TrainingPlan
    train: CocoData
    val: CocoData
    initial: Initial | None
    composition: Composition
    canvas_px: int
    schedule: Schedule

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
        plan = self.plan
        return CocoSource(
            self.train, plan.seed, plan.batch_rows, self.canvas_px, STRIDE_PX, plan.flip, crew.rank, crew.size
        )


def prepare(plan: TrainingPlan) -> Prepared:
    """Read data and first weights, and settle what the plan leaves open.

    Raises:
        SpecError: Data or a setting is wrong.
        ModelError: ``init`` is no checkpoint.
    """
    data = read_coco(plan.data, plan.images)
    fraction = plan.val_fraction
    train, val = (
        (data, read_coco(plan.val, labels=data.labels)) if fraction is None else data.split(fraction, plan.seed)
    )
    if not train.objects:
        raise SpecError(f"{data.uri}: no object is left for training; hold back less with --val")
    initial = open_initial(plan.init) if plan.init else None
    before = initial.composition if initial else Composition(classes=1)
    composition = Composition(
        classes=len(data.labels),
        backbone=plan.backbone or before.backbone,
        neck=plan.neck or before.neck,
        head=plan.head or before.head,
        width=plan.width or before.width,
    )
    steps = None
    if plan.minutes is None:
        steps = max(1, math.ceil((plan.epochs or 30.0) * len(train.images) / plan.batch_rows))
    schedule = Schedule(
        steps=steps,
        minutes=plan.minutes or 0.0,
        seed=plan.seed,
        batch_rows=plan.batch_rows,
        rate=plan.rate or (1.5e-3 if initial and plan.freeze == "none" else 3e-3),
        warmup_steps=1 if steps is None else max(1, min(200, steps // 10)),
        warmup_share=0.0 if plan.minutes is None else min(0.1, _LONGEST_WARMUP_MINUTES / plan.minutes),
    )
    canvas_px = plan.canvas_px or _canvas_px(initial)
    return Prepared(plan, train, val, initial, composition, canvas_px, schedule)


def begin(prepared: Prepared, say: Callable[[str], None]) -> Trainer:
    """Make a trainer at step 0, with the weights that it begins with."""
    frozen = () if prepared.plan.freeze == "none" else (prepared.plan.freeze,)
    trainer = Trainer(prepared.schedule, prepared.composition, frozen, prepared.device)
    initial = prepared.initial
    if initial is not None:
        net = trainer.mean
        say(f"beginning with {take_over(net, prepared.composition, prepared.train.labels, initial)}")
        if initial.folded:
            source = prepared.source(Crew())
            batches = [source.batch(i)[0].to(trainer.device).float() / 255 for i in range(_CALIBRATION_BATCHES)]
            calibrate(net, batches)
        trainer.begin_with(net)
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
        trainer = Trainer.restore(state, prepared.device)
        if crew.leads:
            say(f"going on from step {trainer.step} of {state}")
    else:
        trainer = begin(prepared, say if crew.leads else _silent)
    if crew.leads:
        say(
            f"training {prepared.composition.backbone} + {prepared.composition.neck} + {prepared.composition.head} "
            f"on {len(prepared.train.images)} images with {prepared.train.objects} objects of "
            f"{prepared.composition.classes} classes; {len(prepared.val.images)} images are held back"
        )
    trainer.run(state, prepared.source(crew), say=say, crew=crew)
    return trainer


def finished(trainer: Trainer) -> bool:
    """Say whether a training came to the end of its schedule."""
    return trainer.schedule.progress(trainer.step, trainer.elapsed_s) >= 1.0


def properties(prepared: Prepared) -> dict[str, str]:
    """Describe the new model inside its files, in the keys that YOLO exports use and a few of our own."""
    composition, initial, plan = prepared.composition, prepared.initial, prepared.plan
    began = {} if initial is None else {"init": initial.uri, "init_license": initial.properties.get("license", "")}
    inherited = initial.properties.get("license", "") if initial else ""
    parts = f"{composition.backbone} backbone, {composition.neck} neck, {composition.head} head"
    return {
        "backbone": composition.backbone,
        "description": f"trained by batchdet train: {parts}",
        "end2end": "True",
        "family": "yolo_end2end",
        "head": composition.head,
        "imgsz": str([prepared.canvas_px, prepared.canvas_px]),
        "license": plan.licence or inherited,
        "names": str(dict(enumerate(prepared.train.labels))),
        "neck": composition.neck,
        "stride": str(STRIDE_PX),
        "task": "detect",
        "trained_on": f"{len(prepared.train.images)} images of {prepared.train.uri} "
        f"(licence: {', '.join(prepared.train.licences) or 'not stated in the file'})",
        "version": batchdet.__version__,
        **began,
    }


def _canvas_px(initial: Initial | None) -> int:
    """Read the canvas that the first weights were made for."""
    digits = (initial.properties.get("imgsz", "") if initial else "").strip("[]").split(",")[0]
    return int(digits) if digits.isdigit() else 320


def _silent(line: str) -> None:
    """Say nothing."""
