"""Fixtures of the contract suites."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATCHDET_CACHE", str(tmp_path_factory.mktemp("cache") / "batchdet"))
        yield
