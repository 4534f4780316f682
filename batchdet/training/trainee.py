"""What the training loop needs of a detector, whichever kind it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from batchdet.decode.canvas import Pixels
from batchdet.geometry.letterbox import Letterbox, Size
from batchdet.training.assignment import Truth

Detect = Callable[[Pixels], list[dict[str, Any]]]
"""Finds objects in an image: COCO results without ``image_id``, ``category_id`` being the class's number."""


@dataclass(frozen=True)
class Exported:
    """The files of a trained detector.

    Args:
        uri: What ``model.uri`` of a job shall name.
        facts: Rows of the card.
        detect: Finds objects by these files.
    """

    uri: str
    facts: tuple[tuple[str, str], ...]
    detect: Detect


class Trainee(Protocol):
    """A detector that can be trained. It holds no weights and pickles; weights are in the ``net`` that it builds."""

    @property
    def name(self) -> str:
        """What it is, for the line that begins a training."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Its classes."""

    @property
    def rate(self) -> float:
        """The highest learning rate, if the plan names none."""

    @property
    def decay(self) -> float:
        """AdamW's weight decay, for parameters with two or more axes."""

    @property
    def clip_norm(self) -> float:
        """The gradient's norm is limited to it."""

    @property
    def canvases(self) -> tuple[Size, ...]:
        """``(width_px, height_px)`` of the canvases that batches draw from; the first has the longest side."""

    @property
    def began_with(self) -> tuple[str, str] | None:
        """URI and licence ("" if not stated) of the first weights; None for fresh ones."""

    def place(self, source: Size, canvas: Size) -> Letterbox:
        """Place an image on a canvas."""

    def build(self) -> nn.Module:
        """Make a net with fresh weights; torch's random state decides them."""

    def begin(self, net: nn.Module, batch: Callable[[int], Tensor]) -> str:
        """Give a fresh net its first weights.

        Args:
            net: As `build` makes it.
            batch: Returns the canvases of a batch, ``(N, 3, H, W)`` uint8 on the net's device.

        Returns:
            What was taken over, in words; "" for fresh weights.
        """

    def part(self, net: nn.Module, name: str) -> nn.Module:
        """Return the part of a net that ``--freeze NAME`` keeps as it is."""

    def loss(self, net: nn.Module, images: Tensor, truth: Truth, score_power: float) -> Tensor:
        """Compute the loss of a batch.

        Args:
            net: In training mode.
            images: ``(N, 3, H, W)`` uint8 RGB.
            truth: The objects, in canvas pixels.
            score_power: As `Schedule.score_power`, for nets whose assignment has one.

        Returns:
            A scalar.
        """

    def record(self) -> dict[str, Any]:
        """Return what ``state.pt`` says of the net, as plain values: weights fit only a trainee with the same."""

    def texts(self) -> dict[str, str]:
        """Return what the trained model's files say of it, in the keys that YOLO exports use and a few more."""

    def export(self, net: nn.Module, folder: Path, texts: Mapping[str, str], facts: Mapping[str, Any]) -> Exported:
        """Write a trained net's files.

        Args:
            net: The running mean of the weights.
            folder: Receives the files.
            texts: All that the files say of the model.
            facts: How the weights came to be; JSON-ready.
        """
