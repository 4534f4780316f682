"""Features of real models: every runtime gives the same, the boxes stay as they were, and images are found again."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from batchdet.decode.canvas import painted
from batchdet.model.detector import Detector, open_detector
from batchdet.model.runtimes import onnxruntime
from batchdet.records.detections import Detections
from batchdet.spec import ModelSpec
from tests.coco120 import detect_all, photographs


def opened(shared: Path, name: str, **settings: Any) -> Detector:
    return open_detector(ModelSpec.model_validate({"uri": str(shared / "models" / f"{name}.onnx"), **settings}))


def image_vectors(detector: Detector, images: list[Any]) -> Any:
    found = []
    for rgb in images:
        letterbox = detector.letterbox(rgb.shape[1], rgb.shape[0])
        found.append(detector.detect(painted(rgb, letterbox)[None], [letterbox])[0].image_features)
    vectors = np.array(found)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cropped_and_compressed(rgb: Any) -> Any:
    """Cut 5 % off two sides and compress hard."""
    height, width = rgb.shape[:2]
    cut = rgb[int(0.05 * height) :, : int(0.95 * width)]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(cut, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 50])
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_photographs_are_found_again_after_compression_and_a_crop(shared: Path) -> None:
    detector = opened(shared, "yolox_nano_416", features="image")
    images = list(photographs(shared).values())
    first = image_vectors(detector, images)
    again = image_vectors(detector, [cropped_and_compressed(rgb) for rgb in images])
    assert ((again @ first.T).argmax(axis=1) == np.arange(len(images))).mean() >= 0.95


def test_an_image_is_itself_at_another_size_and_others_are_not(shared: Path) -> None:
    images = list(photographs(shared).values())[:24]
    large = image_vectors(opened(shared, "yolo26n", features="image"), images)
    small = image_vectors(opened(shared, "yolo26n", features="image", canvas={"size_px": 416}), images)
    same = (large * small).sum(axis=1)
    others = (large @ large.T)[np.triu_indices(len(images), 1)]
    assert same.min() > 0.9
    assert np.median(others) < np.median(same) - 0.1


@pytest.fixture(scope="module")
def plain(shared: Path) -> dict[str, Detections]:
    """What is found where nobody asks for features."""
    return detect_all(opened(shared, "yolo26n"), shared, first=12)


@pytest.mark.parametrize("kind", ["image", "boxes"])
def test_runtimes_agree_and_taps_change_nothing(
    shared: Path, plain: dict[str, Detections], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_ort = detect_all(opened(shared, "yolo26n", features=kind), shared, first=12)
    by_openvino = detect_all(opened(shared, "yolo26n", features=kind, runtime="openvino"), shared, 1, first=12)
    monkeypatch.setattr(onnxruntime, "CPU", onnxruntime.Place("CPUExecutionProvider", "cpu", True))
    bound = detect_all(opened(shared, "yolo26n", features=kind), shared, first=12)  # what a GPU runs
    for name, found in plain.items():
        np.testing.assert_allclose(by_ort[name].boxes_xyxy, found.boxes_xyxy, atol=1e-3)
        np.testing.assert_array_equal(by_ort[name].class_ids, found.class_ids)
        for other in (by_openvino[name], bound[name]):
            if len(other) == len(found):  # a box at the threshold may fall on either side
                np.testing.assert_allclose(vectors(other), vectors(by_ort[name]), atol=0.02)
        assert vectors(by_ort[name]).shape == ((len(found), 512) if kind == "boxes" else (256,))


def vectors(found: Detections) -> Any:
    assert (found.features is None) != (found.image_features is None)
    return found.image_features if found.features is None else found.features


def test_a_tensor_by_its_name(shared: Path) -> None:
    detector = opened(shared, "yolo11n_320", features="image", features_from="/model.19/cv2/act/Mul_output_0")
    assert detector.features["maps"] == [
        {"part": "neck", "name": "/model.19/cv2/act/Mul_output_0", "stride": 16, "channels": 128}
    ]
    (found,) = detect_all(detector, shared, first=1).values()
    assert found.image_features is not None
    assert found.image_features.shape == (128,)
