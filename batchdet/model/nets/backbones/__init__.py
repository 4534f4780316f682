"""Backbones: from a canvas to feature maps at strides 8, 16 and 32."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from batchdet.model.nets.backbones.csp import CspBackbone
from batchdet.model.nets.backbones.resnet import PublishedResNet, ResNetBackbone
from batchdet.model.nets.backbones.vit import PublishedVit, VitBackbone

BACKBONES: Final[Mapping[str, type[CspBackbone | ResNetBackbone | VitBackbone]]] = {
    "csp": CspBackbone,
    "resnet": ResNetBackbone,
    "vit": VitBackbone,
}
"""Small backbones by name; each is made with its width, a factor."""

PUBLISHED: Final[Mapping[str, Callable[[], PublishedResNet | PublishedVit]]] = {
    "resnet18": partial(PublishedResNet, (2, 2, 2, 2), False),
    "resnet34": partial(PublishedResNet, (3, 4, 6, 3), False),
    "resnet50": partial(PublishedResNet, (3, 4, 6, 3), True),
    "resnet101": partial(PublishedResNet, (3, 4, 23, 3), True),
    "vit_tiny": partial(PublishedVit, 192),
    "vit_small": partial(PublishedVit, 384),
    "vit_base": partial(PublishedVit, 768),
}
"""Backbones by name that compute what published weights are for; their width is fixed."""


def make_backbone(
    name: str, width: float
) -> CspBackbone | ResNetBackbone | VitBackbone | PublishedResNet | PublishedVit:
    """Build a backbone with fresh weights; the width is for those that are not published."""
    return PUBLISHED[name]() if name in PUBLISHED else BACKBONES[name](width)


__all__ = ["BACKBONES", "PUBLISHED", "CspBackbone", "ResNetBackbone", "VitBackbone", "make_backbone"]
