"""Fixtures that several kinds of test share."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.ray_head import ray_head
from tests.s3_server import s3

__all__ = ["ray_head", "s3", "shared"]

settings.register_profile("batchdet", deadline=None)  # a busy machine is no failure
settings.load_profile("batchdet")


_RAY = (
    "e2e/test_broken.py",
    "e2e/test_canary.py",
    "e2e/test_forecast.py",
    "e2e/test_real_models.py",
    "e2e/test_submit.py",
    "e2e/test_trust.py",
    "fault/test_crashes.py",
    "fault/test_hostile_input.py",
)
"""Files of ``make test`` that use the Ray that tests share; one that is missing here costs another Ray."""

_LONG = (
    "fault/test_storage_faults.py",
    "contract/",
    "e2e/",
    "unit/training/",
    "unit/test_train.py",
    "unit/test_plan.py",
    "fault/",
    "unit/pipeline/",
)
"""What takes half a minute or waits much; what begins last should be short, for one worker waits for the other."""


def _scope(nodeid: str) -> str:
    """Return what a test shares a worker with: all tests of its file, for fixtures are the module's, or of one Ray."""
    file = nodeid.partition("::")[0]
    return "ray" if file.endswith(_RAY) else file


def _rank(scope: str) -> int:
    """Order what workers are given: one begins with Ray, the other with what is long."""
    found = (n for n, part in enumerate(_LONG, 1) if f"tests/{part}" in scope)
    return 0 if scope == "ray" else next(found, len(_LONG) + 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: _rank(_scope(item.nodeid)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker (``-n 2``) whole files, and one of them all that use Ray."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    config.option.loadscopereorder = False
    return Files(config, log)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and photographs; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("BATCHDET_SHARED", Path(__file__).parents[2] / "shared")).resolve()
    if not (folder / "models").is_dir():
        pytest.skip(f"{folder}: no shared test data here; set BATCHDET_SHARED")
    return folder
