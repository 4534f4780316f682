"""Which cells of the pyramid answer for which object.

Sources: TOOD, arXiv:2108.07755 (task-aligned assignment); YOLOv10, arXiv:2405.14458 (the same metric for
one-to-many and one-to-one); DIoU and CIoU, arXiv:1911.08287.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from batchdet.model.nets.head import Predictions

SCORE_POWER = 0.5
OVERLAP_POWER = 6.0


class Truth(NamedTuple):
    """The objects of a batch of canvases, padded to the same number M.

    Attributes:
        boxes_xyxy: (N, M, 4) float32 canvas pixels.
        class_ids: (N, M) int64.
        present: (N, M) bool, False where padded.
    """

    boxes_xyxy: Tensor
    class_ids: Tensor
    present: Tensor


class Assignment(NamedTuple):
    """What each cell shall say.

    Attributes:
        object_index: (N, A) int64, position in the truth; meaningless where not positive.
        positive: (N, A) bool.
        target_score: (N, A) float32, the aligned quality for the object's class, 0 where not positive.
    """

    object_index: Tensor
    positive: Tensor
    target_score: Tensor


@torch.no_grad()
def assign(
    predictions: Predictions,
    centres_xy: Tensor,
    truth: Truth,
    cells_per_object: int,
    score_power: float = SCORE_POWER,
) -> Assignment:
    """Give each object its best-aligned cells among those whose centre lies inside it.

    Args:
        predictions: one branch's logits (N, A, C) and boxes (N, A, 4).
        centres_xy: (A, 2) canvas pixels.
        truth: the objects.
        cells_per_object: at most so many; 1 makes the assignment one-to-one.
        score_power: how much the score counts beside the overlap, whose power is `OVERLAP_POWER`; a high one
            lets a cell that has spoken for an object go on doing so.

    Returns:
        The assignment; a cell that several objects want goes to the one it overlaps most.
    """
    count, objects = truth.class_ids.shape
    cells = centres_xy.shape[0]
    if objects == 0:
        none = centres_xy.new_zeros(count, cells)
        return Assignment(none.long(), none.bool(), none)
    classes = truth.class_ids.unsqueeze(1).expand(-1, cells, -1)  # (N, A, M)
    score = predictions.logits.sigmoid().gather(2, classes).transpose(1, 2)  # (N, M, A)
    overlap = pairwise_iou(truth.boxes_xyxy, predictions.boxes_xyxy)  # (N, M, A)
    low = centres_xy - truth.boxes_xyxy[:, :, None, :2]  # (N, M, A, 2)
    high = truth.boxes_xyxy[:, :, None, 2:] - centres_xy
    inside = (torch.minimum(low, high).amin(dim=-1) > 0) & truth.present.unsqueeze(-1)
    metric = (score**score_power * overlap**OVERLAP_POWER).clamp(min=1e-12) * inside

    best, places = metric.topk(min(cells_per_object, cells), dim=-1)  # (N, M, k)
    wanted = torch.zeros_like(inside).scatter_(2, places, best > 0)
    rivals = torch.where(wanted, overlap.clamp(min=1e-9), 0.0)
    winner = rivals.argmax(dim=1)  # (N, A)
    mine = wanted & (winner.unsqueeze(1) == torch.arange(objects, device=winner.device)[None, :, None])

    kept = metric * mine
    top_metric = kept.amax(dim=-1, keepdim=True)
    top_overlap = (overlap * mine).amax(dim=-1, keepdim=True)
    quality = kept / top_metric.clamp(min=1e-12) * top_overlap
    return Assignment(winner, mine.any(dim=1), quality.amax(dim=1))


def pairwise_iou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """Compare all boxes of two sets: (N, M, 4) and (N, A, 4) give IoU as (N, M, A)."""
    first, second = first_xyxy.unsqueeze(2), second_xyxy.unsqueeze(1)
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    shared = sides.clamp(min=0).prod(dim=-1)
    union = _area(first) + _area(second) - shared
    return shared / union.clamp(min=1e-9)


def complete_iou(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """Compare boxes pair by pair by CIoU, which also sees distance and aspect.

    Source: arXiv:1911.08287.

    Args:
        first_xyxy: (P, 4).
        second_xyxy: (P, 4).

    Returns:
        (P,) in [-1.5, 1], with a gradient even where boxes do not touch.
    """
    low = torch.maximum(first_xyxy[:, :2], second_xyxy[:, :2])
    high = torch.minimum(first_xyxy[:, 2:], second_xyxy[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    iou = shared / (_area(first_xyxy) + _area(second_xyxy) - shared).clamp(min=1e-9)
    hull = torch.maximum(first_xyxy[:, 2:], second_xyxy[:, 2:]) - torch.minimum(first_xyxy[:, :2], second_xyxy[:, :2])
    apart = (first_xyxy[:, :2] + first_xyxy[:, 2:] - second_xyxy[:, :2] - second_xyxy[:, 2:]) / 2
    distance = apart.square().sum(dim=-1) / hull.square().sum(dim=-1).clamp(min=1e-9)
    turn = _slope(first_xyxy) - _slope(second_xyxy)
    aspect = 4 / math.pi**2 * turn.square()
    with torch.no_grad():
        weight = aspect / (1 - iou + aspect).clamp(min=1e-9)
    return iou - distance - weight * aspect


def _area(boxes_xyxy: Tensor) -> Tensor:
    return (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0).prod(dim=-1)


def _slope(boxes_xyxy: Tensor) -> Tensor:
    sides = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=1e-6)
    return torch.atan(sides[..., 0] / sides[..., 1])
