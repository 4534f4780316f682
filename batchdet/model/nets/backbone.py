"""The backbone: a small convolutional network of CSP blocks.

Source: CSPNet, arXiv:1911.11929 (cross-stage partial connections).
"""

import torch
from torch import Tensor, nn


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm, SiLU; padding keeps the size at stride 1."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(channels_out, eps=1e-3, momentum=0.03),
            nn.SiLU(inplace=True),
        )


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

    channels: tuple[int, ...] = (64, 96, 96)
    strides: tuple[int, ...] = (8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, 16, 3, 2)
        self.stage4 = nn.Sequential(ConvNormAct(16, 32, 3, 2), CspBlock(32, 12, 1))
        self.stage8 = nn.Sequential(ConvNormAct(32, 64, 3, 2), CspBlock(64, 24, 2))
        self.stage16 = nn.Sequential(ConvNormAct(64, 96, 3, 2), CspBlock(96, 32, 2))
        self.stage32 = nn.Sequential(ConvNormAct(96, 96, 3, 2), CspBlock(96, 32, 2))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Extract features.

        Args:
            images: (N, 3, H, W) float, RGB in [0, 1]; H and W multiples of 32.

        Returns:
            One (N, channels[i], H / strides[i], W / strides[i]) for each level.
        """
        x = self.stage4(self.stem(images))  # (N, 32, H/4, W/4)
        fine = self.stage8(x)  # (N, 64, H/8, W/8)
        middle = self.stage16(fine)  # (N, 96, H/16, W/16)
        coarse = self.stage32(middle)  # (N, 96, H/32, W/32)
        return fine, middle, coarse
