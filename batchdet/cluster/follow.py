"""Following a job's log on a cluster until the job ends, across broken connections."""

import asyncio
import re
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, cast

from batchdet.errors import ClusterError, Interrupted

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

QUIET_S = 15.0
GIVE_UP_S = 60.0
_PAUSE_S = 1.0
# Colours and cursor movements, then every other control character but the tab.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)?|[\x00-\x08\x0a-\x1f\x7f-\x9f]")


class Lines:
    """Cuts the pieces of a log into lines, and passes over what an earlier connection has already shown.

    Args:
        show: Called with each whole line, control characters removed.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._shown = 0
        self._skip = 0
        self._rest = ""

    def restart(self) -> None:
        """Expect the log from its beginning again."""
        self._skip = self._shown

    def add(self, piece: str) -> None:
        """Take the next piece of the log."""
        if self._skip:
            skipped = min(self._skip, len(piece))
            self._skip -= skipped
            piece = piece[skipped:]
        self._shown += len(piece)
        *whole, self._rest = (self._rest + piece).split("\n")
        for line in whole:
            self._say(line)

    def end(self) -> None:
        """Show what is left without a line end."""
        if self._rest:
            self._say(self._rest)
            self._rest = ""

    def _say(self, line: str) -> None:
        # Of a line that was rewritten in place, only its last state.
        self._show(_CONTROL.sub("", line.rstrip("\r").rpartition("\r")[2]))


def last_line(message: str | None) -> str:
    """Return the last line of a message that says something, on one line and of bearable length."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    text = _CONTROL.sub("", lines[-1]) if lines else "Ray gives no reason"
    return text if len(text) <= 500 else text[:497] + "..."


def follow_job(client: "JobSubmissionClient", job_id: str, address: str, show: Callable[[str], None]) -> Any:
    """Show a job's log until the job ends.

    Args:
        client: A connected client.
        job_id: The job.
        address: The dashboard, for messages.
        show: Called with each line.

    Returns:
        Ray's ``JobDetails``, with a final status.

    Raises:
        ClusterError: The dashboard has not answered for a minute; what became of the job is then unknown.
        Interrupted: SIGINT or SIGTERM arrived; the job goes on.
    """
    return asyncio.run(_until_signal(_follow(client, job_id, address, Lines(show))))


async def _until_signal(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine until it ends or SIGINT or SIGTERM arrives.

    A handler that raises would raise wherever the event loop happens to be, and some of its callbacks swallow that.
    """
    task = asyncio.ensure_future(work)
    stopped: list[int] = []
    loop = asyncio.get_running_loop()
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():

        def stop(number: int) -> None:
            stopped.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.getsignal(number)
            loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if stopped:
            raise Interrupted("stopped", 128 + stopped[0]) from None
        raise
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


async def _follow(client: "JobSubmissionClient", job_id: str, address: str, lines: Lines) -> Any:
    answered = time.monotonic()
    while True:
        lines.restart()
        try:
            await _read(client, job_id, lines)
        except Exception:
            # The connection broke, or a proxy lets no web socket through: the log is then asked for whole.
            await asyncio.sleep(_PAUSE_S)
        info = await _asked(client.get_job_info, job_id)
        if info is not None:
            answered = time.monotonic()
            log = await _asked(client.get_job_logs, job_id)
            if log is not None:
                lines.restart()
                lines.add(log)
            if info.status.is_terminal():
                lines.end()
                return info
        elif time.monotonic() - answered > GIVE_UP_S:
            raise ClusterError(
                f"{address}: the dashboard has not answered for {GIVE_UP_S:.0f} s, and what became of the job "
                f"{job_id} is unknown; ask again with 'ray job status --address {address} {job_id}', and submit the "
                "same job again to go on where it stopped"
            )
        await asyncio.sleep(_PAUSE_S / 4)


async def _read(client: "JobSubmissionClient", job_id: str, lines: Lines) -> None:
    """Read one connection to its end; a long silence is no end while the job runs."""
    pieces = cast("AsyncGenerator[str, None]", client.tail_job_logs(job_id))
    piece: asyncio.Future[str | None] | None = None
    try:
        while True:
            piece = asyncio.ensure_future(anext(pieces, None))
            while not (await asyncio.wait({piece}, timeout=QUIET_S))[0]:
                info = await _asked(client.get_job_info, job_id)
                if info is None or info.status.is_terminal():
                    return
            text = piece.result()
            if text is None:
                return
            lines.add(text)
    finally:
        # A generator that is still being asked cannot be closed, and saying so would hide why this ends.
        if piece is not None and not piece.done():
            piece.cancel()
            await asyncio.wait({piece})
        await pieces.aclose()


async def _asked(question: Callable[[str], Any], job_id: str) -> Any:
    """Ask the dashboard something about a job; None when it does not answer."""
    try:
        return await asyncio.to_thread(question, job_id)
    except Exception:
        return None
