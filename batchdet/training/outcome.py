"""What a finished training leaves: the model in two formats, its card, its figures, and a job that labels."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from batchdet.training.evaluation import CONFIDENT, Report, evaluate_data
from batchdet.training.finetune import Prepared, properties
from batchdet.training.loop import Trainer
from batchdet.training.trainee import Exported

CARD, FIGURES, JOB = "model.md", "metrics.json", "label.yaml"

_CARD = """\
# {name}

{description}.

| | |
|---|---|
{about}
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
    exported = prepared.trainee.export(trainer.mean, folder, texts, facts)
    report = evaluate_data(exported.detect, prepared.val, prepared.canvas_px)
    figures = {key: round(v, 4) if isinstance(v, float) else v for key, v in dataclasses.asdict(report).items()}
    (folder / FIGURES).write_text(json.dumps({**figures, **facts}, indent=1) + "\n")
    (folder / CARD).write_text(_card(prepared, trainer, report, exported, texts))
    labels_uri = str(folder / "labels")
    job = {
        "name": "label-with-trained-model",
        "source": {"uri": prepared.val.folder, "format": "folder"},
        "model": {"uri": exported.uri},
        "output": {"uri": labels_uri},
    }
    (folder / JOB).write_text(yaml.safe_dump(job, sort_keys=False))
    commands = (
        f"batchdet model {exported.uri}",
        f"batchdet run {folder / JOB}",
        f"batchdet evaluate {labels_uri} --truth {prepared.val.uri}",
    )
    return Outcome(str(folder), report, trainer.step, trainer.elapsed_s, commands)


def _card(prepared: Prepared, trainer: Trainer, report: Report, exported: Exported, texts: dict[str, str]) -> str:
    began, uri = prepared.trainee.began_with, Path(exported.uri)
    rows = [f"| {label} | {ap50:.3f} |" for label, ap50 in report.ap50_by_label.items()]
    return _CARD.format(
        name=(uri if uri.is_dir() else uri.parent).name,
        description=texts["description"],
        about="\n".join(f"| {key} | {value} |" for key, value in exported.facts),
        labels=", ".join(prepared.train.labels),
        licence=texts["license"] or "not stated; --licence says it",
        began=f"{began[0]} (licence: {began[1] or 'not stated'})" if began else "fresh weights",
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
