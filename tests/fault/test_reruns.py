"""The same command again, and after something has changed: what is done is not done again, and nothing is mixed."""

import hashlib
import itertools
import random
import signal
import subprocess
import sys
import time
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
from tests.driver import assert_whole, count, read_tables, run_to_end

from .processes import REPOSITORY, environment, run, running, wait_for, write_job
from .test_crashes import COMMITTED, POINTS, SEED

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
        f"a new run, because the unfinished run {unfinished} cannot be resumed: "
        "model.score_threshold changed from 0.25 to 0.4" in other.stderr
    )
    (committed,) = committed_runs(str(out))
    assert committed.run_id != unfinished
    assert set(open_results(str(out)).images().to_arrow()["run_id"].to_pylist()) == {committed.run_id}
    assert inspect_output(str(out)).problems == []


@pytest.mark.acceptance("R33")
def test_a_flipped_bit_in_any_committed_file_is_named(tmp_path: Path) -> None:
    """Each file of the tables and each record, at its ends and at seeded places between them."""
    job, out, chance = write_job(tmp_path, IMAGES), tmp_path / "out", random.Random(SEED)
    assert run(job).returncode == 0
    (manifest,) = committed_runs(str(out))
    parts = [part.path for part in (*manifest.images, *manifest.detections)]
    names = ("spec.yaml", "stats.json", "lineage.json", "inventory.parquet")
    for path in (*parts, *(f"_batchdet/runs/{manifest.run_id}/{name}" for name in names)):
        whole = (out / path).read_bytes()
        for place in (0, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(4))):
            data = bytearray(whole)
            data[place] ^= 1 << chance.randrange(8)
            (out / path).write_bytes(data)
            (problem,) = inspect_output(str(out)).problems
            assert path in problem, (path, place)
        (out / path).write_bytes(whole)
    assert inspect_output(str(out)).problems == []


@pytest.mark.acceptance("R1")
def test_a_driver_killed_at_each_point_is_resumed(tmp_path: Path) -> None:
    """Real kills, without Ray and a model: test_crashes has both, at few points in a run of ``make test``."""
    images, rows = 20, 2
    job = write_job(tmp_path, images)
    assert run(job).returncode == 0
    truth = read_tables(tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fault.processes", str(job), str(tmp_path), *POINTS],
        cwd=REPOSITORY, env=environment(""), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for point in POINTS:
        left, out = tmp_path / point / "left", tmp_path / point / "out"
        first, second = count(tmp_path / point / "first"), count(tmp_path / point / "second")
        committed = committed_runs(str(left))
        assert len(committed) == (point in COMMITTED), point
        assert_whole(out, truth)
        stored = images if committed else staged_images(left, rows)
        assert second == images - stored, point
        assert first - stored <= rows or committed, f"{point}: more than the segment in work was done twice"
        assert len(list_runs(str(out))) == 1 + (point in {"run.spec.after", "run.inventory.after"}), point


STOPS = {
    "the plan": "run.leased",
    "labelling": "run.staged@3",
    "gathering": "commit.gather.before",
    "moving": "commit.move@2",
    "the commit point": "commit.point.before",
}


ALL_STOPS = [(phase, number) for phase in STOPS for number in (signal.SIGINT, signal.SIGTERM)]
CHOSEN_STOPS = random.Random(SEED).sample(ALL_STOPS, 3)
"""Those of ``make test``."""


@pytest.mark.acceptance("R26")
@pytest.mark.parametrize(
    ("phase", "number"),
    [pytest.param(*each, marks=[] if each in CHOSEN_STOPS else pytest.mark.fault) for each in ALL_STOPS],
)
def test_a_signal_ends_a_run_in_order(phase: str, number: int, tmp_path: Path) -> None:
    """The real command line, without Ray; test_crashes has it with Ray."""
    job, out, here = write_job(tmp_path, IMAGES), tmp_path / "out", tmp_path / "here"
    counting = f"decode=count:{tmp_path / 'decoded'}"
    with running(job, failpoints=f"{STOPS[phase]}=pause:{here};{counting}", cli=True) as driver:
        wait_for(here.exists, driver)
        driver.send_signal(number)
        printed, said = driver.communicate(timeout=30)
        assert driver.returncode == 128 + number
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert printed == ""
    assert said.count("error: ") == 1
    assert said.splitlines()[-1].startswith(f"error: stopped by {name}; what was staged is kept")
    assert "Traceback" not in said
    assert committed_runs(str(out)) == []
    again = run(job, failpoints=counting)
    assert again.returncode == 0, again.stderr
    assert count(tmp_path / "decoded") == IMAGES, "no image is labelled twice"
    assert run(job, f"output.uri={tmp_path / 'truth'}").returncode == 0
    assert_whole(out, read_tables(tmp_path / "truth"))


@pytest.mark.acceptance("R26")
@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGINT, signal.SIGTERM), pytest.param(signal.SIGTERM, signal.SIGTERM, marks=pytest.mark.fault)],
)
def test_a_second_signal_ends_a_run_at_once(first: int, second: int, tmp_path: Path) -> None:
    """The first one is held in its handler, as an orderly end that hangs would be."""
    job, here, taken = write_job(tmp_path, IMAGES), tmp_path / "here", tmp_path / "taken"
    failpoints = f"commit.move@2=pause:{here};cli.interrupted=pause:{taken}"
    with running(job, failpoints=failpoints, cli=True) as driver:
        wait_for(here.exists, driver)
        driver.send_signal(first)
        wait_for(taken.exists, driver)
        began = time.monotonic()
        driver.send_signal(second)
        assert driver.wait(10) == 128 + second
        assert time.monotonic() - began < 2
    assert committed_runs(str(tmp_path / "out")) == []
    assert run(job).returncode == 0
    assert inspect_output(str(tmp_path / "out")).problems == []


@pytest.mark.acceptance("R8")
def test_of_two_drivers_one_writes_and_a_dead_one_is_replaced(tmp_path: Path) -> None:
    job, out, here = write_job(tmp_path, IMAGES), tmp_path / "out", tmp_path / "here"
    with running(job, failpoints=f"run.staged@3=pause:{here}") as first:
        wait_for(here.exists, first)
        before = digests(out)
        for _ in range(2):
            second = run(job)
            assert second.returncode == 4, second.stderr
            assert f"is held by another run (process {first.pid} on " in second.stderr
            assert digests(out) == before, "the second one writes nothing"
        first.kill()
        first.wait()
        third = run(job, failpoints=f"decode=count:{tmp_path / 'third'}")
        assert third.returncode == 0, third.stderr
    assert count(tmp_path / "third") == IMAGES - 3 * 2
    assert len(committed_runs(str(out))) == 1
    assert run(job, f"output.uri={tmp_path / 'truth'}").returncode == 0
    assert_whole(out, read_tables(tmp_path / "truth"))


MOMENTS = ["run.leased", "run.spec.after", "run.staged@2", "commit.gather.before", "commit.stats.before"]
CHOSEN_MOMENT = random.Random(SEED).choice(MOMENTS)


@pytest.mark.acceptance("R19")
@pytest.mark.parametrize(
    "moment", [pytest.param(each, marks=[] if each == CHOSEN_MOMENT else pytest.mark.fault) for each in MOMENTS]
)
def test_a_disk_that_is_full_from_some_moment_on(moment: str, small_disk: Path, tmp_path: Path) -> None:
    """A real file system of 24 MiB; without Ray."""
    job, out, here, filler = write_job(tmp_path, IMAGES), small_disk / "out", tmp_path / "here", small_disk / "filler"
    place = f"output.uri={out}"
    with running(job, place, failpoints=f"{moment}=pause:{here}", cli=True) as driver:
        wait_for(here.exists, driver)
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            file.writelines(itertools.repeat(bytes(4096)))
        here.unlink()
        printed, said = driver.communicate(timeout=240)
    assert (driver.returncode, printed) == (2, ""), said
    assert "Traceback" not in said
    (error,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert str(out) in error
    assert "No space left on device" in error
    assert committed_runs(str(out)) == []
    filler.unlink()
    assert run(job, place).returncode == 0
    assert run(job, f"output.uri={tmp_path / 'truth'}").returncode == 0
    assert_whole(out, read_tables(tmp_path / "truth"))
