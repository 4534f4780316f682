"""A real ``batchdet run`` that a test can stop at a named place, and the oracle for what it leaves behind.

::

    with Driver(["run", job], folder, failpoints=f"commit.manifest.before=pause:{here}") as driver:
        driver.wait_for(here)      # an event: the failpoint makes the file
        driver.kill()              # SIGKILL, and every process of its own Ray is seen to end
    assert run_to_end(["run", job], folder).returncode == 0
    assert_whole(out, truth)
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from batchdet import storage
from batchdet.failpoint import VARIABLE
from batchdet.results.verify import inspect_output
from batchdet.table.manifest import TABLES, committed_runs
from tests.e2e.conftest import REPOSITORY, clean_environment
from tests.ray_head import descendants, started

_START_S = 120.0
_END_S = 180.0
_POLL_S = 0.02
_SORTED_BY = {"images": ["image_id"], "detections": ["image_id", "detection_index"]}
_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
_numbers = itertools.count(1)


class Late(AssertionError):
    """Something that must happen did not happen in time."""


def wait_until(happened: Callable[[], bool], what: str, deadline_s: float) -> None:
    """Wait for an event.

    Raises:
        Late: It did not come within ``deadline_s``.
    """
    limit = time.monotonic() + deadline_s
    while not happened():
        if time.monotonic() > limit:
            raise Late(f"{what}: not within {deadline_s:g} s")
        time.sleep(_POLL_S)


def living(family: Mapping[int, int]) -> dict[int, int]:
    """Return those of some processes (pid -> when it began) that still live."""
    return {pid: began for pid, began in family.items() if started(pid) == began}


def end_at_once(family: Mapping[int, int]) -> None:
    """SIGKILL processes (pid -> when it began); a number that means another process now is let alone."""
    for pid in living(family):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _parent(pid: int) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


class Driver:
    """``python -m batchdet ARGUMENTS`` as a process of its own, with a Ray of its own below a folder of its own.

    Args:
        arguments: Of the command line.
        folder: Where what it prints goes, to ``driver-N.out`` and ``driver-N.err``.
        failpoints: What ``BATCHDET_FAILPOINT`` says; its Ray's processes inherit it.
        env: Further variables.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        folder: Path,
        failpoints: str = "",
        env: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"driver-{next(_numbers)}"
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        # in /tmp: Ray's sockets lie below it and their paths have at most 107 bytes
        self.ray_folder = Path(tempfile.mkdtemp(prefix="bdd-", dir="/tmp"))
        variables = clean_environment() | {"RAY_TMPDIR": str(self.ray_folder), "COLUMNS": "100"} | dict(env or {})
        variables.pop(VARIABLE, None)
        if failpoints:
            variables[VARIABLE] = failpoints
        self.started = time.monotonic()
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "batchdet", *map(str, arguments)],
                cwd=REPOSITORY,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self._family: dict[int, int] = {}
        self._frozen: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End whatever is left of it."""
        family = self.family()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        end_at_once(family)
        shutil.rmtree(self.ray_folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    @property
    def run_pid(self) -> int:
        """The process that does the run's work: the first child of its process, which waits for it."""
        family = {pid: began for pid, began in self.family().items() if _parent(pid) == self.pid}
        return min(family, key=lambda pid: (family[pid], pid))

    @property
    def returncode(self) -> int | None:
        """Exit status, negative after a signal; None while it lives."""
        return self.process.poll()

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self.out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What it has printed to standard error so far."""
        return self.err.read_text(errors="replace")

    def family(self) -> dict[int, int]:
        """Map each process below it that was ever seen and still lives to when it began."""
        if self.process.poll() is None:
            self._family |= descendants(self.pid)
        return living(self._family)

    def named(self, *parts: str) -> list[int]:
        """List the living processes below it whose command line holds each of some texts."""
        lines = {pid: _command_line(pid) for pid in self.family()}
        return sorted(pid for pid, line in lines.items() if all(part in line for part in parts))

    def actors(self) -> list[int]:
        """List the processes of its detector actors that live now."""
        return self.named("ray::", "DetectorActor")

    def wait_for(self, file: Path, deadline_s: float = _START_S) -> None:
        """Wait for a file that a failpoint makes.

        Raises:
            Late: It was not made in time, or the process ended before.
        """

        def happened() -> bool:
            if file.exists():
                return True
            if self.returncode is not None:
                raise Late(f"{file}: the driver ended with {self.returncode} before: {self.stderr[-2000:]}")
            return False

        wait_until(happened, str(file), deadline_s)

    def signal(self, number: int) -> None:
        """Send it a signal; its Ray's processes get none."""
        self.family()
        self.process.send_signal(number)

    def freeze(self) -> None:
        """Stop it, as a machine that stalls does."""
        self._frozen = (self.pid, self.run_pid)
        for pid in self._frozen:
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it run again."""
        for pid in self._frozen:
            os.kill(pid, signal.SIGCONT)

    def ctrl_c(self) -> None:
        """Do what a terminal does: SIGINT to every process of its group."""
        self.family()
        os.killpg(self.pid, signal.SIGINT)

    def wait(self, deadline_s: float = _END_S) -> int:
        """Wait until it has ended, and its Ray with it, and return its exit status.

        Raises:
            Late: It, or a process that it started, lives on.
        """
        limit = time.monotonic() + deadline_s
        while self.process.poll() is None:
            self.family()
            if time.monotonic() > limit:
                raise Late(f"{self.process.args}: still there after {deadline_s:g} s: {self.stderr[-2000:]}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.25)
        self.wait_for_orphans()
        return self.process.returncode

    def wait_for_orphans(self, deadline_s: float = 30.0, agents: bool = False) -> None:
        """Wait until every process that it started has ended by itself.

        Args:
            deadline_s: No longer than this.
            agents: Wait for the two agents of Ray's dashboard, too. When the raylet is killed they look for it for
                10 s, and then for a minute for somebody to tell; they hold nothing but a port.

        Raises:
            Late: One lives on; the message names it.
        """

        def left() -> dict[int, str]:
            lines = {pid: _command_line(pid) for pid in self.family()}
            return {pid: line for pid, line in lines.items() if agents or not line.startswith(_AGENTS)}

        try:
            wait_until(lambda: not left(), "the end of the driver's processes", deadline_s)
        except Late as error:
            raise Late(f"{error}: {left()}") from None

    def kill(self) -> None:
        """SIGKILL the driver alone, and see that the processes of its Ray end by themselves."""
        self.signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL


def run_to_end(
    arguments: Sequence[str | Path],
    folder: Path,
    failpoints: str = "",
    env: Mapping[str, str] | None = None,
    deadline_s: float = _END_S,
) -> Driver:
    """Run a command until it ends by itself, and return it with its exit status and what it printed."""
    with Driver(arguments, folder, failpoints, env) as driver:
        driver.wait(deadline_s)
        return driver


@dataclass(frozen=True)
class Tables:
    """What an output holds, for comparison: sorted, and without the run's id.

    Args:
        images: One row per image.
        detections: One row per detected object.
    """

    images: pa.Table
    detections: pa.Table


def read_tables(out: str | Path) -> Tables:
    """Read an output as a stranger does: every Parquet file below ``images/`` and ``detections/``."""
    tables = {}
    for name in TABLES:
        parts = [pq.read_table(io, partitioning=None) for io in map(_open, _files(str(out), name))]
        rows = pa.concat_tables(part.replace_schema_metadata() for part in parts)
        keys = [(column, "ascending") for column in _SORTED_BY[name]]
        tables[name] = rows.drop_columns(["run_id"]).sort_by(keys)
    return Tables(**tables)


def _files(out: str, table: str) -> list[str]:
    return sorted(found.uri for found in storage.find_all(storage.join(storage.normalize(out), table)))


def _open(uri: str) -> pa.BufferReader:
    return pa.BufferReader(storage.read_bytes(uri))


def assert_whole(out: str | Path, truth: Tables, orphans: Iterable[str] = ()) -> None:
    """Assert what must hold once a job is done, whatever happened on the way.

    Each listed image has exactly one row, and that and its detections equal an undisturbed run's; every committed
    byte and count is what the manifest says; nothing uncommitted lies among the tables.

    Args:
        out: The output's folder, any URI.
        truth: What an undisturbed run over the same source gave.
        orphans: Paths below ``out`` that a test expects to lie there although nobody committed them.
    """
    out = storage.normalize(str(out))
    runs = committed_runs(out)
    committed = {storage.join(out, p.path) for m in runs for p in (*m.images, *m.detections)}
    expected = committed | {storage.join(out, path) for path in orphans}
    found = {*_files(out, "images"), *_files(out, "detections")}
    assert found == expected, f"among the tables, committed and there differ in {sorted(found ^ expected)}"
    if not orphans:
        tables = read_tables(out)
        ids, wanted = tables.images["image_id"].to_pylist(), truth.images["image_id"].to_pylist()
        assert len(ids) == len(set(ids)), f"{len(ids) - len(set(ids))} rows are not their image's first"
        assert ids == wanted, f"{len(set(wanted) - set(ids))} images lost, {len(set(ids) - set(wanted))} never listed"
        assert tables.images.equals(truth.images), "the images table differs from an undisturbed run's"
        assert tables.detections.equals(truth.detections), "the detections differ from an undisturbed run's"
    problems = inspect_output(out).problems
    assert not problems, "; ".join(problems)
    newest = storage.read_bytes(storage.join(out, "_SUCCESS")).decode()
    assert newest == f"{runs[-1].run_id}\n", f"_SUCCESS names {newest!r}, the newest run is {runs[-1].run_id}"


def count(file: Path) -> int:
    """Return how often a failpoint's ``count:FILE`` was passed."""
    return file.stat().st_size if file.exists() else 0
