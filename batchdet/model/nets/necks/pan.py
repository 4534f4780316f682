"""PAN: a feature pyramid that carries meaning down to the fine levels, and position back up.

Sources: FPN, arXiv:1612.03144 (top-down path); PANet, arXiv:1803.01534 (bottom-up path).
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from batchdet.model.nets.layers import ConvNormAct


class PathAggregation(nn.Module):
    """Bring all levels to one width and add each level to its neighbours.

    Attributes:
        channels_in: channels of each level that comes in, finest first.
        channels: channels of each level that leaves, as many as levels come in.
    """

    def __init__(self, channels_in: Sequence[int], width: int = 48) -> None:
        super().__init__()
        self.channels_in: tuple[int, ...] = tuple(channels_in)
        self.channels: tuple[int, ...] = (width,) * len(channels_in)
        self.laterals = nn.ModuleList(ConvNormAct(channels, width) for channels in channels_in)
        self.smooths = nn.ModuleList(ConvNormAct(width, width, 3) for _ in channels_in[:-1])
        self.pools = nn.ModuleList(nn.MaxPool2d(2) for _ in channels_in[:-1])
        self.mixes = nn.ModuleList(ConvNormAct(width, width) for _ in channels_in[:-1])

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Mix the levels.

        Args:
            features: (N, channels_in[i], H_i, W_i), finest first, each half the size of the last.

        Returns:
            (N, width, H_i, W_i) for each level, finest first.
        """
        levels = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        for i in range(len(levels) - 2, -1, -1):  # top-down: coarse to fine
            levels[i] = self.smooths[i](levels[i] + functional.interpolate(levels[i + 1], scale_factor=2.0))
        for i in range(len(levels) - 1):  # bottom-up: fine to coarse
            levels[i + 1] = levels[i + 1] + self.mixes[i](self.pools[i](levels[i]))
        return levels
