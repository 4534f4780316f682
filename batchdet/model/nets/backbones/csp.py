"""A small convolutional backbone of CSP blocks.

Source: CSPNet, arXiv:1911.11929 (cross-stage partial connections).
"""

import torch
from torch import Tensor, nn

from batchdet.model.nets.layers import ConvNormAct, widened


class Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvNormAct(channels, channels, 3), ConvNormAct(channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        convs: Tensor = self.convs(x)
        return x + convs


class CspBlock(nn.Module):
    """Send one part of the channels through residual blocks, let the other pass, join every stage.

    Source: CSPNet, arXiv:1911.11929; joining each block's output follows VoVNet, arXiv:1904.09730.
    """

    def __init__(self, channels: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.split = ConvNormAct(channels, 2 * hidden)
        self.blocks = nn.ModuleList(Residual(hidden) for _ in range(depth))
        self.join = ConvNormAct((2 + depth) * hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        parts = list(self.split(x).chunk(2, dim=1))  # 2 x (N, hidden, H, W)
        for block in self.blocks:
            parts.append(block(parts[-1]))
        joined: Tensor = self.join(torch.cat(parts, dim=1))
        return joined


class CspBackbone(nn.Module):
    """Five halvings of the canvas; the last three stages leave as features.

    Attributes:
        channels: channels of each feature map, finest first.
        strides: canvas pixels for one cell of each feature map.
    """

    strides: tuple[int, ...] = (8, 16, 32)

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        c16, c32, c64, c96 = (widened(channels, width) for channels in (16, 32, 64, 96))
        h12, h24, h32 = (widened(channels, width) for channels in (12, 24, 32))
        self.channels: tuple[int, ...] = (c64, c96, c96)
        self.stem = ConvNormAct(3, c16, 3, 2)
        self.stage4 = nn.Sequential(ConvNormAct(c16, c32, 3, 2), CspBlock(c32, h12, 1))
        self.stage8 = nn.Sequential(ConvNormAct(c32, c64, 3, 2), CspBlock(c64, h24, 2))
        self.stage16 = nn.Sequential(ConvNormAct(c64, c96, 3, 2), CspBlock(c96, h32, 2))
        self.stage32 = nn.Sequential(ConvNormAct(c96, c96, 3, 2), CspBlock(c96, h32, 2))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Extract features.

        Args:
            images: (N, 3, H, W) float, RGB in [0, 1]; H and W multiples of 32.

        Returns:
            One (N, channels[i], H / strides[i], W / strides[i]) for each level.
        """
        x = self.stage4(self.stem(images))  # (N, 32 width, H/4, W/4)
        fine = self.stage8(x)  # (N, 64 width, H/8, W/8)
        middle = self.stage16(fine)  # (N, 96 width, H/16, W/16)
        coarse = self.stage32(middle)  # (N, 96 width, H/32, W/32)
        return fine, middle, coarse
