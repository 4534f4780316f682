"""The contract between backbone, neck and head: channels and strides, level by level, finest first."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from torch import Tensor


class Backbone(Protocol):
    """Turns canvases into feature maps.

    Attributes:
        channels: of each feature map, finest first.
        strides: canvas pixels for one cell of each feature map; each is twice the last.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """Map (N, 3, H, W) float, RGB in [0, 1], to (N, channels[i], H / strides[i], W / strides[i]) each."""


class Neck(Protocol):
    """Mixes feature maps of several strides; strides stay as they are.

    Attributes:
        channels_in: of each feature map that it takes.
        channels: of each one that it gives, as many.
    """

    channels_in: tuple[int, ...]
    channels: tuple[int, ...]

    def __call__(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        """Map (N, channels_in[i], H_i, W_i) to (N, channels[i], H_i, W_i) each."""


def check_fit(
    backbone_channels: Sequence[int],
    backbone_strides: Sequence[int],
    neck_channels_in: Sequence[int],
    neck_channels: Sequence[int],
    head_channels: Sequence[int],
    head_strides: Sequence[int],
) -> None:
    """Refuse parts that do not fit together.

    Raises:
        ValueError: naming the two parts and what the one gives and the other takes.
    """
    maps = _maps(backbone_channels, backbone_strides)
    if len(backbone_channels) != len(backbone_strides):
        raise ValueError(f"the backbone has {len(backbone_channels)} channels for {len(backbone_strides)} strides")
    if any(coarse != 2 * fine for fine, coarse in pairwise(backbone_strides)):
        raise ValueError(f"a neck needs maps that halve from level to level; the backbone gives {maps}")
    if tuple(neck_channels_in) != tuple(backbone_channels):
        takes = _maps(neck_channels_in, backbone_strides)
        raise ValueError(f"the neck takes {takes}; the backbone gives {maps}")
    if tuple(head_strides) != tuple(backbone_strides) or tuple(head_channels) != tuple(neck_channels):
        gives = _maps(neck_channels, backbone_strides)
        raise ValueError(f"the head takes {_maps(head_channels, head_strides)}; the neck gives {gives}")


def _maps(channels: Sequence[int], strides: Sequence[int]) -> str:
    """Write the shapes of feature maps: ``(N, 64, H/8, W/8), (N, 96, H/16, W/16)``."""
    strides = [*strides, *("?" for _ in channels[len(strides) :])]  # type: ignore[list-item]
    shapes = [f"(N, {width}, H/{stride}, W/{stride})" for width, stride in zip(channels, strides, strict=False)]
    return ", ".join(shapes) or "nothing"
