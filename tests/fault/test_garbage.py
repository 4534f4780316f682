"""R10: what killed runs leave is invisible to readers, and gc lists and removes exactly that."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from batchdet import open_results
from batchdet.results.garbage import Garbage, collect_garbage
from batchdet.results.query import query
from batchdet.results.verify import inspect_output
from batchdet.table.lease import Lease
from batchdet.table.manifest import committed_runs

from .processes import REPOSITORY, environment, run, running, wait_for, write_job

pytestmark = pytest.mark.acceptance("R10")

IMAGES = 9
PLACES = (
    "commit.move@2",
    "commit.point.before",
    "commit.move@4",
    "commit.stats.before",
    "commit.move@5",
    "commit.stats.after",
)
"""Between data and commit: some or all part files are moved, and there is no manifest."""


def part_files(out: Path) -> set[str]:
    return {str(p.relative_to(out)) for table in ("images", "detections") for p in (out / table).rglob("*.parquet")}


def listed(out: Path) -> set[str]:
    return {part.path for m in committed_runs(str(out)) for part in (*m.images, *m.detections)}


def named(found: Garbage, kind: str) -> set[str]:
    return {item.path for item in found.items if item.kind == kind}


def sees_only(out: Path, runs: int) -> None:
    """Check that readers see so many runs over the same images, whole, and nothing else."""
    results = open_results(str(out))
    assert len(results.runs) == runs
    assert results.images().to_arrow().num_rows == IMAGES
    assert open_results(str(out)).sql("FROM all_images").to_arrow_table().num_rows == IMAGES * runs
    claimed = query(str(out), "SELECT sum(detection_count) AS n, count(*) AS images FROM images").to_pylist()
    held = query(str(out), "SELECT count(*) AS n FROM detections").to_pylist()
    assert claimed == [{"n": held[0]["n"], "images": IMAGES}]


@pytest.mark.fault
@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=[pytest.mark.fault, pytest.mark.timeout(1200)])])
def test_runs_killed_between_data_and_commit(tmp_path: Path, kills: int) -> None:
    job, out = write_job(tmp_path, IMAGES), tmp_path / "out"
    assert run(job).returncode == 0
    for n in range(kills):
        # another threshold each time: another run, that no later one goes on with
        setting = f"model.score_threshold={0.3 + n / 1000}"
        killed = run(job, setting, failpoints=f"{PLACES[n % len(PLACES)]}=kill")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    orphans = part_files(out) - listed(out)
    assert len(orphans) >= kills
    sees_only(out, 1)

    found = collect_garbage(str(out), dry_run=True)
    assert named(found, "part file") == orphans
    assert {item.kind for item in found.items} == {"part file"}, "what could go on is kept"
    assert len(found.kept) == kills

    # a newer run over the same images: the killed ones can never go on
    assert run(job, "model.score_threshold=0.9").returncode == 0
    held = tmp_path / "held"
    with running(job, "model.score_threshold=0.95", failpoints=f"commit.move@3=pause:{held}") as live:
        wait_for(held.exists, live)
        mine = part_files(out) - listed(out) - orphans
        assert len(mine) == 2
        found = collect_garbage(str(out), dry_run=True)
        assert named(found, "part file") == orphans
        assert len(named(found, "run")) == kills
        assert [text for text in found.kept if f"process {live.pid} on" in text] == found.kept
        removed = collect_garbage(str(out))
        assert removed.items == found.items
        assert part_files(out) == listed(out) | mine
        held.unlink()
        live.wait(60)
        assert live.returncode == 0
    sees_only(out, 3)
    assert part_files(out) == listed(out)
    assert collect_garbage(str(out)).items == []
    assert inspect_output(str(out)).problems == inspect_output(str(out)).warnings == []


def test_while_the_live_run_is_not_known_nothing_uncommitted_is_touched(tmp_path: Path) -> None:
    job, out = write_job(tmp_path, IMAGES), tmp_path / "out"
    run(job, failpoints="commit.point.before=kill")
    orphans = part_files(out)
    assert orphans
    with Lease(str(out)) as lease:  # of a driver that plans, and may go on with the killed run
        found = collect_garbage(str(out), unfinished=True)
        assert (found.items, len(found.kept)) == ([], 1)
        assert f"process {os.getpid()} on" in found.kept[0]
        lease.name_run("20261123-235959-abcd")
        found = collect_garbage(str(out), unfinished=True)
        assert (found.items, len(found.kept)) == ([], 1), "a driver that comes next may go on with it"
    assert part_files(out) == orphans
    found = collect_garbage(str(out), unfinished=True)
    assert named(found, "part file") == orphans
    assert len(named(found, "run")) == 1
    assert part_files(out) == set()


def test_a_run_goes_on_after_gc(tmp_path: Path) -> None:
    """Its part files are made again from what is staged, so that gc may take those that were moved."""
    job, out, count = write_job(tmp_path, IMAGES), tmp_path / "out", tmp_path / "count"
    run(job, failpoints=f"decode=count:{count};commit.move@4=kill")
    assert len(count.read_bytes()) == IMAGES
    (run_id,) = (p.name for p in (out / "_batchdet/runs").iterdir())
    removed = collect_garbage(str(out))
    assert {item.kind for item in removed.items} == {"part file"}
    assert part_files(out) == set()
    done = run(job, failpoints=f"decode=count:{count}")
    assert (done.returncode, done.stdout.split()[0]) == (0, run_id)
    assert len(count.read_bytes()) == IMAGES, "nothing is labelled again"
    sees_only(out, 1)


def test_what_a_kill_after_the_commit_leaves(tmp_path: Path) -> None:
    job, out = write_job(tmp_path, IMAGES), tmp_path / "out"
    killed = run(job, failpoints="commit.manifest.after=kill")
    assert killed.returncode == -signal.SIGKILL
    sees_only(out, 1)
    before = part_files(out)
    found = collect_garbage(str(out))
    assert {Path(path).name for path in named(found, "staged")} == {"staged", "parts"}
    assert part_files(out) == before == listed(out)
    sees_only(out, 1)
    assert "nothing new" in run(job).stderr
    assert (out / "_SUCCESS").read_text().split() == [m.run_id for m in committed_runs(str(out))]


@pytest.mark.parametrize("point", ["commit.point.after", "commit.manifest.before"])
def test_a_commit_without_its_manifest_is_completed_not_collected(tmp_path: Path, point: str) -> None:
    job, out = write_job(tmp_path, IMAGES), tmp_path / "out"
    assert run(job, failpoints=f"{point}=kill").returncode == -signal.SIGKILL
    moved = part_files(out)
    found = collect_garbage(str(out), dry_run=True, unfinished=True)
    assert found.items == []
    assert "it is committed but for its manifest" in found.kept[0]
    found = collect_garbage(str(out), unfinished=True)
    assert {Path(path).name for path in named(found, "staged")} == {"staged", "parts"}
    assert part_files(out) == moved == listed(out)
    sees_only(out, 1)


def test_a_killed_writer_leaves_a_partial_file_that_gc_takes(tmp_path: Path) -> None:
    job, out = write_job(tmp_path, IMAGES), tmp_path / "out"
    assert run(job, failpoints="staged.after@2=kill").returncode == -signal.SIGKILL
    killed = run(job, failpoints="storage.write@6=kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    partial = {str(p.relative_to(out)) for p in out.rglob(".partial-*")}
    assert len(partial) == 1
    assert named(collect_garbage(str(out)), "partial file") == partial
    assert run(job).returncode == 0
    sees_only(out, 1)
    assert collect_garbage(str(out)).items == []


def test_gc_that_is_killed_is_repeated(tmp_path: Path) -> None:
    job, out = write_job(tmp_path, IMAGES), tmp_path / "out"
    run(job, failpoints="commit.point.before=kill")
    run(job, "model.score_threshold=0.4")
    command = [sys.executable, "-m", "batchdet", "gc", str(out), "--json"]
    first = subprocess.run(
        command, cwd=REPOSITORY, env=environment("gc.remove@3=kill"), capture_output=True, text=True, check=False
    )
    assert first.returncode == -signal.SIGKILL
    assert len(part_files(out) - listed(out)) > 0
    again = subprocess.run(command, cwd=REPOSITORY, env=environment(""), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    kinds = [item["kind"] for item in json.loads(again.stdout)["items"]]
    assert kinds == sorted(kinds)
    assert kinds[-1] == "run"
    assert part_files(out) == listed(out)
    assert len(os.listdir(out / "_batchdet/runs")) == 1
