"""A detector that sleeps instead of computing, for control_plane.py; a small module, because each worker loads it."""

import os
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from batchdet.geometry.letterbox import Letterbox
from batchdet.model.card import ModelCard
from batchdet.model.placement import Placement
from batchdet.model.preprocess import Preprocess
from batchdet.model.rehearsal import Rehearsed
from batchdet.records.detections import Detections
from batchdet.spec import ModelSpec

RATE = "BENCH_IMAGES_PER_S"
"""Variable that tells the workers how fast a simulated GPU is."""
DETECTIONS = 7
_CANVAS_PX = 32


class SleepingDetector:
    """Stands for :class:`batchdet.model.detector.Detector`: sleeps as a GPU would work, and finds seven boxes."""

    labels = tuple(f"class_{n}" for n in range(80))
    features: ClassVar[dict[str, Any]] = {}
    placement = Placement(Preprocess(), (_CANVAS_PX, _CANVAS_PX), None)
    rehearsed = Rehearsed((), None, "square")

    def __init__(self, spec: ModelSpec, path: str, sha256: str, *others: object, **more: object) -> None:
        self.spec = spec
        self.card = ModelCard(
            name="sleeping",
            uri=path,
            sha256=sha256,
            size_bytes=0,
            **dict.fromkeys(("family", "family_reason", "runtime", "provider", "precision"), "none"),
            **dict.fromkeys(("inputs", "outputs", "probed_outputs"), ()),
            labels=self.labels,
            labels_reason="none",
            canvas_px=(_CANVAS_PX, _CANVAS_PX),
            canvas_shape="square",
            stride=_CANVAS_PX,
            dynamic_batch=True,
            dynamic_canvas=False,
            colours="RGB",
            letterbox="centred",
        )
        self._images_per_s = float(os.environ[RATE])
        self._found = Detections(
            np.tile(np.float32([1, 1, 20, 20]), (DETECTIONS, 1)),
            np.linspace(0.9, 0.3, DETECTIONS, dtype=np.float32),
            np.arange(DETECTIONS, dtype=np.int32),
        )

    def label(self, class_id: int) -> str:
        """Return the text of a class."""
        return self.labels[class_id]

    def letterbox(self, width_px: int, height_px: int) -> Letterbox:
        """Place an image on a small canvas."""
        return self.placement.letterbox(width_px, height_px)

    def detect(self, canvases: npt.NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> list[Detections]:
        """Sleep, and find the same in each image."""
        time.sleep(len(letterboxes) / self._images_per_s)
        return [self._found] * len(letterboxes)


def simulate() -> None:
    """Put the sleeping detector in place; Ray calls this in each worker that it starts."""
    from batchdet.pipeline import labeller, trial

    labeller.Detector = trial.Detector = SleepingDetector  # type: ignore[misc, assignment]
