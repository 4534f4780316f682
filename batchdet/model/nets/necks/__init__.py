"""Necks: they mix feature maps of several strides."""

from collections.abc import Mapping
from typing import Final

from batchdet.model.nets.necks.fpn import FeaturePyramid
from batchdet.model.nets.necks.pan import PathAggregation

NECKS: Final[Mapping[str, type[FeaturePyramid | PathAggregation]]] = {"fpn": FeaturePyramid, "pan": PathAggregation}
"""Every neck by its name; each is made with the channels that come in and the width that leaves."""

__all__ = ["NECKS", "FeaturePyramid", "PathAggregation"]
