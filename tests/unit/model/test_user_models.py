"""Models that users have reported, from the shared script: read right, or refused by a sentence before any table."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchdet.decode.canvas import decoded_onto_canvas
from batchdet.errors import BatchdetError, ModelError, SpecError
from batchdet.forecast import trial_of
from batchdet.model.detector import open_detector
from batchdet.model.families import SenselessOutput
from batchdet.plan import plan_job
from batchdet.spec import JobSpec, ModelSpec

MAX_PIXELS = 100_000_000
BOX = [16.9, 168.8, 185.6, 337.5]


@pytest.fixture(scope="module")
def inputs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the shared script fills."""
    folder = tmp_path_factory.mktemp("inputs")
    script = shared / "bugs" / "make_inputs.py"
    subprocess.run([sys.executable, str(script), str(shared), str(folder)], check=True, capture_output=True)
    return folder


def job(inputs: Path, out: Path, model: Path, **settings: Any) -> JobSpec:
    source = inputs / "lists" / "img"
    plain = {"name": "j", "source": {"uri": str(source)}, "model": {"uri": str(model)} | settings}
    return JobSpec.model_validate(plain | {"output": {"uri": str(out)}})


def detected(inputs: Path, model: Path, **settings: Any) -> Any:
    detector = open_detector(ModelSpec(uri=str(model), **settings))
    data = (inputs / "images" / "plain.png").read_bytes()
    canvas, letterbox = decoded_onto_canvas(data, MAX_PIXELS, detector.letterbox, False)
    (found,) = detector.detect(canvas[None], [letterbox])
    return detector, found


@pytest.mark.parametrize("name", ["m1_yolov5_one_class", "m1_yolov7_one_class"])
def test_yolov5_and_yolov7_of_one_class(inputs: Path, name: str) -> None:
    detector, found = detected(inputs, inputs / "models" / f"{name}.onnx")
    assert detector.family.name == "yolo_anchors"
    np.testing.assert_allclose(found.boxes_xyxy, [BOX], atol=0.1)
    np.testing.assert_allclose(found.scores, [0.9 * 0.95], rtol=1e-5)
    assert found.class_ids.tolist() == [0]


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("m2_pose_without_task", "model.labels", ["names 1 class (person)", "52", "pose"]),
        ("m3_pose", "model.family", ["'pose'"]),
    ],
)
def test_pose_models_are_refused(inputs: Path, name: str, code: str, words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        open_detector(ModelSpec(uri=str(inputs / "models" / f"{name}.onnx")))
    assert caught.value.code == code
    assert all(word in caught.value.message for word in words), caught.value.message


def test_impossible_scores_end_the_job_on_its_own_images(inputs: Path, tmp_path: Path) -> None:
    spec = job(inputs, tmp_path / "out", inputs / "models" / "m4_scores_beyond_1.onnx")
    with pytest.raises(SenselessOutput) as caught:
        trial_of(plan_job(spec)).load("cpu")
    assert (caught.value.code, caught.value.exit_status) == ("model.scores_out_of_range", 5)
    assert "inf" in caught.value.message
    assert ".jpg" in caught.value.message
    assert "m4_scores_beyond_1.onnx" in caught.value.message


def test_labels_of_ultralytics(inputs: Path, shared: Path) -> None:
    data_yaml = str(inputs / "labels" / "data.yaml")
    with pytest.raises(SpecError) as caught:
        open_detector(ModelSpec(uri=str(shared / "models" / "yolo26n.onnx"), labels=data_yaml))
    assert caught.value.code == "model.labels"
    assert "data.yaml holds 2 labels, the model has 80 classes" in caught.value.message


def test_real_models_keep_their_families(shared: Path) -> None:
    families = {
        "deimv2_atto_320": "detr",
        "yolo11n_320": "yolo_dense",
        "yolo26n": "yolo_end2end",
        "yolox_nano_416": "yolox",
    }
    for name, family in families.items():
        assert open_detector(ModelSpec(uri=str(shared / "models" / f"{name}.onnx"))).family.name == family


@pytest.mark.parametrize(
    ("name", "settings", "code"),
    [
        ("yolo26n.onnx", {"labels": "images/bus.jpg"}, "model.labels"),
        ("yolo11n_320.onnx", {"family": "yolox"}, "model.family"),
    ],
)
def test_settings_that_do_not_fit(shared: Path, name: str, settings: dict[str, str], code: str) -> None:
    if "labels" in settings:
        settings = {"labels": str(shared / settings["labels"])}
    with pytest.raises(BatchdetError) as caught:
        open_detector(ModelSpec(uri=str(shared / "models" / name), **settings))
    assert caught.value.code == code
