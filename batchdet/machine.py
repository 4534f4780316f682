"""Cheap looks at a machine: processors, memory, disk, sockets; a container's limits count."""

import ctypes
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
_LOW_BYTES = 64_000_000
_PR_SET_PDEATHSIG = 1


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def cpu_limit() -> tuple[float, int]:
    """Return how many CPUs this process may use (affinity and cgroup quota), and how many the machine has."""
    machine = os.cpu_count() or 1
    count = float(len(os.sched_getaffinity(0)))
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(_CGROUP / "cpu/cpu.cfs_quota_us"), _read(_CGROUP / "cpu/cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit() and int(period):
        count = min(count, int(quota) / int(period))
    return count, machine


def _memory_fields() -> dict[str, int]:
    fields = {}
    for line in _read(Path("/proc/meminfo")).splitlines():
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) * 1024
    return fields


def free_swap_bytes() -> int:
    """Return what is free of this machine's swap space."""
    return _memory_fields().get("SwapFree", 0)


def memory_bytes() -> tuple[int, int]:
    """Return the memory that this process may use in all, and what of it is free."""
    fields = _memory_fields()
    total, available = fields.get("MemTotal", 0), fields.get("MemAvailable", 0)
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = _read(_CGROUP / limit_file), _read(_CGROUP / used_file)
        if limit.isdigit() and int(limit) < min(total, _UNLIMITED):
            total = int(limit)
            available = min(available, max(0, total - int(used or 0)))
    return total, available


def gpu_count() -> int:
    """Count NVIDIA's GPUs of this machine."""
    return sum(os.path.exists(f"/dev/nvidia{i}") for i in range(16))


def private_bytes(pid: int) -> int:
    """Return the memory that a process has to itself, Ray's object store left out; 0 when it is gone."""
    fields = _read(Path(f"/proc/{pid}/statm")).split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def shared_memory_bytes() -> tuple[int, int]:
    """Return free and total bytes of /dev/shm, where Ray keeps objects; zeros where there is none."""
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return 0, 0
    return usage.free, usage.total


def free_bytes(folder: str) -> tuple[int, int]:
    """Return free and total bytes of the disk below a folder (or below its nearest parent that exists)."""
    path = Path(folder)
    while not path.exists() and path != path.parent:
        path = path.parent
    usage = shutil.disk_usage(path)
    return usage.free, usage.total


def reachable(address: str, timeout_s: float = 2.0) -> bool:
    """Tell whether something listens at ``HOST:PORT`` or ``scheme://HOST:PORT``."""
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    try:
        port = parts.port or (10001 if parts.scheme == "ray" else 6379)
        with socket.create_connection((parts.hostname or "", port), timeout=timeout_s):
            return True
    except (OSError, ValueError):
        return False


def python_command(*arguments: str) -> list[str]:
    """Return the command of this Python with arguments, for a child without the working directory in its path."""
    return [sys.executable, "-P", *arguments]


def child_environment() -> dict[str, str]:
    """Return the environment for a child that is to import from where this process does.

    What a worker of a cluster imports from may be known to that worker alone. The working directory is left out: its
    files are the user's, and one named like a module would be executed. It stays if batchdet itself is there.
    """
    home = str(Path(__file__).resolve().parents[1])
    here = os.getcwd()
    places = [path for path in sys.path if path and (path == home or os.path.abspath(path) != here)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places)}


def die_with_parent() -> None:
    """Have this process ended by SIGKILL when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run_limited(command: Sequence[str], timeout_s: float) -> tuple[int, str]:
    """Run a short command.

    Returns:
        Its exit status (124 when it was ended for its time) and what it wrote to either stream.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return 124, ""
    except OSError as error:
        return 127, str(error)
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr


def descendants(pid: int) -> dict[int, str]:
    """Map the processes below one that have not ended to their state, a letter: T is stopped."""
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _read(entry / "stat")):
            state, parent, *_ = stat.rpartition(")")[2].split()
            if state not in {"Z", "X"}:
                children.setdefault(int(parent), []).append((int(entry.name), state))
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        for child, state in children.get(todo.pop(), ()):
            found[child] = state
            todo.append(child)
    return found


def stopped_processes(pid: int) -> list[str]:
    """Name the stopped processes below one, as ``raylet (process 1234)``."""
    stopped = [child for child, state in descendants(pid).items() if state == "T"]
    return [f"{_program(child)} (process {child})" for child in stopped]


def _program(pid: int) -> str:
    """Return a process's program, or the title that it has given itself."""
    first = _read(Path(f"/proc/{pid}/cmdline")).partition("\0")[0].strip()
    return first if first.startswith("ray::") else os.path.basename(first)


def tight_limits() -> Iterator[str]:
    """Say which limits and full places of this machine may end processes of Ray."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield f"ulimit -v allows {soft // 1024} KiB of address space, of which each process of Ray takes gigabytes"
    places = dict.fromkeys((tempfile.gettempdir(), os.environ.get("RAY_TMPDIR") or "/tmp"))
    free = {place: free_bytes(place)[0] for place in places} | {"/dev/shm": shared_memory_bytes()[0]}
    yield from (f"{place} has only {size // 10**6} MB free" for place, size in free.items() if size < _LOW_BYTES)
    if (memory := memory_bytes()[1]) < _LOW_BYTES:
        yield f"the machine has only {memory // 10**6} MB of memory free"
