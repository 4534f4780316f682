"""What the heads with objectness have in common: rows of a box, its objectness, then class scores."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchdet.geometry.boxes import Boxes, cxcywh_to_xyxy
from batchdet.geometry.letterbox import Letterbox
from batchdet.model.families.family import DecodeSettings, Family, Signature, best_class, candidates, suppressed
from batchdet.model.runtimes import Tensor
from batchdet.records.detections import Detections


class ObjectnessFamily(Family):
    """``(N, A, 5 + C)``: four numbers of a box, objectness, then C class scores; NMS follows.

    The score is objectness times the best class score.
    """

    @abstractmethod
    def check(self, rows: Tensor, canvas: tuple[int, int]) -> None:
        """Refuse the rows of an image if they are those of another head.

        Args:
            rows: ``(A, 5 + C)`` float32.
            canvas: ``(width_px, height_px)``.

        Raises:
            SenselessOutput: They are.
        """

    @abstractmethod
    def centred(self, rows: Tensor, keep: npt.NDArray[np.intp], canvas: tuple[int, int]) -> npt.NDArray[Any]:
        """Return boxes of an image as centre x, centre y, width and height in canvas pixels.

        Args:
            rows: ``(A, 5 + C)`` float32.
            keep: ``(K,)``, the rows that are wanted.
            canvas: ``(width_px, height_px)``.

        Returns:
            ``(K, 4)`` float32.
        """

    def class_count(self, signature: Signature) -> int | None:
        """All channels but the four of the box and the objectness."""
        return None if signature.output is None else (signature.output.shape[2] or 5) - 5

    def class_scores(self, signature: Signature) -> tuple[int, int] | None:
        """Behind box and objectness."""
        return 2, 5

    def decode(
        self, outputs: Mapping[str, Tensor], letterboxes: Sequence[Letterbox], settings: DecodeSettings
    ) -> list[Detections]:
        """Turn the outputs of one run into detections."""
        (output,) = outputs.values()
        found = []
        for rows, letterbox in zip(output.astype(np.float32, copy=False), letterboxes, strict=True):
            self.check(rows, letterbox.canvas)
            scores, class_ids = best_class(rows[:, 5:], 1, settings)
            scores = scores * rows[:, 4]
            keep = candidates(scores, class_ids, settings)
            boxes: Boxes = cxcywh_to_xyxy(self.centred(rows, keep, letterbox.canvas))
            found.append(suppressed(boxes, scores[keep], class_ids[keep], letterbox, settings))
        return found
