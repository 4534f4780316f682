"""Layers that backbones, necks and the head share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm, an activation (SiLU); padding keeps the size at stride 1."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 1,
        stride: int = 1,
        activation: nn.Module | None = None,
        eps: float = 1e-3,
    ) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(channels_out, eps=eps, momentum=0.03),
            nn.SiLU(inplace=True) if activation is None else activation,
        )


class Normalise(nn.Module):
    """What published weights expect of images: each channel minus a mean, divided by a deviation.

    Both are buffers, so that a checkpoint holds them with the weights that were trained for them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, H, W), RGB in [0, 1], to the same shape."""
        return (images - self.mean) / self.std


def widened(channels: int, width: float) -> int:
    """Multiply a number of channels, to the nearest multiple of 4 that is not 0."""
    return max(4, 4 * round(channels * width / 4))
