"""What plug-in heads are made of: the names that stay where they are.

A head is a class that a job names as ``model.family: module:Class``, or by an entry point of the group
``batchdet.families``; see :class:`Head`, and ``jobs/centre_head.py`` for a whole one.
"""

from batchdet.geometry.boxes import cxcywh_to_xyxy
from batchdet.model.families.plugin import Head
from batchdet.model.preprocess import Preprocess

__all__ = ["Head", "Preprocess", "cxcywh_to_xyxy"]
