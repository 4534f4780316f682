"""The mistakes that people make first: one or two sentences, the right status, soon, without a traceback.

Each runs the command line in this process, and needs neither Ray nor a model.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from batchdet import places
from batchdet.sample.dataset import write_sample
from tests import without_ray as no_ray
from tests.cli import Command, Ended, command
from tests.without_ray import without_ray

__all__ = ["command"]

JOB = """name: first
source: {uri: photos}
model: {uri: 'builtin:sample'}
output: {uri: out}
compute: {segment_rows: 3}
"""


@dataclass(frozen=True)
class Mistake:
    """A command that cannot succeed.

    Args:
        name: What is wrong.
        arguments: Of ``batchdet``.
        status: The right exit status.
        code: Of the error.
        key: What it is about; a part of it is enough.
        word: What the message must hold.
        change: What of :data:`JOB` is written otherwise.
        prepare: Makes what else it needs.
    """

    name: str
    arguments: tuple[str, ...]
    status: int
    code: str
    key: str
    word: str
    change: tuple[str, str] = ("", "")
    prepare: Callable[[Path], None] = lambda here: None


def _empty(here: Path) -> None:
    (here / "empty").mkdir()


def _videos(here: Path) -> None:
    (here / "videos").mkdir()
    for name in ("a.mp4", "b.mp4", "notes.txt"):
        (here / "videos" / name).write_bytes(b"x")


def _without_extension(here: Path) -> None:
    (here / "bare").mkdir()
    for image in (here / "photos").iterdir():
        shutil.copy(image, here / "bare" / image.stem)


def _picture_as_model(here: Path) -> None:
    shutil.copy(next((here / "photos").iterdir()), here / "photo.onnx")


def _checkpoint(here: Path) -> None:
    (here / "yolo.pt").write_bytes(b"\x80\x02}q\x00.")


def _file(here: Path) -> None:
    (here / "file").write_text("")


RUN = ("run", "job.yaml")
MISTAKES = [
    Mistake("job file missing", ("run", "jbo.yaml"), 2, "spec.not_found", "jbo.yaml", "did you mean 'job.yaml'?"),
    Mistake("source missing", RUN, 2, "source.not_found", "source.uri", "did you mean 'photos'?", ("photos", "photo")),
    Mistake(
        "key misspelt",
        RUN,
        2,
        "spec.unknown_key",
        "model.score_treshold",
        "score_threshold",
        ("uri: 'b", "score_treshold: 0.4, uri: 'b"),
    ),
    Mistake(
        "key misspelt by --set",
        (*RUN, "--set", "model.score_treshold=0.4"),
        2,
        "spec.unknown_key",
        "model.score_treshold",
        "score_threshold",
    ),
    Mistake(
        "value of the wrong type",
        (*RUN, "--set", "model.score_threshold=40%"),
        2,
        "spec.value",
        "model.score_threshold",
        "it should be a number",
    ),
    Mistake(
        "model missing",
        RUN,
        2,
        "model.not_found",
        "model.uri",
        "did you mean 'file'?",
        ("builtin:sample", "fil"),
        _file,
    ),
    Mistake(
        "picture as model", RUN, 2, "model.", "model.uri", "JPEG", ("builtin:sample", "photo.onnx"), _picture_as_model
    ),
    Mistake("untrusted .pt", RUN, 5, "model.", "", "model.trusted", ("builtin:sample", "yolo.pt"), _checkpoint),
    Mistake("empty folder", RUN, 2, "source.empty", "", "empty", ("photos", "empty"), _empty),
    Mistake(
        "folder of videos and text", RUN, 2, "source.no_images", "source.uri", ".mp4", ("photos", "videos"), _videos
    ),
    Mistake(
        "images without an extension",
        RUN,
        2,
        "source.no_images",
        "source.uri",
        "without extension",
        ("photos", "bare"),
        _without_extension,
    ),
    Mistake(
        "output not writable",
        RUN,
        2,
        "output.not_writable",
        "output.uri",
        "file/out",
        ("uri: out", "uri: file/out"),
        _file,
    ),
    Mistake("output within source", RUN, 2, "output.", "", "lies in source.uri", ("uri: out", "uri: photos/out")),
    Mistake("no blank after a colon", RUN, 2, "spec.blank_missing", "job.yaml:1", "'name: first'", ("name: ", "name:")),
    Mistake("blank in the name", RUN, 2, "spec.value", "name", "letters, digits", ("first", "my photos")),
    Mistake(
        "class misspelt",
        (*RUN, "--set", "model.classes=[cra]"),
        2,
        "model.unknown_class",
        "model.classes",
        "did you mean",
    ),
    Mistake("folder as job", ("run", "photos"), 2, "spec.folder", "photos", "batchdet label photos"),
    Mistake("no job", ("run", ""), 2, "spec.not_found", "JOB", "empty"),
    Mistake("no model", ("model", ""), 2, "model.not_found", "URI", "empty"),
    Mistake("text as model", ("model", "job.yaml"), 2, "model.not_a_model", "model.uri", "a text file"),
    Mistake("folder as model", ("model", "photos"), 2, "model.not_a_model", "model.uri", "config.json"),
    Mistake("no output", ("label", "photos", "--model", "builtin:sample", "--out", ""), 2, "spec.value", "", "--out: "),
    Mistake("file as output", ("show", "job.yaml"), 2, "storage.failed", "", "is a file, not a folder"),
    Mistake("key without its group", (*RUN, "--set", "score_threshold=0.4"), 2, "spec.unknown_key", "", "key of model"),
    Mistake("classes as text", (*RUN, "--set", "model.classes=car"), 2, "spec.value", "model.classes", "[a, b]"),
    Mistake("no classes", (*RUN, "--set", "model.classes=[]"), 2, "spec.value", "model.classes", "an entry"),
    Mistake("unknown command", ("predict", "job.yaml"), 2, "argument.unknown_command", "predict", "'run'"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    write_sample(str(folder), 3, "folder", 1)
    return folder / "images" / "000"


@pytest.fixture
def here(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "job.yaml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_clear(ended: Ended) -> None:
    """Make sure that a person reads one line of at most two sentences, none of them the parser's or Python's."""
    errors = [line for line in ended.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
    assert len(errors) == 1, ended.stderr
    assert errors[0].count(". ") <= 1
    for foreign in ("Traceback", "^[", "mapping values", ".writable", "Errno"):
        assert foreign not in ended.stderr


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_one_clear_sentence(mistake: Mistake, here: Path, command: Command) -> None:
    mistake.prepare(here)
    (here / "job.yaml").write_text(JOB.replace(*mistake.change) if mistake.change[0] else JOB)
    began = time.monotonic()
    with without_ray():
        ended = command(*mistake.arguments, "--json")
    assert time.monotonic() - began < 10
    error = ended.error
    assert (ended.status, error["exit_status"]) == (mistake.status, mistake.status)
    assert error["code"].startswith(mistake.code), error
    assert mistake.key in (error["key"] or ""), error
    assert mistake.word in error["message"], error
    check_clear(ended)


def test_a_source_may_be_a_text(here: Path, command: Command) -> None:
    (here / "job.yaml").write_text(JOB.replace("{uri: photos}", "photos"))
    with without_ray():
        assert command(*RUN).status == 0


def test_the_same_job_twice_has_nothing_new(here: Path, command: Command) -> None:
    with without_ray():
        assert command(*RUN).status == 0
        again = command(*RUN)
    assert again.status == 0
    assert "nothing new" in again.stderr
    assert "--fresh" in again.stderr


def test_ctrl_c_and_the_same_command_resumes(here: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    label, left = no_ray._label, [2]

    def interrupted(*arguments: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGINT)
        return label(*arguments)

    for n in range(6):
        shutil.copy(next((here / "photos").iterdir()), here / "photos" / f"more{n}.jpg")
    monkeypatch.setattr(no_ray, "_label", interrupted)
    with without_ray():
        ended = command(*RUN, "--json")
        assert (ended.status, ended.error["code"], ended.error["exit_status"]) == (130, "run.interrupted", 130)
        assert "the same command resumes the run" in ended.error["message"]
        check_clear(ended)
        assert '"interrupted"' in command("status", "out", "--json").stdout
        done = json.loads(command(*RUN, "--json").stdout)
    assert (done["status"], done["images_ok"]) == ("committed", 9)


def test_a_disk_that_is_full(here: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "free_bytes", lambda folder: (1_000_000, 10**12))
    ended = command(*RUN, "--json")
    assert (ended.status, ended.error["code"], ended.error["key"]) == (2, "output.no_space", "output.uri")
    assert "1.0 MB" in ended.error["message"]
    assert not (here / "out").exists()
    check_clear(ended)
