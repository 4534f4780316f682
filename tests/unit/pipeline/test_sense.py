"""What a model gives for images is checked: on the job's own images before it begins, and in the worker for each."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from batchdet.errors import ImageError, ModelError
from batchdet.forecast import forecast, trial_of
from batchdet.model.detector import Detector, open_detector
from batchdet.model.families import FAMILIES, DecodeSettings, SenselessOutput
from batchdet.model.families.plugin import PluginError
from batchdet.pipeline.detector_actor import DetectorActor
from batchdet.pipeline.labeller import SegmentLabeller
from batchdet.pipeline.sense import Sense
from batchdet.plan import plan_job
from batchdet.records.detections import Detections
from batchdet.spec import JobSpec, ModelSpec
from tests import tiny_onnx

from .test_labeller import BrightSpot, png, segment

ABOUT = {"names": "{0: 'cat', 1: 'dog'}", "imgsz": "[128, 128]", "stride": "32"}
RIGHT = [(8, 8, 24, 24, 0.9, 1)]
ROWS: dict[str, tuple[str, list[tuple[float, ...]]]] = {
    "score above 1": ("model.scores_out_of_range", [(8, 8, 24, 24, 370, 1)]),
    "infinite score": ("model.scores_out_of_range", [(8, 8, 24, 24, np.inf, 1), *RIGHT]),
    "logits": ("model.scores_out_of_range", [(8, 8, 24, 24, -4.5, 1)]),
    "infinite box": ("model.boxes_out_of_range", [(8, 8, np.inf, 24, 0.9, 1)]),
    "box of 1e9": ("model.boxes_out_of_range", [(8, 8, 1e9, 24, 0.9, 1)]),
    "inside out": ("model.boxes_out_of_range", [(80, 80, 24, 24, 0.9, 1)]),
    "xywh": ("model.boxes_out_of_range", [(80, 80, 24, 24, 0.9, 1), (60, 10, 12, 30, 0.8, 0), *RIGHT]),
    "shares": ("model.boxes_out_of_range", [(0.1, 0.2, 0.5, 0.9, 0.9, 1), (0, 0, 1, 1, 0.7, 0)]),
    "class without label": ("model.labels", [(8, 8, 24, 24, 0.9, 2)]),
    "class below 0": ("model.labels", [(8, 8, 24, 24, 0.9, -2)]),
    "class with a fraction": ("model.family", [(8, 8, 24, 24, 0.9, 0.95)]),
    "class that is no number": ("model.labels", [(8, 8, 24, 24, 0.9, np.inf)]),
}
senseless = pytest.mark.parametrize(("code", "rows"), ROWS.values(), ids=list(ROWS))


def photographs(folder: Path, count: int = 4) -> Path:
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (200, 150), (20 * i, 80, 90)).save(folder / f"{i}.png")
    return folder


def job(tmp_path: Path, model: Path, **settings: Any) -> JobSpec:
    source = photographs(tmp_path / "in")
    plain = {"name": "j", "source": {"uri": str(source)}, "model": {"uri": str(model)} | settings}
    return JobSpec.model_validate(plain | {"output": {"uri": str(tmp_path / "out")}})


@senseless
def test_a_model_that_makes_no_sense_ends_the_job_before_it_begins(
    tmp_path: Path, code: str, rows: list[tuple[float, ...]]
) -> None:
    spec = job(tmp_path, tiny_onnx.end2end(tmp_path / "odd.onnx", rows, **ABOUT))
    with pytest.raises(SenselessOutput) as caught:
        trial_of(plan_job(spec)).load("cpu")
    assert (caught.value.code, caught.value.exit_status) == (code, 5)
    assert "odd.onnx" in caught.value.message
    assert ".png" in caught.value.message


@senseless
def test_without_samples_the_first_segment_ends_it_before_anything_is_staged(
    tmp_path: Path, code: str, rows: list[tuple[float, ...]]
) -> None:
    spec = job(tmp_path, tiny_onnx.end2end(tmp_path / "odd.onnx", rows, **ABOUT))
    out = tmp_path / "out"
    actor = DetectorActor(spec, plan_job(spec).model_sha256, str(out), "20260101-000000-aaaaaa", 2, "cpu", 1, "d")
    with pytest.raises(SenselessOutput) as caught:
        list(actor(segment([png(50)] * 3).to_row()))
    assert caught.value.code == code
    assert "/s.tar#0.png" in caught.value.message
    assert not list(out.rglob("*.parquet"))


def test_plan_ends_with_it_too(tmp_path: Path) -> None:
    spec = job(tmp_path, tiny_onnx.end2end(tmp_path / "odd.onnx", [(8, 8, 24, 24, 370, 1)], **ABOUT))
    with pytest.raises(ModelError) as caught:
        forecast(plan_job(spec))
    assert caught.value.code == "model.scores_out_of_range"


def test_what_is_usual_is_no_reason_to_end(tmp_path: Path) -> None:
    """Rounding, padding, empty boxes, one box inside out among several, a box that leaves the canvas."""
    rows = [
        (8, 8, 60, 60, 1 + 5e-4, 1), (-40, -8, 300, 24, 0.9, 0), (10, 10, 10, 10, 0.8, 0), (90, 90, 20, 20, 0.7, 1),
        (np.nan, 0, 9, 9, 0.6, 0), (70, 70, 90, 90, 0.5, 0), (0, 0, 0, 0, -1, -1), (0, 0, 0, 0, 0, 0),
    ]  # fmt: skip
    spec = job(tmp_path, tiny_onnx.end2end(tmp_path / "m.onnx", rows, **ABOUT))
    assert trial_of(plan_job(spec)).load("cpu").alone is not None
    detector = open_detector(spec.model)
    (found,) = detector.detect(np.zeros((1, 128, 128, 3), np.uint8), [detector.letterbox(128, 128)])
    assert found.scores.tolist() == [1.0, np.float32(0.9), 0.5]


@pytest.mark.parametrize("family", ["yolo_dense", "yolox", "yolo_anchors", "detr", "ssd", "detr_softmax"])
def test_every_family_checks_its_scores_and_boxes(family: str) -> None:
    from tests.contract.test_families import CASES, OBJECTS, letterbox

    case = CASES[family]
    for column, value in ((4, 7.0), (2, 1e9)):
        if column == 4 and family == "detr_softmax":
            continue  # a softmax gives no such score
        rows = OBJECTS.copy()
        rows[0, column] = value
        with np.errstate(all="ignore"):
            outputs = case.outputs(rows)
            with pytest.raises(SenselessOutput) as caught:
                case.family.decode(outputs, [letterbox(FAMILIES[family])], DecodeSettings())
        assert caught.value.code == ("model.scores_out_of_range" if column == 4 else "model.boxes_out_of_range")


class Odd(BrightSpot):
    """Makes no sense of images of one brightness."""

    def detect(self, canvases: Any, letterboxes: Any) -> list[Detections]:
        if any(int(c[c.shape[0] // 2, c.shape[1] // 2].mean()) == 66 for c in canvases):
            raise SenselessOutput("it gives a score of 7", code="model.scores_out_of_range")
        return super().detect(canvases, letterboxes)


@pytest.mark.parametrize("threads", [1, 3])
def test_one_image_of_many_becomes_a_failed_row(threads: int) -> None:
    work = SegmentLabeller(cast(Detector, Odd()), "run", 4, 10**6, threads)
    labelled = work.label(segment([png(50), png(60), png(66), png(70), png(250), png(80)]))
    assert labelled.images["error_code"].to_pylist() == [None, None, "inference", None, None, None]
    assert "a score of 7" in labelled.images["error_message"][2].as_py()
    assert labelled.images["max_score"][2].as_py() is None
    work.sense.check()


def some(count: int) -> Detections:
    boxes = np.array([[0, 0, 9, 9]] * count, np.float32).reshape(-1, 4)
    return Detections(boxes, np.full(count, 0.5, np.float32), np.zeros(count, np.int32))


@pytest.mark.parametrize(
    ("good", "empty", "bad", "ends"),
    [
        (0, 0, 1, True), (0, 1, 1, True), (0, 2, 1, False), (1, 0, 1, True), (2, 0, 1, False), (9, 0, 3, False),
        (0, 900, 2, False), (0, 900, 3, True), (2, 900, 3, True), (5, 0, 0, False),
    ],
)  # fmt: skip
def test_when_a_job_ends(good: int, empty: int, bad: int, ends: bool) -> None:
    sense = Sense()
    for outcome in [some(1)] * good + [some(0)] * empty + [ImageError("empty", "")] * 9:
        sense.take(outcome)
    for i in range(bad):
        sense.take(SenselessOutput(f"the {i}th"))
    if ends:
        with pytest.raises(SenselessOutput, match="the 0th"):
            sense.check()
    else:
        sense.check()


def test_impossible_scores_make_no_detections() -> None:
    boxes, ids = np.array([[0, 0, 9, 9]], np.float32), np.zeros(1, np.int32)
    for score in (np.nan, np.inf, 1.5, -0.1):
        with pytest.raises(ValueError, match="scores"):
            Detections(boxes, np.array([score], np.float32), ids)


def test_unnamed_classes_are_said(tmp_path: Path) -> None:
    spec = job(tmp_path, tiny_onnx.end2end(tmp_path / "m.onnx", RIGHT, imgsz="[64, 64]"))
    trial = trial_of(plan_job(spec))
    assert "model.labels" in trial.load("cpu").choices["labels"]
    named = spec.model_copy(
        update={"model": ModelSpec(uri=str(tiny_onnx.end2end(tmp_path / "n.onnx", RIGHT, **ABOUT)))}
    )
    assert "labels" not in trial_of(plan_job(named)).load("cpu").choices


HEAD = """
import numpy as np
from batchdet.plugin import Head, Preprocess

class Mine(Head):
    def decode(self, outputs, canvas):
        {body}
"""


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (
            "return np.array([[0.1, 0.2, 0.5, 0.9]]), np.array([0.9]), np.array([0])",
            "model.boxes_out_of_range",
            "shares",
        ),
        ("return np.array([[80, 80, 20, 30]]), np.array([0.9]), np.array([0])", "model.boxes_out_of_range", "xywh"),
        ("return np.array([[8, 8, np.inf, 30]]), np.array([0.9]), np.array([0])", "model.boxes_out_of_range", "inf"),
        ("return np.array([[8, 8, 20, 30]]), np.array([9.0]), np.array([0])", None, "9"),
        ("return outputs['none']", None, "KeyError"),
    ],
)
def test_a_head_that_makes_no_sense_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, code: str | None, words: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"odd_head_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(HEAD.format(body=body))
    model = tiny_onnx.end2end(tmp_path / "m.onnx", RIGHT, **ABOUT)
    trial = trial_of(plan_job(job(tmp_path, model, family=f"{name}:Mine")))
    with pytest.raises(ModelError) as caught:
        trial.load("cpu")
    assert caught.value.exit_status == 5
    assert f"{name}:Mine" in caught.value.message
    assert words in caught.value.message
    if code is None:
        assert isinstance(caught.value, PluginError)
    else:
        assert caught.value.code == code
        assert f"{name}.py" in caught.value.message


def test_a_head_that_fails_on_images_alone_ends_plan(tmp_path: Path) -> None:
    """The command in a process of its own, as a user calls it."""
    (tmp_path / "fails_late.py").write_text(HEAD.format(body="raise ValueError('late') if outputs['o'].any() else 0"))
    model = tiny_onnx.end2end(tmp_path / "m.onnx", RIGHT, **ABOUT)
    spec = job(tmp_path, model, family="fails_late:Mine")
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(json.loads(spec.model_dump_json(exclude_unset=True))))
    done = subprocess.run([sys.executable, "-m", "batchdet", "plan", str(path)], capture_output=True, text=True)
    assert done.returncode == 5, done.stderr
    assert "fails_late.py" in done.stderr


def test_an_image_is_named_in_every_message() -> None:
    error = SenselessOutput("it gives a score of 7", code="model.scores_out_of_range").about(
        "m.onnx: for the image a.jpg"
    )
    assert error.message == "m.onnx: for the image a.jpg: it gives a score of 7"
    assert error.code == "model.scores_out_of_range"
