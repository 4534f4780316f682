"""Layers that backbones, necks and the head share."""

from torch import nn


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm, an activation (SiLU); padding keeps the size at stride 1."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 1,
        stride: int = 1,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(channels_out, eps=1e-3, momentum=0.03),
            nn.SiLU(inplace=True) if activation is None else activation,
        )


def widened(channels: int, width: float) -> int:
    """Multiply a number of channels, to the nearest multiple of 4 that is not 0."""
    return max(4, 4 * round(channels * width / 4))
