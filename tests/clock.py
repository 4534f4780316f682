"""A clock for tests of what waits: it stands still but for ``sleep``."""

import pytest


class Clock:
    """Stands where a module says ``time``."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


def stop_the_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Let storage's retries wait without waiting."""
    clock = Clock()
    monkeypatch.setattr("batchdet.storage.backoff.time", clock)
    return clock
