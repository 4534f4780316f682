"""Boxes as arrays: conversions, clipping and intersection over union. The only IoU in the project."""

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.float32]
"""``(N, 4)`` float32; the layout (xyxy, cxcywh) is always in the variable's name."""


def as_boxes(boxes: npt.ArrayLike) -> Boxes:
    """Return boxes as an ``(N, 4)`` float32 array.

    Args:
        boxes: ``(N, 4)`` of any number type, or an empty sequence.

    Raises:
        ValueError: The shape is another one; the message shows it.
    """
    array = np.asarray(boxes, np.float32)
    if array.size == 0:
        return np.zeros((0, 4), np.float32)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"boxes must be (N, 4), got {array.shape}")
    return array


def cxcywh_to_xyxy(boxes_cxcywh: npt.ArrayLike) -> Boxes:
    """Turn centre and size into corners.

    Args:
        boxes_cxcywh: ``(N, 4)``: centre x, centre y, width, height.

    Returns:
        ``(N, 4)`` float32: x_min, y_min, x_max, y_max, same unit.
    """
    boxes = as_boxes(boxes_cxcywh)
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def xyxy_to_xywh(boxes_xyxy: npt.ArrayLike) -> Boxes:
    """Turn corners into corner and size, as COCO writes boxes.

    Args:
        boxes_xyxy: ``(N, 4)``: x_min, y_min, x_max, y_max.

    Returns:
        ``(N, 4)`` float32: x_min, y_min, width, height, same unit.
    """
    boxes = as_boxes(boxes_xyxy)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def clip(boxes_xyxy: npt.ArrayLike, width_px: float, height_px: float) -> Boxes:
    """Limit boxes to an image.

    Args:
        boxes_xyxy: ``(N, 4)`` pixels.
        width_px: Right edge of the image.
        height_px: Bottom edge of the image.

    Returns:
        ``(N, 4)`` float32 inside ``[0, width_px] x [0, height_px]``.
    """
    edge = np.array([width_px, height_px, width_px, height_px], np.float32)
    return np.clip(as_boxes(boxes_xyxy), np.float32(0), edge)


def area(boxes_xyxy: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return the areas of boxes, 0 where a box is inside out.

    Args:
        boxes_xyxy: ``(N, 4)`` pixels.

    Returns:
        ``(N,)`` float32, square pixels.
    """
    boxes = as_boxes(boxes_xyxy)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], np.float32(0))
    product: npt.NDArray[np.float32] = sides[:, 0] * sides[:, 1]
    return product


def iou_matrix(a_xyxy: npt.ArrayLike, b_xyxy: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return the intersection over union of every pair.

    Args:
        a_xyxy: ``(N, 4)`` pixels.
        b_xyxy: ``(M, 4)`` pixels.

    Returns:
        ``(N, M)`` float32 in [0, 1]; 0 where both boxes are without area.

    Source:
        Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 88 (2010), section 4.2.
    """
    a, b = as_boxes(a_xyxy), as_boxes(b_xyxy)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    sides = np.maximum(np.minimum(a[:, None, 2:], b[None, :, 2:]) - low, np.float32(0))
    shared = sides[..., 0] * sides[..., 1]
    union = area(a)[:, None] + area(b)[None, :] - shared
    iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    bounded: npt.NDArray[np.float32] = np.minimum(iou, np.float32(1))
    return bounded
