"""The whole way of a GPU run where there is no GPU: Ray believes in one, and ONNX Runtime computes on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batchdet import open_results
from batchdet.sample.dataset import write_sample

from .conftest import REPOSITORY, clean_environment, write_shards

pytestmark = pytest.mark.slow

FAKE = REPOSITORY / "tests/fake_gpu"
SQL = """
    SELECT member, status, error_code, detection_index, class_id, round(score, 3), round(x_min, 1), round(y_max, 1)
    FROM images LEFT JOIN detections USING (image_id) ORDER BY ALL
"""


@pytest.mark.fault
def test_gpu_runs_find_what_cpu_runs_find(tmp_path: Path) -> None:
    write_sample(str(tmp_path / "sample"), 60, "folder", 5)
    files = [(p.name, p.read_bytes()) for p in sorted((tmp_path / "sample").rglob("*.jpg"))]
    files[7] = (files[7][0], files[7][1][:200])
    glob = write_shards(str(tmp_path / "in"), files, 2)
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "cpu": ("square", {"device": "cpu"}),
        "auto": ("auto", {}),
        "two": ("auto", {"device": "gpu", "actors": 2, "batch_rows": 4}),
        "cpu-stage": ("rectangle", {"device": "cpu", "decode": "stage"}),
        "stage": ("rectangle", {"device": "gpu", "actors": 2, "decode": "stage", "batch_rows": 4}),
    }
    model = {"uri": "builtin:sample", "runtime": "onnxruntime", "precision": "fp32"}
    jobs = [
        {
            "name": name,
            "source": {"uri": glob},
            "model": model | {"canvas": {"shape": shape}},
            "compute": {"segment_rows": 16} | compute,
            "output": {"uri": str(tmp_path / name)},
            "policy": {"max_failed_fraction": 0.1},
        }
        for name, (shape, compute) in ways.items()
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    paths = {"PYTHONPATH": os.pathsep.join((str(FAKE), str(REPOSITORY)))}
    done = subprocess.run(
        [sys.executable, str(FAKE / "run_jobs.py"), str(tmp_path / "jobs.json")],
        env=clean_environment() | paths,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    chosen = dict(zip(ways, json.loads(done.stdout.splitlines()[-1]), strict=True))
    assert {name: each["ok"] for name, each in chosen.items()} == dict.fromkeys(ways, 59)
    assert chosen["auto"]["choices"]["device"] == "gpu: the cluster has 1 GPUs"
    assert chosen["auto"]["choices"]["actors"] == "1: one per GPU, fewer than 4 cores per GPU"
    assert chosen["auto"]["choices"]["decode"].startswith("actor: 2 cores")
    assert chosen["auto"]["choices"]["canvas"].startswith("square, 320 x 320 px: square canvases, as this runtime")
    rows = {name: open_results(str(tmp_path / name)).sql(SQL).fetchall() for name in ways}
    assert len(rows["cpu"]) > 100
    assert rows["auto"] == rows["two"] == rows["cpu"], "CUDA takes squares"
    assert rows["stage"] == rows["cpu-stage"] != rows["cpu"], "unless it is told otherwise"
