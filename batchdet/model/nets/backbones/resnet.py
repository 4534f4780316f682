"""A small residual backbone.

Source: He et al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385 (basic blocks, ReLU).
"""

from torch import Tensor, nn

from batchdet.model.nets.layers import ConvNormAct, widened


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            ConvNormAct(channels_in, channels, 3, stride, nn.ReLU(inplace=True)),
            ConvNormAct(channels, channels, 3, activation=nn.Identity()),
        )
        same = channels_in == channels and stride == 1
        self.shortcut = (
            nn.Identity() if same else ConvNormAct(channels_in, channels, 1, stride, activation=nn.Identity())
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels, H / stride, W / stride)."""
        convs: Tensor = self.convs(x)
        shortcut: Tensor = self.shortcut(x)
        return (convs + shortcut).relu()


class ResNetBackbone(nn.Module):
    """A stem and four stages of basic blocks; the last three leave as features.

    Attributes:
        channels: channels of each feature map, finest first.
        strides: canvas pixels for one cell of each feature map.
    """

    strides: tuple[int, ...] = (8, 16, 32)

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        c24, c48, c64, c96 = (widened(channels, width) for channels in (24, 48, 64, 96))
        self.channels: tuple[int, ...] = (c48, c64, c96)
        self.stem = ConvNormAct(3, c24, 3, 2, nn.ReLU(inplace=True))
        self.stage4 = nn.Sequential(BasicBlock(c24, c24, 2))
        self.stage8 = nn.Sequential(BasicBlock(c24, c48, 2), BasicBlock(c48, c48))
        self.stage16 = nn.Sequential(BasicBlock(c48, c64, 2), BasicBlock(c64, c64))
        self.stage32 = nn.Sequential(BasicBlock(c64, c96, 2), BasicBlock(c96, c96))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Extract features.

        Args:
            images: (N, 3, H, W) float, RGB in [0, 1]; H and W multiples of 32.

        Returns:
            One (N, channels[i], H / strides[i], W / strides[i]) for each level.
        """
        x = self.stage4(self.stem(images))  # (N, 24 width, H/4, W/4)
        fine = self.stage8(x)  # (N, 48 width, H/8, W/8)
        middle = self.stage16(fine)  # (N, 64 width, H/16, W/16)
        coarse = self.stage32(middle)  # (N, 96 width, H/32, W/32)
        return fine, middle, coarse
