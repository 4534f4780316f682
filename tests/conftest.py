"""Fixtures that several kinds of test share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.ray_head import ray_head
from tests.s3_server import s3

__all__ = ["ray_head", "s3", "shared"]

settings.register_profile("batchdet", deadline=None)  # a busy machine is no failure
settings.load_profile("batchdet")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and photographs; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("BATCHDET_SHARED", Path(__file__).parents[2] / "shared")).resolve()
    if not (folder / "models").is_dir():
        pytest.skip(f"{folder}: no shared test data here; set BATCHDET_SHARED")
    return folder
