"""Residual backbones: a small one, and those that weights are published for.

Sources: He et al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385; the stride of a bottleneck is in
its 3x3 convolution, as in torchvision, timm and Hugging Face ("v1.5").
"""

from collections.abc import Sequence

from torch import Tensor, nn

from batchdet.model.nets.layers import ConvNormAct, Normalise, widened

_EPS = 1e-5
"""Of the batch norms of published networks."""


class ResidualBlock(nn.Module):
    """Convolutions, and a shortcut around them, which is a 1x1 convolution where the shape changes.

    Args:
        channels_in: Channels that come in.
        channels: Channels that leave.
        stride: Of the first 3x3 convolution, and of the shortcut.
        bottleneck: Three convolutions (1x1, 3x3, 1x1), the inner ones a quarter as wide; else two of 3x3.
        eps: Of the batch norms.
    """

    def __init__(
        self, channels_in: int, channels: int, stride: int = 1, bottleneck: bool = False, eps: float = 1e-3
    ) -> None:
        super().__init__()
        inner = channels // 4 if bottleneck else channels
        kernels = ((1, 1), (3, stride), (1, 1)) if bottleneck else ((3, stride), (3, 1))
        layers = []
        for n, (kernel, step) in enumerate(kernels):
            last = n == len(kernels) - 1
            activation: nn.Module = nn.Identity() if last else nn.ReLU(inplace=True)
            width_in, width = inner if n else channels_in, channels if last else inner
            layers.append(ConvNormAct(width_in, width, kernel, step, activation, eps))
        self.convs = nn.Sequential(*layers)
        same = channels_in == channels and stride == 1
        self.shortcut = nn.Identity() if same else ConvNormAct(channels_in, channels, 1, stride, nn.Identity(), eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels, H / stride, W / stride)."""
        convs: Tensor = self.convs(x)
        shortcut: Tensor = self.shortcut(x)
        return (convs + shortcut).relu()


class ResNetBackbone(nn.Module):
    """A small one: a stem and four stages of basic blocks; the last three leave as features.

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
        self.stage4 = nn.Sequential(ResidualBlock(c24, c24, 2))
        self.stage8 = nn.Sequential(ResidualBlock(c24, c48, 2), ResidualBlock(c48, c48))
        self.stage16 = nn.Sequential(ResidualBlock(c48, c64, 2), ResidualBlock(c64, c64))
        self.stage32 = nn.Sequential(ResidualBlock(c64, c96, 2), ResidualBlock(c96, c96))

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


class PublishedResNet(nn.Module):
    """A ResNet as published, without its classifier: the same layers, so that published weights compute the same.

    Args:
        depths: Blocks of each of the four stages.
        bottleneck: Whether blocks are bottlenecks (from 50 layers up).

    Attributes:
        channels: channels of each feature map, finest first.
        strides: canvas pixels for one cell of each feature map.
    """

    strides: tuple[int, ...] = (8, 16, 32)

    def __init__(self, depths: Sequence[int], bottleneck: bool) -> None:
        super().__init__()
        widths = [64 * 2**n * (4 if bottleneck else 1) for n in range(4)]
        self.channels: tuple[int, ...] = tuple(widths[1:])
        self.normalise = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        self.stem = ConvNormAct(3, 64, 7, 2, nn.ReLU(inplace=True), _EPS)
        self.pool = nn.MaxPool2d(3, 2, 1)
        stages = [
            nn.Sequential(
                *(
                    ResidualBlock(
                        (64, *widths)[n] if first else width, width, 2 if first and n else 1, bottleneck, _EPS
                    )
                    for first in [True] + [False] * (depth - 1)
                )
            )
            for n, (depth, width) in enumerate(zip(depths, widths, strict=True))
        ]
        self.stage4, self.stage8, self.stage16, self.stage32 = stages

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Extract features.

        Args:
            images: (N, 3, H, W) float, RGB in [0, 1]; H and W multiples of 32.

        Returns:
            One (N, channels[i], H / strides[i], W / strides[i]) for each level.
        """
        x = self.stage4(self.pool(self.stem(self.normalise(images))))  # (N, widths[0], H/4, W/4)
        fine = self.stage8(x)  # (N, widths[1], H/8, W/8)
        middle = self.stage16(fine)  # (N, widths[2], H/16, W/16)
        coarse: Tensor = self.stage32(middle)  # (N, widths[3], H/32, W/32)
        return fine, middle, coarse
