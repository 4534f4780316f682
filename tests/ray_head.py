"""A Ray head of its own: a real ``ray start --head`` that shares neither folder nor import path with the repository."""

import ipaddress
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

_START_LIMIT_S = 90.0
# Despite its name this is what keeps all of Ray's servers on the loopback interface.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Becomes the command that follows, having asked Linux for a SIGTERM when the tests' process ends (1: PR_SET_PDEATHSIG):
# a test run that is killed leaves no head behind.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def dies_with_us() -> list[str]:
    """Return what goes before a command, so that it ends with this process, however that ends."""
    return [sys.executable, "-c", _DIE_WITH_PARENT, str(os.getpid())]


@dataclass(frozen=True)
class RayHead:
    """A running head.

    Args:
        address: Its GCS, ``HOST:PORT``, for ``compute.address``.
        dashboard: Its dashboard's URL, for ``submit``.
        folder: Its working directory and Ray's temporary folder below it.
        pid: Its ``ray start --block``.
        driver_env: What a process that connects to ``address`` needs in its environment, before it imports ray:
            otherwise Ray swaps 127.0.0.1 for the machine's outer address, where this head does not listen.
    """

    address: str
    dashboard: str
    folder: Path
    pid: int
    driver_env: dict[str, str]


def free_ports(count: int) -> list[int]:
    """Find ports of the loopback interface that nobody uses now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextmanager
def start_ray_head(num_cpus: int = 2, env: dict[str, str] | None = None) -> Iterator[RayHead]:
    """Run a Ray head until the block ends; then end its processes, by their recorded ids."""
    # /tmp, not pytest's folder: Ray's sockets lie below it and their paths have at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="bdr-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        gcs, dashboard, client, agent, metrics, listen = free_ports(6)
        command = [*dies_with_us(), sys.executable]
        command += ["-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        command += ["--node-ip-address", "127.0.0.1", "--port", str(gcs), "--num-cpus", str(num_cpus)]
        command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)]
        command += ["--ray-client-server-port", str(client), "--dashboard-agent-grpc-port", str(agent)]
        command += ["--metrics-export-port", str(metrics), "--dashboard-agent-listen-port", str(listen)]
        command += ["--object-store-memory", str(300 * 1024 * 1024), "--temp-dir", f"{name}/r"]
        keep = {k: v for k, v in os.environ.items() if k in {"HOME", "LANG", "LC_ALL", "TZ"}}
        keep["PATH"] = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        keep |= {"RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
        keep |= _LOOPBACK | (env or {})
        with (folder / "head.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=name, env=keep, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_until_up(process, dashboard, folder)
            yield RayHead(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", folder, process.pid, _LOOPBACK)
        finally:
            _end(process)


def _wait_until_up(process: "subprocess.Popen[bytes]", port: int, folder: Path) -> None:
    """Wait until the node is whole and its dashboard answers: a wait with an end, not a sleep of a guessed length."""
    limit = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < limit and process.poll() is None:
        if b"will now block forever" in (folder / "head.log").read_bytes():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=5) as answer:
                    answer.read()
                return
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 401:
                    return
            except OSError:
                pass
        time.sleep(0.2)
    raise RuntimeError(f"the Ray head did not start:\n{(folder / 'head.log').read_text()[-3000:]}")


def started(pid: int) -> int | None:
    """Return when a living process began (clock ticks since boot), or None: a number alone may be used again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def descendants(pid: int) -> dict[int, int]:
    """Map each living process below one to when it began."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found: dict[int, int] = {}
    todo = [pid]
    while todo:
        for child in children.get(todo.pop(), ()):
            began = started(child)
            if began is not None and child not in found:
                found[child] = began
                todo.append(child)
    return found


def listening(pids: Iterable[int]) -> list[tuple[str, int]]:
    """List addresses and ports on which processes listen for TCP, an IPv4 address within IPv6 as IPv4."""
    inodes = set()
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    inodes.add(os.readlink(entry).removeprefix("socket:[").rstrip("]"))
    found = []
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            local, state, inode = (line.split()[i] for i in (1, 3, 9))
            if state == "0A" and inode in inodes:
                host, port = local.split(":")
                words = [int(host[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(host), 8)]
                address = ipaddress.ip_address(b"".join(words))
                found.append((str(getattr(address, "ipv4_mapped", None) or address), int(port, 16)))
    return found


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the head and every process that descends from it, and no other."""
    family = descendants(process.pid)
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    limit = time.monotonic() + 5
    while any(started(pid) == began for pid, began in family.items()) and time.monotonic() < limit:
        time.sleep(0.05)
    for pid, began in family.items():
        if started(pid) == began:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """A head with two CPUs for all tests of the session that ask for one."""
    with start_ray_head() as head:
        yield head
