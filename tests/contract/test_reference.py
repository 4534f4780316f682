"""Four real models on 120 real photographs: the same results as the reference implementations."""

from pathlib import Path
from typing import Any

import pytest

from batchdet.model.detector import Detector, open_detector
from batchdet.model.runtimes.openvino import has_bf16
from batchdet.spec import ModelSpec
from tests.coco120 import as_rows, average_precision, detect_all, expected_rows, matched

REFERENCE_AP = {"yolo26n": 0.403, "yolo11n_320": 0.284, "yolox_nano_416": 0.288, "deimv2_atto_320": 0.267}
"""From the table in shared/README.md."""

FAMILY = {"yolo26n": "yolo_end2end", "yolo11n_320": "yolo_dense", "yolox_nano_416": "yolox", "deimv2_atto_320": "detr"}


def opened(shared: Path, name: str, shape: str = "square", **settings: Any) -> Detector:
    asked: dict[str, Any] = {"score_threshold": 0.001, "canvas": {"shape": shape}, **settings}
    return open_detector(ModelSpec(uri=str(shared / "models" / f"{name}.onnx"), **asked), threads=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE_AP)
def test_average_precision_and_matches(shared: Path, name: str) -> None:
    detector = opened(shared, name)
    assert detector.family.name == FAMILY[name]
    found = detect_all(detector, shared)
    ap, _ = average_precision(found, shared)
    assert ap == pytest.approx(REFERENCE_AP[name], abs=0.005)
    if (shared / "expected" / f"{name}_coco120.json").is_file():
        mine, reference = as_rows(found, 0.25), expected_rows(shared, name)
        assert matched(reference, mine) >= 0.99
        assert matched(mine, reference) >= 0.99


@pytest.mark.fault
@pytest.mark.slow
def test_rectangles_cost_no_precision(shared: Path) -> None:
    detector = opened(shared, "yolo26n", "auto")
    assert detector.letterbox(640, 427).canvas == (640, 448)
    ap, _ = average_precision(detect_all(detector, shared), shared)
    assert ap >= REFERENCE_AP["yolo26n"] - 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11n_320", "deimv2_atto_320"])
def test_openvino_finds_what_onnx_runtime_finds(shared: Path, name: str) -> None:
    by_onnxruntime = as_rows(detect_all(opened(shared, name), shared, first=40), 0.25)
    by_openvino = as_rows(detect_all(opened(shared, name, runtime="openvino"), shared, first=40), 0.25)
    assert matched(by_onnxruntime, by_openvino) >= 0.99
    assert matched(by_openvino, by_onnxruntime) >= 0.99


@pytest.mark.slow
def test_bf16_on_rectangles_costs_no_precision(shared: Path) -> None:
    if not has_bf16():
        pytest.skip("this processor has no bf16")
    detector = opened(shared, "yolo26n", "auto", runtime="openvino", precision="bf16")
    assert detector.card.precision == "bf16"
    ap, _ = average_precision(detect_all(detector, shared), shared)
    assert ap >= REFERENCE_AP["yolo26n"] - 0.003
