"""How a run shows itself: a bar with rate, ETA and failures on a terminal, plain lines elsewhere."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import IO, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from batchdet import storage
from batchdet.attendant import tell
from batchdet.errors import BatchdetError
from batchdet.job import Watcher
from batchdet.text import counted, escape

_LINE_EVERY_S: Final = 10.0
_RATE_AFTER_S: Final = 1.0
"""Actors finish their first segments at nearly the same time; what is counted for less time is no rate."""


class _Meter:
    """Counts images and bytes, and says how long the rest will take.

    Until the first segment is there, that is what was predicted. The start of the actors goes by before it, so that
    what comes after the first segment tells the rate.
    """

    def __init__(self) -> None:
        self.total_images: int | None = None
        self.total_bytes = 0
        self.images = 0
        self.failed = 0
        self.size_bytes = 0
        self.skipped = 0
        self.expected_s: float | None = None
        self._started = time.monotonic()
        self._first: tuple[float, int, float] | None = None

    def start(self, total_images: int | None, total_bytes: int, done_images: int) -> None:
        self.total_images = total_images
        self.total_bytes = total_bytes
        self.skipped = done_images
        self._started = time.monotonic()

    def add(self, images: int, failed: int, size_bytes: int) -> None:
        self.images += images
        self.failed += failed
        self.size_bytes += size_bytes
        if self._first is None:
            self._first = (time.monotonic(), self.images, self.fraction)

    def _since(self) -> tuple[float, int, float]:
        """Return the seconds, images and share of the job that the rate goes by: since the first segment, if it can."""
        now = time.monotonic()
        if self._first is not None and now - self._first[0] >= _RATE_AFTER_S and self.images > self._first[1]:
            at, images, fraction = self._first
            return now - at, self.images - images, self.fraction - fraction
        before = self.skipped / self.total_images if self.total_images else 0.0
        return now - self._started, self.images, self.fraction - before  # what was staged before took no time of ours

    @property
    def rate(self) -> float:
        """Images per second."""
        elapsed_s, images, _ = self._since()
        return images / elapsed_s if elapsed_s > 0 else 0.0

    @property
    def fraction(self) -> float:
        """Share of the job that is done, by images, or by bytes while their number is not known."""
        if self.total_images:
            return min(1.0, (self.images + self.skipped) / self.total_images)
        return min(1.0, self.size_bytes / self.total_bytes) if self.total_bytes else 0.0

    @property
    def eta(self) -> str:
        """Time left as ``1:02:03``, or ``-:--``."""
        elapsed_s, _, gained = self._since()
        measured = self._first is not None and time.monotonic() - self._first[0] >= _RATE_AFTER_S
        predicted_s = (self.expected_s or 0.0) - (time.monotonic() - self._started)
        if predicted_s > 0 and not measured:
            left_s = predicted_s
        elif gained > 0:
            left_s = elapsed_s * (1 - self.fraction) / gained
        else:
            return "-:--"
        hours, rest = divmod(max(0, round(left_s)), 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"

    def text(self) -> str:
        """Return the numbers in words."""
        return f"{self.rate:.1f} images/s, ETA {self.eta}, {self.failed} failed"


class ProgressLog(Watcher):
    """A watcher that writes a plain line at most every ten seconds."""

    def __init__(self, file: IO[str] | None = None) -> None:
        self._file = file or sys.stderr
        self._meter = _Meter()
        self._last = time.monotonic()

    def say(self, text: str) -> None:
        """Write one line of news."""
        print(escape(text), file=self._file, flush=True)

    def start(self, total_images: int | None, total_bytes: int, done_images: int, doing: str = "labelling") -> None:
        """Learn the size of the job, and what is done."""
        self._meter.start(total_images, total_bytes, done_images)
        of = counted(total_images, "image") if total_images is not None else f"{total_bytes / 1e6:.1f} MB of shards"
        self.say(f"{doing} {of}")

    def expect(self, seconds: float | None) -> None:
        """Go by what is predicted until there is a rate."""
        self._meter.expected_s = seconds

    def advance(self, images: int, failed: int, size_bytes: int) -> None:
        """Count a segment; write a line when the last one is ten seconds old."""
        meter = self._meter
        meter.add(images, failed, size_bytes)
        if time.monotonic() - self._last >= _LINE_EVERY_S:
            self._last = time.monotonic()
            self.say(f"{counted(meter.images + meter.skipped, 'image')} ({meter.fraction:.0%}), {meter.text()}")

    def committing(self, images: int) -> None:
        """Write a line when the last one is ten seconds old."""
        if time.monotonic() - self._last >= _LINE_EVERY_S:
            self._last = time.monotonic()
            self.say(f"committing: {counted(images, 'image')}")


class ProgressBar(Watcher):
    """A watcher that draws a bar on a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._meter = _Meter()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[news]}"),
            TimeElapsedColumn(),
            console=self._console,
            redirect_stdout=False,  # what others print is caught by hushed()
        )
        self._task = self._bar.add_task("starting", total=None, news="")
        self._bar.start()

    def say(self, text: str) -> None:
        """Write one line above the bar."""
        self._bar.console.print(escape(text), style="dim", markup=False, highlight=False)

    def start(self, total_images: int | None, total_bytes: int, done_images: int, doing: str = "labelling") -> None:
        """Learn the size of the job, and what is done; without a number of images the bar goes by bytes."""
        self._meter.start(total_images, total_bytes, done_images)
        self._bar.update(self._task, description=doing, total=total_images, completed=done_images)

    def expect(self, seconds: float | None) -> None:
        """Show what is predicted until there is a rate."""
        self._meter.expected_s = seconds
        if seconds is not None:
            self._bar.update(self._task, news=f"ETA {self._meter.eta} (predicted)")

    def advance(self, images: int, failed: int, size_bytes: int) -> None:
        """Count a segment."""
        meter = self._meter
        meter.add(images, failed, size_bytes)
        total = meter.total_images
        if total is None and meter.fraction > 0:
            total = round(meter.images / meter.fraction)
        self._bar.update(self._task, completed=meter.images + meter.skipped, total=total, news=meter.text())

    def committing(self, images: int) -> None:
        """Show the commit."""
        total = self._meter.images + self._meter.skipped
        self._bar.update(self._task, description="committing", completed=images, total=max(images, total))

    def stop(self) -> None:
        """Close the bar."""
        self._bar.stop()


@contextmanager
def hushed(verbose: bool = False) -> Iterator[None]:
    """Send what native libraries and Ray write into a file, and leave the screen to the watcher.

    Whatever its settings say, Ray's C++ core writes to file descriptor 2, and a thread of its driver prints the
    raylet's warnings to standard output, where a program may read JSON. The file is kept, and named, only when the
    block ends with an error that is none of ours.

    Args:
        verbose: Change nothing.
    """
    if verbose:
        yield
        return
    screen, python_stderr = os.dup(2), sys.stderr
    with storage.temporary_errors():
        log_file = tempfile.NamedTemporaryFile("w", prefix="batchdet-", suffix=".log", delete=False)  # noqa: SIM115
    with log_file as log:
        tell(log=log.name)
        sys.stderr = os.fdopen(os.dup(screen), "w", buffering=1)
        os.dup2(log.fileno(), 2)
        try:
            with redirect_stdout(log):
                yield
        except BaseException as error:
            if not isinstance(error, BatchdetError | SystemExit):
                print(f"what Ray wrote is in {log.name}", file=sys.stderr)
                raise
            os.unlink(log.name)
            raise
        else:
            os.unlink(log.name)
        finally:
            os.dup2(screen, 2)
            os.close(screen)
            sys.stderr.close()
            sys.stderr = python_stderr


def watcher_for(file: IO[str] | None = None) -> ProgressBar | ProgressLog:
    """Return a bar when the stream is a terminal, else plain lines."""
    stream = file or sys.stderr
    return ProgressBar(Console(file=stream)) if stream.isatty() else ProgressLog(stream)


@contextmanager
def counting(verb: str, total: int, file: IO[str] | None = None) -> Iterator[Callable[[int, int], None]]:
    """Show a count with rate and ETA while the block runs: a bar on a terminal, nothing elsewhere.

    Args:
        verb: What is being done.
        total: How much of it there is.
        file: The stream; standard error by default.

    Yields:
        A function to call with (done, total).
    """
    stream = file or sys.stderr
    with Progress(
        TextColumn(verb),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(file=stream),
        disable=not stream.isatty(),
    ) as bar:
        task = bar.add_task(verb, total=total)
        yield lambda done, of: bar.update(task, completed=done, total=of)
