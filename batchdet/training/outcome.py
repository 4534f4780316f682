"""What a finished training leaves: the model in two formats, its card, its figures, and a job that labels."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from batchdet.model.nets.checkpoint import save_net
from batchdet.training.evaluation import CONFIDENT, Report, evaluate_data
from batchdet.training.export import export_onnx
from batchdet.training.finetune import Prepared, properties
from batchdet.training.loop import Trainer

MODEL, CHECKPOINT, CARD, FIGURES, JOB = "model.onnx", "model.safetensors", "model.md", "metrics.json", "label.yaml"

_CARD = """\
# {name}

{description}.

| | |
|---|---|
| files | `{model}` (ONNX, {size_bytes:,} bytes), `{checkpoint}` (to train on) |
| parameters | {parameters:,} |
| input | `images`: float32 [N, 3, H, W], RGB / 255; H and W multiples of {stride} |
| canvas | {imgsz} |
| output | `output0`: float32 [N, {detections}, 6]: xyxy in canvas pixels, score, class_id; best first |
| family | `{family}`: no NMS is needed |
| classes | {labels} |
| licence | {licence} |
| began with | {began} |
| trained on | {trained_on} |
| training | {steps:,} steps of {batch_rows} images in {minutes:.1f} minutes; frozen: {frozen}; seed {seed} |
| processor | {processor} |

On {images:,} images that it was not trained on, with {objects:,} objects, by pycocotools:

| AP (0.50:0.95) | AP50 | AP75 | AP50 of scores from {threshold:g} |
|---|---|---|---|
| {ap:.3f} | {ap50:.3f} | {ap75:.3f} | {ap50_confident:.3f} |

| label | AP50 |
|---|---|
{rows}
"""


@dataclass(frozen=True)
class Outcome:
    """A finished training.

    Args:
        folder: Where its files are.
        report: How good the model is on the images that were held back.
        steps: Batches that it took.
        train_s: Seconds that the steps took, over all processes that went on with it.
        commands: What to do next.
    """

    folder: str
    report: Report
    steps: int
    train_s: float
    commands: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON-ready data."""
        return dataclasses.asdict(self)


def finish(prepared: Prepared, trainer: Trainer, folder: Path) -> Outcome:
    """Export the running mean of the weights, measure it, and write all files.

    Args:
        prepared: What the training was begun with.
        trainer: At its end.
        folder: Receives the files.
    """
    texts = properties(prepared)
    facts: dict[str, Any] = {
        "stages": [dataclasses.asdict(stage) for stage in trainer.stages()],
        "plan": dataclasses.asdict(prepared.plan),
        "data_sha256": prepared.train.sha256,
        "images": len(prepared.train.images),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    model = folder / MODEL
    save_net(trainer.mean, folder / CHECKPOINT, prepared.composition, texts, facts)
    export_onnx(trainer.mean, model, texts)
    report = evaluate_data(model, prepared.val, prepared.canvas_px, threads=0)
    figures = {key: round(v, 4) if isinstance(v, float) else v for key, v in dataclasses.asdict(report).items()}
    (folder / FIGURES).write_text(json.dumps({**figures, **facts}, indent=1) + "\n")
    (folder / CARD).write_text(_card(prepared, trainer, report, model, texts))
    labels_uri = str(folder / "labels")
    job = {
        "name": "label-with-trained-model",
        "source": {"uri": prepared.val.folder, "format": "folder"},
        "model": {"uri": str(model)},
        "output": {"uri": labels_uri},
    }
    (folder / JOB).write_text(yaml.safe_dump(job, sort_keys=False))
    commands = (
        f"batchdet model {model}",
        f"batchdet run {folder / JOB}",
        f"batchdet evaluate {labels_uri} --truth {prepared.val.uri}",
    )
    return Outcome(str(folder), report, trainer.step, trainer.elapsed_s, commands)


def _card(prepared: Prepared, trainer: Trainer, report: Report, model: Path, texts: dict[str, str]) -> str:
    initial = prepared.initial
    rows = [f"| {label} | {ap50:.3f} |" for label, ap50 in report.ap50_by_label.items()]
    return _CARD.format(
        name=model.parent.name,
        description=texts["description"],
        model=MODEL,
        checkpoint=CHECKPOINT,
        size_bytes=model.stat().st_size,
        parameters=trainer.mean.deployed_parameters(),
        stride=texts["stride"],
        imgsz=texts["imgsz"],
        detections=prepared.composition.detections,
        family=texts["family"],
        labels=", ".join(prepared.train.labels),
        licence=texts["license"] or "not stated; --licence says it",
        began=f"{initial.uri} (licence: {texts['init_license'] or 'not stated'})" if initial else "fresh weights",
        trained_on=texts["trained_on"],
        steps=trainer.step,
        batch_rows=trainer.schedule.batch_rows,
        minutes=trainer.elapsed_s / 60,
        processor=trainer.processor,
        frozen=", ".join(trainer.frozen) or "nothing",
        seed=prepared.plan.seed,
        images=report.images,
        objects=report.objects,
        threshold=CONFIDENT,
        ap=report.ap,
        ap50=report.ap50,
        ap75=report.ap75,
        ap50_confident=report.ap50_confident,
        rows="\n".join(rows),
    )
