"""A local Ray is not started where it would hang or end without a word."""

import resource
from pathlib import Path

import pytest

from batchdet.errors import ClusterError
from batchdet.pipeline import session

MB = 10**6


@pytest.fixture(autouse=True)
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.resource, "getrlimit", lambda which: (1024, 4096))
    monkeypatch.setattr(session, "shared_memory_bytes", lambda: (8000 * MB, 8000 * MB))
    monkeypatch.setattr(session, "free_bytes", lambda folder: (8000 * MB, 8000 * MB))


def test_plenty_is_left_as_it_is() -> None:
    session._check_room()


@pytest.mark.acceptance("R39")
def test_too_few_open_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.resource, "getrlimit", lambda which: (64, 64))
    with pytest.raises(ClusterError, match="64 files") as raised:
        session._check_room()
    assert raised.value.code == "cluster.few_files"


def test_a_hard_limit_that_ray_can_raise_the_soft_one_to_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for hard in (session._LEAST_FILES, resource.RLIM_INFINITY):
        monkeypatch.setattr(session.resource, "getrlimit", lambda which, hard=hard: (64, hard))
        session._check_room()


@pytest.mark.acceptance("R38")
@pytest.mark.parametrize(("disk", "shared", "word"), [(50, 8000, "/somewhere"), (150, 20, "/dev/shm has only 20 MB")])
def test_full_places_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, disk: int, shared: int, word: str
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/somewhere")
    monkeypatch.setattr(session, "shared_memory_bytes", lambda: (shared * MB, 8000 * MB))
    monkeypatch.setattr(session, "free_bytes", lambda folder: (disk * MB, 8000 * MB))
    with pytest.raises(ClusterError, match=word) as raised:
        session._check_room()
    assert (raised.value.code, raised.value.key) == ("cluster.no_space", "/somewhere")


def test_a_disk_that_holds_the_objects_too_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "shared_memory_bytes", lambda: (0, 0))
    monkeypatch.setattr(session, "free_bytes", lambda folder: (300 * MB, 8000 * MB))
    session._check_room()
