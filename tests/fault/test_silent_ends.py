"""Ray's processes are killed or stopped under a run: it says so, ends, and the same command completes the output."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.driver import Driver, Tables, assert_whole, run_to_end
from tests.fault.test_crashes import Job, job, shards, truth

__all__ = ["job", "shards", "truth"]

LIMITS = ["--set", "compute.image_timeout_s=8", "--set", "compute.no_progress_timeout_s=12"]
END_S = 70
"""The limit, the grace, and the seconds that ten images take by which it is longer."""


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
    assert (error["code"], error["exit_status"]) == (code, 5)


ENDS = {
    "kill raylet": (("raylet/raylet",), signal.SIGKILL, "cluster.", ""),
    "kill GCS": (("gcs_server",), signal.SIGKILL, "cluster.", ""),
    "kill agent": (("ray::RuntimeEnvAgent",), signal.SIGKILL, "cluster.", ""),
    "stop actor": (("ray::", "DetectorActor"), signal.SIGSTOP, "cluster.no_progress", "DetectorActor"),
    "stop raylet": (("raylet/raylet",), signal.SIGSTOP, "cluster.no_progress", "raylet (process"),
    "stop GCS": (("gcs_server",), signal.SIGSTOP, "cluster.no_progress", "gcs_server (process"),
}


@pytest.mark.fault
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
