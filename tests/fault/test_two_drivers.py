"""Two drivers and one output: one of them writes, whatever becomes of the other."""

import os
import signal
from pathlib import Path

import pytest

from batchdet.table.manifest import committed_runs
from tests.driver import Driver, assert_whole, read_tables, run_to_end, wait_until
from tests.e2e.conftest import job as job_spec
from tests.e2e.conftest import sample_images, write_shards, yaml_of

pytestmark = pytest.mark.slow


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job over twelve images in two shards."""
    glob = write_shards(str(tmp_path / "in"), sample_images(tmp_path, 12, 3), 2)
    return yaml_of(job_spec(glob, tmp_path / "out", compute={"segment_rows": 4, "actors": 1}), tmp_path)


@pytest.mark.fault
@pytest.mark.acceptance("R8")
@pytest.mark.parametrize("place", ["run.staged@2", "commit.move", "commit.stats.before", "commit.manifest.before"])
def test_a_driver_that_was_stopped_is_fenced_by_the_one_that_took_over(job: Path, tmp_path: Path, place: str) -> None:
    here = tmp_path / "here"
    assert run_to_end(["run", job, "--set", f"output.uri={tmp_path / 'clean'}"], tmp_path).returncode == 0
    truth = read_tables(tmp_path / "clean")
    with Driver(["run", job], tmp_path, f"{place}=pause:{here}") as first:
        first.wait_for(here)
        os.kill(first.pid, signal.SIGSTOP)
        second = run_to_end(["run", job], tmp_path)  # watches the lease for 20 s before it takes it
        assert second.returncode == 0, second.stderr
        committed = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
        here.unlink()
        os.kill(first.pid, signal.SIGCONT)
        assert first.wait() == 4, first.stderr
        assert "was taken over" in first.stderr
        assert "Traceback" not in first.stderr
    assert len(committed_runs(str(tmp_path / "out"))) == 1
    assert_whole(tmp_path / "out", truth)
    tables = {p: data for p, data in committed.items() if p.suffix == ".parquet" or p.name == "manifest.json"}
    assert {p: p.read_bytes() for p in tables} == tables
    again = run_to_end(["run", job], tmp_path)
    assert again.returncode == 0
    assert "nothing new" in again.stderr + again.stdout


@pytest.mark.fault
@pytest.mark.acceptance("R32")
@pytest.mark.parametrize("policy", ["fail", "wait"])
def test_a_second_scheduled_run_fails_or_waits(job: Path, tmp_path: Path, policy: str) -> None:
    here = tmp_path / "here"
    with Driver(["run", job], tmp_path, f"run.leased=pause:{here}") as first:
        first.wait_for(here)
        with Driver(["run", job, "--set", f"policy.when_locked={policy}"], tmp_path) as second:
            if policy == "fail":
                assert second.wait() == 4
                assert f"is held by another run (process {first.pid} on " in second.stderr
            else:
                wait_until(lambda: "waiting until it ends" in second.stderr, "the second driver's sentence", 60)
            here.unlink()
            assert first.wait() == 0, first.stderr
            if policy == "wait":
                assert second.wait() == 0, second.stderr
                assert "nothing new" in second.stderr + second.stdout
    assert len(committed_runs(str(tmp_path / "out"))) == 1
    assert_whole(tmp_path / "out", read_tables(tmp_path / "out"))  # its rows are compared elsewhere
