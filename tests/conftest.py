"""Fixtures that several kinds of test share."""

from tests.ray_head import ray_head
from tests.s3_server import s3

__all__ = ["ray_head", "s3"]
