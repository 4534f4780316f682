"""DETR models without their post-processing: class logits and boxes of each query."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from batchdet.geometry.letterbox import Letterbox
from batchdet.model.families.family import DecodeSettings, Family, Signature, by_score, detections, strongest
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Tensor, TensorInfo
from batchdet.records.detections import Detections

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Floats = npt.NDArray[np.float32]


class _DetrLogits(Family):
    """``logits`` (N, Q, C) and ``pred_boxes`` (N, Q, 4): centre, width and height as shares of the canvas."""

    name: str
    summary: str

    def fits(self, signature: Signature) -> str | None:
        """Say why outputs of this shape cannot be decoded."""
        logits, boxes = _outputs(signature)
        fit = (
            logits is not None
            and boxes is not None
            and len(logits.shape) == len(boxes.shape) == 3
            and logits.shape[1] == boxes.shape[1]
            and boxes.shape[2] == 4
        )
        return None if fit else f"it has {self.summary}"

    def recognise(self, signature: Signature, metadata: Mapping[str, str]) -> str | None:
        """Say by what a model is known to be of this family; both look alike, so only a name decides."""
        return None if self.fits(signature) else "the outputs logits and pred_boxes"

    def decode(
        self, outputs: Mapping[str, Tensor], letterboxes: Sequence[Letterbox], settings: DecodeSettings
    ) -> list[Detections]:
        """Turn the outputs of one run into detections."""
        found = []
        for logits, shares, letterbox in zip(outputs["logits"], outputs["pred_boxes"], letterboxes, strict=True):
            queries, scores, class_ids = self._best(logits.astype(np.float32))
            keep = strongest(scores, class_ids, settings)
            centre, half = shares[queries[keep], :2], shares[queries[keep], 2:] / 2
            boxes = np.concatenate([centre - half, centre + half], axis=1) * np.array(letterbox.canvas * 2, np.float32)
            found.append(detections(boxes, scores[keep], class_ids[keep], letterbox, settings))
        return found

    @abstractmethod
    def _best(self, logits: Floats) -> tuple[npt.NDArray[np.intp], Floats, npt.NDArray[np.int32]]:
        """Return query, score and class of what may be detections.

        Args:
            logits: ``(Q, C)``.
        """


class DetrFocal(_DetrLogits):
    """Scores are sigmoids: the best Q pairs of query and class; a query may stand for several classes.

    Source: Zhu et al., "Deformable DETR", arXiv:2010.04159, and Zhao et al., "DETRs Beat YOLOs on Real-time Object
    Detection", arXiv:2304.08069.
    """

    name = "detr_focal"
    summary = "the outputs logits and pred_boxes, trained with sigmoids (RT-DETR, D-FINE, Deformable DETR)"
    preprocess = Preprocess(letterbox="stretch")

    def class_count(self, signature: Signature) -> int | None:
        """Return the number of classes."""
        logits, _ = _outputs(signature)
        return None if logits is None else logits.shape[2]

    def _best(self, logits: Floats) -> tuple[npt.NDArray[np.intp], Floats, npt.NDArray[np.int32]]:
        flat = logits.ravel()
        places = by_score(flat, len(logits))
        scores = (1 / (1 + np.exp(-flat[places]))).astype(np.float32)
        return places // logits.shape[1], scores, (places % logits.shape[1]).astype(np.int32)


class DetrSoftmax(_DetrLogits):
    """Scores are a softmax over the classes and a last one that stands for no object.

    Source: Carion et al., "End-to-End Object Detection with Transformers", arXiv:2005.12872, section 3; Fang et al.,
    "You Only Look at One Sequence", arXiv:2106.00666.
    """

    name = "detr_softmax"
    summary = "the outputs logits and pred_boxes, trained with a softmax and a class for no object (DETR, YOLOS)"
    preprocess = Preprocess(letterbox="edges", mean=_IMAGENET_MEAN, std=_IMAGENET_STD, shortest_px=800, longest_px=1333)

    def class_count(self, signature: Signature) -> int | None:
        """Return the number of classes, without the one for no object."""
        logits, _ = _outputs(signature)
        return None if logits is None or logits.shape[2] is None else logits.shape[2] - 1

    def _best(self, logits: Floats) -> tuple[npt.NDArray[np.intp], Floats, npt.NDArray[np.int32]]:
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = (shares / shares.sum(axis=1, keepdims=True))[:, :-1]
        return np.arange(len(logits)), shares.max(axis=1), shares.argmax(axis=1).astype(np.int32)


def _outputs(signature: Signature) -> tuple[TensorInfo | None, TensorInfo | None]:
    named = {info.name: info for info in signature.outputs}
    return named.get("logits"), named.get("pred_boxes")
