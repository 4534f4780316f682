"""Detections of one image: arrays of equal length, checked when made."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in one image, sorted by falling score.

    Args:
        boxes_xyxy: ``(N, 4)`` float32, pixels of the upright original (x_min, y_min, x_max, y_max).
        scores: ``(N,)`` float32 in [0, 1].
        class_ids: ``(N,)`` int32.
        features: ``(N, D)`` float32, a vector of each detection; None when none were asked for.
        image_features: ``(D,)`` float32, a vector of the image; likewise.

    Raises:
        ValueError: A shape or dtype is different, or a score is outside 0..1; the message shows it.
    """

    boxes_xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int32]
    features: npt.NDArray[np.float32] | None = None
    image_features: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        want: dict[str, tuple[tuple[int, ...], Any]] = {
            "boxes_xyxy": ((n, 4), np.float32),
            "scores": ((n,), np.float32),
            "class_ids": ((n,), np.int32),
        }
        for name, (shape, dtype) in want.items():
            got = getattr(self, name)
            if got.shape != shape or got.dtype != dtype:
                raise ValueError(f"Detections.{name} must be {np.dtype(dtype)} {shape}, got {got.dtype} {got.shape}")
        if n and not (self.scores.min() >= 0 and self.scores.max() <= 1):
            raise ValueError(f"Detections.scores must lie in 0..1, got {self.scores.min()} to {self.scores.max()}")
        vectors = self.features
        if vectors is not None and (vectors.ndim != 2 or len(vectors) != n or vectors.dtype != np.float32):
            raise ValueError(f"Detections.features must be float32 ({n}, D), got {vectors.dtype} {vectors.shape}")

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def empty() -> "Detections":
        """Return no detections."""
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
