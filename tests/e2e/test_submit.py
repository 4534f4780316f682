"""Jobs submitted to a real Ray head that shares nothing with this repository but its third-party packages."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from batchdet.cluster import submit as submit_module
from batchdet.cluster.submit import connect, submit_job
from batchdet.errors import ClusterError
from tests.ray_head import RayHead, start_ray_head

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    # Ray's client hands aiohttp an argument that aiohttp would have otherwise.
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning"),
    # aiohttp closes the transports of a web socket one turn of the event loop after its session.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

SHARED = Path(os.environ.get("BATCHDET_SHARED") or Path(__file__).parents[3] / "shared")
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the shared inputs at {SHARED}")
REPOSITORY = Path(__file__).parents[2]
SECRET = "value-that-nobody-may-see"


def write_job(folder: Path, model: str) -> tuple[str, Path]:
    out = folder / "labels"
    path = folder / "job.yaml"
    path.write_text(
        f"name: coco120\nsource: {{uri: {SHARED}/images/coco120/images, format: folder}}\n"
        f"model: {{uri: {model}}}\noutput: {{uri: {out}}}\n"
    )
    return str(path), out


@pytest.mark.fault
@needs_shared
def test_a_job_labels_coco120(ray_head: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHDET_TEST_SECRET", SECRET)
    # Ray's client would follow this one instead of the address.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    job, out = write_job(tmp_path, f"{SHARED}/models/yolo11n_320.onnx")
    log: list[str] = []
    notes: list[str] = []
    done = submit_job(job, ray_head.dashboard, on_log=log.append, on_note=notes.append)
    assert (done.status, done.exit_status) == ("SUCCEEDED", 0), log

    assert any("120 images (0 failed)" in line for line in log)
    assert SECRET not in "\n".join([*log, *notes])
    assert any(note.startswith("model.uri: ") and note.endswith("is shipped along") for note in notes)
    run_id = (out / "_SUCCESS").read_text().strip()
    run = out / "_batchdet" / "runs" / run_id
    manifest = json.loads((run / "manifest.json").read_text())
    assert sum(part["rows"] for part in manifest["images"]) == 120
    detections = sum(part["rows"] for part in manifest["detections"])
    # yolo11n finds 521 on these images; another runtime moves a few across the threshold.
    assert 500 < detections < 545
    for file in run.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file

    # The same job again: nothing new to label, and the cluster says so with the same status.
    again = submit_job(job, ray_head.dashboard, on_log=log.append)
    assert again.exit_status == 0
    assert again.job_id != done.job_id


def batchdet(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a folder that is not the repository's."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "batchdet", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=folder, env=env, check=False)


def test_a_wrong_model_exits_5_and_says_why(ray_head: RayHead, tmp_path: Path) -> None:
    (tmp_path / "wrong.onnx").write_bytes(b"\x08\x07this is no model")
    (tmp_path / "images").mkdir()
    (tmp_path / "job.yaml").write_text(
        "name: j\nsource: {uri: images}\nmodel: {uri: wrong.onnx}\noutput: {uri: labels}\n"
    )
    cv2.imwrite(str(tmp_path / "images" / "gray.png"), np.full((64, 64, 3), 128, np.uint8))
    began = time.monotonic()
    done = batchdet(tmp_path, "submit", "job.yaml", "--address", ray_head.dashboard)
    assert done.returncode == 5, done
    assert time.monotonic() - began < 60
    errors = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done
    assert "wrong.onnx is not an ONNX model" in errors[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "labels" / "_SUCCESS").exists()


def test_nobody_at_the_address_exits_5_soon(tmp_path: Path) -> None:
    job, _ = write_job(tmp_path, "builtin:sample")
    began = time.monotonic()
    done = batchdet(tmp_path, "submit", job, "--address", "http://127.0.0.1:1")
    assert done.returncode == 5, done
    assert time.monotonic() - began < 20
    assert done.stderr.splitlines()[-1].startswith("error: http://127.0.0.1:1: no Ray dashboard answers there")
    assert "Traceback" not in done.stderr


@pytest.mark.fault
def test_a_source_that_the_cluster_does_not_see_exits_2(ray_head: RayHead, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        f"name: j\nsource: {{uri: {tmp_path}/nothing}}\nmodel: {{uri: 'builtin:sample'}}\n"
        f"output: {{uri: {tmp_path}/out}}\n"
    )
    log: list[str] = []
    assert submit_job(str(path), ray_head.dashboard, on_log=log.append).exit_status == 2, log
    assert any("nothing" in line for line in log if line.startswith("error: "))


def test_the_shipped_package_is_the_one_that_runs(
    ray_head: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHDET_TEST_SECRET", SECRET)
    monkeypatch.setenv("BATCHDET_TEST_NAMED", "named-value")
    show = "import batchdet, os; print('HOME', batchdet.__file__); "
    show += "print('NAMED', os.environ.get('BATCHDET_TEST_NAMED')); "
    show += "print('UNNAMED', os.environ.get('BATCHDET_TEST_SECRET'))"
    monkeypatch.setattr(submit_module, "entrypoint", lambda *_: f'python3 -c "{show}"')
    job, _ = write_job(tmp_path, "builtin:sample")
    log: list[str] = []
    done = submit_job(job, ray_head.dashboard, env=["BATCHDET_TEST_NAMED"], on_log=log.append)
    assert done.exit_status == 0, log
    found = dict(line.split(" ", 1) for line in log if line.startswith(("HOME ", "NAMED ", "UNNAMED ")))
    assert "/runtime_resources/working_dir_files/" in found["HOME"]
    assert found["HOME"].startswith(str(ray_head.folder))
    assert connect(ray_head.dashboard).get_job_info(done.job_id).metadata == {
        "job_name": "coco120",
        "submitted_by": "batchdet",
    }
    assert found["NAMED"] == "named-value"
    assert found["UNNAMED"] == "None"


@pytest.mark.fault
def test_without_waiting(ray_head: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit_module, "entrypoint", lambda *_: "sleep 600")
    job, _ = write_job(tmp_path, "builtin:sample")
    began = time.monotonic()
    submitted = submit_job(job, ray_head.dashboard, wait=False)
    assert time.monotonic() - began < 60
    assert submitted.status == "PENDING"
    client = connect(ray_head.dashboard)
    # A job that has not begun yet cannot be stopped.
    limit = time.monotonic() + 90
    while str(client.get_job_status(submitted.job_id)) == "PENDING" and time.monotonic() < limit:
        time.sleep(0.2)
    assert client.stop_job(submitted.job_id)
    from batchdet.cluster.follow import follow_job

    assert str(follow_job(client, submitted.job_id, ray_head.dashboard, lambda line: None).status) == "STOPPED"


@pytest.mark.fault
def test_ctrl_c_leaves_the_job_running(ray_head: RayHead, tmp_path: Path) -> None:
    job, _ = write_job(tmp_path, "builtin:sample")
    code = (
        "import signal, threading, os, sys; from batchdet.cluster import submit as s; "
        "s.entrypoint = lambda *_: 'echo begun; sleep 600'; "
        "stop = lambda line: line == 'begun' and os.kill(os.getpid(), signal.SIGINT)\n"
        "try: s.submit_job(sys.argv[1], sys.argv[2], on_log=stop)\n"
        "except s.Interrupted as error: print(error.message); sys.exit(error.exit_status)"
    )
    command = [sys.executable, "-c", code, job, ray_head.dashboard]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=REPOSITORY)
    assert done.returncode == 130, done.stderr
    assert "goes on; follow it with 'ray job logs --follow --address" in done.stdout
    job_id = done.stdout.split()[2]
    client = connect(ray_head.dashboard)
    assert str(client.get_job_status(job_id)) == "RUNNING"
    client.stop_job(job_id)


@pytest.mark.fault
def test_a_head_with_token_authentication(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own file in the home does, without RAY_AUTH_MODE, as it does for `ray start`."""
    token = "0123456789abcdef0123456789abcdef"
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home/.ray").mkdir(parents=True)
    monkeypatch.setattr(submit_module, "entrypoint", lambda *_: "echo done")
    job, _ = write_job(tmp_path, "builtin:sample")
    with start_ray_head(env={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}) as head:
        with pytest.raises(ClusterError, match="wants a token and got none"):
            submit_job(job, head.dashboard)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong-token-of-some-length")
        with pytest.raises(ClusterError, match="refused the one given"):
            submit_job(job, head.dashboard)
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        (tmp_path / "home/.ray/auth_token").write_text(token)
        log: list[str] = []
        assert submit_job(job, head.dashboard, on_log=log.append).exit_status == 0, log
        assert "done" in log
        assert token not in "\n".join(log)
