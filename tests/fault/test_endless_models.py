"""A model whose graph never ends: every command that loads it on this machine ends within its limit, or on a signal."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchdet import storage
from tests import tiny_onnx
from tests.e2e.conftest import REPOSITORY, Cli, clean_environment, job, sample_images, yaml_of

pytestmark = [pytest.mark.fault, pytest.mark.acceptance("S26")]
_LIMIT_S = 60


@pytest.fixture
def endless_job(tmp_path: Path) -> Path:
    sample_images(tmp_path, 6, 1)
    model = tiny_onnx.endless(tmp_path / "endless.onnx")
    return yaml_of(job(tmp_path / "s", tmp_path / "out", model), tmp_path)


@pytest.mark.parametrize("command", ["model", "plan", "run", "doctor", "validate"])
def test_it_ends_within_the_limit(endless_job: Path, cli: Cli, command: str) -> None:
    model = endless_job.with_name("endless.onnx")
    arguments = [model] if command == "model" else [endless_job, *(["--deep"] if command == "validate" else [])]
    started = time.monotonic()
    ended = cli(command, *arguments, *([] if command == "run" else ["--json"]))
    assert time.monotonic() - started < _LIMIT_S + 30
    assert ended.returncode == 5, ended.stderr
    assert "endless.onnx" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    if command in ("model", "plan", "validate"):
        assert json.loads(ended.stdout)["error"]["code"] == "model.timed_out"
    assert not storage.list_names(str(endless_job.with_name("out") / "_batchdet" / "runs"))


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_at_once(endless_job: Path, command: str, number: int, status: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "batchdet", command, str(endless_job)],
        cwd=REPOSITORY, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        time.sleep(12 if command == "plan" else 20)
        assert process.poll() is None, process.communicate()
        sent = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == status, errors
    assert time.monotonic() - sent < (3 if command == "plan" else 15)  # a Ray of its own is ended, too
