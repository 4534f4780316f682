"""Fixtures of the contract suites."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and photographs; a machine without it skips."""
    folder = Path(os.environ.get("BATCHDET_SHARED", Path(__file__).parents[2] / ".." / "shared")).resolve()
    if not (folder / "models").is_dir():
        pytest.skip(f"no real models: {folder} is not there (set BATCHDET_SHARED)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATCHDET_CACHE", str(tmp_path_factory.mktemp("cache") / "batchdet"))
        yield
