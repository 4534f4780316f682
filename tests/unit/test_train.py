"""`batchdet train` as a user meets it: files, next commands, going on, several workers."""

import json
from pathlib import Path

import pytest
import yaml

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("pycocotools")
pytest.importorskip("onnxruntime")

from batchdet.errors import ClusterError, OutputError, SpecError
from batchdet.model.detector import open_detector
from batchdet.model.nets.checkpoint import load_net
from batchdet.sample.dataset import write_sample
from batchdet.spec import ModelSpec
from batchdet.specfile import load_job
from batchdet.train import _pass_on, _told, train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_sample(str(tmp_path_factory.mktemp("scenes")), 16, "folder", seed=3, kinds="new").uri


def test_a_training_leaves_a_model_that_the_detector_takes(data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = {"data": data, "init": "builtin:sample", "freeze": "backbone", "epochs": 1.0, "batch_rows": 4}
    lines: list[str] = []
    done = train(str(out), {**settings, "canvas_px": 96}, say=lines.append)
    assert done.steps == 4
    assert any("13 images" in line for line in lines)
    assert done.report.images == 3
    card = open_detector(ModelSpec(uri=str(out / "model.onnx"))).card
    assert card.labels == ("snowman", "kite", "anchor")
    assert (card.family, card.licence, card.canvas_px, card.stride) == ("yolo_end2end", "Apache-2.0", (96, 96), 32)
    assert load_net(out / "model.safetensors").properties["names"] == "{0: 'snowman', 1: 'kite', 2: 'anchor'}"
    assert "| licence | Apache-2.0 |" in (out / "model.md").read_text()
    assert json.loads((out / "metrics.json").read_text())["images"] == 13
    job = load_job(str(out / "label.yaml"))
    assert job.source.uri == yaml.safe_load((out / "label.yaml").read_text())["source"]["uri"]
    assert [command.split()[1] for command in done.commands] == ["model", "run", "evaluate"]
    with pytest.raises(OutputError, match="is not empty"):
        train(str(out), settings)
    (tmp_path / "truth.json").write_text((Path(data) / "instances.json").read_text() + " ")
    (out / "training.json").write_text((out / "training.json").read_text().replace(data, str(tmp_path / "truth.json")))
    with pytest.raises(SpecError):
        train(str(out), {}, resume=True)


def test_without_data_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="--data is missing"):
        train(str(tmp_path / "out"), {})


def test_what_a_worker_failed_of_is_told_in_our_own_words() -> None:
    inner = SpecError("a.jpg: not an image")
    outer = RuntimeError("a wall of text")
    outer.__cause__ = inner
    group = RuntimeError("training failed")
    group.worker_failures = {0: outer}  # type: ignore[attr-defined]
    assert _told(group) is inner
    other = _told(RuntimeError("no CPU\n left"))
    assert isinstance(other, ClusterError)
    assert other.message == "the workers failed: no CPU left"


def test_lines_of_a_worker_are_passed_on_once_and_whole(tmp_path: Path) -> None:
    lines: list[str] = []
    log = tmp_path / "log"
    assert _pass_on(log, 0, lines.append) == 0
    log.write_text("été\nhal")
    shown = _pass_on(log, 0, lines.append)
    log.write_text("été\nhalf\n")
    assert _pass_on(log, _pass_on(log, shown, lines.append), lines.append) == len(log.read_bytes())
    assert lines == ["été", "half"]
