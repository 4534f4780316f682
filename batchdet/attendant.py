"""The attendant: the process that the command line was started as, which waits while a child does the work.

Ray's core ends the process of a run without a word if its raylet or GCS is gone, and a call into it may never return.
The attendant takes what the child tells it over a pipe: what it waits for, for how long at most, and its exit status.
If the child ends without a status, or waits for longer, the attendant says so and ends the run's processes.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

from batchdet.errors import BatchdetError, ClusterError, Interrupted
from batchdet.machine import descendants, die_with_parent, stopped_processes, tight_limits

KEPT: Final = "the staged segments are kept, and the same command resumes the run"
_TICK_S: Final = 1.0
_ROUNDS, _ROUND_S = 50, 0.02
_PR_SET_CHILD_SUBREAPER: Final = 36
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
_pipe: int | None = None


def tell(**facts: Any) -> None:
    """Tell the attendant, if there is one.

    Args:
        facts: ``doing``: what the process waits for. ``within_s``: it says more within these seconds; None lifts the
            limit. ``message``: what to say if it does not. ``log``: where the output of Ray is. ``status``: its exit
            status; it has said why.
    """
    if _pipe is not None:
        with contextlib.suppress(OSError):  # a full pipe: the attendant is stopped
            os.write(_pipe, json.dumps(facts).encode() + b"\n")


def is_attended() -> bool:
    """Tell whether an attendant waits for this process."""
    return _pipe is not None


def attend(fail: Callable[[BatchdetError], NoReturn]) -> None:
    """Return in a child process; this one becomes its attendant and ends with its status.

    The child has the signal handlers that this process had.

    Args:
        fail: Prints an error and raises SystemExit with its status.
    """
    global _pipe
    if sys.platform != "linux":
        return
    read, write = os.pipe()
    parent = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until this process knows what to do with them
    child = os.fork()
    if child:
        os.close(write)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what the child leaves behind is found below this process
        attendant = _Attendant(child, read, fail)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        attendant.wait()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(read)
    die_with_parent()
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)
    os.set_blocking(write, False)
    _pipe = write


class _Attendant:
    """Waits for one child.

    Args:
        child: Its process.
        pipe: Where it tells what it does.
        fail: Prints an error and raises SystemExit with its status.
    """

    def __init__(self, child: int, pipe: int, fail: Callable[[BatchdetError], NoReturn]) -> None:
        self._child, self._pipe, self._fail = child, pipe, fail
        self._facts: dict[str, Any] = {}
        self._left_s: float | None = None
        self._text = b""
        self._interrupted = 0
        self._wake, write = os.pipe()
        for each in (self._wake, write):
            os.set_blocking(each, False)
        signal.set_wakeup_fd(write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._forward)

    def _forward(self, number: int, _: object) -> None:
        """Pass the first signal on; the second ends everything at once."""
        if self._interrupted:
            self._end_all()
            os._exit(128 + number)
        self._interrupted = number
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, number)

    def wait(self) -> NoReturn:
        """Wait for the child's end or its limit, and end with its status."""
        while (ended := self._reaped()) is None:
            before = time.monotonic()
            ready, _, _ = select.select([self._pipe, self._wake], [], [], _TICK_S)
            if self._wake in ready:
                os.read(self._wake, 4096)
            if self._pipe in ready:
                self._read()
            if self._left_s is not None:
                self._left_s -= min(time.monotonic() - before, _TICK_S)  # more: this process was stopped
                if self._left_s <= 0:
                    break
        self._read()
        if "status" in self._facts:
            self._end_all()
            os._exit(self._facts["status"])
        error = self._late() if ended is None else self._silent(ended)
        self._end_all()
        if ended == -signal.SIGKILL and not self._interrupted:
            self._say(error)
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(self._say(error))

    def _reaped(self) -> int | None:
        """Return the child's exit status once it has ended, negative after a signal; bury whatever else ended below."""
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == self._child:
                    return os.waitstatus_to_exitcode(found[1])
        return None

    def _read(self) -> None:
        """Take what the child has told so far."""
        while select.select([self._pipe], [], [], 0)[0] and (new := os.read(self._pipe, 65536)):
            *lines, self._text = (self._text + new).split(b"\n")
            for line in lines:
                facts = json.loads(line)
                self._facts |= facts
                self._left_s = facts.get("within_s", self._left_s)

    def _late(self) -> BatchdetError:
        message = self._facts.get("message") or f"the run did not end in time; {KEPT}"
        return self._as_asked(message, "cluster.no_progress", "compute.no_progress_timeout_s")

    def _silent(self, ended: int) -> BatchdetError:
        how = f"by {signal.Signals(-ended).name}" if ended < 0 else f"with status {ended} and no message"
        doing = self._facts.get("doing")
        return self._as_asked(
            f"the process of the run was ended {how}{f' during {doing}' if doing else ''}; {KEPT}",
            "cluster.ended",
            None,
        )

    def _as_asked(self, message: str, code: str, key: str | None) -> BatchdetError:
        """Return the error, or the interruption if the child was told to end."""
        if self._interrupted:
            name = signal.Signals(self._interrupted).name
            return Interrupted(f"stopped by {name}; {KEPT}", 128 + self._interrupted)
        return ClusterError(message, code=code, key=key, hint="; ".join(self._suspects()) or None)

    def _suspects(self) -> Iterator[str]:
        """Say what may be the cause: processes that were stopped, limits, places that are full."""
        names = [name for name in stopped_processes(self._child) if name not in self._facts.get("message", "")]
        if names:
            yield f"stopped processes: {', '.join(names)}"
        yield from tight_limits()
        log = self._facts.get("log")
        with contextlib.suppress(OSError):
            if log and os.path.getsize(log):
                yield f"the output of Ray is in {log}"
            elif log:
                os.unlink(log)

    def _say(self, error: BatchdetError) -> int:
        """Print an error, and return its exit status."""
        if sys.stderr.isatty():
            print("\x1b[?25h", file=sys.stderr)  # a progress bar hides the cursor
        try:
            self._fail(error)
        except SystemExit as end:
            sys.stderr.flush()
            return int(end.code or 0)

    def _end_all(self) -> None:
        """SIGKILL the child and all that it has started."""
        with contextlib.suppress(ChildProcessError):  # none is left: orphans are this process's children
            for _ in range(_ROUNDS):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
                for pid in descendants(os.getpid()):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(_ROUND_S)
