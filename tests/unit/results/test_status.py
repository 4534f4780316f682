"""What an output holds, committed or not."""

import json

import pytest
from rich.console import Console

from batchdet.errors import OutputError
from batchdet.results.status import format_age, render_status, status

FIRST, SECOND = "20261122-100000-aaaa", "20261123-100000-bbbb"


def printed(found):
    console = Console(width=80, no_color=True, force_terminal=False)
    with console.capture() as capture:
        render_status(found, console)
    return capture.get()


def test_committed_and_uncommitted_runs(output, make_images):
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
    assert (second["state"], second["staged_files"], second["staged_bytes"]) == ("uncommitted", 3, 15)
    text = printed(found)
    assert " age" in text
    assert f"Run {SECOND} is not committed (3 segments staged)" in text
    assert (
        "no command goes on with it (its lineage.json or inventory.parquet is missing or damaged); batchdet gc" in text
    )
    assert text.index(SECOND) < text.index(FIRST)


def test_a_run_that_has_only_begun(output):
    (output.run_folder(FIRST)).mkdir(parents=True)
    (run,) = status(output.uri)["runs"]
    assert (run["state"], run["staged_files"], run["age_s"], run["name"]) == ("uncommitted", 0, None, "")
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
