"""The rehearsal: what does not work is not used, and what works in no way says why."""

from typing import Any

import pytest

from batchdet.errors import ModelError, OutOfDeviceMemory
from batchdet.model.rehearsal import Rehearsed, rehearse

FREE = Rehearsed((), None, "rectangle")
FIXED = Rehearsed((), 1, "fixed")


def rehearsed(declared: Rehearsed, run: Any) -> Rehearsed:
    return rehearse(declared, run, 2, (64, 64), 32)


def test_what_works_is_used() -> None:
    runs: list[Any] = []
    assert rehearsed(FREE, lambda *asked: runs.append(asked) or True) == FREE
    assert runs == [(2, (64, 64)), (2, (64, 32))]


def test_what_fails_is_not_used() -> None:
    def run(batch: int, canvas: tuple[int, int]) -> bool:
        if batch > 1 or canvas != (64, 64):
            raise ValueError("fixed inside")
        return True

    found = rehearsed(FREE, run)
    assert (found.fixed_batch, found.shape, len(found.notes)) == (1, "square", 2)


@pytest.mark.parametrize("declared", [FREE, FIXED])
def test_a_graph_that_does_not_build_says_why(declared: Rehearsed) -> None:
    def run(batch: int, canvas: tuple[int, int]) -> bool:
        raise ModelError("no kernel for ReduceMax")

    with pytest.raises(ModelError, match="no kernel for ReduceMax"):
        rehearsed(declared, run)


def test_too_little_memory_says_nothing_of_the_file() -> None:
    def run(batch: int, canvas: tuple[int, int]) -> bool:
        raise OutOfDeviceMemory("no memory")

    with pytest.raises(OutOfDeviceMemory):
        rehearsed(FREE, run)
