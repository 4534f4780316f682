"""The training loss: scores and boxes, for both branches of the head.

Sources: TOOD, arXiv:2108.07755 (scores learn the aligned quality); YOLOv10, arXiv:2405.14458 (the sum of
the two branches).
"""

from torch import Tensor
from torch.nn import functional

from batchdet.model.nets.head import DualPredictions, Predictions
from batchdet.training.assignment import SCORE_POWER, Truth, assign, complete_iou

BOX_WEIGHT = 2.5
MANY_CELLS = 10


def dual_loss(predictions: DualPredictions, truth: Truth, score_power: float = SCORE_POWER) -> Tensor:
    """Add the losses of the one-to-many and the one-to-one branch (its `assign` by ``score_power``); a scalar."""
    many = branch_loss(predictions.one_to_many, predictions.centres_xy, truth, MANY_CELLS)
    return many + branch_loss(predictions.one_to_one, predictions.centres_xy, truth, 1, score_power)


def branch_loss(
    predictions: Predictions,
    centres_xy: Tensor,
    truth: Truth,
    cells_per_object: int,
    score_power: float = SCORE_POWER,
) -> Tensor:
    """Measure one branch: cross-entropy towards the aligned quality, CIoU weighted by it.

    Args:
        predictions: logits (N, A, C) and boxes (N, A, 4).
        centres_xy: (A, 2) canvas pixels.
        truth: the objects.
        cells_per_object: see `assign`.
        score_power: see `assign`.

    Returns:
        A scalar, per unit of quality in the batch.
    """
    assignment = assign(predictions, centres_xy, truth, cells_per_object, score_power)
    total = assignment.target_score.sum().clamp(min=1.0)
    row, cell = assignment.positive.nonzero(as_tuple=True)
    index = assignment.object_index[row, cell]
    quality = assignment.target_score[row, cell]
    target = predictions.logits.new_zeros(predictions.logits.shape)
    target[row, cell, truth.class_ids[row, index]] = quality
    scores = functional.binary_cross_entropy_with_logits(predictions.logits, target, reduction="sum")
    likeness = complete_iou(predictions.boxes_xyxy[row, cell], truth.boxes_xyxy[row, index])
    boxes = ((1 - likeness) * quality).sum()
    return (scores + BOX_WEIGHT * boxes) / total
