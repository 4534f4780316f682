"""The head: one prediction for each object, so that no NMS is needed.

Two branches share the pyramid. In training a one-to-many branch, rich in positives, teaches the
features while a one-to-one branch learns to speak once for each object. Afterwards only the
one-to-one branch is kept.

Sources: YOLOv10, arXiv:2405.14458 (consistent dual assignments); FCOS, arXiv:1904.01355 (a box as four
distances from a cell's centre).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from batchdet.model.nets.layers import ConvNormAct, widened

_PRIOR_SCORE = 0.01
_BLANK_LOGIT = -100.0  # its sigmoid is below 1e-43
_START_REACH = 2.0  # strides from a cell's centre to a side of the box before training


class Predictions(NamedTuple):
    """What one branch says about every cell of all levels, finest level first.

    Attributes:
        logits: (N, A, C) scores before the sigmoid.
        boxes_xyxy: (N, A, 4) canvas pixels.
    """

    logits: Tensor
    boxes_xyxy: Tensor


class DualPredictions(NamedTuple):
    """Both branches, and where the cells are.

    Attributes:
        one_to_many: the branch that is dropped after training.
        one_to_one: the branch that stays.
        centres_xy: (A, 2) canvas pixels, the middle of each cell.
    """

    one_to_many: Predictions
    one_to_one: Predictions
    centres_xy: Tensor


class Branch(nn.Module):
    """Scores and boxes for each cell, from a small tower for each level and each of the two."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], class_count: int, width: float = 1.0) -> None:
        super().__init__()
        self.strides = tuple(strides)
        c48, c32 = widened(48, width), widened(32, width)
        self.score_towers = nn.ModuleList(
            nn.Sequential(ConvNormAct(count, c48, 3), nn.Conv2d(c48, class_count, 1)) for count in channels
        )
        self.box_towers = nn.ModuleList(
            nn.Sequential(ConvNormAct(count, c32, 3), nn.Conv2d(c32, 4, 1)) for count in channels
        )
        for score_tower, box_tower in zip(self.score_towers, self.box_towers, strict=True):
            _fill_bias(score_tower, -math.log((1 - _PRIOR_SCORE) / _PRIOR_SCORE))
            _fill_bias(box_tower, math.log(math.expm1(_START_REACH)))

    def forward(self, pyramid: Sequence[Tensor], centres_xy: Tensor) -> Predictions:
        """Predict for every cell of every level of the pyramid, (N, channels[i], H_i, W_i)."""
        logits = [_cells(tower(x)) for tower, x in zip(self.score_towers, pyramid, strict=True)]
        reaches = [
            functional.softplus(_cells(tower(x)).float()) * stride
            for tower, x, stride in zip(self.box_towers, pyramid, self.strides, strict=True)
        ]
        reach_ltrb = torch.cat(reaches, dim=1)  # (N, A, 4) canvas pixels
        low, high = centres_xy - reach_ltrb[..., :2], centres_xy + reach_ltrb[..., 2:]
        return Predictions(torch.cat(logits, dim=1).float(), torch.cat([low, high], dim=-1))


class DualHead(nn.Module):
    """The one-to-one branch and, while training, the one-to-many branch beside it.

    Attributes:
        channels: of each level that it takes, finest first.
        strides: of these levels.
        detections: how many leave for each image, K.
        blanks: so many of them may be blank, with a score of 0, because the smallest canvas (one cell at the
            coarsest stride) has fewer candidates than K; 0 with many classes.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        class_count: int,
        detections: int = 100,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        fewest = class_count * sum((max(strides) // stride) ** 2 for stride in strides)
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.detections = detections
        self.blanks = max(0, detections - fewest)
        self.one_to_one = Branch(channels, strides, class_count, width)
        self.one_to_many = Branch(channels, strides, class_count, width)

    def forward(self, pyramid: Sequence[Tensor]) -> DualPredictions | Tensor:
        """Predict.

        Args:
            pyramid: (N, channels[i], H_i, W_i), finest first.

        Returns:
            While training `DualPredictions`, otherwise what `select_best` returns.
        """
        centres_xy = torch.cat([_centres(x, s) for x, s in zip(pyramid, self.strides, strict=True)])  # (A, 2)
        one_to_one: Predictions = self.one_to_one(pyramid, centres_xy)
        if self.training:
            return DualPredictions(self.one_to_many(pyramid, centres_xy), one_to_one, centres_xy)
        return select_best(one_to_one, self.detections, self.blanks)


def select_best(predictions: Predictions, detections: int, blanks: int = 0) -> Tensor:
    """Take the highest scores over all cells and classes, with the boxes of their cells.

    Args:
        predictions: logits (N, A, C) and boxes (N, A, 4).
        detections: how many to take, K; at most A * C + ``blanks``.
        blanks: candidates of score 0 to add, so that K are there on any canvas; a size that the graph knows.

    Returns:
        (N, K, 6) float32: x_min, y_min, x_max, y_max in canvas pixels, score, class_id; best first.
    """
    class_count = predictions.logits.shape[-1]
    candidates = predictions.logits.flatten(1)  # (N, A * C)
    if blanks:
        candidates = functional.pad(candidates, (0, blanks), value=_BLANK_LOGIT)
    best, places = candidates.topk(detections, dim=1)  # (N, K)
    if blanks:
        places = places.clamp(max=predictions.logits.shape[1] * class_count - 1)
    cells = (places // class_count).unsqueeze(-1)  # (N, K, 1)
    boxes_xyxy = predictions.boxes_xyxy.gather(1, cells.expand(-1, -1, 4))  # (N, K, 4)
    class_ids = (places % class_count).to(boxes_xyxy.dtype)
    return torch.cat([boxes_xyxy, best.sigmoid().unsqueeze(-1), class_ids.unsqueeze(-1)], dim=-1)


def _cells(x: Tensor) -> Tensor:
    """Turn (N, C, H, W) into (N, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


def _centres(x: Tensor, stride: int) -> Tensor:
    """Return the cells' centres of one level, (H * W, 2) canvas pixels, row by row."""
    height, width = x.shape[-2:]
    ys = (torch.arange(height, device=x.device, dtype=torch.float32) + 0.5) * stride
    xs = (torch.arange(width, device=x.device, dtype=torch.float32) + 0.5) * stride
    grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([grid_x, grid_y], dim=-1).flatten(0, 1)


def _fill_bias(tower: nn.Module, value: float) -> None:
    last = list(tower.modules())[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    nn.init.constant_(last.bias, value)
    nn.init.normal_(last.weight, std=0.01)
