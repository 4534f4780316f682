"""Sense: whether what a model gives for images can be true for most of them."""

from typing import Final

from batchdet.errors import ImageError
from batchdet.model.families import SenselessOutput
from batchdet.records.detections import Detections

_ENOUGH: Final = 3


class Sense:
    """Tells a model that fits its settings from one that does not, by the images that it has seen so far.

    One image of thousands for which a model gives what cannot be true is a failed row. The job ends if there are at
    least as many such images as images with boxes, and they are three, or half of all.
    """

    def __init__(self) -> None:
        self._all = self._good = self._bad = 0
        self._first: SenselessOutput | None = None

    def take(self, outcome: Detections | ImageError | SenselessOutput) -> None:
        """Count what the model made of an image."""
        if isinstance(outcome, ImageError):
            return
        self._all += 1
        if isinstance(outcome, SenselessOutput):
            self._bad += 1
            self._first = self._first or outcome
        else:
            self._good += len(outcome) > 0

    def check(self) -> None:
        """Do nothing if the model makes sense.

        Raises:
            SenselessOutput: The first that was counted.
        """
        if self._first is not None and self._bad >= self._good and self._bad >= min(_ENOUGH, self._all / 2):
            raise self._first
