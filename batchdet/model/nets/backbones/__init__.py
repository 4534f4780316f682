"""Backbones: from a canvas to feature maps at strides 8, 16 and 32."""

from collections.abc import Mapping
from typing import Final

from batchdet.model.nets.backbones.csp import CspBackbone
from batchdet.model.nets.backbones.resnet import ResNetBackbone
from batchdet.model.nets.backbones.vit import VitBackbone

BACKBONES: Final[Mapping[str, type[CspBackbone | ResNetBackbone | VitBackbone]]] = {
    "csp": CspBackbone,
    "resnet": ResNetBackbone,
    "vit": VitBackbone,
}
"""Every backbone by its name; each is made with its width, a factor."""

__all__ = ["BACKBONES", "CspBackbone", "ResNetBackbone", "VitBackbone"]
