"""A model that hangs, or takes all memory, is ended in its own process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchdet.errors import BatchdetError, ModelError, OutOfDeviceMemory
from batchdet.model import child
from batchdet.model.child import Child, Lost, in_child, inspect_model
from batchdet.spec import ModelSpec
from tests import tiny_onnx

SAMPLE = ModelSpec(uri="builtin:sample")


def model(path: Path) -> ModelSpec:
    return ModelSpec(uri=str(path))


def is_there(pid: int) -> bool:
    """Tell whether a process computes; what nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def hang(model: ModelSpec, local: object, seconds: float) -> None:
    child.say_loaded()
    time.sleep(seconds)


def die(model: ModelSpec, local: object) -> None:
    os.abort()


def start_another(model: ModelSpec, local: object, note: str) -> None:
    """Start a process, write its pid down, and hang."""
    pid = subprocess.Popen(["sleep", "60"]).pid
    Path(note).write_text(str(pid))
    time.sleep(60)


def test_what_the_model_is_comes_back(tmp_path: Path) -> None:
    found = inspect_model(model(tiny_onnx.end2end(tmp_path / "m.onnx")))
    assert found.card.family == "yolo_end2end"
    assert inspect_model(SAMPLE).anatomy is not None


def test_errors_come_back_with_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as wrong:
        inspect_model(model(tiny_onnx.classifier(tmp_path / "m.onnx")))
    assert type(wrong.value) is ModelError
    with pytest.raises(BatchdetError) as missing:
        inspect_model(model(tmp_path / "none.onnx"))
    assert (missing.value.code, missing.value.key) == ("model.not_found", "model.uri")


@pytest.mark.acceptance("S26")
def test_a_graph_that_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(child._LIMIT_S, "cpu", 2)  # type: ignore[arg-type]
    endless = model(tiny_onnx.endless(tmp_path / "m.onnx"))
    started = time.monotonic()
    with Child("batchdet.model.inspection:inspect") as process:
        process.ask(endless, "cpu", endless, child_local(endless))
        with pytest.raises(ModelError) as late:
            process.result()
    assert (late.value.code, late.value.key, late.value.exit_status) == ("model.timed_out", endless.uri, 5)
    assert time.monotonic() - started < 8
    assert not is_there(process._process.pid)


def child_local(spec: ModelSpec) -> object:
    from batchdet.model.fetch import fetch_asked

    return fetch_asked(spec)


def test_a_process_that_hangs_when_the_model_is_loaded_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(child._LIMIT_S, "cpu", 2)  # type: ignore[arg-type]
    with pytest.raises(Lost) as lost:
        in_child(f"{__name__}:hang", SAMPLE, 60)
    assert lost.value.code == "model.timed_out"


def test_the_death_of_the_process_is_said() -> None:
    with pytest.raises(Lost, match="SIGABRT") as lost:
        in_child(f"{__name__}:die", SAMPLE)
    assert (lost.value.code, lost.value.exit_status) == ("model.process_died", 5)


@pytest.mark.fault
@pytest.mark.acceptance("S26")
def test_constants_that_fill_the_memory_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "memory_bytes", lambda: (1 << 30, 1 << 30))
    with pytest.raises(Lost) as lost:
        inspect_model(model(tiny_onnx.folded(tmp_path / "m.onnx", 3 << 30)))
    assert lost.value.code == "model.out_of_memory"
    with pytest.raises(OutOfDeviceMemory):  # it cannot be had at all
        inspect_model(model(tiny_onnx.folded(tmp_path / "m.onnx", 1 << 42)))
    assert inspect_model(model(tiny_onnx.folded(tmp_path / "m.onnx", 1 << 20))).card.family == "yolo_end2end"


def test_what_the_process_has_started_is_ended_with_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with Child(f"{__name__}:start_another") as process:
        process.ask(SAMPLE, "cpu", SAMPLE, None, str(note))
        deadline = time.monotonic() + 30
        while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        grandchild = int(note.read_text())
        assert is_there(grandchild)
    wait_until_gone(grandchild)


def wait_until_gone(pid: int, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while is_there(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


@pytest.mark.acceptance("S26")
@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.fault),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.fault),
    ],
)
def test_a_signal_ends_the_command_and_the_graph_at_once(tmp_path: Path, number: signal.Signals, status: int) -> None:
    endless = tiny_onnx.endless(tmp_path / "m.onnx")
    command = [sys.executable, "-m", "batchdet", "model", str(endless)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            grandchild = wait_for_loop(process)
            sent = time.monotonic()
            process.send_signal(number)
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == status, errors
    assert time.monotonic() - sent < 3
    assert "Traceback" not in errors
    wait_until_gone(grandchild)


def wait_for_loop(process: "subprocess.Popen[str]") -> int:
    """Wait until the command's process has begun to compute in the graph, and return its pid.

    It has imported all that it needs after a second of processor time.
    """
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") > 2:
                return int(pid)
        time.sleep(0.05)
    raise AssertionError(f"no process computes; the command has ended with {process.poll()}")
