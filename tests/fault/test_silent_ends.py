"""Ray's processes are killed or stopped under a run: it says so, ends, and the same command completes the output."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.driver import Driver, Tables, assert_whole, run_to_end
from tests.e2e.conftest import REPOSITORY, clean_environment
from tests.fault.test_crashes import Job, job, shards, truth

__all__ = ["job", "shards", "truth"]

LIMITS = ["--set", "compute.image_timeout_s=8", "--set", "compute.no_progress_timeout_s=12"]


def hold(driver: Driver, here: Path, victims: "tuple[str, ...]", number: int) -> None:
    """Wait until a worker is at work, send a signal to some processes of its Ray, and let the worker go."""
    driver.wait_for(here)
    pids = driver.named(*victims)
    assert pids, (victims, driver.family())
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def let_go(driver: Driver, here: Path, limit_s: float) -> int:
    """Keep workers from waiting at the failpoint, until the driver has ended."""
    limit = time.monotonic() + limit_s
    while driver.returncode is None and time.monotonic() < limit:
        here.unlink(missing_ok=True)
        driver.family()
        time.sleep(0.1)
    return driver.wait(5)


def assert_one_sentence(driver: Driver, code: str, word: str) -> None:
    """Assert what the person sees and what the program reads."""
    errors = [line for line in driver.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, driver.stderr
    assert "Traceback" not in driver.stderr
    assert word in driver.stderr.partition("error: ")[2], driver.stderr
    assert "the same command resumes the run" in errors[0]
    error = json.loads(driver.stdout)["error"]
    assert error["code"].startswith(code)
    assert error["exit_status"] == 5


ENDS = {
    "kill raylet": (("raylet/raylet",), signal.SIGKILL, "cluster.", ""),
    "kill GCS": (("gcs_server",), signal.SIGKILL, "cluster.", ""),
    "kill agent": (("ray::RuntimeEnvAgent",), signal.SIGKILL, "cluster.", ""),
    "stop actor": (("ray::", "DetectorActor"), signal.SIGSTOP, "cluster.no_progress", "DetectorActor"),
    "stop raylet": (("raylet/raylet",), signal.SIGSTOP, "cluster.no_progress", "raylet (process"),
    "stop GCS": (("gcs_server",), signal.SIGSTOP, "cluster.no_progress", "gcs_server (process"),
}


@pytest.mark.fault
@pytest.mark.acceptance("R38", "R39")
@pytest.mark.parametrize("fault", ENDS)
def test_a_run_whose_ray_is_gone_or_stopped(fault: str, job: Job, truth: Tables) -> None:
    victims, number, code, word = ENDS[fault]
    here = job.folder / "here"
    began = time.monotonic()
    with Driver([*job.command, "--json", *LIMITS], job.folder, f"decode@4=pause:{here}") as driver:
        hold(driver, here, victims, number)
        began = time.monotonic()
        status = let_go(driver, here, 150)
        print(f"{fault}: {time.monotonic() - began:.1f} s")
    assert status == 5, driver.stderr
    assert_one_sentence(driver, code, word)
    again = run_to_end([*job.command, *LIMITS], job.folder)
    assert again.returncode == 0, again.stderr
    assert_whole(job.out, truth)


@pytest.mark.fault
@pytest.mark.acceptance("R38")
def test_a_run_whose_workers_are_all_killed(job: Job, truth: Tables) -> None:
    """Ray starts them again, or the run ends with a sentence: in either case the same command completes the output."""
    here = job.folder / "here"
    with Driver([*job.command, "--json", *LIMITS], job.folder, f"decode@4=pause:{here}") as driver:
        hold(driver, here, ("ray::",), signal.SIGKILL)
        status = let_go(driver, here, 150)
    if status:
        assert status == 5
        assert_one_sentence(driver, "cluster.", "")
    again = run_to_end([*job.command, *LIMITS], job.folder)
    assert again.returncode == 0, again.stderr
    assert_whole(job.out, truth)


def limited(
    limit: str, job: Job, *before: str, env: "dict[str, str] | None" = None
) -> "subprocess.CompletedProcess[str]":
    """Run the job after a command of the shell's."""
    command = [sys.executable, "-m", "batchdet", *map(str, job.command), "--json", *LIMITS]
    return subprocess.run(
        [*before, "sh", "-c", f'{limit} && exec "$@"', "sh", *command],
        cwd=REPOSITORY,
        env=clean_environment() | (env or {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.acceptance("R39")
def test_too_few_open_files_are_refused_before_ray_starts(job: Job) -> None:
    done = limited("ulimit -n 64", job)
    assert done.returncode == 5, done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "cluster.few_files"
    assert done.stderr.count("error: ") == 1


@pytest.mark.fault
@pytest.mark.acceptance("R38")
@pytest.mark.parametrize("gibibytes", [2, 6])
def test_too_little_address_space(gibibytes: int, job: Job, truth: Tables) -> None:
    done = limited(f"ulimit -v {gibibytes << 20}", job)
    assert done.returncode == 5, done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert "ulimit -v" in done.stderr
    again = run_to_end([*job.command, *LIMITS], job.folder)
    assert again.returncode == 0, again.stderr
    assert_whole(job.out, truth)


@pytest.mark.slow
@pytest.mark.acceptance("R38")
def test_full_places_are_named_before_ray_starts(job: Job, tmp_path: Path) -> None:
    """Real file systems of a few megabytes, which only the run sees."""
    apart = ("unshare", "-m")
    small = "mount -t tmpfs -o size=20m tmpfs /dev/shm"
    if subprocess.run([*apart, "sh", "-c", small], capture_output=True, check=False).returncode:
        pytest.skip("no file systems can be mounted here")
    place = tmp_path / "ray"
    place.mkdir()
    both = f"{small} && mount -t tmpfs -o size=150m tmpfs {place}"
    done = limited(both, job, *apart, env={"RAY_TMPDIR": str(place)})
    assert done.returncode == 5, done.stderr
    error = json.loads(done.stdout)["error"]
    assert (error["code"], error["key"]) == ("cluster.no_space", str(place))
    assert "/dev/shm" in error["message"]
    assert done.stderr.count("error: ") == 1
