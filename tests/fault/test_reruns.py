"""The same command again, and after something has changed: what is done is not done again, and nothing is mixed."""

import hashlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from batchdet import open_results
from batchdet.results.query import query
from batchdet.results.verify import inspect_output
from batchdet.sample.dataset import write_sample
from batchdet.table.manifest import committed_runs, list_runs
from batchdet.table.staging import list_staged
from tests.driver import count, run_to_end

from .processes import REPOSITORY, environment, run, write_job

IMAGES = 12


def digests(out: Path) -> dict[str, str]:
    """Return the digest of every file of an output, but for the lease."""
    files = (p for p in out.rglob("*") if p.is_file() and "lease" not in p.parts)
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def staged_images(out: Path, rows: int) -> int:
    """Count the images of the full segments that are staged."""
    staged = (list_staged(str(out), run_id) for run_id in list_runs(str(out)))
    return rows * sum(len(shard.segments) for run in staged for shard in run.values())


@pytest.mark.acceptance("R2")
def test_a_finished_job_three_times_more(tmp_path: Path) -> None:
    """The real command line; where Ray should be there is a package that cannot be imported."""
    job, out = write_job(tmp_path, IMAGES), tmp_path / "out"
    assert run(job).returncode == 0
    before = digests(out)
    (tmp_path / "no/ray").mkdir(parents=True)
    (tmp_path / "no/ray/__init__.py").write_text("raise SystemExit('Ray was imported')")
    env = environment("") | {"PYTHONPATH": f"{tmp_path / 'no'}:{REPOSITORY}"}
    (run_id,) = list_runs(str(out))
    for _ in range(3):
        again = subprocess.run(
            [sys.executable, "-m", "batchdet", "run", str(job)],
            cwd=REPOSITORY,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert again.returncode == 0, again.stderr
        assert f"nothing new: {IMAGES} source objects labelled already, the last of them by run {run_id}" in (
            " ".join(again.stderr.split())
        )
        assert digests(out) == before


@pytest.mark.acceptance("R3")
def test_images_without_detections_are_not_inferred_again(tmp_path: Path) -> None:
    job, out = write_job(tmp_path, IMAGES), tmp_path / "out"
    first, second = tmp_path / "first", tmp_path / "second"
    killed = run(job, failpoints=f"decode=count:{first};run.staged@4=kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert count(first) == staged_images(out, 2) == 8
    assert run(job, failpoints=f"decode=count:{second}").returncode == 0
    assert count(second) == IMAGES - 8
    empty = query(str(out), "SELECT count(*) AS n FROM images WHERE detection_count = 0").to_pylist()
    assert empty == [{"n": IMAGES // 3}]
    assert run(job, failpoints=f"decode=count:{second}").returncode == 0
    assert count(second) == IMAGES - 8


@pytest.mark.fault
@pytest.mark.acceptance("R2", "R3")
def test_the_same_with_ray_and_a_model(tmp_path: Path) -> None:
    """Of 30 images 9 are blank; the driver is killed in the middle."""
    write_sample(str(tmp_path / "in"), 21, "folder", 3)
    (folder,) = {p.parent for p in (tmp_path / "in").rglob("*.jpg")}
    for n in range(9):
        cv2.imwrite(str(folder / f"blank-{n}.jpg"), np.full((480, 640, 3), 128, np.uint8))
    job, out, second = tmp_path / "job.yaml", tmp_path / "out", tmp_path / "second"
    job.write_text(
        f"name: blanks\nsource: {{uri: '{folder}'}}\nmodel: {{uri: 'builtin:sample'}}\n"
        f"output: {{uri: '{out}'}}\ncompute: {{segment_rows: 3}}\n"
    )
    killed = run_to_end(["run", job], tmp_path / "drivers", "run.staged@4=kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    staged = staged_images(out, 3)
    assert 12 <= staged < 30
    for _ in range(4):
        again = run_to_end(["run", job], tmp_path / "drivers", f"decode=count:{second}")
        assert again.returncode == 0, again.stderr
        assert count(second) == 30 - staged
    empty = query(str(out), "SELECT count(*) AS n FROM images WHERE detection_count = 0").to_pylist()
    assert empty == [{"n": 9}]
    assert len(committed_runs(str(out))) == 1


@pytest.mark.acceptance("R25")
def test_a_killed_run_is_not_mixed_with_one_of_other_settings(tmp_path: Path) -> None:
    job, out, counted = write_job(tmp_path, IMAGES), tmp_path / "out", tmp_path / "counted"
    run(job, failpoints="run.staged@3=kill")
    (unfinished,) = list_runs(str(out))
    other = run(job, "model.score_threshold=0.4", failpoints=f"decode=count:{counted}")
    assert other.returncode == 0, other.stderr
    assert count(counted) == IMAGES
    assert (
        f"a new run, because the unfinished run {unfinished} cannot go on: "
        "model.score_threshold changed from 0.25 to 0.4" in other.stderr
    )
    (committed,) = committed_runs(str(out))
    assert committed.run_id != unfinished
    assert set(open_results(str(out)).images().to_arrow()["run_id"].to_pylist()) == {committed.run_id}
    assert inspect_output(str(out)).problems == []


@pytest.mark.acceptance("R33")
def test_a_flipped_bit_in_any_committed_file_is_named(tmp_path: Path) -> None:
    job, out = write_job(tmp_path, IMAGES), tmp_path / "out"
    assert run(job).returncode == 0
    (manifest,) = committed_runs(str(out))
    parts = [part.path for part in (*manifest.images, *manifest.detections)]
    records = [f"_batchdet/runs/{manifest.run_id}/{name}" for name in ("spec.yaml", "stats.json")]
    for path in (*parts, *records):
        copy = tmp_path / "copy"
        shutil.copytree(out, copy)
        data = bytearray((copy / path).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / path).write_bytes(data)
        (problem,) = inspect_output(str(copy)).problems
        assert path in problem
        shutil.rmtree(copy)
