"""Plain vision transformers, and the simple feature pyramid that makes several strides of their one.

Sources: Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv:2010.11929; Li et al., "Exploring Plain Vision
Transformer Backbones for Object Detection", arXiv:2203.16527 (the pyramid: from the last map alone); the small one has
positions as sines and cosines, Vaswani et al., arXiv:1706.03762, so that any canvas will do.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from batchdet.model.nets.layers import ConvNormAct, Normalise

PATCH_PX = 16
_HEAD_CHANNELS = 24
_PUBLISHED_HEAD_CHANNELS = 64
PUBLISHED_GRID = 14
"""Rows and columns of the positions in published weights: patches of an image of 224 px."""


class Attention(nn.Module):
    """Every token looks at every other, in several heads."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (N, T, C) to the same shape."""
        # (N, T, 3 C) -> three times (N, heads, T, C / heads)
        q, k, v = self.to_qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        seen = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.to_out(seen.transpose(1, 2).flatten(2))
        return out


class TransformerBlock(nn.Module):
    """Attention, then a small network for each token; each with layer norm before and a shortcut around."""

    def __init__(self, channels: int, heads: int, widening: int = 3, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(channels, eps)
        self.attention = Attention(channels, heads)
        self.norm_mlp = nn.LayerNorm(channels, eps)
        inner = widening * channels
        self.mlp = nn.Sequential(nn.Linear(channels, inner), nn.GELU(), nn.Linear(inner, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (N, T, C) to the same shape."""
        tokens = tokens + self.attention(self.norm_attention(tokens))
        mixed: Tensor = self.mlp(self.norm_mlp(tokens))
        return tokens + mixed


class SimplePyramid(nn.Module):
    """Makes maps at strides 8, 16 and 32 of one at 16.

    Attributes:
        channels: channels of each feature map, finest first.
        strides: canvas pixels for one cell of each feature map.
    """

    strides: tuple[int, ...] = (8, 16, 32)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels: tuple[int, ...] = (channels // 2, channels, channels)
        self.finer = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 2, 2, 2), ConvNormAct(channels // 2, channels // 2, 3)
        )
        self.same = ConvNormAct(channels, channels, 3)
        self.coarser = nn.Sequential(nn.MaxPool2d(2), ConvNormAct(channels, channels, 3))

    def levels(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map (N, C, H/16, W/16) to one (N, channels[i], H / strides[i], W / strides[i]) for each level."""
        return self.finer(x), self.same(x), self.coarser(x)


class VitBackbone(SimplePyramid):
    """A small one: patches of 16 pixels, transformer blocks, and a pyramid at strides 8, 16 and 32.

    Attributes:
        channels: channels of each feature map, finest first.
        strides: canvas pixels for one cell of each feature map.
    """

    def __init__(self, width: float = 1.0, depth: int = 4) -> None:
        heads = max(1, round(4 * width))
        channels = heads * _HEAD_CHANNELS
        super().__init__(channels)
        self.patches = nn.Conv2d(3, channels, PATCH_PX, PATCH_PX)
        self.blocks = nn.Sequential(*(TransformerBlock(channels, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Extract features.

        Args:
            images: (N, 3, H, W) float, RGB in [0, 1]; H and W multiples of 32.

        Returns:
            One (N, channels[i], H / strides[i], W / strides[i]) for each level.
        """
        x = self.patches(images)  # (N, C, H/16, W/16)
        rows, columns = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2) + _positions(rows, columns, x)  # (N, H/16 * W/16, C)
        tokens = self.norm(self.blocks(tokens))
        x = tokens.transpose(1, 2).unflatten(2, (rows, columns)).contiguous()  # (N, C, H/16, W/16)
        return self.levels(x)


def _positions(rows: int, columns: int, like: Tensor) -> Tensor:
    """Say where each token is: (rows * columns, C), sines and cosines of y in one half of C and of x in the other."""
    count = like.shape[1] // 4
    falling = torch.arange(count, device=like.device, dtype=torch.float32) * (-math.log(10_000.0) / count)
    rates = falling.exp()  # (C / 4,)
    y = torch.arange(rows, device=like.device, dtype=torch.float32)[:, None] * rates  # (rows, C / 4)
    x = torch.arange(columns, device=like.device, dtype=torch.float32)[:, None] * rates
    of_y = torch.cat([y.sin(), y.cos()], dim=1)[:, None].expand(-1, columns, -1)  # (rows, columns, C / 2)
    of_x = torch.cat([x.sin(), x.cos()], dim=1)[None].expand(rows, -1, -1)
    return torch.cat([of_y, of_x], dim=2).flatten(0, 1).to(like.dtype)


class PublishedVit(SimplePyramid):
    """A vision transformer as published, without its classifier, and a pyramid, for which no weights are published.

    Args:
        channels: Channels of a token; each head has 64.

    Attributes:
        trunk: All that published weights are for; what ``--freeze backbone`` keeps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.trunk = VitTrunk(channels, channels // _PUBLISHED_HEAD_CHANNELS)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Extract features.

        Args:
            images: (N, 3, H, W) float, RGB in [0, 1]; H and W multiples of 32.

        Returns:
            One (N, channels[i], H / strides[i], W / strides[i]) for each level.
        """
        return self.levels(self.trunk(images))


class VitTrunk(nn.Module):
    """ViT with patches of 16 pixels, 12 blocks, a class token and learned positions, which follow the canvas."""

    def __init__(self, channels: int, heads: int, depth: int = 12) -> None:
        super().__init__()
        self.normalise = Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.patches = nn.Conv2d(3, channels, PATCH_PX, PATCH_PX)
        self.class_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + PUBLISHED_GRID**2, channels))
        self.blocks = nn.Sequential(*(TransformerBlock(channels, heads, 4, 1e-6) for _ in range(depth)))
        self.norm = nn.LayerNorm(channels, 1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, H, W), RGB in [0, 1], to (N, C, H/16, W/16): all tokens but the class's, after the last norm."""
        x = self.patches(self.normalise(images))  # (N, C, H/16, W/16)
        rows, columns = x.shape[-2:]
        grid = resampled(self.positions[:, 1:], rows, columns)
        first = (self.class_token + self.positions[:, :1]).expand(x.shape[0], -1, -1)
        tokens = torch.cat([first, x.flatten(2).transpose(1, 2) + grid], dim=1)  # (N, 1 + H/16 * W/16, C)
        tokens = self.norm(self.blocks(tokens))[:, 1:]
        plane: Tensor = tokens.transpose(1, 2).reshape(x.shape)
        return plane


def resampled(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Make a square grid of learned positions fit another: (1, S * S, C) gives (1, rows * columns, C)."""
    side = math.isqrt(positions.shape[1])
    plane = positions.transpose(1, 2).reshape(1, -1, side, side)
    plane = functional.interpolate(plane, size=(rows, columns), mode="bicubic", align_corners=False)
    return plane.flatten(2).transpose(1, 2)
