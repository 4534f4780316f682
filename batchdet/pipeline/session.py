"""A Ray to work on: one of our own, or a running cluster."""

import contextlib
import importlib
import logging
import math
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import batchdet
from batchdet.errors import BatchdetError, ClusterError
from batchdet.machine import cpu_limit, free_bytes, reachable, shared_memory_bytes, tight_limits
from batchdet.pipeline.own_ray import few_daemons, kept_to_this_machine, no_helpers
from batchdet.ray_environment import ray_environment

_CONNECT_TIMEOUT_S: Final = 5
_PIPELINE: Final = "batchdet.pipeline.ray_data"
_OBJECT_STORE_MAX_BYTES: Final = 4 * 1024**3
_SHARED_MIN_BYTES: Final = 300 * 1024**2
"""Ray wants a third of it at least; where /dev/shm has less, it takes a file instead."""

_LEAST_FILES: Final = 512
_LOGS_BYTES: Final = 100_000_000
"""Of a local Ray: its logs and sockets."""


@dataclass(frozen=True)
class Capacity:
    """What a cluster has.

    Args:
        cpus: CPU cores, over all nodes.
        gpus: GPUs, over all nodes.
        nodes: Living nodes.
        cpus_by_node: CPU cores of each node.
        gpus_by_node: GPUs of each node, in the same order.
    """

    cpus: float
    gpus: float
    nodes: int
    cpus_by_node: tuple[float, ...]
    gpus_by_node: tuple[float, ...]


def usable_cpus() -> int:
    """Count the processors that this process may use (affinity counts, and a container's CPU quota)."""
    return max(1, math.floor(cpu_limit()[0]))


def ray_runs() -> bool:
    """Tell whether this process is connected to a Ray already."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@contextmanager
def ray_session(
    address: str | None, verbose: bool = False, code: Path | None = None, name: str = "batchdet"
) -> Iterator[Capacity]:
    """Connect to a cluster, or start a Ray of this process's own, and leave it in the end.

    Args:
        address: ``auto`` or ``HOST:PORT``; None starts one.
        verbose: Let Ray speak.
        code: A module's file or a package's folder that the workers of a cluster must be able to import.
        name: Of the job, in the cluster's dashboard.

    Yields:
        What the cluster has.

    Raises:
        ClusterError: There is no cluster at the address, or Ray cannot start.
    """
    _load_ray()
    import ray

    if ray.is_initialized():
        yield capacity()
        return
    if address is not None:
        _check_address(address)
    _silence(verbose)
    options: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.CRITICAL,
        "configure_logging": True,
        "job_config": _job_config(name),
    }
    if address is None:
        _check_room()
        for name, value in ray_environment(usable_cpus()).items():
            os.environ.setdefault(name, value)
        options |= {
            "address": "local",
            "num_cpus": usable_cpus(),
            "include_dashboard": False,
            "object_store_memory": min(_OBJECT_STORE_MAX_BYTES, max(shared_memory_bytes()[0], _SHARED_MIN_BYTES) // 3),
            # workers import it when they start, not when they are first wanted
            "_system_config": {"preload_python_modules": [_PIPELINE]},
        }
    else:
        options["address"] = address
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
            # Not inside a submitted job, whose package is there already: the cluster's nodes may lack this one.
            shipped = [str(path) for path in (Path(batchdet.__file__).parent, code) if path is not None]
            options["runtime_env"] = {"py_modules": shipped, "excludes": ["__pycache__"]}
    with kept_to_this_machine() if address is None else contextlib.nullcontext():
        _init(options, address, verbose)
        _silence(verbose)  # again: importing Ray Data sets its loggers up
        try:
            with no_helpers() if address is None else contextlib.nullcontext():
                yield capacity()
        finally:
            with _own_signals():
                ray.shutdown()


def _load_ray() -> None:
    """Import Ray, whose library takes a gigabyte of address space.

    Raises:
        ClusterError: It does not load.
    """
    try:
        importlib.import_module("ray")
    except (ImportError, OSError, MemoryError) as error:
        raise ClusterError(
            f"Ray cannot be loaded: {error or 'out of memory'}",
            code="cluster.no_ray",
            hint="; ".join(tight_limits()) or None,
        ) from error


def _check_room() -> None:
    """Refuse to start a Ray that would hang or end without a word for want of open files or disk space.

    Ray raises the soft limit of open files to the hard one.

    Raises:
        ClusterError: There is too little; the message says how much there is and how much is needed.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _LEAST_FILES:
        raise ClusterError(
            f"a process may open only {hard} files here and Ray needs {_LEAST_FILES}; raise the limit (ulimit -n)",
            code="cluster.few_files",
        )
    folder = os.environ.get("RAY_TMPDIR") or "/tmp"
    in_memory = shared_memory_bytes()[0] >= _SHARED_MIN_BYTES  # else Ray keeps its objects in the folder, too
    needed = _LOGS_BYTES + (0 if in_memory else _SHARED_MIN_BYTES // 3)
    free, _ = free_bytes(folder)
    if free < needed:
        shared = "" if in_memory else f" because /dev/shm has only {shared_memory_bytes()[0] // 10**6} MB free"
        raise ClusterError(
            f"{folder} has only {free // 10**6} MB free and Ray needs {needed // 10**6} MB there{shared}; "
            "make room, or name another folder in RAY_TMPDIR",
            code="cluster.no_space",
            key=folder,
        )


def _init(options: dict[str, Any], address: str | None, verbose: bool) -> None:
    """Start Ray, or connect to it."""
    import ray

    try:
        with (
            warnings.catch_warnings(action="ignore"),
            _own_signals(),
            _importing(_PIPELINE),
            few_daemons(verbose) if address is None else contextlib.nullcontext(),
        ):
            ray.init(**options)
    except BatchdetError:  # a signal, or the limit for waiting
        raise
    except Exception as error:  # Ray raises that very class when its processes do not come up in time
        where = f"at compute.address {address}" if address else "of its own"
        text = " ".join(str(error).split()).rstrip(".")
        wants = "if the cluster wants a token: export RAY_AUTH_MODE=token (and RAY_AUTH_TOKEN, or ~/.ray/auth_token)"
        hint = wants if address and "RAY_AUTH_MODE" not in os.environ else "; ".join(tight_limits()) or None
        raise ClusterError(f"no Ray {where}: {text}"[:600], code="cluster.no_ray", key=address, hint=hint) from error


def _job_config(name: str) -> Any:
    """Return Ray's settings of this job, with a list of import paths that stays as it is.

    Ray would add the working directory to it and put that before the standard library on every worker, so that a
    ``random.py`` there would be executed.
    """
    from ray.job_config import JobConfig

    class Fixed(list[str]):
        def extend(self, _: object) -> None:
            """Leave out what Ray adds."""

    home = str(Path(batchdet.__file__).resolve().parents[1])
    config = JobConfig(metadata={"job_name": name})
    config._py_driver_sys_path = Fixed([home] if home == os.getcwd() else [])
    return config


@contextmanager
def _importing(module: str) -> Iterator[None]:
    """Import a module in a thread while the block runs, which mostly waits for processes that start."""

    def import_it() -> None:
        with contextlib.suppress(Exception):  # whoever needs it imports it again, and says what is wrong
            importlib.import_module(module)

    thread = threading.Thread(target=import_it, name="imports", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _check_address(address: str) -> None:
    """Refuse what Ray could only wait for: it has no time-out of its own when nobody listens."""
    if "://" in address:
        raise ClusterError(
            f"compute.address: {address} is a client's or a dashboard's address; give HOST:PORT of the head (or auto) "
            "on a machine of the cluster, or use `batchdet submit JOB --address http://HEAD:8265` from elsewhere"
        )
    if address not in {"auto", "local"} and not reachable(address, _CONNECT_TIMEOUT_S):
        raise ClusterError(
            f"compute.address: nobody listens at {address}; is the cluster up, and is this its GCS port?"
        )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Put this process's signal handlers back.

    Ray installs one for SIGTERM when it starts, and when it ends it leaves SIGTERM to end the process without a word.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def capacity() -> Capacity:
    """Measure what the connected cluster has."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    cpus = tuple(float(node.get("CPU", 0)) for node in nodes)
    gpus = tuple(float(node.get("GPU", 0)) for node in nodes)
    return Capacity(sum(cpus), sum(gpus), len(nodes), cpus, gpus)


def _silence(verbose: bool) -> None:
    """Keep Ray's own chatter off the screen; set before Ray starts because its processes inherit it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not verbose:
        os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
