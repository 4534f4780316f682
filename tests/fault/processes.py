"""Real processes that run jobs without Ray, and can be killed or held at a failpoint.

``python -m tests.fault.processes JOB.yaml FOLDER POINT ...`` has a process killed at each of some failpoints and
another one resume; all are forks of one that has imported everything, so that a pair takes a quarter of a second.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.conftest import REPOSITORY, clean_environment

JOB = """name: fast
source: {uri: "%s"}
model: {uri: "builtin:sample"}
output: {uri: "%s", partition_by: [city]}
compute: {segment_rows: 2}
policy: {max_failed_fraction: 0.5}
"""


def write_job(folder: Path, images: int, out: str | None = None) -> Path:
    """Write images, a list of them with a city each, and a job that partitions by city; return the job's path."""
    (folder / "in").mkdir(parents=True, exist_ok=True)
    lines = ["url,city"]
    for n in range(images):
        (folder / f"in/{n:03d}.jpg").write_text(f"image {n}{' empty' if n % 3 == 2 else ''}")
        lines.append(f"{n:03d}.jpg,{('Bonn', 'Oslo', 'Rome')[n % 3]}")
    (folder / "in/list.csv").write_text("\n".join(lines) + "\n")
    job = folder / "job.yaml"
    job.write_text(JOB % (folder / "in/list.csv", out or folder / "out"))
    return job


def environment(failpoints: str) -> dict[str, str]:
    return clean_environment() | {"BATCHDET_FAILPOINT": failpoints}


def command(job: Path, *settings: str) -> list[str]:
    return [sys.executable, "-m", "tests.without_ray", str(job), *settings]


def run(job: Path, *settings: str, failpoints: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a job to its end, whatever that is."""
    return subprocess.run(
        command(job, *settings),
        cwd=REPOSITORY,
        env=environment(failpoints),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextmanager
def running(job: Path, *settings: str, failpoints: str = "", cli: bool = False) -> Iterator["subprocess.Popen[str]"]:
    """Run a job in the background, by the real command line if asked; it is killed when the block ends."""
    arguments = [a for setting in settings for a in ("--set", setting)]
    whole = [*command(Path("cli")), "run", str(job), *arguments]
    process = subprocess.Popen(
        whole if cli else command(job, *settings),
        cwd=REPOSITORY,
        env=environment(failpoints),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _in_a_fork(job: str, settings: list[str], failpoints: str) -> int:
    """Run a job in a fork of this process; return its exit status, negative after a signal."""
    from batchdet import failpoint
    from batchdet.errors import BatchdetError
    from batchdet.job import run_job
    from batchdet.specfile import load_job
    from tests.without_ray import without_ray

    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 99
    try:
        failpoint._RULES = failpoint._parse(failpoints)
        with without_ray():
            run_job(load_job(job, settings))
        status = 0
    except BatchdetError as error:
        print(error.message, file=sys.stderr)
        status = error.exit_status
    finally:
        os._exit(status)


def kill_and_resume(job: str, folder: Path, points: list[str]) -> None:
    """Kill a run at each point and resume it, each in an output of its own below the folder."""
    for point in points:
        place = folder / point
        settings = [f"output.uri={place / 'out'}"]
        place.mkdir()
        status = _in_a_fork(job, settings, f"{point}=kill;decode=count:{place / 'first'}")
        assert status == -signal.SIGKILL, f"{point}: {status}"
        with contextlib.suppress(FileNotFoundError):
            shutil.copytree(place / "out", place / "left")
        status = _in_a_fork(job, settings, f"decode=count:{place / 'second'}")
        assert status == 0, f"{point}: {status}"


def wait_for(happened: Callable[[], bool], process: "subprocess.Popen[str] | None" = None, seconds: float = 60) -> None:
    """Wait for an event, as long as the process that is to bring it about lives."""
    deadline = time.monotonic() + seconds
    while not happened():
        if process is not None and process.poll() is not None and not happened():
            raise AssertionError(f"the process ended with {process.returncode}: {process.communicate()}")
        if time.monotonic() > deadline:
            raise AssertionError(f"nothing happened within {seconds} s (pid {os.getpid()})")
        time.sleep(0.01)


if __name__ == "__main__":
    kill_and_resume(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
