"""Non-maximum suppression. The only one in the project."""

import numpy as np
import numpy.typing as npt

from batchdet.geometry.boxes import as_boxes, iou_matrix


def nms(
    boxes_xyxy: npt.ArrayLike,
    scores: npt.ArrayLike,
    class_ids: npt.ArrayLike,
    iou_threshold: float,
    max_detections: int,
    counted: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.intp]:
    """Keep the strongest of overlapping boxes of one class.

    Boxes of different classes never suppress each other. Equal scores are taken in the order of their indices,
    so the result does not depend on the machine.

    Args:
        boxes_xyxy: ``(N, 4)`` pixels.
        scores: ``(N,)``.
        class_ids: ``(N,)`` integers.
        iou_threshold: A box goes when its IoU with a stronger kept box of its class is above this.
        max_detections: At most this many boxes that count are kept.
        counted: ``(N,)`` which boxes count; the others suppress and are suppressed like any. None counts all.

    Returns:
        ``(K,)`` indices of the kept boxes by falling score.

    Raises:
        ValueError: The three arrays differ in length.

    Source:
        Greedy suppression as in Felzenszwalb et al., "Object Detection with Discriminatively Trained Part-Based
        Models", PAMI 32 (2010), section 7.2, applied to each class by itself.
    """
    boxes = as_boxes(boxes_xyxy)
    score, class_id = np.asarray(scores, np.float32), np.asarray(class_ids)
    if not len(boxes) == len(score) == len(class_id):
        raise ValueError(f"{len(boxes)} boxes, {len(score)} scores, {len(class_id)} class ids: must be as many")
    left = np.argsort(-score, kind="stable")
    kept: list[np.intp] = []
    room = max_detections
    while len(left) and room > 0:
        best, left = left[0], left[1:]
        kept.append(best)
        room -= 1 if counted is None else int(counted[best])
        rivals = left[class_id[left] == class_id[best]]
        if len(rivals):
            overlap = iou_matrix(boxes[best][None], boxes[rivals])[0]
            beaten = rivals[overlap > iou_threshold]
            if len(beaten):
                gone = np.zeros(len(boxes), np.bool_)
                gone[beaten] = True
                left = left[~gone[left]]
    return np.array(kept, np.intp)
