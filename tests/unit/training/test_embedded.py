import ast
import json

import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("pycocotools")

from pathlib import Path  # noqa: E402

import batchdet  # noqa: E402
from batchdet.sample.scene import CLASSES  # noqa: E402
from batchdet.training.evaluation import evaluate  # noqa: E402

EMBEDDED = Path(batchdet.__file__).parent / "model" / "embedded"
SAMPLE = EMBEDDED / "sample.onnx"


def test_the_embedded_model_is_small_and_describes_itself() -> None:
    assert SAMPLE.stat().st_size <= 2_000_000
    properties = {item.key: item.value for item in onnx.load(SAMPLE).metadata_props}
    assert ast.literal_eval(properties["names"]) == dict(enumerate(CLASSES))
    assert ast.literal_eval(properties["imgsz"]) == [320, 320]
    assert (properties["stride"], properties["task"], properties["end2end"]) == ("32", "detect", "True")
    assert properties["license"] == "Apache-2.0"


def test_the_embedded_model_finds_objects_it_never_saw() -> None:
    report = evaluate(SAMPLE, images=100, seed=99)
    assert report.ap50 >= 0.95
    assert report.ap >= 0.75
    assert set(report.ap50_by_label) == set(CLASSES)


def test_the_card_tells_the_same_figures() -> None:
    facts = json.loads((EMBEDDED / "sample.json").read_text())
    card = (EMBEDDED / "sample.md").read_text()
    assert facts["size_bytes"] == SAMPLE.stat().st_size
    assert f"{facts['ap']:.3f} | {facts['ap50']:.3f}" in card
