"""The attendant of a real process says what that did not say, passes signals on once, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from batchdet.machine import descendants
from tests.ray_head import started as lives

_HEAD = """
import os, signal, subprocess, sys, time
from batchdet.attendant import attend, tell
from batchdet.cli import application
attend(lambda error: application.fail(error, True))
"""
_SAYS = """
def say(number, frame):
    print("signal", number, flush=True)
signal.signal(signal.SIGINT, say)
signal.signal(signal.SIGTERM, say)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


@contextmanager
def started(body: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HEAD + body],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(body: str) -> tuple[int, str, str]:
    with started(body) as process:
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("os._exit(1)", "with status 1"),
        ("os._exit(0)", "with status 0"),
        ("os.abort()", "by SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "by SIGSEGV"),
    ],
)
@pytest.mark.acceptance("R38")
def test_an_end_without_a_word_is_one_sentence(end: str, how: str) -> None:
    status, out, err = ended(f"tell(doing='labelling'); {end}")
    assert status == 5
    error = json.loads(out)["error"]
    assert error["code"] == "cluster.ended"
    assert how in error["message"]
    assert "during labelling" in error["message"]
    assert err.splitlines()[0] == f"error: {error['message']}"


@pytest.mark.parametrize("status", [0, 2, 3, 130])
def test_a_status_that_the_child_has_told_is_taken_without_a_word(status: int) -> None:
    assert ended(f"tell(status={status}); os._exit({status})") == (status, "", "")


def test_a_child_that_is_killed_is_said_and_the_signal_is_kept() -> None:
    status, out, err = ended("os.kill(os.getpid(), signal.SIGKILL)")
    assert status == -signal.SIGKILL
    assert "SIGKILL" in err
    assert json.loads(out)["error"]["code"] == "cluster.ended"


@pytest.mark.acceptance("R39")
def test_a_child_that_hangs_in_native_code_is_ended_with_all_that_it_has_started(tmp_path: Path) -> None:
    """It blocks signals and sleeps in C; its children are stopped, and one of them has lost its parent."""
    pids = tmp_path / "pids"
    body = f"""
subprocess.Popen(["sh", "-c", "sleep 60 & echo $! >> {pids}; exit"]).wait()
other = subprocess.Popen(["sleep", "61"])
os.kill(other.pid, signal.SIGSTOP)
open("{pids}", "a").write(str(other.pid))
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
tell(within_s=0.5, message="waited for nothing")
time.sleep(60)
"""
    began = time.monotonic()
    status, out, err = ended(body)
    assert (status, time.monotonic() - began < 10) == (5, True)
    error = json.loads(out)["error"]
    assert (error["code"], error["message"]) == ("cluster.no_progress", "waited for nothing")
    left = [int(pid) for pid in pids.read_text().split()]
    assert len(left) == 2
    assert f"sleep (process {left[1]})" in err
    assert [lives(pid) for pid in left] == [None, None]


def test_progress_and_a_lifted_limit_keep_it_waiting() -> None:
    body = """
for _ in range(8):
    tell(within_s=0.6)
    time.sleep(0.2)
tell(within_s=None)
time.sleep(1.2)
tell(status=0)
os._exit(0)
"""
    assert ended(body) == (0, "", "")


@pytest.mark.parametrize("to_all", [False, True], ids=["the process", "its group"])
def test_a_signal_is_passed_on_and_a_second_one_ends_all(to_all: bool) -> None:
    with started(_SAYS) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (child,) = descendants(process.pid)
        os.kill(process.pid, signal.SIGTERM)
        assert process.stdout.readline() == f"signal {signal.SIGTERM.value}\n"
        began = time.monotonic()
        (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)
        assert process.wait(5) == 130
        assert time.monotonic() - began < 2
        assert lives(child) is None


def test_a_child_that_ends_silently_after_a_signal_was_interrupted() -> None:
    with started(
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(1)); print('ready', flush=True); time.sleep(60)"
    ) as p:
        assert p.stdout is not None
        p.stdout.readline()
        p.terminate()
        out, _ = p.communicate(timeout=10)
    assert p.returncode == 143
    assert json.loads(out)["error"]["code"] == "run.interrupted"


def test_a_child_does_not_outlive_its_attendant() -> None:
    with started(_SAYS) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (child,) = descendants(process.pid)
        process.kill()
        process.wait()
        limit = time.monotonic() + 5
        while Path(f"/proc/{child}").exists() and time.monotonic() < limit:
            time.sleep(0.01)
        assert not Path(f"/proc/{child}").exists()


def test_ctrl_c_that_reaches_both_processes_is_one_signal() -> None:
    """A terminal sends it to the group: the child gets it twice, and still ends in an orderly way."""
    body = """
from batchdet.cli import application
def app(*_, **__):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        time.sleep(0.3)
        print("orderly", flush=True)
application.app = app
sys.argv = ["batchdet", "none"]
application.main_of_process()
"""
    with started(body) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert out == "orderly\n", err
    assert err.count("error: stopped by Ctrl-C") == 1


@pytest.mark.parametrize("command", ["run", "label"])
def test_commands_that_start_a_ray_are_attended(command: str) -> None:
    """Before the job is even read: whatever imports cost, and native code does, comes later."""
    code = (
        "import sys; from batchdet.cli import application\n"
        "application.attend = lambda fail: print('attended', flush=True)\n"
        "application.main_of_process()"
    )
    arguments = [command, "/nowhere.yaml"] if command == "run" else [command, "--help"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("attended"), done.stderr
