"""Two drivers and one output: one of them writes, whatever becomes of the other."""

from pathlib import Path

import pytest

from batchdet import storage
from batchdet.results.verify import verify
from batchdet.table.manifest import committed_runs
from tests.driver import Driver, assert_whole, read_tables, run_to_end, wait_until
from tests.e2e.conftest import job as job_spec
from tests.e2e.conftest import sample_images, write_shards, yaml_of
from tests.s3_server import S3Server

pytestmark = pytest.mark.slow


def job_over_two_shards(folder: Path, out: str) -> Path:
    """Write a job over twelve images in two shards."""
    glob = write_shards(str(folder / "in"), sample_images(folder, 12, 3), 2)
    return yaml_of(job_spec(glob, out, compute={"segment_rows": 4, "actors": 1}), folder)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return job_over_two_shards(tmp_path, str(tmp_path / "out"))


def tables_and_manifests(out: str) -> dict[str, bytes]:
    found = (one.uri for one in storage.find_all(out))
    return {uri: storage.read_bytes(uri) for uri in found if uri.endswith((".parquet", "/manifest.json"))}


@pytest.mark.fault
@pytest.mark.acceptance("R8", "R41")
@pytest.mark.parametrize("store", ["local", "s3"])
@pytest.mark.parametrize(
    ("place", "status"),
    [
        ("run.staged@2", 4),
        ("commit.move", 4),
        ("commit.stats.before", 4),
        ("commit.point.before", 4),
        ("commit.point.after", 0),
        ("commit.manifest.before", 0),
    ],
)
def test_a_driver_that_was_stopped_is_fenced_by_the_one_that_took_over(
    tmp_path: Path, place: str, status: int, store: str, s3: S3Server
) -> None:
    """Before the commit point it commits nothing; after it the new owner has completed its commit."""
    out = str(tmp_path / "out")
    if store == "s3":
        bucket = f"fenced-{place.replace('.', '-').replace('@', '-')}"
        s3.bucket(bucket)
        out = f"s3://{bucket}/out"
    job = job_over_two_shards(tmp_path, out)
    here = tmp_path / "here"
    assert run_to_end(["run", job, "--set", f"output.uri={tmp_path / 'clean'}"], tmp_path).returncode == 0
    truth = read_tables(tmp_path / "clean")
    with Driver(["run", job], tmp_path, f"{place}=pause:{here}") as first:
        first.wait_for(here)
        first.freeze()
        second = run_to_end(["run", job], tmp_path)  # watches the lease for 20 s before it takes it
        assert second.returncode == 0, second.stderr
        committed = tables_and_manifests(out)
        here.unlink()
        first.thaw()
        assert first.wait() == status, first.stderr
        assert ("was taken over" in first.stderr) == (status == 4)
        assert "Traceback" not in first.stderr
    assert len(committed_runs(out)) == 1
    assert_whole(out, truth)
    assert {uri: data for uri, data in tables_and_manifests(out).items() if uri in committed} == committed
    assert verify(out).problems == []
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
                assert f"is held by another run (process {first.run_pid} on " in second.stderr
            else:
                wait_until(lambda: "waiting until it ends" in second.stderr, "the second driver's sentence", 60)
            here.unlink()
            assert first.wait() == 0, first.stderr
            if policy == "wait":
                assert second.wait() == 0, second.stderr
                assert "nothing new" in second.stderr + second.stdout
    assert len(committed_runs(str(tmp_path / "out"))) == 1
    assert_whole(tmp_path / "out", read_tables(tmp_path / "out"))  # its rows are compared elsewhere
