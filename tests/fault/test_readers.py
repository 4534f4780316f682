"""R9: who reads while runs work and commit sees the old runs or the new one with them, and never a part."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from batchdet.table.manifest import committed_runs
from tests.s3_server import S3Server

from .processes import REPOSITORY, environment, run, running, wait_for, write_job

pytestmark = pytest.mark.acceptance("R9")

FEW = ("commit.move@3", "commit.manifest.before", "commit.manifest.after")
MANY = ("run.staged@2", "commit.gather.after", "commit.move@1", "commit.move@4", "commit.stats.after", *FEW[1:])
"""Places on either side of the commit point, which is the manifest."""


class Reader:
    """A process that looks again and again.

    Args:
        out: The output's URI.
        folder: For its log.
    """

    def __init__(self, out: str, folder: Path) -> None:
        self.log, self.stop = folder / "looks.jsonl", folder / "stop"
        self.log.touch()
        command = [sys.executable, "-m", "tests.fault.reader", out, str(self.log), str(self.stop)]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment(""), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def looks(self) -> list[dict[str, dict[str, Any]]]:
        return [json.loads(line) for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def look_anew(self) -> dict[str, dict[str, Any]]:
        """Wait for a look that was begun after this call."""
        already = len(self.looks())
        wait_for(lambda: len(self.looks()) >= already + 2, self.process)
        return self.looks()[-1]


@contextmanager
def reading(out: str, folder: Path) -> Iterator[Reader]:
    reader = Reader(out, folder)
    try:
        yield reader
        reader.stop.touch()
        _, complaints = reader.process.communicate(timeout=60)
        assert reader.process.returncode == 0, complaints
    finally:
        reader.process.kill()
        reader.process.communicate()


@pytest.mark.parametrize(
    ("store", "places"),
    [
        ("file", FEW),
        pytest.param("file", MANY, marks=pytest.mark.fault),
        pytest.param("s3", MANY, marks=pytest.mark.fault),
    ],
)
def test_a_reader_sees_the_old_or_the_new_run(
    tmp_path: Path, store: str, places: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    out = str(tmp_path / "out")
    if store == "s3":
        server: S3Server = request.getfixturevalue("s3")
        out = f"{server.bucket('readers')}/{tmp_path.name}"
    job = write_job(tmp_path, 9, out)
    assert run(job).returncode == 0
    with reading(out, tmp_path) as reader:
        # first a run that adds images, then one that takes the place of all rows
        for images, settings in [(15, ()), (15, ("model.score_threshold=0.5",))]:
            write_job(tmp_path, images, out)
            before = [m.run_id for m in committed_runs(out)]
            marks = {place: tmp_path / place for place in places}
            failpoints = ";".join(f"{place}=pause:{mark}" for place, mark in marks.items())
            with running(job, *settings, failpoints=failpoints) as writer:
                for place, mark in marks.items():
                    wait_for(mark.exists, writer)
                    seen = reader.look_anew()["opened"]["runs"]
                    assert seen[: len(before)] == before
                    assert len(seen) == len(before) + (place == "commit.manifest.after"), place
                    mark.unlink()
                writer.wait(60)
                assert writer.returncode == 0, writer.communicate()
        reader.look_anew()
    listed = {m.run_id: m.images_listed for m in committed_runs(out)}
    in_sight = {1: 9, 2: 15, 3: 15}
    looks = reader.looks()
    for look in looks:
        for seen in look.values():
            assert seen["images"] == seen["ids"] == in_sight[len(seen["runs"])], seen
            assert seen["claimed"] == seen["detections"], seen
            assert seen["listed"] == sum(listed[run_id] for run_id in seen["runs"]), seen
        assert look["asked"]["strangers"] == 0
    assert {len(look["opened"]["runs"]) for look in looks} == {1, 2, 3}
