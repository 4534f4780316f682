"""Images that end their process are found, in real processes that really end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchdet.errors import ClusterError
from batchdet.model.fetch import fetch_model
from batchdet.pipeline.attempts import Attempts
from batchdet.pipeline.isolation import Replay
from batchdet.spec import JobSpec

from .test_labeller import png, segment

REPOSITORY = Path(__file__).parents[3]
GOOD, POISON = png(50), png(60) + b"POISON"


def replay(sha256: str | None = None, **compute: int) -> Replay:
    plain = {
        "name": "isolation",
        "source": {"uri": "/in"},
        "model": {"uri": "builtin:sample"},
        "output": {"uri": "/out"},
        "compute": compute,
    }
    return Replay(JobSpec.model_validate_json(json.dumps(plain)), sha256 or fetch_model("builtin:sample").sha256, "cpu")


@pytest.mark.acceptance("R20")
def test_each_image_that_aborts_is_named_and_its_neighbours_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHDET_FAILPOINT", "decode?POISON=abort")
    fatal = replay().find_fatal(segment([GOOD, POISON, None, b"no image", POISON, GOOD]))
    assert sorted(fatal) == [1, 4]
    for error in fatal.values():
        assert (error.code, error.message) == ("crashed", "the process that worked on this image ended with SIGABRT")


@pytest.mark.acceptance("R20")
def test_an_image_that_hangs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHDET_FAILPOINT", "decode?POISON=hang")
    fatal = replay(image_timeout_s=6).find_fatal(segment([GOOD, POISON, GOOD]))
    assert [(i, error.code) for i, error in fatal.items()] == [(1, "timed_out")]


@pytest.mark.acceptance("R21")
def test_an_image_that_takes_all_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHDET_FAILPOINT", "decode?POISON=eat")
    fatal = replay(image_memory_bytes=200_000_000).find_fatal(segment([POISON, GOOD]))
    assert [(i, error.code) for i, error in fatal.items()] == [(0, "out_of_memory")]


def test_a_segment_without_such_images_passes() -> None:
    assert replay().find_fatal(segment([GOOD, b"", None])) == {}
    assert replay().find_fatal(segment([])) == {}


def test_a_process_that_does_not_start_is_no_fault_of_the_images() -> None:
    with pytest.raises(ClusterError, match="ended with exit status 1"):
        replay(sha256="0" * 64).find_fatal(segment([GOOD]))


def test_attempts_count_the_processes_that_died(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from batchdet.pipeline.attempts import Attempts\n"
        f"with Attempts('run', Path({str(tmp_path / 'notes')!r})).of('shard/00001') as deaths:\n"
        "    print(deaths, flush=True); os._exit(1)"
    )
    for expected in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=60, check=False
        )
        assert done.stdout.strip() == expected, done.stderr
    attempts = Attempts("run", tmp_path / "notes")
    with attempts.of("shard/00002") as deaths:
        assert deaths == 0
    with attempts.of("shard/00001") as deaths:
        assert deaths == 3
    with attempts.of("shard/00001") as deaths:
        assert deaths == 0, "it was done, so earlier deaths were no fault of its images"


def test_an_error_is_no_death(tmp_path: Path) -> None:
    attempts = Attempts("run", tmp_path / "notes")
    with pytest.raises(KeyError), attempts.of("s"):
        raise KeyError
    with attempts.of("s") as deaths:
        assert deaths == 0


def test_notes_that_nobody_needs_any_more_go(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir(mode=0o700)
    for name, age_s in (("old", 8 * 86_400), ("new", 60)):
        (notes / name).write_bytes(b".")
        os.utime(notes / name, (time.time() - age_s,) * 2)
    Attempts("run", notes)
    assert [p.name for p in notes.iterdir()] == ["new"]


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes").chmod(0o777)
    with pytest.raises(ClusterError, match="is not a private folder"):
        Attempts("run", tmp_path / "notes")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ClusterError, match="is not a private folder"):
        Attempts("run", tmp_path / "link")


@pytest.mark.parametrize(
    ("what", "seconds"), [("while True: pass", 30), ("x = b'1' * 400_000_000; time.sleep(60)", 30)]
)
def test_the_watchdog_ends_a_process_that_hangs_or_grows(what: str, seconds: float) -> None:
    code = (
        "import time; from batchdet.pipeline.watchdog import Watchdog\n"
        f"dog = Watchdog(1, 200_000_000); dog.step(1); {what}"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=REPOSITORY, timeout=60, check=False)
    assert done.returncode == 1
    assert time.monotonic() - started < seconds


def test_the_watchdog_lets_a_process_rest() -> None:
    code = (
        "import time; from batchdet.pipeline.watchdog import Watchdog\n"
        "dog = Watchdog(-0.9, 10**9); dog.step(1); dog.rest(); time.sleep(0.5); print('rested')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=REPOSITORY, timeout=60, check=False)
    assert done.stdout == b"rested\n", done.stderr
