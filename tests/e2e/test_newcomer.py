"""The first mistakes of a newcomer: one clear sentence, the right exit status, no traceback."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from batchdet.cli import main
from batchdet.sample.dataset import write_sample
from tests.s3_server import S3Server

from .conftest import Cli, clean_environment

pytestmark = pytest.mark.slow

JOB = """name: first
source: {uri: %s}
model: {uri: "%s"}
output: {uri: %s}
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("newcomer")
    write_sample(str(folder / "images"), 6, "folder", 3)
    (folder / "empty").mkdir()
    (folder / "text.onnx").write_text("<html>404</html>")
    (folder / "a-file").write_text("")
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Run the command line in this process: mistakes that end before any work need no process each."""

    def run_it(*arguments: str | Path) -> SimpleNamespace:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        monkeypatch.setattr(sys, "argv", ["batchdet", *map(str, arguments)])
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        printed = capfd.readouterr()
        return SimpleNamespace(returncode=ended.value.code or 0, stdout=printed.out, stderr=printed.err)

    return run_it


def check(result: object, status: int, *words: str) -> None:
    assert result.returncode == status, result.stderr  # type: ignore[attr-defined]
    text = result.stderr  # type: ignore[attr-defined]
    assert "Traceback" not in text
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, text
    for word in words:
        assert word in errors[0], errors[0]


@pytest.mark.parametrize(
    ("source", "model", "out", "status", "words"),
    [
        ("{0}/nope", "builtin:sample", "{0}/out", 2, ["source.uri", "nope"]),
        ("{0}/empty", "builtin:sample", "{0}/out", 2, ["source.uri", "empty"]),
        ("{0}/images/*.tar", "builtin:sample", "{0}/out", 2, ["source.uri", "*.tar"]),
        ("{0}/images", "{0}/nope.onnx", "{0}/out", 2, ["model.uri", "nope.onnx"]),
        ("{0}/images", "{0}/text.onnx", "{0}/out", 2, ["text.onnx"]),
        ("{0}/images", "builtin:sample", "{0}/a-file/out", 2, ["output.uri", "a-file"]),
        ("{0}/images", "builtin:sample", "{0}/images", 2, ["output.uri", "source.uri"]),
        ("s3://no-such-bucket/x", "builtin:sample", "{0}/out", 2, ["source.uri", "no-such-bucket"]),
        ("{0}/images", "builtin:sample", "s3://no-such-bucket/x", 2, ["output.uri", "no-such-bucket"]),
        ("s4://x", "builtin:sample", "{0}/out", 2, ["s4"]),
        ("gs://bucket/x", "builtin:sample", "{0}/out", 5, ["pip install gcsfs"]),
    ],
)
def test_wrong_places(
    source: str,
    model: str,
    out: str,
    status: int,
    words: list[str],
    images: Path,
    here: Callable[..., SimpleNamespace],
    tmp_path: Path,
    s3: S3Server,
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB % tuple(text.format(images) for text in (source, model, out)))
    check(here("run", path, "--json"), status, *words)


def test_wrong_key_names_the_line(images: Path, cli: Cli, here: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB % (images, "builtin:sample", tmp_path) + "polcy: {}\n")
    check(cli("run", path), 2, f"{path}:5: polcy: unknown key; did you mean 'policy'?")
    check(here("run", tmp_path / "nope.yaml"), 2, "nope.yaml: there is no such job file")
    check(here("run", path, "--set", "x"), 2, "--set x")


def test_a_missing_runtime_names_the_extra(images: Path, cli: Cli, tmp_path: Path) -> None:
    """A folder first on the path stands for an environment without ONNX Runtime."""
    bare = tmp_path / "bare/onnxruntime"
    bare.mkdir(parents=True)
    (bare / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'onnxruntime'\", name='onnxruntime')"
    )
    path = tmp_path / "job.yaml"
    path.write_text(JOB % (images / "images", "builtin:sample", tmp_path / "out"))
    repository = str(Path(__file__).parents[2])
    env = {"PYTHONPATH": os.pathsep.join([str(bare.parent), repository])}
    check(cli("model", "builtin:sample", env=env), 5, "pip install 'onnxruntime>=")
    check(cli("run", path, env=env), 5, "pip install 'onnxruntime>=")


def test_the_whole_tour(images: Path, cli: Cli, here: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = tmp_path / "job.yaml"
    path.write_text(JOB % (images / "images", "builtin:sample", out))
    assert json.loads(cli("validate", path, "--json").stdout)["name"] == "first"
    assert json.loads(cli("plan", path, "--json").stdout)["images"] == 6
    done = cli("run", path)
    assert done.returncode == 0, done.stderr
    assert "6 images (0 failed)" in done.stdout
    for line in done.stderr.splitlines():
        assert not line.startswith(("(", "[20", "20")), "Ray's chatter is silent"
    again = cli("run", path)
    assert (again.returncode, "nothing new" in again.stderr) == (0, True)
    shown = json.loads(cli("show", out, "--json", "--pictures", tmp_path / "pictures", "-n", "3").stdout)
    assert Path(shown["pictures"]["contact_sheet"]).exists()
    rows = json.loads(cli("query", out, "SELECT count(*) AS n FROM images", "--json").stdout)
    assert rows == [{"n": 6}]
    assert here("query", out, "COPY images TO '/tmp/x.csv'").returncode == 2
    assert len(json.loads(cli("status", out, "--json").stdout)["runs"]) == 1
    assert cli("verify", out).returncode == 0
    assert json.loads(cli("schema").stdout)["title"] == "JobSpec"
    assert json.loads(cli("model", "builtin:sample", "--json").stdout)["family"] == "yolo_end2end"
    for command in ["show", "query", "status", "verify"]:
        arguments = [command, tmp_path / "nothing-here", *(["SELECT 1"] if command == "query" else [])]
        check(here(*arguments), 2, "nothing-here")


@pytest.mark.fault  # the fault suite interrupts in CI, too
def test_interrupts_commit_nothing(images: Path, tmp_path: Path) -> None:
    import subprocess

    path = tmp_path / "job.yaml"
    path.write_text(JOB % (images / "images", "builtin:sample", tmp_path / "out"))
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with subprocess.Popen(
            [sys.executable, "-m", "batchdet", "run", str(path)],
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("labelling"):
                    process.send_signal(number)
                    break
            rest = process.stderr.read()
            assert process.wait(60) == status, rest
        assert "Traceback" not in rest
        assert "the same command resumes the run" in rest
        assert not (tmp_path / "out/images").exists()
