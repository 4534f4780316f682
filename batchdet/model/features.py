"""Features: vectors of images and of detections, pooled from maps that the detector computes anyway."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from batchdet.errors import SpecError
from batchdet.geometry.letterbox import Letterbox
from batchdet.model.anatomy import Anatomy, FeatureMap, PartName
from batchdet.model.runtimes import Tensor
from batchdet.records.detections import Detections
from batchdet.spec import ModelSpec

Vectors = npt.NDArray[np.float32]
_SAMPLES: Final = 7
"""Points to a side at which a box is sampled."""
_FINEST_STRIDE: Final = 8
"""Boxes are not pooled from finer stages of a backbone: they know edges and colours only."""
_REFERENCE_PX, _REFERENCE_STRIDE = 224, 16
"""A box of this size, as large as the images that backbones are pretrained on, is pooled from this stride."""


@dataclass(frozen=True)
class Pooling:
    """From which maps the vectors of a model come, and how.

    Args:
        kind: ``image`` or ``boxes``.
        maps: What is pooled, finest first.
        by_size: Boxes: pool each from the level that fits its size; otherwise from all, put one behind the other,
            because levels of different widths cannot be compared.
        normalised: Divide each vector by its length.
    """

    kind: Literal["image", "boxes"]
    maps: tuple[FeatureMap, ...]
    by_size: bool
    normalised: bool

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return self.maps[0].channels if self.by_size else sum(m.channels for m in self.maps)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors to tap."""
        return tuple(m.name for m in self.maps)

    def pool(
        self, maps: Mapping[str, Tensor], letterboxes: Sequence[Letterbox], found: Sequence[Detections]
    ) -> list[Detections]:
        """Add vectors to the detections of a batch.

        Args:
            maps: The tapped tensors ``(N, C, h, w)``.
            letterboxes: One per image.
            found: Likewise, without vectors.
        """
        batch = [np.asarray(maps[name], np.float32) for name in self.names]
        results = []
        for i, (letterbox, detections) in enumerate(zip(letterboxes, found, strict=True)):
            planes = [plane[i] for plane in batch]
            if self.kind == "image":
                vector = np.concatenate([_mean(plane, letterbox) for plane in planes])
                results.append(replace(detections, image_features=self._finished(vector)))
            else:
                boxes = letterbox.to_canvas(detections.boxes_xyxy)
                results.append(replace(detections, features=self._finished(self._of_boxes(planes, boxes, letterbox))))
        return results

    def _finished(self, vectors: Vectors) -> Vectors:
        if self.normalised:
            lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
            vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
        return vectors.astype(np.float32, copy=False)

    def _of_boxes(self, planes: Sequence[Tensor], boxes: Vectors, letterbox: Letterbox) -> Vectors:
        if not self.by_size:
            return np.concatenate([pool_boxes(plane, boxes, letterbox.canvas) for plane in planes], axis=1)
        vectors = np.zeros((len(boxes), self.size), np.float32)
        levels = level_by_size(boxes, [m.stride for m in self.maps])
        for level in np.unique(levels):
            at = levels == level
            vectors[at] = pool_boxes(planes[level], boxes[at], letterbox.canvas)
        return vectors


def choose_pooling(spec: ModelSpec, anatomy: Anatomy) -> Pooling | None:
    """Choose the maps that ``model.features`` and ``model.features_from`` mean; None for no features.

    Of a part, images are pooled from the deepest map, boxes from those of stride 8 and up. ``auto`` takes the backbone:
    by it all models find more of 120 photographs again, and more boxes of one class in other images, than by the neck,
    whose maps are made for where and what but not for which (benchmarks/README.md).

    Raises:
        SpecError: The model has no such part, or no such map.
    """
    if spec.features == "none":
        return None
    asked = spec.features_from
    if asked in ("auto", "backbone", "neck"):
        part: PartName = "neck" if asked == "neck" else "backbone"
        maps = anatomy.of(part)
        if not maps:
            raise SpecError(
                f"model.features_from: {asked}, but no {part} is found in the model's graph; name one of its tensors "
                "(N, C, H, W)"
            )
        if spec.features == "image":
            maps = maps[-1:]
        else:
            maps = tuple(m for m in maps if m.stride >= _FINEST_STRIDE) or maps[-1:]
    else:
        maps = tuple(m for m in anatomy.plane if m.name == asked)
        if not maps:
            raise SpecError(
                f"model.features_from: the model has no map {asked!r}; take auto, backbone, neck, or a tensor whose "
                f"sides are those of the canvas divided by its stride, such as {anatomy.plane[-1].name!r}"
                if anatomy.plane
                else f"model.features_from: {asked}, but no maps are found in the model's graph"
            )
    by_size = spec.features == "boxes" and len({m.channels for m in maps}) == 1
    return Pooling(spec.features, maps, by_size, spec.features_normalised)


def level_by_size(boxes_xyxy: Vectors, strides: Sequence[int]) -> npt.NDArray[np.intp]:
    """Say from which level each box is pooled: twice the size, twice the stride.

    Source: Lin et al., "Feature Pyramid Networks for Object Detection", arXiv:1612.03144, equation 1.

    Args:
        boxes_xyxy: ``(N, 4)`` canvas pixels.
        strides: Of the levels, rising.

    Returns:
        ``(N,)`` indices into ``strides``.
    """
    sides = np.sqrt(np.prod(np.maximum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 1e-6), axis=1))
    wanted = np.log2(_REFERENCE_STRIDE) + np.floor(np.log2(sides / _REFERENCE_PX))
    nearest: npt.NDArray[np.intp] = np.abs(np.log2(strides)[None, :] - wanted[:, None]).argmin(axis=1)
    return nearest


def pool_boxes(plane: Tensor, boxes_xyxy: Vectors, canvas: tuple[int, int]) -> Vectors:
    """Average a map over boxes: RoI align on 7 x 7 points, then their mean.

    Points are half a cell apart from cell borders, as in the aligned version; beyond the map its border counts.

    Source: He et al., "Mask R-CNN", arXiv:1703.06870, section 3.

    Args:
        plane: ``(C, h, w)``.
        boxes_xyxy: ``(N, 4)`` canvas pixels.
        canvas: ``(width_px, height_px)``.

    Returns:
        ``(N, C)`` float32.
    """
    channels, height, width = plane.shape
    across = _tents(boxes_xyxy[:, 0], boxes_xyxy[:, 2], canvas[0], width)  # (N, w)
    down = _tents(boxes_xyxy[:, 1], boxes_xyxy[:, 3], canvas[1], height)  # (N, h)
    if not len(boxes_xyxy):
        return np.zeros((0, channels), np.float32)
    # bilinear sampling on a grid is a product of two one-dimensional ones
    rows = np.matmul(down, plane)  # (C, N, w)
    vectors: Vectors = np.einsum("cnw,nw->nc", rows, across).astype(np.float32)
    return vectors


def _tents(low: Vectors, high: Vectors, canvas_px: int, cells: int) -> Vectors:
    """Return how much each cell counts along one axis, ``(N, cells)``; rows add up to 1."""
    scale = cells / canvas_px
    steps = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    points = (low[:, None] + steps * (high - low)[:, None]) * scale - 0.5  # (N, S)
    points = np.clip(points, 0, cells - 1)
    weights = np.maximum(0, 1 - np.abs(points[:, :, None] - np.arange(cells)))  # (N, S, cells)
    shares: Vectors = weights.mean(axis=1).astype(np.float32)
    return shares


def _mean(plane: Tensor, letterbox: Letterbox) -> Vectors:
    """Average a map over the cells whose centres lie on the picture, ``(C,)``: what pads the canvas says nothing."""
    _, height, width = plane.shape
    (left, top), (wide, high) = letterbox.pad, letterbox.content
    columns = _cells(left, left + wide, letterbox.canvas[0], width)
    rows = _cells(top, top + high, letterbox.canvas[1], height)
    vector: Vectors = plane[:, rows, columns].mean(axis=(1, 2), dtype=np.float32)
    return vector


def _cells(low_px: int, high_px: int, canvas_px: int, cells: int) -> slice:
    scale = cells / canvas_px
    first = min(max(round(low_px * scale), 0), cells - 1)
    return slice(first, max(first + 1, min(round(high_px * scale), cells)))
