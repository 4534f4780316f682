"""``batchdet doctor``: what of this machine will do, what is doubtful, what is wrong, each with its remedy.

Every look is cheap, none imports a heavy package, and those that could hang run side by side with a time limit.
Names of environment variables are shown, their values never.
"""

import os
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import batchdet
from batchdet import storage
from batchdet.cluster.dashboard import dashboard_address, greet, is_loopback
from batchdet.cluster.requirements import BASE, FLOOR_PYTHON, RUNTIMES, installed_version, is_older
from batchdet.errors import BatchdetError
from batchdet.machine import (
    cpu_limit,
    free_bytes,
    memory_bytes,
    python_command,
    reachable,
    run_limited,
    shared_memory_bytes,
)
from batchdet.model.cache import default_cache_dir
from batchdet.packages import install_command
from batchdet.spec import JobSpec

State = Literal["ok", "warn", "fail"]
LIMIT_S = 4.0
_GIB = 1024**3
_S3_NAMES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_S3_SOURCES = frozenset(_S3_NAMES) - {
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: What.
        state: ``ok``, ``warn`` (a run may still do) or ``fail`` (a run cannot work).
        found: What was found.
        advice: What to do about it, "" when all is well.
        exit_status: Of ``doctor``, if this is what fails.
    """

    name: str
    state: State
    found: str
    advice: str = ""
    exit_status: int = 5

    def to_dict(self) -> dict[str, str]:
        """Return the check as plain values."""
        return asdict(self)


def doctor(spec: JobSpec | None = None, address: str | None = None) -> list[Check]:
    """Look at this machine, and at what a job needs of it.

    Args:
        spec: A job, whose device, storage and cluster are then looked at too.
        address: A cluster's dashboard, as ``submit`` takes it, which is then asked too.

    Returns:
        The checks, in a fixed order, within about five seconds.

    Raises:
        SpecError: The address is none of a dashboard.
    """
    dashboard = dashboard_address(address) if address is not None else None
    looks: list[tuple[str, Callable[[], list[Check]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("runtimes", _runtimes),
        ("onnxruntime", lambda: _providers(spec)),
        ("gpu", lambda: _gpu(spec)),
        ("cpus", _cpus),
        ("memory", _memory),
        ("shared memory", _shared_memory),
        ("disk", _disk),
        ("model cache", _cache),
        ("s3 credentials", lambda: _s3(spec)),
    ]
    if spec is not None and spec.compute.address:
        looks.append(("ray cluster", lambda: _ray(spec)))
    if dashboard is not None:
        looks.append(("ray dashboard", lambda: _dashboard(dashboard)))
    return [check for checks in _side_by_side(looks) for check in checks]


def _side_by_side(looks: list[tuple[str, Callable[[], list[Check]]]]) -> list[list[Check]]:
    """Run all looks at once; one that takes too long is reported as such and left behind."""
    results: list[list[Check] | None] = [None] * len(looks)

    def work(index: int, look: Callable[[], list[Check]]) -> None:
        try:
            results[index] = look()
        except BatchdetError as error:
            results[index] = [Check(looks[index][0], "fail", error.message)]
        except Exception as error:
            results[index] = [
                Check(looks[index][0], "warn", f"could not be looked at: {type(error).__name__}: {error}")
            ]

    threads = [threading.Thread(target=work, args=(i, look), daemon=True) for i, (_, look) in enumerate(looks)]
    for thread in threads:
        thread.start()

    limit = time.monotonic() + LIMIT_S
    for thread in threads:
        thread.join(max(0.0, limit - time.monotonic()))
    return [
        result
        if result is not None
        else [Check(name, "warn", f"no answer within {LIMIT_S:g} s", "try again, or see why")]
        for (name, _), result in zip(looks, results, strict=True)
    ]


def _python() -> list[Check]:
    version = sys.version.split()[0]
    good = sys.version_info >= FLOOR_PYTHON
    return [
        Check(
            "python",
            "ok" if good else "fail",
            f"{version} ({sys.executable})",
            "" if good else "batchdet needs Python 3.11 or newer",
        ),
        Check("batchdet", "ok", f"{batchdet.__version__} ({os.path.dirname(batchdet.__file__)})"),
    ]


def _packages() -> list[Check]:
    checks = []
    for requirement in BASE:
        version = installed_version(requirement.name)
        if version is None:
            checks.append(
                Check(
                    requirement.name, "fail", "not installed", f"pip install '{requirement.name}>={requirement.floor}'"
                )
            )
        elif is_older(version, requirement.floor):
            advice = f"pip install '{requirement.name}>={requirement.floor}'"
            checks.append(Check(requirement.name, "fail", f"{version}; {requirement.floor} is the floor", advice))
        else:
            checks.append(Check(requirement.name, "ok", version))
    return checks


def _runtimes() -> list[Check]:
    found = {r.name: installed_version(r.name) for r in RUNTIMES}
    present = [f"{name} {version}" for name, version in found.items() if version]
    if not any(version for name, version in found.items() if name != "onnx"):  # which runs nothing by itself
        return [Check("runtimes", "fail", "none", install_command("cpu", "onnxruntime"))]
    old = [r for r in RUNTIMES if (version := found[r.name]) and is_older(version, r.floor)]
    if old:
        advice = "pip install " + " ".join(f"'{r.name}>={r.floor}'" for r in old)
        return [Check("runtimes", "fail", ", ".join(present), advice)]
    if found["onnxruntime"] and found["onnxruntime-gpu"]:
        advice = "they overwrite each other's files: pip uninstall onnxruntime onnxruntime-gpu, then install one"
        return [Check("runtimes", "warn", ", ".join(present), advice)]
    return [Check("runtimes", "ok", ", ".join(present))]


_FOR_GPUS = f"pip uninstall onnxruntime; {install_command('gpu', 'onnxruntime-gpu')}"


def _providers(spec: JobSpec | None) -> list[Check]:
    if not (installed_version("onnxruntime") or installed_version("onnxruntime-gpu")):
        return []
    code = "import onnxruntime as o; print(o.__version__, *o.get_available_providers())"
    # Another process: the import takes its time, and a broken library must not take this one along.
    status, text = run_limited(python_command("-c", code), LIMIT_S - 0.5)
    if status != 0 or not text.strip():
        last = text.strip().splitlines()[-1] if text.strip() else "no answer"
        return [
            Check("onnxruntime", "fail", f"cannot be imported: {last}", "pip install --force-reinstall onnxruntime")
        ]
    _, *providers = text.split()
    names = ", ".join(p.removesuffix("ExecutionProvider") for p in providers)
    if spec is not None and spec.compute.device == "gpu" and "CUDAExecutionProvider" not in providers:
        return [Check("onnxruntime", "fail", f"providers: {names}", f"compute.device is gpu: {_FOR_GPUS}")]
    return [Check("onnxruntime", "ok", f"providers: {names}")]


def _gpu(spec: JobSpec | None) -> list[Check]:
    wanted = spec is not None and spec.compute.device == "gpu" and spec.compute.address is None
    if shutil.which("nvidia-smi") is None:
        state: State = "fail" if wanted else "ok"
        return [
            Check("gpu", state, "none (no nvidia-smi)", "take compute.device: cpu, or a GPU machine" if wanted else "")
        ]
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    status, text = run_limited(query, LIMIT_S - 0.5)
    if status != 0:
        advice = "see nvidia-smi: driver and device do not work together"
        return [Check("gpu", "fail" if wanted else "warn", "nvidia-smi fails", advice)]
    return [Check("gpu", "ok", "; ".join(line.strip() for line in text.splitlines() if line.strip()))]


def _cpus() -> list[Check]:
    count, machine = cpu_limit()
    found = f"{count:g}" if count >= machine else f"{count:g} of the machine's {machine} (container or affinity)"
    if count < 1:
        return [Check("cpus", "warn", found, "a run needs at least one whole CPU")]
    return [Check("cpus", "ok", found)]


def _memory() -> list[Check]:
    total, available = memory_bytes()
    found = f"{available / _GIB:.1f} GiB free of {total / _GIB:.1f}"
    if available < 1 * _GIB:
        return [Check("memory", "fail", found, "a run needs 2 GiB: end other programs, or raise the container's limit")]
    if available < 2 * _GIB:
        return [Check("memory", "warn", found, "take compute.actors: 1 and a smaller compute.segment_bytes")]
    return [Check("memory", "ok", found)]


def _shared_memory() -> list[Check]:
    _, size = shared_memory_bytes()
    wanted = min(2 * _GIB, memory_bytes()[0] * 3 // 10)
    found = f"/dev/shm has {size / _GIB:.1f} GiB"
    if size < wanted:
        advice = f"Ray puts objects on disk and slows down: docker run --shm-size={max(1, wanted // _GIB)}g"
        return [Check("shared memory", "warn", found, advice)]
    return [Check("shared memory", "ok", found)]


def _disk() -> list[Check]:
    checks = []
    folders = {"temporary folder": tempfile.gettempdir(), "cache folder": default_cache_dir()}
    for name, folder in folders.items():
        free, total = free_bytes(folder)
        found = f"{folder}: {free / _GIB:.1f} GiB free of {total / _GIB:.0f}"
        if free < _GIB:
            checks.append(Check(name, "fail", found, "less than 1 GiB: make room, or set TMPDIR and BATCHDET_CACHE"))
        elif free < total * 0.05:
            checks.append(
                Check(name, "warn", found, "Ray stops putting objects on a disk that is 95 % full: make room")
            )
        else:
            checks.append(Check(name, "ok", found))
    return checks


def _cache() -> list[Check]:
    folder = default_cache_dir()
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        state = os.lstat(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        advice = "set BATCHDET_CACHE to a folder of your own"
        return [Check("model cache", "fail", f"{folder}: {error.strerror}", advice)]
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
        advice = "it belongs to another user, or is a link: set BATCHDET_CACHE to a folder of your own"
        return [Check("model cache", "fail", folder, advice)]
    if state.st_mode & 0o077:
        return [Check("model cache", "fail", f"{folder} is open to other users", f"chmod 700 {folder}")]
    return [Check("model cache", "ok", f"{folder}, private and writable")]


def _s3(spec: JobSpec | None) -> list[Check]:
    present = [name for name in _S3_NAMES if os.environ.get(name)]
    files = [f for f in ("~/.aws/credentials", "~/.aws/config") if Path(f).expanduser().exists()]
    found = ", ".join([*(f"{name} is set" for name in present), *files]) or "none found"
    uris = [] if spec is None else [spec.source.uri, spec.model.uri, spec.output.uri]
    if not any(storage.scheme(uri) in {"s3", "s3a"} for uri in uris):
        return [Check("s3 credentials", "ok", found)]
    if "AWS_ACCESS_KEY_ID" in present and "AWS_SECRET_ACCESS_KEY" not in present:
        return [Check("s3 credentials", "fail", found, "AWS_SECRET_ACCESS_KEY is missing: export both or neither")]
    if not files and not _S3_SOURCES.intersection(present):
        advice = "export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
        return [Check("s3 credentials", "warn", found, advice)]
    return [Check("s3 credentials", "ok", found)]


def _ray(spec: JobSpec) -> list[Check]:
    address = spec.compute.address or ""
    if address == "auto":
        named = os.environ.get("RAY_ADDRESS") or _running_ray()
        if not named:
            advice = "start one with 'ray start --head', or take compute.address: null"
            return [Check("ray cluster", "fail", "auto: no cluster runs here and RAY_ADDRESS is not set", advice)]
        address = named
    if reachable(address):
        return [Check("ray cluster", "ok", f"{address} answers")]
    return [
        Check("ray cluster", "fail", f"{address} does not answer", "see compute.address, and whether the head runs")
    ]


def _dashboard(address: str) -> list[Check]:
    name = "ray dashboard"
    try:
        headers = greet(address)
    except BatchdetError as error:
        found, _, advice = error.message.partition("; ")
        return [Check(name, "fail", found, advice)]
    if headers:
        return [Check(name, "ok", f"{address} answers, and takes this user's token")]
    if is_loopback(address):
        return [Check(name, "ok", f"{address} answers, without a token")]
    advice = "start the head with RAY_AUTH_MODE=token; submit refuses it without --insecure"
    return [Check(name, "warn", f"{address} answers, and takes jobs of anybody who reaches it", advice)]


def _running_ray() -> str:
    """Return the address of the cluster that ``ray start`` began on this machine last, or ""."""
    try:
        return Path("/tmp/ray/ray_current_cluster").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def render_doctor(checks: list[Check], console: Any) -> None:
    """Print checks as a table.

    Args:
        checks: What :func:`doctor` returned.
        console: A ``rich.console.Console``.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    marks = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}
    for check in checks:
        mark, style = marks[check.state]
        found = Text(check.found)
        if check.advice:
            found.append(f"\n→ {check.advice}", style="bold")
        table.add_row(Text(mark, style=style), Text(check.name), found)
    console.print(table)
    bad = sum(check.state == "fail" for check in checks)
    doubtful = sum(check.state == "warn" for check in checks)
    summary = f"{bad} wrong, {doubtful} doubtful" if bad or doubtful else "all is well"
    console.print(Text(summary, style="red" if bad else "yellow" if doubtful else "green"))
