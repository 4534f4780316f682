"""Every promise of the acceptance list that is due is kept by a test that says so."""

import re
from pathlib import Path
from typing import Final

import pytest

_TESTS: Final = Path(__file__).parents[1]
_MARKER: Final = re.compile(r"mark\.acceptance\(([^)]*)\)")
_ID: Final = re.compile(r"\"([RS][0-9]+)\"")
PROMISES: Final = {f"R{n}" for n in range(1, 45)} | {f"S{n}" for n in range(1, 28)}
NOT_DUE: Final = {
    "R5": "three nodes, of which one is killed: belongs to the issue of the cluster",
    "R6": "a node that is cut off by a network namespace: belongs to the issue of the cluster",
    "R29": "there are no Iceberg tables yet: belongs to the issue of publishing",
    "R35": "half an hour of mixed faults is make soak MINUTES=30, too long for a test",
    "S19": "there is no such promise",
}
"""Promises that no test has to keep yet -> why."""


def test_every_promise_has_a_test() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(_TESTS.rglob("test_*.py")))
    kept = {name for marker in _MARKER.findall(text) for name in _ID.findall(marker)}
    assert sorted(PROMISES - kept - set(NOT_DUE)) == []
    assert sorted(kept - PROMISES) == []


def test_the_promises_are_those_of_the_acceptance_list(shared: Path) -> None:
    """Each row of its tables begins with an id, several, or a range of them."""
    listed = set()
    page = shared / "ACCEPTANCE.md"
    if not page.is_file():
        pytest.skip(f"{page}: not here")
    for line in page.read_text(encoding="utf-8").splitlines():
        for part in line.split("|")[1].split(",") if line.startswith(("| R", "| S")) else ():
            first, _, last = part.strip().partition("–")
            letter, begin = first[0], int(first[1:])
            end = int(last[1:]) if last else begin
            listed |= {f"{letter}{n}" for n in range(begin, end + 1)}
    assert listed == PROMISES - {"S19"}
