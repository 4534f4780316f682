"""Real processes that run jobs without Ray, and can be killed or held at a failpoint."""

import os
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
def running(job: Path, *settings: str, failpoints: str = "") -> Iterator["subprocess.Popen[str]"]:
    """Run a job in the background; it is killed when the block ends."""
    process = subprocess.Popen(
        command(job, *settings),
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


def wait_for(happened: Callable[[], bool], process: "subprocess.Popen[str] | None" = None, seconds: float = 60) -> None:
    """Wait for an event, as long as the process that is to bring it about lives."""
    deadline = time.monotonic() + seconds
    while not happened():
        if process is not None and process.poll() is not None and not happened():
            raise AssertionError(f"the process ended with {process.returncode}: {process.communicate()}")
        if time.monotonic() > deadline:
            raise AssertionError(f"nothing happened within {seconds} s (pid {os.getpid()})")
        time.sleep(0.01)
