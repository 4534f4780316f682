"""A plain vision transformer, and the simple feature pyramid that makes several strides of its one.

Sources: Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv:2010.11929; Li et al., "Exploring Plain Vision
Transformer Backbones for Object Detection", arXiv:2203.16527 (the pyramid: from the last map alone); positions as
sines and cosines, Vaswani et al., arXiv:1706.03762, so that any canvas will do.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from batchdet.model.nets.layers import ConvNormAct

PATCH_PX = 16
_HEAD_CHANNELS = 24


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

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(channels)
        self.attention = Attention(channels, heads)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 3 * channels), nn.GELU(), nn.Linear(3 * channels, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (N, T, C) to the same shape."""
        tokens = tokens + self.attention(self.norm_attention(tokens))
        mixed: Tensor = self.mlp(self.norm_mlp(tokens))
        return tokens + mixed


class VitBackbone(nn.Module):
    """Patches of 16 pixels, transformer blocks, and a pyramid at strides 8, 16 and 32.

    Attributes:
        channels: channels of each feature map, finest first.
        strides: canvas pixels for one cell of each feature map.
    """

    strides: tuple[int, ...] = (8, 16, 32)

    def __init__(self, width: float = 1.0, depth: int = 4) -> None:
        super().__init__()
        heads = max(1, round(4 * width))
        channels = heads * _HEAD_CHANNELS
        self.channels: tuple[int, ...] = (channels // 2, channels, channels)
        self.patches = nn.Conv2d(3, channels, PATCH_PX, PATCH_PX)
        self.blocks = nn.Sequential(*(TransformerBlock(channels, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(channels)
        self.finer = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 2, 2, 2), ConvNormAct(channels // 2, channels // 2, 3)
        )
        self.same = ConvNormAct(channels, channels, 3)
        self.coarser = nn.Sequential(nn.MaxPool2d(2), ConvNormAct(channels, channels, 3))

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
        return self.finer(x), self.same(x), self.coarser(x)


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
