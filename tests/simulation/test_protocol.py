"""Listing, lease, staging, commit, resume and garbage collection under thousands of seeded schedules."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

from batchdet import storage
from batchdet.table.lease import Commit, Lease
from tests.simulation.store import Rates
from tests.simulation.world import Outcome, simulate, simulated_process, truth

_FIXED_SEEDS = range(120)
"""The same in each run of CI, so that a change that breaks one is at fault."""
_CI_S, _FAULT_S = 10.0, 240.0
_FOUND_BEFORE = [26, 81, 158]
"""Seeds that broke a rule once: a stalled driver replaced records of a run that another one had committed."""
_MANY_STOPS = Rates(stop=0.01, slow=0.03, crash=0.0, late=0.0)


@pytest.fixture(scope="module", autouse=True)
def _shared() -> Iterator[None]:
    with simulated_process():
        truth()
        yield


def first_problem(seeds: "range | itertools.count[int]", limit_s: float, **choices: Any) -> Outcome | None:
    """Return the first schedule that breaks a rule."""
    began = time.monotonic()
    for seed in seeds:  # where the machine is slow, fewer of them
        if time.monotonic() - began > limit_s:
            return None
        outcome = simulate(seed, verify=seed % 40 == 0, **choices)
        if outcome.problems:
            return outcome
    return None


@pytest.mark.acceptance("R1", "R4", "R41")
def test_no_schedule_breaks_a_rule() -> None:
    found = first_problem(_FIXED_SEEDS, _CI_S)
    assert found is None, str(found)


@pytest.mark.parametrize("seed", _FOUND_BEFORE)
def test_a_seed_that_broke_a_rule_keeps_it(seed: int) -> None:
    outcome = simulate(seed, verify=True)
    assert not outcome.problems, str(outcome)


@pytest.mark.fault
def test_no_schedule_of_minutes_breaks_a_rule() -> None:
    began = int(time.time())
    found = first_problem(itertools.count(began), _FAULT_S)
    assert found is None, str(found)


def test_a_seed_gives_one_schedule() -> None:
    first, second = simulate(11), simulate(11)
    assert first.trace == second.trace
    assert len(first.trace) > 100


def test_faults_of_each_kind_happen() -> None:
    kinds = set().union(*(simulate(seed, Rates().scaled(3.0)).faults for seed in range(12)))
    assert kinds == {"lost_request", "lost_reply", "late", "slow", "stop", "crash"}


def _look_and_write(self: Lease, run_id: str, sha256: str) -> None:
    """Commit as before the number of the lease decided: a look at the lease, then a write without a condition."""
    with self._writing:
        self.lost = not storage.persist(self._is_mine)
        if not self.lost:
            self._state["commit"] = asdict(Commit(run_id, self.next_number, sha256))
            self._number += 1
            storage.persist(lambda: storage.write_bytes(self.uri, self._text()))
    if self.lost:
        raise self._taken_over()


@pytest.mark.acceptance("R41")
def test_a_commit_that_looks_before_it_writes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "take_for_commit", _look_and_write)
    found = first_problem(range(280, 2000), 60.0, rates=_MANY_STOPS)
    assert found is not None
    assert any("belongs to another owner" in text or "overwritten by" in text for text in found.problems), str(found)


@pytest.mark.acceptance("R40")
def test_a_store_that_ignores_the_condition_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchdet.job.check_writable", lambda out: None)
    found = first_problem(range(2000), 60.0, conditional=False)
    assert found is not None
    assert any("overwritten by" in text for text in found.problems), str(found)


def test_a_collection_that_stalls_does_not_remove_a_run_that_is_committed_meanwhile() -> None:
    outcome = simulate(40090)
    assert not outcome.problems, str(outcome)


def test_a_store_that_ignores_the_condition_is_refused() -> None:
    outcome = simulate(3, conditional=False)
    assert "output.no_conditional_writes" in outcome.errors
    assert outcome.commits == 0
