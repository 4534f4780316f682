"""Drivers and actors that are killed: the same command again leaves what an undisturbed run leaves.

Everything is real: processes of their own, a Ray of their own, SIGKILL by recorded pid. A few points, chosen by seed,
are tested in every run of the suite; ``make fault`` takes them all.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from batchdet.errors import ClusterError, ModelError
from batchdet.job import run_job
from batchdet.specfile import load_job
from batchdet.table.manifest import committed_runs, list_runs, run_folder
from batchdet.table.staging import list_staged
from tests import tiny_onnx
from tests.driver import Driver, Tables, assert_whole, count, read_tables, run_to_end
from tests.e2e.conftest import RunJob, sample_images, write_shards

SEED = int(os.environ.get("BATCHDET_SEED", "1"))
IMAGES, SHARDS, SEGMENT_ROWS = 36, 2, 3
JOB = """name: crash
source: {uri: "%s"}
model: {uri: "builtin:sample"}
output: {uri: "%s"}
compute: {segment_rows: 3, actors: 1}
"""

DRIVER_POINTS = [
    "run.leased",
    "run.spec.after",
    "run.inventory.after",
    "run.lineage.after",
    "run.staged@1",
    "run.staged@8",
    "commit.gather.before",
    "commit.gather.after",
    "commit.move@1",
    "commit.move@2",
    "commit.stats.before",
    "commit.stats.after",
    "commit.point.before",
    "commit.point.after",
    "commit.manifest.before",
    "commit.manifest.after",
    "commit.success.after",
    "commit.clean_up@1",
    "commit.clean_up@2",
    "run.committed",
]
"""Where the driver kills itself."""

WORKER_POINTS = ["staged.before", "staged.after"]
"""Where a worker stops and tells, and then its driver is killed."""

COMMITTED = DRIVER_POINTS[DRIVER_POINTS.index("commit.manifest.after") :]
POINTS = DRIVER_POINTS + WORKER_POINTS
CHOSEN = [
    random.Random(SEED).choice(WORKER_POINTS + DRIVER_POINTS[4:6]),
    pytest.param(random.Random(SEED).choice(DRIVER_POINTS[6:]), marks=pytest.mark.fault),
]


@dataclass(frozen=True)
class Job:
    """A job whose images are packed in tars, with an output of its own.

    Args:
        path: The spec.
        out: The output's folder.
        folder: For what the drivers print.
    """

    path: Path
    out: Path
    folder: Path

    @property
    def command(self) -> list[str | Path]:
        return ["run", self.path]

    def staged_images(self) -> int:
        """Count the images whose results are stored, by the names of staged files."""
        runs = [list_staged(str(self.out), run_id) for run_id in list_runs(str(self.out))]
        return SEGMENT_ROWS * sum(len(shard.segments) for run in runs for shard in run.values())


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Generated images in two tars; every segment of three is full."""
    folder = tmp_path_factory.mktemp("crash")
    return write_shards(str(folder / "in"), sample_images(folder, IMAGES, 11), SHARDS)


@pytest.fixture
def job(shards: str, tmp_path: Path) -> Job:
    (tmp_path / "job.yaml").write_text(JOB % (shards, tmp_path / "out"))
    return Job(tmp_path / "job.yaml", tmp_path / "out", tmp_path / "drivers")


@pytest.fixture(scope="module")
def truth(one_ray: None, shards: str, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """What the job gives when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "job.yaml").write_text(JOB % (shards, folder / "out"))
    run_job(load_job(str(folder / "job.yaml")))
    tables = read_tables(folder / "out")
    assert tables.images.num_rows == IMAGES
    assert tables.detections.num_rows > IMAGES
    return tables


def crash(job: Job, point: str, first: Path) -> None:
    """Start the job and have its driver killed at a point; count the images that it decodes in ``first``."""
    counting = f"decode=count:{first}"
    if point in DRIVER_POINTS:
        done = run_to_end(job.command, job.folder, f"{point}=kill;{counting}")
        assert done.returncode == -signal.SIGKILL, done.stderr
        return
    here = job.folder / "here"
    with Driver(job.command, job.folder, f"{point}=pause:{here};{counting}") as driver:
        driver.wait_for(here)
        driver.kill()


def killed_at(point: str, job: Job, truth: Tables, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    crash(job, point, first)
    committed = committed_runs(str(job.out))
    assert len(committed) == (point in COMMITTED)
    staged = job.staged_images()
    again = run_to_end(job.command, job.folder, f"decode=count:{second}")
    assert again.returncode == 0, again.stderr
    assert_whole(job.out, truth)
    assert len(list_runs(str(job.out))) == 1 + (point in {"run.spec.after", "run.inventory.after"})
    assert not Path(run_folder(str(job.out), committed_runs(str(job.out))[0].run_id), "staged").exists()
    # what was stored is not done again; what is done again was in work: one segment, as there is one actor
    assert count(second) == (0 if committed else IMAGES - staged)
    assert committed or count(first) - staged <= SEGMENT_ROWS
    print(
        f"{point}: {count(first)} images decoded, {staged} stored, {count(second)} decoded again or for the first time"
    )


@pytest.mark.slow
@pytest.mark.acceptance("R1")
@pytest.mark.parametrize("point", CHOSEN)
def test_a_driver_killed_at_a_chosen_point(point: str, job: Job, truth: Tables, tmp_path: Path) -> None:
    killed_at(point, job, truth, tmp_path)


@pytest.mark.fault
@pytest.mark.acceptance("R1")
@pytest.mark.parametrize("point", POINTS)
def test_a_driver_killed_at_each_point(point: str, job: Job, truth: Tables, tmp_path: Path) -> None:
    killed_at(point, job, truth, tmp_path)


@pytest.mark.fault
@pytest.mark.timeout(1800)
@pytest.mark.acceptance("R1")
def test_a_driver_killed_at_twenty_random_times(job: Job, truth: Tables, tmp_path: Path) -> None:
    """The kills pile up on one output until a run gets through; then the next begins, so that each kill counts."""
    with Driver([*job.command, "--set", f"output.uri={tmp_path / 'undisturbed'}"], job.folder) as driver:
        assert driver.wait() == 0, driver.stderr
        wall_s = time.monotonic() - driver.started
    chance, kills, rounds = random.Random(SEED), 0, 0
    while kills < 20:
        with Driver(job.command, job.folder, f"decode=count:{tmp_path / 'decoded'}") as driver:
            try:
                driver.process.wait(chance.uniform(0, 1.1 * wall_s))
            except subprocess.TimeoutExpired:
                driver.signal(signal.SIGKILL)
                if driver.wait() != 0:  # it may just have ended
                    assert driver.returncode == -signal.SIGKILL
                    kills += 1
                    continue
            assert driver.wait() == 0, driver.stderr
        assert_whole(job.out, truth)
        shutil.rmtree(job.out)
        rounds += 1
    done = run_to_end(job.command, job.folder, f"decode=count:{tmp_path / 'decoded'}")
    assert done.returncode == 0, done.stderr
    assert_whole(job.out, truth)
    twice = count(tmp_path / "decoded") - (rounds + 1) * IMAGES
    assert 0 <= twice <= kills * SEGMENT_ROWS, "one segment is in work, as there is one actor"
    print(f"{kills} kills in {rounds + 1} jobs, {twice} images labelled twice")


@pytest.mark.fault
@pytest.mark.timeout(900)
@pytest.mark.acceptance("R1")
def test_a_driver_killed_nine_times_in_the_same_segment(job: Job, truth: Tables) -> None:
    """Workers that die with their driver say nothing about the images that they worked on."""
    here = job.folder / "here"
    for _ in range(9):
        with Driver(job.command, job.folder, f"decode@1=pause:{here}") as driver:
            driver.wait_for(here)
            driver.kill()
        here.unlink()
    assert job.staged_images() == 0
    done = run_to_end(job.command, job.folder)
    assert done.returncode == 0, done.stderr
    assert_whole(job.out, truth)


@pytest.mark.fault
@pytest.mark.timeout(900)
@pytest.mark.acceptance("R4")
def test_an_actor_killed_every_two_seconds(job: Job, shards: str, tmp_path: Path) -> None:
    """Ten times the images, so that there is time for killing: copies of the tars under other names."""
    for shard in sorted(Path(shards).parent.iterdir()):
        for copy in range(10):
            (tmp_path / "in").mkdir(exist_ok=True)
            shutil.copy(shard, tmp_path / "in" / f"{copy}-{shard.name}")
    sets = ["--set", f"source.uri={tmp_path}/in/*.tar", "--set", "compute.actors=2"]
    undisturbed = run_to_end([*job.command, *sets, "--set", f"output.uri={tmp_path / 'truth'}"], job.folder)
    assert undisturbed.returncode == 0, undisturbed.stderr
    loads, kills, next_kill, chance = tmp_path / "loads", 0, 0.0, random.Random(SEED)
    failpoints = f"actor.load=count:{loads};decode=count:{tmp_path / 'decoded'}"
    with Driver([*job.command, *sets], job.folder, failpoints) as driver:
        while driver.returncode is None:
            actors = driver.actors()
            if actors and count(loads) >= 2 and time.monotonic() >= next_kill:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(actors), signal.SIGKILL)
                    kills, next_kill = kills + 1, time.monotonic() + 2
            time.sleep(0.05)
        assert driver.wait() == 0, driver.stderr
    print(f"{kills} kills, {count(loads)} loads, {count(tmp_path / 'decoded')} images decoded of {10 * IMAGES}")
    assert kills >= 5, "the job was over too soon to tell"
    assert count(loads) <= kills + 2
    assert_whole(job.out, read_tables(tmp_path / "truth"))


def assert_quiet(driver: Driver) -> None:
    """Assert that a run says what it says and nothing else: no traceback, nothing of Ray's."""
    assert driver.stdout == ""
    choices = ("device: ", "batch_rows: ", "readers: ", "model: ", "canvas: ", "segment_rows: ")
    known = ("source: ", *choices, "predicted: ", "labelling ", "committing: ", "run ", "error: stopped by ")
    for line in driver.stderr.splitlines():
        assert line.startswith(known) or " images (" in line, line
    assert driver.stderr.count("error: ") == 1


STOPS = {
    "labelling": "decode@4=pause:%s",
    "commit": "commit.gather.after=pause:%s",
    "moving": "commit.move@2=pause:%s",
}
"""Phase -> where a process waits in it: in labelling a worker, so that the driver waits for Ray."""


def stop(job: Job, phase: str, number: int, truth: Tables) -> None:
    here = job.folder / "here"
    with Driver(job.command, job.folder, STOPS[phase] % here) as driver:
        driver.wait_for(here)
        driver.ctrl_c() if number == signal.SIGINT else driver.signal(number)
        assert driver.wait(30) == 128 + number, driver.stderr
        driver.wait_for_orphans(agents=True)  # an orderly end leaves not even those
        assert_quiet(driver)
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        assert driver.stderr.endswith(
            f"error: stopped by {name}; what was staged is kept, and the same command resumes the run\n"
        )
    assert committed_runs(str(job.out)) == []
    staged = job.staged_images()
    assert staged == IMAGES or phase == "labelling"
    second = job.folder / "second"
    again = run_to_end(job.command, job.folder, f"decode=count:{second}")
    assert again.returncode == 0, again.stderr
    assert count(second) == IMAGES - staged
    assert_whole(job.out, truth)


@pytest.mark.slow
@pytest.mark.acceptance("R4", "R26")
def test_an_actor_that_is_killed_and_then_a_run_that_is_stopped(job: Job, truth: Tables, tmp_path: Path) -> None:
    """Both in one run, for ``make test``; ``make fault`` has each of them alone."""
    number = random.Random(SEED).choice([signal.SIGINT, signal.SIGTERM])
    here, loads, second = tmp_path / "here", tmp_path / "loads", tmp_path / "second"
    with Driver(job.command, job.folder, f"actor.load=count:{loads};{STOPS['labelling'] % here}") as driver:
        driver.wait_for(here)
        killed = int(here.read_text())
        assert killed in driver.actors()
        os.kill(killed, signal.SIGKILL)
        here.unlink()
        driver.wait_for(here)
        assert int(here.read_text()) != killed
        driver.signal(number)
        assert driver.wait(30) == 128 + number, driver.stderr
        assert "Traceback" not in driver.stderr
    assert count(loads) == 2, "each death costs one load"
    assert committed_runs(str(job.out)) == []
    staged = job.staged_images()
    again = run_to_end(job.command, job.folder, f"decode=count:{second}")
    assert again.returncode == 0, again.stderr
    assert count(second) == IMAGES - staged
    assert_whole(job.out, truth)


@pytest.mark.fault
@pytest.mark.acceptance("R26")
@pytest.mark.parametrize(("phase", "number"), [(p, n) for p in STOPS for n in (signal.SIGINT, signal.SIGTERM)])
def test_a_run_that_is_stopped(phase: str, number: int, job: Job, truth: Tables) -> None:
    stop(job, phase, number, truth)


@pytest.mark.fault
@pytest.mark.acceptance("R26")
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_twice_ends_at_once(first: int, second: int, job: Job) -> None:
    """Ray is stopped in its tracks, so that the orderly end that the first signal asks for would take long."""
    here, first_taken = job.folder / "here", job.folder / "taken"
    with Driver(job.command, job.folder, f"{STOPS['labelling'] % here};cli.interrupted=count:{first_taken}") as driver:
        driver.wait_for(here)
        (raylet,) = driver.named("raylet/raylet")
        os.kill(raylet, signal.SIGSTOP)
        driver.signal(first)
        driver.wait_for(first_taken, 5)
        began = time.monotonic()
        driver.signal(second)
        status = driver.process.wait(10)
        took_s = time.monotonic() - began
        assert status == 128 + second
        assert took_s < 2
        assert "Traceback" not in driver.stderr + driver.stdout
    assert committed_runs(str(job.out)) == []


BROKEN = {
    "operator": (tiny_onnx.with_custom_operator, "com.example.evil"),
    "classifier": (tiny_onnx.classifier, "logits"),
}
HOPELESS = [
    ("compute.actors=64", "compute.actors: 64 actors need a CPU core each, the cluster has"),
    ("compute.device=gpu", "compute.device: gpu, but the cluster has no GPU on its 1 node"),
]


@pytest.mark.slow
@pytest.mark.acceptance("R28")
@pytest.mark.parametrize(("setting", "cause"), HOPELESS)
def test_what_the_cluster_cannot_do_is_said_before_any_work(
    setting: str, cause: str, run: RunJob, shards: str, tmp_path: Path
) -> None:
    key, value = setting.removeprefix("compute.").split("=")
    with pytest.raises(ClusterError, match=cause) as raised:
        run(shards, tmp_path / "out", compute={key: int(value) if value.isdigit() else value})
    assert raised.value.exit_status == 5
    assert not (tmp_path / "out/_batchdet/runs").exists()


@pytest.mark.slow
@pytest.mark.acceptance("R27")
@pytest.mark.parametrize("kind", BROKEN)
def test_a_model_that_does_not_load_is_said_before_any_work(
    kind: str, run: RunJob, shards: str, tmp_path: Path
) -> None:
    make, cause = BROKEN[kind]
    with pytest.raises(ModelError, match=cause) as raised:
        run(shards, tmp_path / "out", make(tmp_path / "broken.onnx"))
    assert raised.value.exit_status == 5
    assert not (tmp_path / "out/_batchdet/runs").exists()


@pytest.mark.fault
@pytest.mark.acceptance("R27", "R28")
@pytest.mark.parametrize("setting", [*(setting for setting, _ in HOPELESS), *(f"model.uri={kind}" for kind in BROKEN)])
def test_a_hopeless_job_ends_within_a_minute(setting: str, job: Job) -> None:
    key, value = setting.split("=")
    if value in BROKEN:
        setting = f"{key}={BROKEN[value][0](job.path.parent / 'broken.onnx')}"
    began = time.monotonic()
    done = run_to_end([*job.command, "--set", setting], job.folder, deadline_s=60)
    assert done.returncode == 5, done.stderr
    assert time.monotonic() - began < 60
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.fault
@pytest.mark.acceptance("R7")
def test_the_head_that_is_killed(job: Job, truth: Tables) -> None:
    """The GCS of its Ray dies while a worker is at work: one sentence, and the same command resumes the run."""
    here = job.folder / "here"
    with Driver(job.command, job.folder, f"decode@4=pause:{here}") as driver:
        driver.wait_for(here)
        (head,) = driver.named("gcs_server")
        os.kill(head, signal.SIGKILL)
        status = driver.wait(120)
    assert status == 5, driver.stderr
    assert "Traceback" not in driver.stderr
    assert driver.stderr.count("error: ") == 1
    assert committed_runs(str(job.out)) == []
    again = run_to_end(job.command, job.folder)
    assert again.returncode == 0, again.stderr
    assert_whole(job.out, truth)
