"""A run at a glance."""

import json

import pytest
from rich.console import Console

from batchdet.errors import OutputError
from batchdet.results.show import bar, render_show, show, sparkline
from batchdet.results.units import format_bytes, format_duration

FIRST, SECOND = "20261122-100000-aaaa", "20261123-100000-bbbb"


def printed(shown, width=90):
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as capture:
        render_show(shown, console)
    return capture.get()


def test_the_current_settings_are_shown(output, make_images):
    output.add_run(FIRST, make_images(20), fingerprint="0" * 64)
    output.add_run(SECOND, make_images(70), labels=("car", "dog", "person", "kite"))
    shown = show(output.uri)
    assert json.loads(json.dumps(shown)) == shown
    assert shown["run"]["run_id"] == SECOND
    assert shown["other_runs"] == [FIRST]
    assert shown["stats"]["images"]["listed"] == 70
    assert shown["tables"]["images"]["rows"] == 70
    text = printed(shown)
    for part in (
        f"run {SECOND}",
        "The output holds 1 other committed run.",
        "builtin:sample  (yolo_end2end, onnxruntime)",
        "  sha256 abababababab…",
        "70 listed = 60 ok + 10 failed",
        "truncated 10",
        "640-640 x 480-480 px",
        "1 class never found",
        "5.6 images/s",
        "infer 78%",
        f"{output.uri}/detections/**/*.parquet",
        f"batchdet query {output.uri} ",
    ):
        assert part in text


def test_facts_and_classes_fit_into_eighty_columns(output, make_images):
    output.add_run(FIRST, make_images(70))
    lines = printed(show(output.uri), width=80).splitlines()
    assert max(len(line) for line in lines if output.uri not in line) <= 80


@pytest.mark.parametrize("width", [50, 60, 80])
def test_a_narrow_terminal_cuts_no_number(output, fake_image, width):
    box = (0, 0.75, 10.0, 20.0, 60.0, 90.0)
    output.add_run(FIRST, [fake_image(f"{n}.jpg", (box,) * 3) for n in range(400)], labels=["umbrella"], part_rows=500)
    lines = printed(show(output.uri), width).splitlines()
    (row,) = (line for line in lines if line.startswith(" umbrella"))
    assert row.split()[:5] == ["umbrella", "1,200", "400", "0.750", "100.0%"]
    assert ("█" in row) is (width > 50)
    assert max(len(line) for line in lines if "/" not in line and "·" not in line) <= width


def test_a_run_can_be_chosen(output, make_images):
    output.add_run(FIRST, make_images(20))
    output.add_run(SECOND, make_images(70))
    shown = show(output.uri, FIRST)
    assert (shown["run"]["run_id"], shown["other_runs"]) == (FIRST, [SECOND])
    with pytest.raises(OutputError, match="no committed run 'x'"):
        show(output.uri, "x")


@pytest.mark.parametrize("name", ["lineage.json", "stats.json"])
@pytest.mark.parametrize("data", [None, b"{", b"[]", b"{}"])
def test_missing_and_damaged_records_are_no_hindrance(output, make_images, name, data):
    output.add_run(FIRST, make_images(20))
    path = output.run_folder(FIRST) / name
    path.unlink() if data is None else path.write_bytes(data)
    assert "images/**/*.parquet" in printed(show(output.uri))


def test_nothing_found(output, fake_image):
    output.add_run(FIRST, [fake_image("a.jpg"), fake_image("b.jpg", error_code="empty")])
    assert "0 in 0 images, 0.00 per image" in printed(show(output.uri))


def test_no_image_at_all(output):
    output.add_run(FIRST, [])
    assert "0 listed = 0 ok + 0 failed" in printed(show(output.uri))


@pytest.mark.acceptance("S16")
def test_labels_cannot_steer_the_terminal(output, fake_image):
    output.add_run(FIRST, [fake_image("a.jpg", ((0, 0.5, 1, 2, 3, 4),))], labels=["\x1b[31m[red]car"])
    text = printed(show(output.uri))
    assert "\x1b" not in text
    assert "\\x1b[31m[red]car" in text


def test_many_classes_are_cut(output, fake_image):
    found = tuple((k, 0.5, 1, 2, 30, 40) for k in range(25))
    output.add_run(FIRST, [fake_image("a.jpg", found)], labels=[f"class{k}" for k in range(27)])
    assert "5 more classes; 2 classes never found" in printed(show(output.uri))


def test_sparkline():
    assert sparkline([]) == ""
    assert sparkline([0, 0]) == "  "
    assert sparkline([0, 1, 500, 1000]) == " ▁▄█"


@pytest.mark.parametrize(("count", "drawn"), [(0, ""), (1, "▏"), (500, "██"), (531, "██▏"), (1000, "████")])
def test_bar(count, drawn):
    assert bar(count, 1000, width=4) == drawn


def test_sizes_and_durations():
    assert [format_bytes(n) for n in (0, 999, 1500, 2_000_000, 3 * 10**15)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.0 MB",
        "3000.0 TB",
    ]
    assert [format_duration(s) for s in (0.04, 59.94, 185, 7800, 98000)] == [
        "0.0 s",
        "59.9 s",
        "3 min 05 s",
        "2 h 10 min",
        "1 d 3 h",
    ]
