"""DETR exports with their post-processing inside: RT-DETR, D-FINE, DEIM."""

from collections.abc import Mapping, Sequence

import numpy as np

from batchdet.geometry.letterbox import Letterbox
from batchdet.model.families.family import DecodeSettings, Family, Signature, detections, strongest
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Tensor, TensorInfo
from batchdet.records.detections import Detections


class Detr(Family):
    """``labels``, ``boxes``, ``scores`` for each query, given the image and its size.

    ``orig_target_sizes`` int64 ``(N, 2)`` is (width, height) of the original; ``boxes`` ``(N, Q, 4)`` are then
    xyxy in original pixels.

    Source: Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection", arXiv:2304.08069, and its published
    export.
    """

    name = "detr"
    summary = "an input [N, 2] int64 for the image sizes, and the outputs labels, boxes, scores"
    preprocess = Preprocess(letterbox="stretch")

    def fits(self, signature: Signature) -> str | None:
        """Say why outputs of this shape cannot be decoded."""
        axes = {o.name: len(o.shape) for o in signature.outputs}
        named = all(axes.get(name) == n for name, n in (("labels", 2), ("boxes", 3), ("scores", 2)))
        return None if named and _sizes_input(signature) else f"it has {self.summary}"

    def recognise(self, signature: Signature, metadata: Mapping[str, str]) -> str | None:
        """Say by what a model is known to be of this family."""
        return None if self.fits(signature) else "the outputs labels, boxes and scores"

    def feeds(self, signature: Signature, letterboxes: Sequence[Letterbox]) -> dict[str, Tensor]:
        """The sizes of the originals."""
        info = _sizes_input(signature)
        return {} if info is None else {info.name: np.array([b.source for b in letterboxes], info.dtype)}

    def decode(
        self, outputs: Mapping[str, Tensor], letterboxes: Sequence[Letterbox], settings: DecodeSettings
    ) -> list[Detections]:
        """Turn the outputs of one run into detections."""
        found = []
        rows = zip(outputs["labels"], outputs["boxes"], outputs["scores"], letterboxes, strict=True)
        for labels, boxes, scores, letterbox in rows:
            scores, class_ids = scores.astype(np.float32), labels.astype(np.int32)
            keep = strongest(scores, class_ids, settings)
            in_image = Letterbox.stretch(letterbox.source, letterbox.source)  # boxes are in original pixels already
            found.append(detections(boxes[keep], scores[keep], class_ids[keep], in_image, settings))
        return found


def _sizes_input(signature: Signature) -> TensorInfo | None:
    found = [i for i in signature.inputs if len(i.shape) == 2 and i.shape[1] == 2 and i.dtype in ("int64", "int32")]
    return found[0] if len(found) == 1 else None
