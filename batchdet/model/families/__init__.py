"""Families: how the raw outputs of a kind of detector become detections."""

from collections.abc import Mapping
from typing import Final

from batchdet.errors import ModelError
from batchdet.model.families.detr import Detr
from batchdet.model.families.detr_logits import DetrFocal, DetrSoftmax
from batchdet.model.families.family import DecodeSettings, Family, Signature
from batchdet.model.families.gfl import NanoDet, PicoDet
from batchdet.model.families.plugin import load_plugin
from batchdet.model.families.ssd import Ssd
from batchdet.model.families.yolo_dense import YoloDense
from batchdet.model.families.yolo_end2end import YoloEnd2End
from batchdet.model.families.yolox import Yolox

__all__ = ["FAMILIES", "DecodeSettings", "Family", "Signature", "find_family"]

_ALL: Final[tuple[Family, ...]] = (
    YoloEnd2End(),
    YoloDense(),
    Yolox(),
    NanoDet(),
    PicoDet(),
    Ssd(),
    Detr(),
    DetrFocal(),
    DetrSoftmax(),
)
FAMILIES: Final = {family.name: family for family in _ALL}
"""Every family by its name."""


def find_family(asked: str, signature: Signature, metadata: Mapping[str, str]) -> tuple[Family, str]:
    """Find the family of a model.

    Args:
        asked: A family's name, or ``auto``: the metadata's ``family``, else what the outputs look like.
        signature: What a probe run showed.
        metadata: The model file's key-value texts.

    Returns:
        The family, and by what it is known (for the model's card).

    Raises:
        ModelError: No family or several match, or the one that is named does not.
        SpecError: The plug-in that is asked for is not there.
    """
    if asked != "auto" and asked not in FAMILIES:
        return load_plugin(asked), "a plug-in that the spec names"
    seen = f"its outputs are {', '.join(map(str, signature.outputs)) or 'none'}"
    named, where = (asked, "the spec") if asked != "auto" else (metadata.get("family", ""), "the model's metadata")
    if named:
        family = FAMILIES.get(named)
        if family is None:
            raise ModelError(f"{where} names the family {named!r}; known are {', '.join(FAMILIES)}")
        complaint = family.fits(signature)
        if complaint:
            raise ModelError(f"{where} names the family {named}, but {complaint}, and {seen}")
        return family, f"named by {where}"
    task = metadata.get("task", "detect")
    if task not in ("detect", "detection", "object-detection"):
        raise ModelError(f"the model is made for the task {task!r}, not for detection; {seen}")
    reasons = {name: family.recognise(signature, metadata) for name, family in FAMILIES.items()}
    matches = [name for name, reason in reasons.items() if reason]
    if len(matches) != 1:
        families = "; ".join(f"{name}: {family.summary}" for name, family in FAMILIES.items())
        found = f"several families ({', '.join(matches)})" if matches else "no family of detectors"
        raise ModelError(f"the model looks like {found}: {seen}. Set model.family if you know it. Families: {families}")
    return FAMILIES[matches[0]], f"recognised by {reasons[matches[0]]}"
