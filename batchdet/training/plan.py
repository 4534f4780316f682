"""What a training shall do: the settings of ``batchdet train``, as one value."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from batchdet.errors import SpecError

STRIDE_PX: Final = 32
FREEZABLE: Final = ("none", "backbone")


@dataclass(frozen=True)
class TrainingPlan:
    """The settings of a training.

    Args:
        data: COCO JSON, or a folder that holds one.
        images: Folder of the images; the data's own when null.
        val: Share of the images that is held back to measure on, or a COCO JSON of others.
        init: Weights to begin with: a checkpoint, ``builtin:sample``, a published ResNet or ViT, or a Hugging Face
            folder of a detector, which is then what is trained; fresh weights when null.
        backbone: Name of the part; that of ``init``, else ``csp``, when null.
        neck: Likewise; else ``pan``.
        head: Likewise; else ``one_to_one``.
        width: Factor on the channels of all parts; that of ``init``, else 1.
        freeze: Part that does not learn, or ``none``.
        epochs: Passes over the training images; 30 when minutes are not given either.
        minutes: Length in place of epochs.
        batch_rows: Images in a batch, over all workers.
        canvas_px: Longer side of the canvases; that of ``init``, else 320, when null.
        rate: Highest learning rate; when null 0.003, 0.0015 where a whole net with an ``init`` learns, 0.0001 for a
            Hugging Face detector.
        flip: Whether images may be mirrored.
        seed: Of fresh weights, split, order and variation.
        device: ``auto``, ``cpu`` or ``gpu``.
        workers: Processes that share each batch.
        licence: What the new model's metadata says of its licence; that of ``init`` when null.

    Raises:
        SpecError: A setting is out of range; the message names its option.
    """

    data: str
    images: str | None = None
    val: str = "0.2"
    init: str | None = None
    backbone: str | None = None
    neck: str | None = None
    head: str | None = None
    width: float | None = None
    freeze: str = "none"
    epochs: float | None = None
    minutes: float | None = None
    batch_rows: int = 16
    canvas_px: int | None = None
    rate: float | None = None
    flip: bool = True
    seed: int = 0
    device: str = "auto"
    workers: int = 1
    licence: str | None = None

    def __post_init__(self) -> None:
        if self.freeze not in FREEZABLE:
            raise SpecError(f"--freeze is {self.freeze!r}; it must be one of {', '.join(FREEZABLE)}")
        if self.freeze != "none" and self.init is None:
            raise SpecError(f"--freeze {self.freeze} needs --init: fresh weights that never learn are of no use")
        if self.epochs is not None and self.minutes is not None:
            raise SpecError("--epochs and --minutes exclude each other; give one")
        for option, value in (("--epochs", self.epochs), ("--minutes", self.minutes), ("--rate", self.rate)):
            if value is not None and not 0 < value < float("inf"):
                raise SpecError(f"{option} is {value:g}; it must be above 0")
        if self.workers < 1 or self.batch_rows < 2 * self.workers:
            raise SpecError(
                f"--batch-rows is {self.batch_rows} for {self.workers} workers; each needs 2 images or more of a batch"
            )
        if self.canvas_px is not None and (self.canvas_px < 64 or self.canvas_px % STRIDE_PX):
            raise SpecError(f"--canvas is {self.canvas_px}; it must be a multiple of {STRIDE_PX}, 64 or more")
        if self.device not in ("auto", "cpu", "gpu"):
            raise SpecError(f"--device is {self.device!r}; it must be auto, cpu or gpu")
        fraction = self.val_fraction
        if fraction is not None and not 0 < fraction < 1:
            raise SpecError(f"--val is {self.val}; it must be a share above 0 and below 1, or a COCO JSON")

    @property
    def val_fraction(self) -> float | None:
        """The share that is held back; None where ``val`` names a file."""
        try:
            return float(self.val)
        except ValueError:
            return None

    def save(self, path: Path, data_sha256: str) -> None:
        """Write the settings, and the digest of the truth that they were begun with."""
        path.write_text(json.dumps({"plan": asdict(self), "data_sha256": data_sha256}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> tuple["TrainingPlan", str]:
        """Read what `save` wrote.

        Raises:
            SpecError: There is no such file, or it is not one of ours.
        """
        try:
            saved = json.loads(path.read_text())
            return cls(**saved["plan"]), str(saved["data_sha256"])
        except FileNotFoundError:
            raise SpecError(
                f"{path}: there is no such file, so there is no training to resume in that folder"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise SpecError(f"{path}: not the settings of a training of this version: {error}") from error


def agreed_plan(saved: TrainingPlan, asked: dict[str, Any]) -> TrainingPlan:
    """Return the settings of the training that is resumed; those given again must be the same.

    Raises:
        SpecError: One differs.
    """
    known = {field.name for field in fields(TrainingPlan)}
    for key, value in asked.items():
        assert key in known
        if value is not None and value != getattr(saved, key):
            raise SpecError(
                f"--resume goes on with {key} {getattr(saved, key)!r}, as it was begun; found {value!r}: "
                "leave it out, or train into another folder"
            )
    return saved
