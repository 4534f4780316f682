"""Turn a checkpoint into the embedded model: the ONNX file, its card and the card's figures.

``python -m batchdet.training.publish --checkpoint /tmp/sample/checkpoint.pt`` writes ``sample.onnx``,
``sample.md`` and ``sample.json`` into ``batchdet/model/embedded``.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import onnx

import batchdet
from batchdet.errors import SpecError
from batchdet.model.nets.detector_net import DetectorNet
from batchdet.sample.scene import CLASSES, TRAINING_SEED_START
from batchdet.training.assignment import OVERLAP_POWER
from batchdet.training.evaluation import CONFIDENT, Report, evaluate
from batchdet.training.export import CANVAS_PX, OPSET, export_onnx
from batchdet.training.loop import Schedule, Stage, Trainer
from batchdet.training.plan import STRIDE_PX

OTHER_CANVASES_PX = (256, 416, 640)
EMBEDDED = Path(batchdet.__file__).parent / "model" / "embedded"

_CARD = """\
# builtin:sample

A small object detector for trying batchdet out without downloading anything. It finds the twelve kinds of
object that `batchdet sample` draws: {classes}.
It knows nothing of photographs.

| | |
|---|---|
| file | `sample.onnx`, {size_bytes:,} bytes, ONNX opset {opset}, float32, all weights inside |
| parameters | {parameters:,} |
| input | `images`: float32 [N, 3, H, W], RGB / 255; N, H and W are free, H and W multiples of {stride} |
| canvas | {canvas} px by default: aspect kept, centred, padded with grey 114 |
| output | `output0`: float32 [N, 100, 6]: x_min, y_min, x_max, y_max in canvas pixels, score, class_id; best first |
| NMS | none needed: the head speaks once for each object (family `yolo_end2end`) |
| licence | Apache-2.0 |

## Anatomy

| part | what | channels | strides |
|---|---|---|---|
| backbone | stem and four stages of CSP blocks (arXiv:1911.11929) | {backbone_channels} | {strides} |
| neck | feature pyramid, top-down and bottom-up (arXiv:1612.03144, arXiv:1803.01534) | {neck_channels} | {strides} |
| head | one-to-one branch (arXiv:2405.14458): scores, and distances to four sides | {head_channels} | {strides} |

The code is `batchdet/model/nets`, {backbone_parameters:,} + {neck_parameters:,} + {head_parameters:,} parameters.

## Training

Every image was drawn by `batchdet.sample.scene` for this training and seen once: {images_seen:,} images in
{steps:,} steps, {minutes:.0f} minutes, no GPU. A second branch of the head,
one-to-many, helped during the training and is not in the file. Both are assigned by the task-aligned metric
(arXiv:2108.07755) and learn by cross-entropy and CIoU (arXiv:1911.08287); AdamW, warm-up and cosine,
bfloat16 autocast; the file holds the running mean of the weights. Canvases from 224 to 416 px, some not square.

| stage | begins with | images | steps | minutes | rate | score power | seed of the scenes | on |
|---|---|---|---|---|---|---|---|---|
{stage_rows}

The score power weighs the score against the overlap (power {overlap_power:g}) where the one-to-one branch is assigned.

```
{commands}
```

Training draws from seeds {training_start:,} and up; `batchdet sample --seed` and the
figures below use seeds under {training_start:,}, so no measured image was ever trained on.

## What it reaches

On {images:,} unseen images with {objects:,} objects (seed {evaluation_seed}, JPEG, canvas {canvas} px), by pycocotools:

| AP (0.50:0.95) | AP50 | AP75 | AP50 of scores from {threshold:g} |
|---|---|---|---|
| {ap:.3f} | {ap50:.3f} | {ap75:.3f} | {ap50_confident:.3f} |

| class_id | label | AP50 |
|---|---|---|
{rows}

Keep the canvas near {canvas} px: the net learned on 224 to 416 px, and objects on larger canvases outgrow it.

| canvas | AP | AP50 |
|---|---|---|
{canvas_rows}

Of the detections with a score of {threshold:g} or more, {doubled:.1%} say again what a better one has said (same class,
IoU 0.7 or more): two neighbouring cells that cannot agree whose object it is.

## Use

Meant for quick starts, tests and demonstrations on drawn images. Its scores say nothing about photographs.
"""


def publish(checkpoint: Path, folder: Path, images: int, seed: int) -> Report:
    """Export, measure and describe.

    Args:
        checkpoint: as `Trainer.save` writes it.
        folder: receives ``sample.onnx``, ``sample.md`` and ``sample.json``.
        images: scenes to measure on.
        seed: their stream, below `TRAINING_SEED_START`.

    Returns:
        The measures.

    Raises:
        SpecError: if the seed is one of those that training uses.
    """
    if seed >= TRAINING_SEED_START:
        raise SpecError(f"seed is {seed}; it must be below {TRAINING_SEED_START}, where training begins")
    trainer = Trainer.restore(checkpoint)
    trained_on = f"{sum(_images(stage) for stage in trainer.stages())} images drawn by batchdet.sample"
    model = folder / "sample.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    net = cast(DetectorNet, trainer.mean)
    export_onnx(net, model, _properties(trained_on))
    report = evaluate(model, images, seed, CANVAS_PX)
    others = [evaluate(model, max(1, images // 4), seed, canvas_px) for canvas_px in OTHER_CANVASES_PX]
    facts = _facts(trainer, net, report, model)
    rows = [f"| {i} | {label} | {report.ap50_by_label[label]:.3f} |" for i, label in enumerate(CLASSES)]
    canvas_rows = [f"| {other.canvas_px} | {other.ap:.3f} | {other.ap50:.3f} |" for other in others]
    card = _CARD.format(
        **facts,
        rows="\n".join(rows),
        canvas_rows="\n".join(canvas_rows),
        stage_rows="\n".join(_stage_rows(trainer.stages())),
        commands="\n".join(_commands(trainer.stages(), images, seed)),
    )
    (folder / "sample.md").write_text(card)
    facts["ap50_by_label"] = {label: round(ap50, 4) for label, ap50 in report.ap50_by_label.items()}
    (folder / "sample.json").write_text(json.dumps(facts, indent=1) + "\n")
    return report


def _properties(trained_on: str) -> dict[str, str]:
    """Describe the model inside its file, in the keys that YOLO exports use and a few of our own."""
    return {
        "author": "batchdet",
        "description": "batchdet's embedded sample detector: CSP backbone, feature pyramid, NMS-free head",
        "end2end": "True",
        "family": "yolo_end2end",
        "imgsz": str([CANVAS_PX, CANVAS_PX]),
        "license": "Apache-2.0",
        "names": str(dict(enumerate(CLASSES))),
        "stride": str(STRIDE_PX),
        "task": "detect",
        "trained_on": trained_on,
        "version": batchdet.__version__,
    }


def _facts(trainer: Trainer, net: DetectorNet, report: Report, model: Path) -> dict[str, Any]:
    """Gather what the card says."""
    stages = trainer.stages()
    backbone, neck = (sum(p.numel() for p in part.parameters()) for part in (net.backbone, net.neck))
    figures = dataclasses.asdict(report)
    del figures["seed"], figures["ap50_by_label"]
    return {
        **{key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()},
        "evaluation_seed": report.seed,
        "classes": ", ".join(CLASSES),
        "size_bytes": model.stat().st_size,
        "opset": OPSET,
        "ir_version": onnx.load(model).ir_version,
        "canvas": CANVAS_PX,
        "stride": STRIDE_PX,
        "strides": ", ".join(map(str, net.strides)),
        "backbone_channels": ", ".join(map(str, net.channels)),
        "neck_channels": ", ".join(map(str, net.neck_channels)),
        "head_channels": f"{len(CLASSES)} + 4 a level",
        "parameters": net.deployed_parameters(),
        "backbone_parameters": backbone,
        "neck_parameters": neck,
        "head_parameters": net.deployed_parameters() - backbone - neck,
        "threshold": CONFIDENT,
        "steps": sum(stage.steps for stage in stages),
        "images_seen": sum(_images(stage) for stage in stages),
        "minutes": round(sum(stage.elapsed_s for stage in stages) / 60, 1),
        "stages": [dataclasses.asdict(stage) for stage in stages],
        "training_start": TRAINING_SEED_START,
        "overlap_power": OVERLAP_POWER,
    }


def _images(stage: Stage) -> int:
    return stage.steps * stage.schedule.batch_rows


def _stage_rows(stages: list[Stage]) -> list[str]:
    """Write the card's table of stages."""
    return [
        f"| {number} | {f'stage {number - 1}' if number > 1 else 'random weights'} | {_images(stage):,} "
        f"| {stage.steps:,} of {stage.schedule.batch_rows} | {stage.elapsed_s / 60:.0f} | {stage.schedule.rate:g} "
        f"| {stage.schedule.score_power:g} | {TRAINING_SEED_START + stage.schedule.seed:,} | {stage.processor} |"
        for number, stage in enumerate(stages, start=1)
    ]


def _commands(stages: list[Stage], images: int, seed: int) -> list[str]:
    """Write the commands that train all stages and publish the last; options at their default are left out."""
    plain = Schedule()
    lines = []
    for number, stage in enumerate(stages, start=1):
        schedule = stage.schedule
        words = [f"--steps {schedule.steps}" if schedule.steps else f"--minutes {schedule.minutes:g}"]
        if schedule.rate != plain.rate:
            words.append(f"--rate {schedule.rate:g}")
        if schedule.warmup_steps != plain.warmup_steps:
            words.append(f"--warmup {schedule.warmup_steps}")
        if schedule.score_power != plain.score_power:
            words.append(f"--score-power {schedule.score_power:g}")
        words.append(f"--seed {schedule.seed}")
        if number > 1:
            words.append(f"--init /tmp/stage{number - 1}/checkpoint.pt")
        lines.append(f"python -m batchdet.training.embedded {' '.join(words)} --out /tmp/stage{number}")
    checkpoint = f"/tmp/stage{len(stages)}/checkpoint.pt"
    lines.append(f"python -m batchdet.training.publish --checkpoint {checkpoint} --seed {seed} --images {images}")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and publish."""
    parser = argparse.ArgumentParser(prog="python -m batchdet.training.publish", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=EMBEDDED, help="folder (default: the package's own)")
    parser.add_argument("--images", type=int, default=1000, help="unseen scenes to measure on")
    parser.add_argument("--seed", type=int, default=7, help="stream of the unseen scenes")
    options = parser.parse_args(arguments)
    report = publish(options.checkpoint, options.out, options.images, options.seed)
    print(
        f"AP {report.ap:.3f}  AP50 {report.ap50:.3f}  AP75 {report.ap75:.3f}  "
        f"AP50 of scores from {CONFIDENT:g} {report.ap50_confident:.3f}  on {report.images} unseen images"
    )


if __name__ == "__main__":
    main()
