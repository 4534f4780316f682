import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchdet.errors import ModelError, SpecError
from batchdet.model.detector import Detector, open_detector
from batchdet.model.preprocess import Preprocess
from batchdet.model.rehearsal import Rehearsed
from batchdet.spec import ModelSpec, PreprocessSpec
from tests import tiny_onnx

ROWS = ((8, 8, 24, 24, 0.9, 1), (0, 0, 16, 16, 0.5, 0), (4, 4, 6, 6, 0.1, 1))
ABOUT = {"names": "{0: 'cat', 1: 'dog'}", "imgsz": "[64, 64]", "stride": "32"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHDET_CACHE", str(tmp_path / "cache"))


def opened(path: Path, **settings: Any) -> Detector:
    return open_detector(ModelSpec(uri=str(path), **settings))


def gray(detector: Detector, sizes: list[tuple[int, int]]) -> tuple[Any, list[Any]]:
    boxes = [detector.letterbox(*size) for size in sizes]
    width, height = boxes[0].canvas
    return np.full((len(sizes), height, width, 3), 114, np.uint8), boxes


def test_boxes_come_back_in_original_pixels(tmp_path: Path) -> None:
    detector = opened(tiny_onnx.end2end(tmp_path / "m.onnx", ROWS, **ABOUT))
    canvases, boxes = gray(detector, [(128, 128), (64, 64)])
    large, small = detector.detect(canvases, boxes)
    np.testing.assert_allclose(large.boxes_xyxy, [[16, 16, 48, 48], [0, 0, 32, 32]])
    np.testing.assert_allclose(small.boxes_xyxy, [[8, 8, 24, 24], [0, 0, 16, 16]])
    assert large.class_ids.tolist() == [1, 0]
    assert [detector.label(i) for i in (0, 1, 2)] == ["cat", "dog", "class_2"]


def test_settings_are_applied(tmp_path: Path) -> None:
    path = tiny_onnx.end2end(tmp_path / "m.onnx", ROWS, **ABOUT)
    for settings, classes in (
        ({"score_threshold": 0.0}, [1, 0, 1]),
        ({"classes": ("cat",)}, [0]),
        ({"classes": (1,), "score_threshold": 0.05}, [1, 1]),
        ({"max_detections": 1}, [1]),
    ):
        detector = opened(path, **settings)
        (found,) = detector.detect(*gray(detector, [(64, 64)]))
        assert found.class_ids.tolist() == classes


def test_a_class_that_the_model_lacks(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="did you mean 'dog'"):
        opened(tiny_onnx.end2end(tmp_path / "m.onnx", ROWS, **ABOUT), classes=("dogs",))


def test_canvases_of_a_free_model(tmp_path: Path) -> None:
    path = tiny_onnx.end2end(tmp_path / "m.onnx", ROWS, **ABOUT)
    assert opened(path).letterbox(640, 320).canvas == (64, 32)
    assert opened(path, canvas={"shape": "square"}).letterbox(640, 320).canvas == (64, 64)
    assert opened(path, canvas={"size_px": 128}).letterbox(640, 320).canvas == (128, 64)
    assert opened(path, canvas={"size_px": 128}).card.canvas_px == (128, 128)


def test_loose_canvases(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = tiny_onnx.end2end(tmp_path / "m.onnx", [(48, 56, 96, 116, 0.9, 1)], **ABOUT | {"imgsz": "[192, 192]"})
    loose = opened(path, runtime="openvino", canvas={"fit": "loose", "graphs": ("192x160", "192x192")})
    assert loose.letterbox(640, 400).canvas == (192, 160)
    assert loose.letterbox(640, 300).canvas == (192, 96), "half larger at most"
    (found,) = loose.detect(*gray(loose, [(640, 400)]))
    y = 36  # where 120 px of content begin: in the middle of 128 px, and 32 px further down
    np.testing.assert_allclose(found.boxes_xyxy, [[160, (56 - y) / 0.3, 320, (116 - y) / 0.3]], rtol=1e-5)
    assert opened(path, canvas={"graphs": ("192x160",)}).letterbox(640, 400).canvas == (192, 128)
    with pytest.raises(SpecError, match=r"model\.canvas\.fit: loose needs model\.runtime: openvino, or both auto"):
        opened(path, canvas={"fit": "loose"})
    other = {"fit": "loose", "graphs": ("192x150", "224x192", "192x160")}
    assert opened(path, runtime="openvino", canvas=other).letterbox(640, 400).canvas == (192, 160), "not what it lacks"
    fixed = tiny_onnx.end2end(tmp_path / "fixed.onnx", ROWS, images=("N", 3, 300, 300), **ABOUT)
    whole = opened(fixed, runtime="openvino", canvas={"fit": "loose", "graphs": ("300x300", "192x160")})
    assert (whole.letterbox(640, 400).canvas, whole.placement.loose) == ((300, 300), ())


def test_canvases_of_a_fixed_model(tmp_path: Path) -> None:
    path = tiny_onnx.end2end(tmp_path / "m.onnx", ROWS, images=("N", 3, 64, 96), **ABOUT)
    detector = opened(path)
    assert detector.letterbox(640, 320).canvas == (96, 64)
    assert detector.card.canvas_shape == "fixed"
    assert opened(path, canvas={"size_px": 96}).canvas == (96, 64)
    with pytest.raises(SpecError, match=r"model\.canvas\.size_px: 64, but the model is made for 96 x 64 only"):
        opened(path, canvas={"size_px": 64})
    with pytest.raises(SpecError, match=r"model\.canvas\.shape: rectangle needs a model whose"):
        opened(path, canvas={"shape": "rectangle"})


def test_a_size_that_is_no_multiple_of_the_stride(tmp_path: Path) -> None:
    path = tiny_onnx.end2end(tmp_path / "m.onnx", ROWS, **ABOUT)
    with pytest.raises(
        SpecError, match=r"model\.canvas\.size_px: 100 is no multiple of the model's stride 32; take 96"
    ):
        opened(path, canvas={"size_px": 100})


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_respected(tmp_path: Path, batch: int) -> None:
    detector = opened(tiny_onnx.end2end(tmp_path / "m.onnx", ROWS, images=(batch, 3, 64, 64), **ABOUT))
    found = detector.detect(*gray(detector, [(64, 64)] * 5))
    assert [len(f) for f in found] == [2] * 5
    assert not detector.card.dynamic_batch


def test_free_axes_that_are_not_free_are_not_used_and_the_card_says_so(tmp_path: Path) -> None:
    detector = opened(tiny_onnx.one_image_only(tmp_path / "m.onnx", np.array(ROWS)))
    card = detector.card
    assert not card.dynamic_batch
    assert card.canvas_shape == "square"
    assert len(card.notes) == 2
    assert [len(f) for f in detector.detect(*gray(detector, [(64, 64)] * 3))] == [2] * 3
    with pytest.raises(SpecError, match=r"model\.canvas\.shape: .*fails on one; use square"):
        opened(tmp_path / "m.onnx", canvas={"shape": "rectangle"})


def test_colours_and_scale_of_the_input(tmp_path: Path) -> None:
    detector = opened(tiny_onnx.end2end(tmp_path / "m.onnx", ROWS, **ABOUT))
    seen: list[Any] = []
    run = detector._runtime.run
    detector._runtime.run = lambda feeds: (seen.append(feeds["images"].copy()), run(feeds))[1]  # type: ignore[method-assign]
    canvases = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    detector.detect(canvases, [detector.letterbox(64, 64)] * 2)
    np.testing.assert_allclose(seen[0], canvases.transpose(0, 3, 1, 2) / 255, rtol=1e-6)
    assert seen[0].flags.c_contiguous


def test_yolox_sees_blue_first_and_unscaled(tmp_path: Path) -> None:
    output = np.zeros((84, 7), np.float32)
    detector = opened(tiny_onnx.constant(tmp_path / "m.onnx", {"output": output}, ("N", 3, 64, 64)))
    assert detector.family.name == "yolox"
    seen: list[Any] = []
    run = detector._runtime.run
    detector._runtime.run = lambda feeds: (seen.append(feeds["images"].copy()), run(feeds))[1]  # type: ignore[method-assign]
    canvases = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    detector.detect(canvases, [detector.letterbox(64, 64)])
    np.testing.assert_array_equal(seen[0], canvases[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32))


def test_detr_gets_the_sizes(tmp_path: Path) -> None:
    outputs = {
        "labels": np.array([3, 3]),
        "boxes": np.array([[1, 2, 30, 40], [0, 0, 9, 9]], np.float32),
        "scores": np.array([0.4, 0.8], np.float32),
    }
    path = tiny_onnx.constant(tmp_path / "m.onnx", outputs, ("N", 3, 64, 64), sizes=True)
    detector = opened(path)
    assert detector.card.letterbox == "stretch"
    (found,) = detector.detect(*gray(detector, [(200, 20)]))
    assert found.boxes_xyxy.tolist() == [[0, 0, 9, 9], [1, 2, 30, 20]]
    assert detector.label(3) == "motorcycle"
    assert "assumption" in detector.card.labels_reason


def test_canvases_and_letterboxes_must_go_together(tmp_path: Path) -> None:
    detector = opened(tiny_onnx.end2end(tmp_path / "m.onnx", ROWS, **ABOUT))
    canvases, boxes = gray(detector, [(64, 64)] * 2)
    with pytest.raises(ValueError, match=r"canvases must be uint8 \(1, H, W, 3\)"):
        detector.detect(canvases, boxes[:1])
    with pytest.raises(ValueError, match="a letterbox is for"):
        detector.detect(canvases[:, :32], boxes)
    assert detector.detect(canvases[:0], []) == []


def test_the_card_is_plain_data(tmp_path: Path) -> None:
    card = opened(tiny_onnx.end2end(tmp_path / "m.onnx", ROWS, license="MIT", backbone="tiny", **ABOUT)).card
    data = json.loads(json.dumps(card.to_dict()))
    assert data["family"] == "yolo_end2end"
    assert data["labels"] == ["cat", "dog"]
    assert data["probed_outputs"] == [{"name": "output0", "dtype": "float32", "shape": [1, 3, 6]}]
    rows = dict(card.describe())
    assert rows["outputs"] == "output0 float32 [1, 3, 6]"
    assert rows["backbone"] == "tiny"
    assert rows["licence"] == "weights: MIT; code: not stated in the file"
    assert "neck" not in rows


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_every_runtime(tmp_path: Path, runtime: str) -> None:
    pytest.importorskip(runtime)
    detector = opened(tiny_onnx.end2end(tmp_path / "m.onnx", ROWS, **ABOUT), runtime=runtime)
    (found,) = detector.detect(*gray(detector, [(64, 64)]))
    assert found.class_ids.tolist() == [1, 0]
    assert detector.card.runtime.startswith(runtime)


def test_models_that_are_no_detectors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no family of detectors: its outputs are logits float32 \[1, 1000\]"):
        opened(tiny_onnx.classifier(tmp_path / "classifier.onnx"))
    text = tiny_onnx.constant(tmp_path / "text.onnx", {"output0": np.zeros((9, 6), np.float32)}, ("N", 1, 8, 8))
    with pytest.raises(ModelError, match=r"one input float32 \[N, 3, H, W\].*images float32 \[\?, 1, 8, 8\]"):
        opened(text)
    with pytest.raises(ModelError, match="custom operators"):
        opened(tiny_onnx.with_custom_operator(tmp_path / "custom.onnx"))
    with pytest.raises(ModelError, match="names the family yolox, but it has one output"):
        opened(tiny_onnx.end2end(tmp_path / "m.onnx", ROWS, **ABOUT), family="yolox")


@pytest.mark.parametrize("images", [("N", 3, 64, 100_000), (100_000, 3, 64, 64)])
def test_sizes_without_measure_are_refused(tmp_path: Path, images: tuple[Any, ...]) -> None:
    with pytest.raises(ModelError, match="are the limit"):
        opened(tiny_onnx.end2end(tmp_path / "m.onnx", ROWS, images=images))


@pytest.mark.parametrize(
    ("about", "canvas"), [({"imgsz": "[100, 100]"}, 96), ({"imgsz": "x"}, 640), ({"imgsz": "8"}, 32)]
)
def test_the_usual_size_is_made_to_fit_the_stride(tmp_path: Path, about: dict[str, str], canvas: int) -> None:
    assert opened(tiny_onnx.end2end(tmp_path / "m.onnx", ROWS, **about)).canvas == (canvas, canvas)


def test_a_model_whose_outputs_have_no_axis_of_images_gets_one_at_a_time(tmp_path: Path) -> None:
    outputs = {
        "boxes": np.array([[64, 64, 128, 96], [0, 0, 32, 32]], np.float32),
        "labels": np.array([2, 1]),
        "scores": np.array([0.9, 0.8], np.float32),
    }
    path = tiny_onnx.of_one_image(tmp_path / "retinanet.onnx", outputs)
    detector = open_detector(ModelSpec(uri=str(path)))
    assert detector.card.family == "ssd"
    assert not detector.card.dynamic_batch
    letterbox = detector.letterbox(640, 640)
    found = detector.detect(np.zeros((3, 640, 640, 3), np.uint8), [letterbox] * 3)
    assert [each.class_ids.tolist() for each in found] == [[2, 1]] * 3
    np.testing.assert_allclose(found[2].boxes_xyxy, outputs["boxes"])


def test_the_spec_says_what_a_model_is_fed(tmp_path: Path) -> None:
    path = tiny_onnx.end2end(tmp_path / "m.onnx")
    asked = PreprocessSpec(colours="BGR", scale=1.0, mean=(1, 2, 3), std=(4, 5, 6), letterbox="top_left")
    detector = open_detector(ModelSpec(uri=str(path), preprocess=asked))
    assert detector.preprocess == Preprocess("BGR", 1.0, "top_left", 114, (1, 2, 3), (4, 5, 6))
    assert detector.placement.preprocess == detector.preprocess
    assert detector.card.colours == "BGR"
    assert open_detector(ModelSpec(uri=str(path))).preprocess == Preprocess()


class TestRehearsed:
    """Whoever loads a model that has been rehearsed elsewhere does not run it on empty canvases again."""

    @pytest.fixture
    def runs(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
        """Note the shape of what each run of ONNX Runtime is given."""
        from batchdet.model.runtimes.onnxruntime import OnnxRuntime

        shapes: list[tuple[int, ...]] = []
        real = OnnxRuntime.run

        def noting(self: OnnxRuntime, feeds: Any) -> Any:
            shapes.append(feeds["images"].shape)
            return real(self, feeds)

        monkeypatch.setattr(OnnxRuntime, "run", noting)
        return shapes

    def again(self, path: Path, rehearsed: Rehearsed, **settings: Any) -> Detector:
        return Detector(ModelSpec(uri=str(path), **settings), str(path), "0" * 64, rehearsed=rehearsed)

    def test_it_is_the_same_without_a_run(self, tmp_path: Path, runs: list[tuple[int, ...]]) -> None:
        path = tiny_onnx.end2end(tmp_path / "m.onnx", ROWS, **ABOUT)
        first = opened(path)
        assert len(runs) >= 3
        runs.clear()
        second = self.again(path, first.rehearsed)
        assert runs == []
        assert second.rehearsed == first.rehearsed
        assert second.signature == first.signature
        assert second.letterbox(640, 320) == first.letterbox(640, 320)
        (one,), (other,) = (each.detect(*gray(each, [(64, 64)])) for each in (first, second))
        np.testing.assert_array_equal(one.boxes_xyxy, other.boxes_xyxy)

    def test_what_did_not_work_is_not_used(self, tmp_path: Path) -> None:
        path = tiny_onnx.end2end(tmp_path / "m.onnx", ROWS, **ABOUT)
        known = replace(opened(path).rehearsed, shape="square", fixed_batch=1, notes=("it fails on rectangles",))
        second = self.again(path, known)
        assert second.letterbox(640, 320).canvas == (64, 64)
        assert (second.card.dynamic_batch, second.card.notes) == (False, ("it fails on rectangles",))

    def test_another_models_rehearsal_is_passed_over(self, tmp_path: Path, runs: list[tuple[int, ...]]) -> None:
        path = tiny_onnx.end2end(tmp_path / "m.onnx", ROWS, **ABOUT)
        known = opened(path).rehearsed
        runs.clear()
        other = replace(known, outputs=(replace(known.outputs[0], name="others"),))
        assert self.again(path, other).rehearsed == known
        assert runs

    def test_of_another_runtime_it_serves_too(self, tmp_path: Path) -> None:
        pytest.importorskip("openvino")
        path = tiny_onnx.end2end(tmp_path / "m.onnx", ROWS, **ABOUT)
        exact = opened(path, runtime="onnxruntime")
        fast = self.again(path, exact.rehearsed, runtime="openvino")
        (one,), (other,) = (each.detect(*gray(each, [(640, 320)])) for each in (exact, fast))
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-3)
