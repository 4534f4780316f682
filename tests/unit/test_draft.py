"""The first commands: ``batchdet label`` and ``batchdet init``."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import batchdet.job  # noqa: F401  # before its labeller is replaced
from batchdet.cli import app
from batchdet.draft import job_name, job_of_arguments
from batchdet.errors import BatchdetError, SpecError
from batchdet.places import in_full
from batchdet.sample.dataset import write_sample
from batchdet.specfile import load_job
from batchdet.table.lineage import Lineage
from tests.without_ray import without_ray


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a folder of images, in which jobs label without Ray."""
    folder = tmp_path / "work"
    (folder / "my photos").mkdir(parents=True)
    for number in range(4):
        (folder / f"my photos/{number}.jpg").write_bytes(b"image %d" % number)
    monkeypatch.chdir(folder)
    with without_ray():
        yield folder


def call(*words: str, answers: str | None = None) -> Any:
    """Call the command line; raise its own errors."""
    done = CliRunner().invoke(app, list(words), input=answers)
    if isinstance(done.exception, BatchdetError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def label(*more: str, source: str = "my photos", model: str = "builtin:sample", out: str = "labels") -> Any:
    done = call("label", source, "--model", model, "--out", out, "--json", "--set", "compute.segment_rows=2", *more)
    return json.loads(done.stdout[done.stdout.index("{") :])


def test_one_command_labels_and_leaves_a_job_that_does_the_same(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = label()
    assert (first["status"], first["images_ok"], first["job"]) == ("committed", 4, str(here / "labels.yaml"))
    assert label()["status"] == "nothing_new"

    by_hand = here / "by-hand.yaml"
    by_hand.write_text(
        "name: x\nsource: {uri: my photos}\nmodel: {uri: 'builtin:sample'}\noutput: {uri: other}\n"
        "compute: {segment_rows: 2}\n"
    )
    other = json.loads(call("run", str(by_hand), "--json").stdout)
    prints = {Lineage.read(run["output"], run["run_id"]).fingerprint for run in (first, other)}
    assert len(prints) == 1

    monkeypatch.chdir("/")
    assert json.loads(call("run", str(here / "labels.yaml"), "--json").stdout)["run_id"] == first["run_id"]
    (here / "my photos/new.jpg").write_bytes(b"one more")
    assert json.loads(call("run", str(here / "labels.yaml"), "--json").stdout)["images_ok"] == 1


def test_another_job_of_that_name_is_kept_and_told(here: Path) -> None:
    label()
    before = (here / "labels.yaml").read_bytes()
    with pytest.raises(SpecError) as error:
        label("--set", "model.score_threshold=0.4")
    assert (error.value.code, error.value.key) == ("job.file_exists", str(here / "labels.yaml"))
    assert "model.score_threshold: 0.25 there, 0.4 here" in error.value.message
    assert error.value.hint == f"batchdet run {here}/labels.yaml --set model.score_threshold=0.4"
    assert (here / "labels.yaml").read_bytes() == before
    call(*error.value.hint.split()[1:])


@pytest.mark.parametrize("content", ["a note", "name: x\n", "\ufffe"])
def test_a_file_that_is_no_job_is_kept(here: Path, content: str) -> None:
    (here / "labels.yaml").write_text(content)
    with pytest.raises(SpecError) as error:
        label()
    assert error.value.code == "job.file_exists"
    assert (here / "labels.yaml").read_text() == content
    assert not (here / "labels").exists()


def test_comments_in_the_file_make_no_other_job(here: Path) -> None:
    label()
    file = here / "labels.yaml"
    file.write_text(file.read_text() + "# mine\npolicy: {retry: none}\n")
    assert label()["status"] == "nothing_new"


@pytest.mark.parametrize("wrong", [{"source": "my fotos"}, {"model": "none.onnx"}, {"out": "my photos/labels"}])
def test_a_call_that_cannot_begin_leaves_no_file(here: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(BatchdetError) as error:
        label(**wrong)
    assert error.value.exit_status == 2
    assert [path.name for path in here.rglob("*.yaml")] == []
    assert label()["status"] == "committed"


def test_a_run_that_has_begun_keeps_its_file(here: Path) -> None:
    for path in (here / "my photos").iterdir():
        path.write_bytes(b"bad")
    with pytest.raises(BatchdetError) as error:
        label()
    assert error.value.exit_status == 3
    assert (here / "labels.yaml").exists()


@pytest.mark.parametrize(
    ("out", "file"),
    [("s3://bucket/a/labels/", "labels.yaml"), ("s3://bucket", "bucket.yaml"), ("deep/er", "deep/er.yaml")],
)
def test_where_the_file_is(here: Path, out: str, file: str) -> None:
    with job_of_arguments("my photos", "builtin:sample", out) as path:
        assert path == str(here / file)
        assert in_full(load_job(path)).output.uri == (out.rstrip("/") if "://" in out else str(here / out))


def test_variables_stay_in_the_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "s3://bucket")
    with job_of_arguments("${PLACE}/shards/*.tar", "builtin:sample", "labels") as path:
        assert "${PLACE}/shards/*.tar" in Path(path).read_text()
        assert (load_job(path).source.uri, load_job(path).name) == ("s3://bucket/shards/*.tar", "shards")


def test_a_wrong_setting_is_said_as_it_was_given(here: Path) -> None:
    with pytest.raises(SpecError) as error:
        label("--set", "model.score_threshold=2")
    assert "--set model.score_threshold=2" in error.value.message
    assert list(here.glob("*.yaml")) == []


@given(st.text(max_size=80))
def test_every_source_gives_a_valid_name(source: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", job_name(source))


def test_names_are_those_of_folders_and_files() -> None:
    wanted = {"/a/My Photos/*.jpg": "My-Photos", "s3://b/shards/*.tar": "shards", "s3://b": "b", "x/list.csv": "list"}
    assert {source: job_name(source) for source in wanted} == wanted


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("init")
    write_sample(str(folder / "set"), 3, "folder", 1)
    (folder / "text.onnx").write_text("<html>404</html>")
    return folder


def test_init_takes_defaults(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(images)
    file = str(tmp_path / "a.yaml")
    done = call("init", file, answers="set/images\n\n\n\n\n")
    spec = load_job(file)
    assert (spec.name, spec.source.uri, spec.model.uri) == ("images", f"{images}/set/images", "builtin:sample")
    assert (spec.output.uri, spec.model.classes, spec.compute.address) == (f"{images}/images-labels", None, None)
    assert spec.model.score_threshold == 0.25
    text = Path(file).read_text()
    assert text in done.stdout
    assert len(text.splitlines()) <= 10
    with pytest.raises(SpecError) as error:
        call("init", file, answers="set/images\n\n\n\n\n")
    assert (error.value.code, error.value.exit_status) == ("job.file_exists", 2)
    assert Path(file).read_text() == text


def test_init_checks_each_answer_when_it_is_given(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    answers = [
        *("", "nope", "text.onnx", "set/images"),
        *("nope.onnx", "text.onnx", "builtin:sample"),
        *("set/images/labels", "text.onnx/labels", str(tmp_path / "out")),
        *("unicorn", "0.4, 0.5", "3.5", "1, star, 0.4"),
        *("http://head:8265", "127.0.0.1:1", "auto"),
    ]
    done = call("init", str(tmp_path / "b.yaml"), answers="\n".join(answers) + "\n")
    spec = load_job(str(tmp_path / "b.yaml"))
    assert (spec.output.uri, spec.model.classes, spec.model.score_threshold) == (
        str(tmp_path / "out"),
        (1, "star"),
        0.4,
    )
    assert spec.compute.address == "auto"
    assert len([line for line in done.stderr.splitlines() if line.startswith("  ")]) == 12
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("answers", "which"), [("", 1), ("set/images\n\n", 3), ("set/images\nnope.onnx\n", 2)])
def test_init_whose_answers_end_early_writes_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: str, which: int
) -> None:
    monkeypatch.chdir(images)
    with pytest.raises(SpecError) as error:
        call("init", str(tmp_path / "c.yaml"), answers=answers)
    assert (error.value.code, error.value.key) == ("init.no_answer", f"question {which} of 5")
    assert (error.value.exit_status, "\n" in error.value.message) == (2, False)
    assert list(tmp_path.iterdir()) == []
