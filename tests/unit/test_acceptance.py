"""Every promise of the acceptance list that is due is kept by a test that says so."""

import re
from pathlib import Path
from typing import Final

_TESTS: Final = Path(__file__).parents[1]
_MARKER: Final = re.compile(r"mark\.acceptance\(([^)]*)\)")
_ID: Final = re.compile(r"\"([RS][0-9]+)\"")


def _numbered(letter: str, *ranges: tuple[int, int]) -> set[str]:
    return {f"{letter}{n}" for first, last in ranges for n in range(first, last + 1)}


DUE: Final = _numbered("R", (1, 4), (8, 23), (25, 28), (30, 30), (32, 33), (36, 36), (40, 41), (43, 43)) | _numbered(
    "S", (1, 17), (20, 22), (24, 27)
)


def test_every_promise_has_a_test() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(_TESTS.rglob("test_*.py")))
    kept = {name for marker in _MARKER.findall(text) for name in _ID.findall(marker)}
    assert sorted(DUE - kept) == []
