"""What is found out about a job without labelling anything."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from batchdet import places, readiness
from batchdet.errors import BatchdetError, Interrupted, OutputError, SpecError
from batchdet.places import check_space
from batchdet.plan import plan_job
from batchdet.readiness import check, look
from batchdet.sample.dataset import write_sample
from tests.cli import Command, command
from tests.without_ray import job

__all__ = ["command"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readiness")
    write_sample(str(folder / "photos"), 3, "folder", 1)
    return folder / "photos"


def spec_file(images: Path, folder: Path, model: str = "{uri: builtin:sample}", out: str = "") -> Path:
    path = folder / "job.yaml"
    path.write_text(f"name: j\nsource: {images}\nmodel: {model}\noutput: {out or folder / 'out'}\n")
    return path


def test_a_job_that_is_ready(images: Path, tmp_path: Path) -> None:
    found = {finding.name: finding for finding in check(job(images, tmp_path / "out"))}
    assert list(found) == ["source", "model", "output"]
    assert "3 objects (folder)" in found["source"].found
    assert "jpg can be read" in found["source"].found
    assert "family" in found["model"].found
    assert "classes" in found["model"].found
    assert not (tmp_path / "out").exists()


def _error(images: Path, out: Path, **parts: Any) -> BatchdetError:
    with pytest.raises(BatchdetError) as caught:
        check(job(images, out, **parts))
    return caught.value


def test_what_is_not_ready_is_named(images: Path, tmp_path: Path) -> None:
    error = _error(tmp_path / "none", tmp_path / "out")
    assert (error.exit_status, type(error).__name__) == (2, "SourceError")
    error = _error(images, tmp_path / "out", model_={"classes": ["persn"]})
    assert (error.code, error.key, error.exit_status) == ("model.unknown_class", "model.classes", 2)
    error = _error(images, tmp_path / "out", output_={"partition_by": ["colour"]})
    assert (error.exit_status, "partition_by" in error.message) == (2, True)
    (tmp_path / "file").write_text("")
    error = _error(images, tmp_path / "file" / "out")
    assert (error.code, error.key) == ("output.not_writable", "output.uri")
    assert ".writable" not in error.message
    error = _error(tmp_path / "none", tmp_path / "file" / "out", model_={"uri": str(tmp_path / "none.onnx")})
    assert [mistake.message.partition(":")[0] for mistake in error.mistakes] == [
        "source.uri",
        "model.uri",
        "output.uri",
    ]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_an_output_without_permission(images: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert _error(images, tmp_path / "closed/out").code == "output.not_writable"


def test_other_stores(images: Path) -> None:
    assert look(job(images, "nothing://out"))[-1].error is not None


@pytest.mark.parametrize("fresh", [False, True])
def test_a_misspelt_class_ends_a_plan_before_ray_starts(images: Path, tmp_path: Path, fresh: bool) -> None:
    with pytest.raises(SpecError) as caught:
        plan_job(job(images, tmp_path / "out", model_={"classes": ["cra"]}), fresh)
    assert (caught.value.code, caught.value.exit_status) == ("model.unknown_class", 2)
    assert "did you mean" in caught.value.message
    with pytest.raises(SpecError):
        plan_job(job(images, tmp_path / "out", model_={"classes": [99]}), fresh)
    (tmp_path / "labels.txt").write_text("\n".join(f"kind{n}" for n in range(6)))
    named = {"labels": str(tmp_path / "labels.txt"), "classes": ["car"]}
    with pytest.raises(SpecError, match="no class 'car'"):
        plan_job(job(images, tmp_path / "out", model_=named), fresh)


def test_validate_deep(images: Path, tmp_path: Path, command: Command) -> None:
    path = spec_file(images, tmp_path)
    ended = command("validate", path, "--deep")
    assert ended.status == 0
    assert [line.split()[0] for line in ended.stdout.splitlines()[:3]] == ["source", "model", "output"]
    assert json.loads(command("validate", path, "--deep", "--json").stdout)["found"]["output"].endswith(
        "can be written"
    )
    wrong = spec_file(images, tmp_path, "{uri: builtin:sample, classes: [persn]}")
    assert command("validate", wrong).status == 0
    assert command("validate", wrong, "--deep").status == 2
    assert command("plan", wrong).status == 2


def test_doctor_of_a_job(images: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHDET_CACHE", str(tmp_path / "cache"))
    ended = command("doctor", spec_file(images, tmp_path), "--json")
    states = {check["name"]: check["state"] for check in json.loads(ended.stdout)}
    assert (ended.status, states["source"], states["model"], states["output"]) == (0, "ok", "ok", "ok")
    path = spec_file(images, tmp_path, "{uri: none.onnx}", str(images / "out"))
    ended = command("doctor", path, "--json")
    checks = {check["name"]: check for check in json.loads(ended.stdout)}
    assert ended.status == 2
    assert [checks[name]["state"] for name in ("source", "model", "output")] == ["ok", "fail", "fail"]
    assert checks["output"]["advice"] == "give the tables a folder of their own"
    assert "FAIL" in command("doctor", path).stdout


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "free_bytes", lambda folder: (3_000_000_000, 10_000_000_000))
    check_space(str(tmp_path), 1.4e9)
    check_space("s3://bucket/out", 700e12)
    with pytest.raises(OutputError, match=r"needs at least 4\.0 GB .* only 3\.0 GB are free") as caught:
        check_space(str(tmp_path), 2e9)
    assert (caught.value.code, caught.value.key) == ("output.no_space", "output.uri")
    monkeypatch.setattr(places, "free_bytes", lambda folder: (1_000_000, 10_000_000_000))
    with pytest.raises(OutputError, match="are free"):
        check_space(str(tmp_path))


def test_a_signal_is_no_finding(monkeypatch: pytest.MonkeyPatch, images: Path, tmp_path: Path) -> None:
    def interrupted(spec: object) -> str:
        raise Interrupted("stopped by Ctrl-C")

    monkeypatch.setitem(readiness._LOOKS, "model", interrupted)  # type: ignore[arg-type]
    with pytest.raises(Interrupted):
        readiness.look(job(images, tmp_path / "out"))
