"""What an output holds, committed or not."""

import json
import os
import socket

import pytest
from rich.console import Console

from batchdet import storage
from batchdet.errors import Interrupted, OutputError, TooManyFailures
from batchdet.job import Watcher, run_job
from batchdet.results import status as status_module
from batchdet.results.status import format_age, render_status, status
from batchdet.table.lease import Lease
from tests.without_ray import job, without_ray

FIRST, SECOND = "20261122-100000-aaaa", "20261123-100000-bbbb"


def printed(found):
    console = Console(width=80, no_color=True, force_terminal=False)
    with console.capture() as capture:
        render_status(found, console)
    return capture.get()


def test_committed_and_interrupted_runs(output, make_images):
    manifest = output.add_run(FIRST, make_images(20))
    output.add_run(SECOND, make_images(9), commit=False)
    staged = output.run_folder(SECOND) / "staged"
    staged.mkdir()
    for n in range(3):
        (staged / f"abc-{n:05d}.arrow").write_bytes(b"12345")
    found = status(output.uri)
    assert json.loads(json.dumps(found)) == found
    first, second = found["runs"]
    assert (first["run_id"], first["state"], first["images_listed"]) == (FIRST, "committed", 20)
    assert first["size_bytes"] == sum(p.size_bytes for p in (*manifest.images, *manifest.detections))
    assert first["age_s"] >= 0
    assert (second["state"], second["staged_files"], second["staged_bytes"]) == ("interrupted", 3, 15)
    text = printed(found)
    assert " age" in text
    assert f"Run {SECOND} was interrupted (3 segments staged)" in text
    assert "no command resumes it (its lineage.json or inventory.parquet is missing or damaged); batchdet gc" in text
    assert text.index(SECOND) < text.index(FIRST)


def test_a_run_that_has_only_begun(output):
    (output.run_folder(FIRST)).mkdir(parents=True)
    (run,) = status(output.uri)["runs"]
    assert (run["state"], run["staged_files"], run["age_s"], run["name"]) == ("interrupted", 0, None, "")
    assert FIRST in printed(status(output.uri))


def test_no_output(tmp_path):
    with pytest.raises(OutputError, match="no results here"):
        status(str(tmp_path))


def test_ages_are_short():
    assert [format_age(s) for s in (3.4, 90, 7200, 86400 * 40)] == ["3 s", "2 min", "2 h", "40 d"]


def test_a_narrow_terminal_cuts_no_id_and_no_number(output, make_images):
    output.add_run(FIRST, make_images(20))
    console = Console(width=40, no_color=True, force_terminal=False)
    with console.capture() as capture:
        render_status(status(output.uri), console)
    text = capture.get()
    assert "…" not in text
    assert FIRST in text
    assert "committed" in text


class Stopping(Watcher):
    """Interrupts a run once some images are labelled."""

    def __init__(self, after):
        self.left = after

    def advance(self, images, failed, size_bytes):
        self.left -= images
        if self.left <= 0:
            raise Interrupted("stopped")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(9):
        (folder / f"{n}.jpg").write_bytes(f"{n}".encode())
    return folder


def stopped(photos, out):
    with without_ray(), pytest.raises(Interrupted):
        run_job(job(photos, out), watcher=Stopping(6))


def test_an_interrupted_run_is_resumed_by_the_same_command(photos, tmp_path):
    stopped(photos, tmp_path / "out")
    (run,) = status(str(tmp_path / "out"))["runs"]
    assert (run["state"], run["staged_files"], run["next"]) == ("interrupted", 2, "the same command resumes it")
    assert (run["images_done"], run["images_total"]) == (6, 9)
    text = printed(status(str(tmp_path / "out")))
    assert "6 of 9" in text
    assert "was interrupted (2 segments staged); the same command resumes it." in text
    assert "uncommitted" not in text


def test_a_run_that_is_running_says_who_runs_it_and_how_far_it_is(photos, tmp_path):
    out = str(tmp_path / "out")
    stopped(photos, out)
    with Lease(out) as lease:
        found = status(out)
        assert (found["held_by"]["pid"], found["runs"][0]["state"]) == (os.getpid(), "interrupted")
        assert "holds the output and has not begun to label" in printed(found)
        lease.tell(7, 9)
        lease.name_run(found["runs"][0]["run_id"])
        found = status(out)
        (run,) = found["runs"]
        assert (run["state"], run["images_done"], run["images_total"]) == ("running", 7, 9)
        assert found["held_by"]["host"] == socket.gethostname()
        assert found["held_by"]["since"].startswith("20")
        text = printed(found)
        assert f"is running (process {os.getpid()}" in text.replace("\n", " ")
        assert "7 of 9 images labelled" in text.replace("\n", " ")
    found = status(out)
    assert (found["held_by"], found["runs"][0]["state"]) == (None, "interrupted")


def test_a_first_run_that_has_not_begun_to_label_is_no_error(tmp_path):
    with Lease(str(tmp_path)):
        found = status(str(tmp_path))
        assert (found["runs"], found["held_by"]["run_id"]) == ([], None)
        assert "has not begun to label" in printed(found)


def test_an_owner_on_another_machine_is_watched(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(status_module, "_WATCH_S", 0.2)
    out = tmp_path / "out"
    stopped(photos, out)
    (lease,) = (out / "_batchdet" / "lease").iterdir()
    state = json.loads(lease.read_text()) | {"host": "elsewhere", "boot": "x", "released": False}
    storage.write_bytes(str(lease), json.dumps(state).encode())
    assert [run["state"] for run in status(str(out))["runs"]] == ["interrupted"]


def test_a_refused_run_says_why(photos, tmp_path):
    for n in range(6):
        (photos / f"{n}.jpg").write_bytes(b"bad")
    out = str(tmp_path / "out")
    with without_ray(), pytest.raises(TooManyFailures) as caught:
        run_job(job(photos, out))
    (run,) = status(out)["runs"]
    assert (run["state"], run["refused"]["message"]) == ("refused", caught.value.message)
    text = printed(status(out)).replace("\n", " ")
    assert "was refused: " in text
    assert "the same command resumes it" in text
    with without_ray():
        run_job(job(photos, out, policy={"max_failed_fraction": 1}))
    assert "committed" in [run["state"] for run in status(out)["runs"]]
