import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from batchdet import machine


def test_this_machine() -> None:
    cpus, cores = machine.cpu_limit()
    assert 0 < cpus <= cores == os.cpu_count()
    total, available = machine.memory_bytes()
    assert 0 < available <= total
    free, total = machine.shared_memory_bytes()
    assert 0 <= free <= total


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "50000 100000"}, 0.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "25000", "cpu/cpu.cfs_period_us": "100000"}, 0.25),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_a_container_limits_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cpus: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.cpu_limit()[0] == (len(os.sched_getaffinity(0)) if cpus is None else cpus)


def test_a_container_limits_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    whole, _ = machine.memory_bytes()
    (tmp_path / "memory.max").write_text("1000000")
    (tmp_path / "memory.current").write_text("400000")
    assert machine.memory_bytes() == (1_000_000, 600_000)
    (tmp_path / "memory.max").write_text("max")
    assert machine.memory_bytes()[0] == whole


def test_free_space_below_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    free, total = machine.free_bytes(str(tmp_path / "a" / "b"))
    assert 0 < free <= total


def test_reachable() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert machine.reachable(f"127.0.0.1:{port}")
        assert machine.reachable(f"ray://127.0.0.1:{port}")
    assert not machine.reachable(f"127.0.0.1:{port}", 0.5)
    assert not machine.reachable("127.0.0.1:port")


def test_run_limited() -> None:
    assert machine.run_limited([sys.executable, "-c", "print('x')"], 20) == (0, "x\n")
    assert machine.run_limited([sys.executable, "-c", "import time; time.sleep(20)"], 0.2) == (124, "")
    assert machine.run_limited(["/no/such/program"], 1)[0] == 127
    status, text = machine.run_limited([sys.executable, "-c", "raise SystemExit('why')"], 20)
    assert (status, text) == (1, "why\n")


def test_stopped_processes_below_one_are_named() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert child.pid in machine.descendants(os.getpid())
        assert machine.stopped_processes(os.getpid()) == []
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        assert machine.stopped_processes(os.getpid()) == [f"sleep (process {child.pid})"]
        child.kill()
        child.wait()
        assert child.pid not in machine.descendants(os.getpid())
