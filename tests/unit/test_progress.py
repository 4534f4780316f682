import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from batchdet import progress
from batchdet.progress import ProgressBar, ProgressLog, counting


def test_log_writes_a_line_at_most_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    text = io.StringIO()
    with ProgressLog(text) as log:
        log.say("device: cpu")
        log.start(1000, 5_000_000, 200)
        for _ in range(8):
            clock[0] += 5
            log.advance(50, 1, 250_000)
    assert text.getvalue().splitlines() == [
        "device: cpu",
        "labelling 1,000 images",
        "300 images (30%), 10.0 images/s, ETA 1:10, 2 failed",
        "400 images (40%), 10.0 images/s, ETA 1:00, 4 failed",
        "500 images (50%), 10.0 images/s, ETA 0:50, 6 failed",
        "600 images (60%), 10.0 images/s, ETA 0:40, 8 failed",
    ]


def test_log_goes_by_bytes_while_images_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    text = io.StringIO()
    log = ProgressLog(text)
    log.start(None, 4_000_000, 0)
    clock[0] = 3600.0
    log.advance(10, 0, 1_000_000)
    assert text.getvalue().splitlines() == [
        "labelling 4.0 MB of shards",
        "10 images (25%), 0.0 images/s, ETA 3:00:00, 0 failed",
    ]


def test_before_the_first_segment_the_eta_is_what_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    meter = progress._Meter()
    assert meter.eta == "-:--"
    meter.start(100, 0, 0)
    meter.expected_s = 70.0
    clock[0] = 30.0
    assert meter.eta == "0:40"
    meter.add(10, 0, 0)
    meter.add(10, 0, 0)  # another actor, at once: no rate of a thousand images a second
    assert meter.eta == "0:40"
    clock[0] = 34.0
    meter.add(20, 0, 0)
    assert (meter.eta, meter.rate) == ("0:08", 7.5)  # 30 images in 4 s: the start of the actors does not count
    meter.expected_s = None
    assert meter.eta == "0:08"


def test_without_a_prediction_the_first_segment_gives_an_eta(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    meter = progress._Meter()
    meter.start(100, 0, 0)
    clock[0] = 10.0
    meter.add(10, 0, 0)
    assert meter.eta == "1:30"


def test_bar_shows_what_is_predicted() -> None:
    text = io.StringIO()
    bar = ProgressBar(Console(file=text, force_terminal=True, width=140))
    bar.start(100, 1000, 0)
    bar.expect(65.2)
    bar._bar.refresh()
    bar.stop()
    assert "ETA 1:05 (predicted)" in text.getvalue()


def test_bar_shows_rate_eta_and_failures() -> None:
    text = io.StringIO()
    bar = ProgressBar(Console(file=text, force_terminal=True, width=140))
    bar.start(100, 1000, 0)
    bar.advance(50, 3, 500)
    bar._bar.refresh()
    bar.committing(50)
    bar.stop()
    shown = text.getvalue()
    assert "images/s, ETA 0:0" in shown
    assert "3 failed" in shown
    assert "50/100" in shown
    assert "50/50" in shown, "the commit ends whole"


def test_counting_is_silent_without_a_terminal() -> None:
    text = io.StringIO()
    with counting("drawing", 3, text) as step:
        step(1, 3)
    assert text.getvalue().strip() == ""


@pytest.mark.parametrize("verbose", [False, True])
def test_what_native_code_writes_is_kept_off_the_screen(verbose: bool) -> None:
    code = f"""
import os, sys
from batchdet.progress import hushed
with hushed({verbose}):
    os.write(2, b"native chatter\\n")
    print("a raylet's warning")
    print("news", file=sys.stderr)
print("result")
os.write(2, b"after\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert ("native chatter" in done.stderr) is verbose
    assert ("a raylet's warning" in done.stdout) is verbose
    assert "result" in done.stdout
    assert "news" in done.stderr
    assert "after" in done.stderr


@pytest.mark.acceptance("S16")
@pytest.mark.parametrize("terminal", [False, True])
def test_names_in_news_never_steer_the_terminal(terminal: bool) -> None:
    text = io.StringIO()
    watcher = ProgressBar(Console(file=text, force_terminal=True, width=140)) if terminal else ProgressLog(text)
    with watcher:
        watcher.say("passed over: \x1b]0;title\x07 \x1b[2J\x9b31m\u202egpj.exe\r\nerror: disk full")
    assert "\\x1b]0;title\\x07 \\x1b[2J\\x9b31m\\u202egpj.exe\\r\\nerror: disk full" in text.getvalue()
    assert "\x1b]0;" not in text.getvalue()
    assert "\x9b" not in text.getvalue()


def test_a_prediction_that_has_run_out_is_no_eta(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    text = io.StringIO()
    log = ProgressLog(text)
    log.start(100, 1_000_000, 0)
    log.expect(12.0)
    clock[0] += 20
    log.advance(10, 0, 100_000)
    assert text.getvalue().splitlines()[-1] == "10 images (10%), 0.5 images/s, ETA 3:00, 0 failed"
