"""Hugging Face detectors, trained by the library's own losses: what learns, what is kept, and the trained folder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("scipy")
pytest.importorskip("pycocotools")
pytest.importorskip("onnxruntime")

import yaml  # noqa: E402

from batchdet.errors import ModelError, SpecError  # noqa: E402
from batchdet.model.detector import open_detector  # noqa: E402
from batchdet.sample.dataset import write_sample  # noqa: E402
from batchdet.spec import ModelSpec  # noqa: E402
from batchdet.train import train  # noqa: E402
from batchdet.training import finetune  # noqa: E402
from batchdet.training.crew import Crew  # noqa: E402
from batchdet.training.hf_detector import open_folder  # noqa: E402
from batchdet.training.loop import Trainer  # noqa: E402
from batchdet.training.plan import TrainingPlan  # noqa: E402
from tests.huggingface_folders import make_folder  # noqa: E402

ALL = ("rt_detr", "rt_detr_v2", "d_fine", "detr", "yolos")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_sample(str(tmp_path_factory.mktemp("scenes")), 12, "folder", seed=3, kinds="new").uri


def quiet(line: str) -> None:
    """Say nothing."""


def plan(data: str, init: Path, **settings: Any) -> TrainingPlan:
    return TrainingPlan(data, **{"init": str(init), "batch_rows": 4, "canvas_px": 96, "epochs": 2.0, **settings})


def same(first: Trainer, second: Trainer) -> bool:
    pairs = [(first.net, second.net), (first.mean, second.mean)]
    return all(torch.equal(v, b.state_dict()[k]) for a, b in pairs for k, v in a.state_dict().items())


@pytest.mark.parametrize("model_type", ALL)
def test_classes_of_the_same_label_and_all_else_keep_what_they_know(tmp_path: Path, model_type: str) -> None:
    before = make_folder(tmp_path, model_type, denoising=8)
    trainee = open_folder(str(tmp_path), ("kite", "thing 3", "thing 1"), None)
    net = trainee.build()
    fresh = {name: value.clone() for name, value in net.state_dict().items()}
    said = trainee.begin(net, lambda index: pytest.fail("no batch is needed"))
    assert "2 of 3 classes known" in said
    rows = 0
    for name, value in net.state_dict().items():
        old = before.state_dict()[name]
        if value.shape == old.shape:
            assert torch.equal(value, old), name
            continue
        rows += 1
        assert torch.equal(value[1], old[3]), name
        assert torch.equal(value[2], old[1]), name
        assert torch.equal(value[3:], old[5:]), name  # "no object"
        assert torch.equal(value[0], fresh[name][0]), name
    assert rows >= 2


@pytest.mark.parametrize(("model_type", "epochs"), [("rt_detr", 16.0), ("yolos", 32.0)])
def test_a_tiny_detector_learns(data: str, tmp_path: Path, model_type: str, epochs: float) -> None:
    make_folder(tmp_path / "init", model_type)
    prepared = finetune.prepare(plan(data, tmp_path / "init", epochs=epochs, rate=3e-3))
    assert prepared.canvas_px <= 96
    source = prepared.source(Crew())
    batches = [source.batch(index) for index in range(4)]

    def loss_of(trainer: Trainer) -> float:
        torch.manual_seed(0)
        return sum(float(prepared.trainee.loss(trainer.net.train(), *batch, 0.5).detach()) for batch in batches)

    before = loss_of(finetune.begin(prepared, quiet))
    assert loss_of(finetune.train(prepared, tmp_path, False, Crew(), quiet)) < 0.8 * before


@pytest.mark.parametrize("model_type", ["rt_detr", "detr"])
def test_a_training_that_was_stopped_resumes_to_the_same_bits(data: str, tmp_path: Path, model_type: str) -> None:
    make_folder(tmp_path / "init", model_type, denoising=8)
    prepared = finetune.prepare(plan(data, tmp_path / "init"))  # 5 steps, with dropout or denoising queries
    (whole := tmp_path / "whole").mkdir()
    (parts := tmp_path / "parts").mkdir()
    straight = finetune.train(prepared, whole, False, Crew(), quiet)
    asked = iter(range(1, 1000))
    first = finetune.train(prepared, parts, False, Crew(lambda: next(asked) >= 2), quiet)
    assert (first.step, finetune.finished(first)) == (2, False)
    assert not same(first, straight)
    assert same(finetune.train(prepared, parts, True, Crew(), quiet), straight)
    other = finetune.prepare(plan(data, tmp_path / "init"))
    with pytest.raises(SpecError):
        Trainer.restore(parts / finetune.STATE, trainee=replace(other.trainee, labels=("kite",)))  # type: ignore[type-var]


@pytest.mark.parametrize("model_type", ["rt_detr_v2", "detr"])
def test_a_frozen_backbone_stays_to_the_last_bit_and_the_rest_learns(
    data: str, tmp_path: Path, model_type: str
) -> None:
    make_folder(tmp_path / "init", model_type)
    prepared = finetune.prepare(plan(data, tmp_path / "init", freeze="backbone"))
    begun = finetune.begin(prepared, quiet)
    trainer = finetune.train(prepared, tmp_path, False, Crew(), quiet)
    for name, value in begun.net.state_dict().items():
        if name.startswith("model.backbone."):
            assert torch.equal(value, trainer.net.state_dict()[name]), name
    moved = [n for n, p in begun.net.named_parameters() if not torch.equal(p, trainer.net.get_parameter(n))]
    assert any("decoder" in name for name in moved)
    assert any("class" in name for name in moved)


@pytest.mark.parametrize("model_type", ["rt_detr_v2", "yolos"])
def test_the_trained_folder_labels_by_batchdets_own_detector(data: str, tmp_path: Path, model_type: str) -> None:
    make_folder(tmp_path / "init", model_type)
    (tmp_path / "init" / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\nlicense: none\n")
    out = tmp_path / "trained"
    settings = {"data": data, "init": str(tmp_path / "init"), "epochs": 1.0, "batch_rows": 4, "canvas_px": 128}
    lines: list[str] = []
    done = train(str(out), settings, say=lines.append)
    assert any("0 of 3 classes known" in line for line in lines)
    assert (done.steps, done.report.images) == (3, 2)
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "model.md", "metrics.json"} <= names
    job = yaml.safe_load((out / "label.yaml").read_text())
    assert job["model"]["uri"] == str(out)
    detector = open_detector(ModelSpec(uri=job["model"]["uri"], score_threshold=0.0))
    assert detector.labels == ("snowman", "kite", "anchor")
    letterbox = detector.letterbox(320, 240)
    assert 64 < max(letterbox.canvas) <= 128
    assert len(detector.detect(_gray(letterbox.canvas), [letterbox])[0]) > 0
    assert "| licence | apache-2.0 |" in (out / "model.md").read_text()
    assert json.loads((out / "metrics.json").read_text())["plan"]["canvas_px"] == 128
    assert open_folder(str(out), ("kite",), None).canvases == open_folder(str(out), ("kite",), 128).canvases


def _gray(canvas: tuple[int, int]) -> Any:
    import numpy as np

    return np.full((1, canvas[1], canvas[0], 3), 114, np.uint8)


def test_settings_of_batchdets_own_nets_and_other_types_are_refused(data: str, tmp_path: Path) -> None:
    make_folder(tmp_path, "detr")
    for settings, key in (
        ({"backbone": "csp"}, "--backbone"),
        ({"width": 2.0}, "--width"),
        ({"workers": 2}, "--workers"),
    ):
        with pytest.raises(SpecError) as caught:
            finetune.prepare(plan(data, tmp_path, **settings))
        assert caught.value.key == key
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "deformable_detr"}))
    with pytest.raises(SpecError) as caught:
        finetune.prepare(plan(data, tmp_path))
    assert caught.value.code == "train.init_model_type"
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.py"}}))
    with pytest.raises(ModelError):
        finetune.prepare(plan(data, tmp_path))
