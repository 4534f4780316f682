"""Families: how the raw outputs of a kind of detector become detections."""

from collections.abc import Mapping
from typing import Final

from batchdet.errors import BatchdetError, ModelError, SpecError
from batchdet.model.families.detr import Detr
from batchdet.model.families.detr_logits import DetrFocal, DetrSoftmax
from batchdet.model.families.family import DecodeSettings, Family, SenselessOutput, Signature
from batchdet.model.families.gfl import NanoDet, PicoDet
from batchdet.model.families.plugin import load_plugin
from batchdet.model.families.ssd import Ssd
from batchdet.model.families.yolo_anchors import YoloAnchors
from batchdet.model.families.yolo_dense import YoloDense
from batchdet.model.families.yolo_end2end import YoloEnd2End
from batchdet.model.families.yolox import Yolox
from batchdet.model.labels import parse_names
from batchdet.text import counted

__all__ = ["FAMILIES", "DecodeSettings", "Family", "SenselessOutput", "Signature", "find_family"]

_ALL: Final[tuple[Family, ...]] = (
    YoloEnd2End(),
    YoloDense(),
    Yolox(),
    YoloAnchors(),
    NanoDet(),
    PicoDet(),
    Ssd(),
    Detr(),
    DetrFocal(),
    DetrSoftmax(),
)
FAMILIES: Final = {family.name: family for family in _ALL}
"""Every family by its name."""
_MORE_CHANNELS: Final = {
    1: "one channel more is the angle of a model for oriented boxes",
    32: "32 channels more are the masks of a segmentation model",
    51: "51 channels more are the 17 keypoints of a pose model",
}
"""What follows the class scores of Ultralytics' models for other tasks."""


def find_family(
    asked: str, signature: Signature, metadata: Mapping[str, str], labels_uri: str | None = None
) -> tuple[Family, str]:
    """Find the family of a model.

    Args:
        asked: A family's name, or ``auto``: the metadata's ``family``, else what the outputs look like.
        signature: What a probe run showed.
        metadata: The model file's key-value texts; ``names`` are the labels, of whichever place.
        labels_uri: The file that the labels are from; None if they are the model's own.

    Returns:
        The family, and by what it is known (for the model's card).

    Raises:
        ModelError: No family or several match, or the one that is named does not, or not with the model's labels.
        SpecError: The plug-in that is asked for is not there, or the labels' file has another number of labels.
    """
    if asked != "auto" and asked not in FAMILIES:
        return load_plugin(asked), "a plug-in that the spec names"
    seen = f"its outputs are {', '.join(map(str, signature.outputs)) or 'none'}"
    named, where = (asked, "the spec") if asked != "auto" else (metadata.get("family", ""), "the model's metadata")
    if named:
        family = FAMILIES.get(named)
        if family is None:
            raise _no_family(f"{where} names the family {named!r}; known are {', '.join(FAMILIES)}")
        complaint = family.fits(signature)
        if complaint:
            raise _no_family(f"{where} names the family {named}, but {complaint}, and {seen}")
        if contradiction := _contradiction(family, signature, metadata, labels_uri):
            raise contradiction
        return family, f"named by {where}"
    task = metadata.get("task", "detect")
    if task not in ("detect", "detection", "object-detection"):
        raise _no_family(f"the model is made for the task {task!r}, not for detection; {seen}")
    reasons = {name: family.recognise(signature, metadata) for name, family in FAMILIES.items()}
    objections = {
        n: _contradiction(FAMILIES[n], signature, metadata, labels_uri) for n, reason in reasons.items() if reason
    }
    matches = [name for name, objection in objections.items() if objection is None]
    if not matches:
        for contradiction in filter(None, objections.values()):
            raise contradiction
    if len(signature.outputs) > 1 and all(len(o.shape) == 2 and (o.shape[0] or 1) > 1 for o in signature.outputs):
        raise _no_family(
            f"the outputs have no batch axis, as NanoDet of 2021 wrote them: {seen}. Export the model again with a "
            "newer version of its tools (one output [N, anchors, classes + 32]), or write a head for it "
            "(model.family: MODULE:CLASS)"
        )
    if len(matches) != 1:
        families = "; ".join(f"{name}: {family.summary}" for name, family in FAMILIES.items())
        found = f"several families ({', '.join(matches)})" if matches else "no family of detectors"
        raise _no_family(f"the model looks like {found}: {seen}. Set model.family if you know it. Families: {families}")
    return FAMILIES[matches[0]], f"recognised by {reasons[matches[0]]}"


def _no_family(message: str) -> ModelError:
    return ModelError(message, code="model.family", key="model.family")


def _contradiction(
    family: Family, signature: Signature, metadata: Mapping[str, str], labels_uri: str | None
) -> BatchdetError | None:
    """Return the error if labels and outputs contradict each other as to the number of classes."""
    names, count = parse_names(metadata.get("names", "")), family.class_count(signature)
    if not names or count is None or count == len(names):
        return None
    if labels_uri is not None:
        text = (
            f"model.labels: {labels_uri} holds {counted(len(names), 'label')}, the model has {counted(count, 'class')}"
        )
        return SpecError(text, code="model.labels", key="model.labels")
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    outputs = ", ".join(map(str, signature.outputs))
    more = _MORE_CHANNELS.get(count - len(names), "")
    return ModelError(
        f"the model names {counted(len(names), 'class')} ({shown}), but as {family.name} its outputs ({outputs}) have "
        f"{count}{'; ' + more if more else ''}. If it is a detector, set model.labels to a file of "
        f"{counted(count, 'label')}, or model.family",
        code="model.labels",
        key="model.labels",
    )
