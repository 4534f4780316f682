"""Pooling vectors from maps."""

import numpy as np
import pytest

from batchdet.errors import ModelError, SpecError
from batchdet.geometry.letterbox import Letterbox
from batchdet.model.anatomy import Anatomy, FeatureMap
from batchdet.model.detector import Detector
from batchdet.model.features import Pooling, choose_pooling, level_by_size, pool_boxes
from batchdet.records.detections import Detections
from batchdet.spec import ModelSpec
from tests import tiny_pyramids

RNG = np.random.default_rng(0)
FINE, MIDDLE, COARSE = (FeatureMap("backbone", f"b{s}", s, c) for s, c in ((4, 8), (8, 16), (16, 24)))
LEVELS = tuple(FeatureMap("neck", f"n{s}", s, 32) for s in (8, 16))
ANATOMY = Anatomy((64, 64), (FINE, MIDDLE, COARSE, *LEVELS), (), (), (FINE, MIDDLE, COARSE, *LEVELS))


def detections(*boxes):
    n = len(boxes)
    return Detections(np.array(boxes, np.float32).reshape(n, 4), np.ones(n, np.float32), np.zeros(n, np.int32))


def aligned(plane, box, stride):
    """RoI align point by point, as its paper tells it."""
    _, height, width = plane.shape
    x1, y1, x2, y2 = box
    values = []
    for i in range(7):
        for j in range(7):
            x = np.clip((x1 + (j + 0.5) / 7 * (x2 - x1)) / stride - 0.5, 0, width - 1)
            y = np.clip((y1 + (i + 0.5) / 7 * (y2 - y1)) / stride - 0.5, 0, height - 1)
            left, top = min(int(x), width - 2), min(int(y), height - 2)
            dx, dy = x - left, y - top
            four = plane[:, top : top + 2, left : left + 2]
            values.append(
                (1 - dx) * (1 - dy) * four[:, 0, 0]
                + dx * (1 - dy) * four[:, 0, 1]
                + (1 - dx) * dy * four[:, 1, 0]
                + dx * dy * four[:, 1, 1]
            )
    return np.mean(values, axis=0)


def test_boxes_are_pooled_as_roi_align_says():
    plane = RNG.normal(size=(5, 6, 8)).astype(np.float32)
    boxes = np.array([[3, 5, 40, 30], [0, 0, 64, 48], [60, 44, 64, 48], [-9, -9, 4, 4]], np.float32)
    wanted = [aligned(plane, box, 8) for box in boxes]
    np.testing.assert_allclose(pool_boxes(plane, boxes, (64, 48)), wanted, rtol=1e-4, atol=1e-5)
    assert pool_boxes(plane, boxes[:0], (64, 48)).shape == (0, 5)


def test_twice_the_size_is_the_next_level():
    boxes = [[0, 0, 20, 20], [0, 0, 111, 113], [0, 0, 112, 112], [0, 0, 225, 225], [0, 0, 450, 450], [0, 0, 4000, 4000]]
    assert level_by_size(np.array(boxes, np.float32), (8, 16, 32)).tolist() == [0, 0, 0, 1, 2, 2]


def test_padding_says_nothing_of_an_image():
    letterbox = Letterbox.centred((64, 32), (64, 64))
    plane = np.zeros((1, 24, 4, 4), np.float32)
    plane[:, :, 1:3] = 5
    plane[:, :, [0, 3]] = 1e6  # where the canvas is gray
    pooling = Pooling("image", (COARSE,), False, False)
    (found,) = pooling.pool({"b16": plane}, [letterbox], [detections()])
    assert found.image_features.tolist() == [5.0] * 24
    assert found.features is None


def test_boxes_of_the_original_find_their_place_on_the_canvas():
    letterbox = Letterbox.centred((128, 64), (64, 64))
    plane = np.zeros((1, 16, 8, 8), np.float32)
    plane[:, :, 2:4, 4:8] = 3  # right upper quarter of the picture, which lies in the middle of the canvas
    pooling = Pooling("boxes", (MIDDLE,), True, False)
    boxes = [(80, 8, 120, 24), (8, 40, 50, 60)]
    (found,) = pooling.pool({"b8": plane}, [letterbox], [detections(*boxes)])
    assert found.features[0] == pytest.approx(np.full(16, 3), abs=0.3)
    assert found.features[1] == pytest.approx(np.zeros(16), abs=1e-6)


def test_levels_of_one_width_are_chosen_between_and_others_joined():
    planes = {
        m.name: np.full((1, m.channels, 64 // m.stride, 64 // m.stride), m.stride, np.float32) for m in ANATOMY.maps
    }
    box = Letterbox.stretch((640, 640), (640, 640))
    found = [detections((0, 0, 60, 60), (0, 0, 600, 600))]
    (by_size,) = choose_pooling(ModelSpec(uri="m", features="boxes", features_from="neck"), ANATOMY).pool(
        planes, [box], found
    )
    assert by_size.features[:, 0].tolist() == [8, 16]
    assert by_size.features.shape == (2, 32)
    joined = choose_pooling(ModelSpec(uri="m", features="boxes"), ANATOMY)
    assert joined.names == ("b8", "b16")  # stage 4 knows edges only
    (all_levels,) = joined.pool(planes, [box], found)
    assert all_levels.features[0].tolist() == [8] * 16 + [16] * 24
    assert joined.size == 40


def test_normalised_vectors_have_length_one_and_nothing_stays_nothing():
    plane = RNG.normal(size=(2, 24, 4, 4)).astype(np.float32)
    plane[1] = 0
    pooling = choose_pooling(ModelSpec(uri="m", features="image", features_normalised=True), ANATOMY)
    assert pooling.names == ("b16",)
    found = pooling.pool({"b16": plane}, [Letterbox.stretch((9, 9), (64, 64))] * 2, [detections()] * 2)
    assert np.linalg.norm(found[0].image_features) == pytest.approx(1)
    assert not found[1].image_features.any()


def test_a_part_or_tensor_that_is_not_there():
    bare = Anatomy((64, 64), (COARSE,), (), (), (COARSE,))
    with pytest.raises(SpecError, match=r"model\.features_from: neck, but no neck is found"):
        choose_pooling(ModelSpec(uri="m", features="image", features_from="neck"), bare)
    with pytest.raises(SpecError, match=r"has no map 'x'; take auto, .* such as 'b16'"):
        choose_pooling(ModelSpec(uri="m", features="image", features_from="x"), bare)
    assert choose_pooling(ModelSpec(uri="m"), bare) is None


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_graph_that_lists_weights_as_inputs_has_features(tmp_path, runtime):
    path = tiny_pyramids.picodet(tmp_path / "m.onnx")
    for kind, size in (("image", 384), ("boxes", 96 + 192 + 384)):
        detector = Detector(ModelSpec(uri=str(path), features=kind, runtime=runtime), str(path), "0" * 64)
        assert detector.features["size"] == size
        letterbox = detector.letterbox(100, 80)
        canvas = np.zeros((letterbox.canvas[1], letterbox.canvas[0], 3), np.uint8)
        (found,) = detector.detect(canvas[None], [letterbox])
        vectors = found.image_features if kind == "image" else found.features
        assert vectors.shape[-1] == size


def test_outputs_without_a_batch_axis_name_the_way_out(tmp_path):
    path = tiny_pyramids.nanodet(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="no batch axis") as caught:
        Detector(ModelSpec(uri=str(path)), str(path), "0" * 64)
    assert (caught.value.code, caught.value.key) == ("model.family", "model.family")
