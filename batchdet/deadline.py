"""The deadline: a run that makes no progress for too long ends, and says what it waited for."""

import os
import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from batchdet.attendant import KEPT, tell
from batchdet.errors import ClusterError
from batchdet.machine import stopped_processes

_TICKS: Final = 20
_LONGEST_TICK_S: Final = 5.0
_GRACE_S: Final = 10.0
"""An orderly end may take this long; then the attendant ends the processes."""


class Deadline:
    """Raises an error in the main thread if the run makes no progress; leave it as a context manager.

    It counts ticks of a timer, so that time in which this process was stopped does not count. A call into native code
    that never returns cannot be interrupted: then the attendant of the command line ends the process. Outside the main
    thread there is no timer.

    Args:
        timeout_s: Seconds without progress.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._limit_s: float | None = None
        self._passed_s = 0.0
        self._tick_s = 0.0
        self.doing = ""
        self._detail: Callable[[], str] = str
        self._moved: Callable[[], bool] = bool
        self._text = ""

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGALRM, self._on_tick) if _in_main_thread() else None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.rest("the end of the run")
        if _in_main_thread():
            signal.signal(signal.SIGALRM, self._before)

    def expect(
        self,
        doing: str,
        more_s: float = 0.0,
        detail: Callable[[], str] = str,
        moved: Callable[[], bool] = bool,
    ) -> None:
        """Begin a phase, which is progress.

        Args:
            doing: The phase, for a message.
            more_s: Seconds that it may take beyond the time-out.
            detail: Says more exactly what is waited for, as ", ...".
            moved: Tells, when the time is up, whether there was progress that this process has not seen.
        """
        self.doing, self._detail, self._moved = doing, detail, moved
        self._limit_s = self._timeout_s + more_s
        self._tick_s = min(_LONGEST_TICK_S, self._limit_s / _TICKS)
        self._start()
        self._arm(self._tick_s)

    def progress(self) -> None:
        """Learn that there was progress in this phase."""
        if self._limit_s is not None and self._passed_s:
            self._start()

    def rest(self, doing: str) -> None:
        """Begin a phase without a deadline."""
        self._limit_s = None
        self._arm(0)
        tell(doing=doing, within_s=None)

    def _start(self) -> None:
        assert self._limit_s is not None
        self._passed_s = 0.0
        # native code may keep this process from its own deadline
        tell(doing=self.doing, within_s=self._limit_s + _GRACE_S, message=self._message(""))

    def _on_tick(self, number: int, frame: object) -> None:
        if self._limit_s is None:
            return
        self._passed_s += self._tick_s
        if self._passed_s < self._limit_s:
            return
        self._passed_s = 0.0
        if not self._text:
            if self._moved():
                self._start()
                return
            self._text = self._message(self._detail() + _stopped())
            tell(within_s=_GRACE_S, message=self._text)
            self._limit_s = _GRACE_S / 3  # the orderly end may wait for the same: it is interrupted, too
        raise ClusterError(self._text, code="cluster.no_progress", key="compute.no_progress_timeout_s")

    def _message(self, detail: str) -> str:
        return f"no progress for {self._limit_s:.0f} s during {self.doing}{detail}; {KEPT}"

    def _arm(self, tick_s: float) -> None:
        if _in_main_thread():
            signal.setitimer(signal.ITIMER_REAL, tick_s, tick_s)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _stopped() -> str:
    names = stopped_processes(os.getpid())
    return f", while these processes were stopped: {', '.join(names)}" if names else ""
