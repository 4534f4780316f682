"""Stopping between two steps: signals are noted, and the loop looks."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from batchdet.errors import Interrupted


class StopSignals:
    """Which signal has come.

    Attributes:
        number: Of the first signal, None before.
    """

    number: int | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; the second one ends the process at once."""
        if self.number is not None:
            os._exit(128 + number)
        self.number = number

    def wanted(self) -> bool:
        """Say whether one has come."""
        return self.number is not None

    def raise_interrupted(self, message: str) -> None:
        """Turn the signal into the error that ends the command with the status of its number."""
        if self.number is not None:
            name = "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name
            raise Interrupted(f"stopped by {name}; {message}", 128 + self.number)


@contextmanager
def noted_signals() -> Iterator[StopSignals]:
    """Note SIGINT and SIGTERM while the block runs; outside of the main thread nothing is caught."""
    stop = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
