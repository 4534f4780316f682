"""Rewrites of OpenVINO's graphs: the same bits come out, and what was in the way is gone."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from batchdet.model.runtimes.channels_last import straighten, take_rows

ov = pytest.importorskip("openvino")
ops = pytest.importorskip("openvino.opset13")
SHARED = Path(os.environ.get("BATCHDET_SHARED", Path(__file__).parents[4] / "shared"))
CLASSES, WANTED = 7, 5
RNG = np.random.default_rng(7)
WEIGHTS = [RNG.normal(size=(4 + CLASSES, 3, 3, 3)).astype(np.float32) for _ in range(2)]


def axes(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


def head(canvas: Any, order: tuple[int, ...] = (0, 2, 1), lengths: tuple[int, ...] = (4, CLASSES)) -> Any:
    """Build YOLO26's head in small: two maps, joined, transposed, split, of which the best rows are taken.

    Args:
        canvas: uint8 ``(1, height, width, 3)``.
        order: Of the transposition.
        lengths: Of the split.
    """
    planes = ops.transpose(ops.convert(canvas, "f32"), axes(0, 3, 1, 2))
    sides: list[list[Any]] = [[], []]
    for stride, weights in zip((1, 2), WEIGHTS, strict=True):
        for side, kept in zip(sides, (weights[:4], weights[4:]), strict=True):
            found = ops.convolution(planes, ops.constant(kept), [stride] * 2, [1, 1], [1, 1], [1, 1])
            side.append(ops.reshape(ops.multiply(found, np.float32(1e-3)), axes(1, len(kept), -1), False))
    boxes, scores = ops.concat(sides[0], 2), ops.sigmoid(ops.concat(sides[1], 2))
    turned = ops.transpose(ops.concat([boxes, scores], 1), axes(*order))
    return ops.variadic_split(turned, np.int64(-1), axes(*lengths))


def chosen(split: Any) -> list[Any]:
    """Take the rows of the best scores, and their boxes."""
    boxes, scores = split.outputs()
    best = ops.topk(ops.reduce_max(scores, axes(-1), False), np.int64(WANTED), 1, "max", "value")
    rows = ops.unsqueeze(best.output(1), axes(2))
    taken = [
        ops.gather_elements(side, ops.broadcast(rows, axes(1, WANTED, size)), 1)
        for side, size in ((boxes, 4), (scores, CLASSES))
    ]
    return [*taken, best.output(0)]


def build(outputs: Callable[[Any], list[Any]], shape: tuple[int, ...] = (1, 16, 24, 3)) -> Any:
    canvas = ops.parameter(shape, np.uint8)
    canvas.output(0).set_names({"images"})
    return ov.Model([ops.result(output) for output in outputs(canvas)], [canvas])


def run(model: Any, canvas: Any) -> list[Any]:
    if len(model.inputs[0].partial_shape) == 3:
        canvas = canvas.reshape(*canvas.shape[:2], -1)
    found = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({0: canvas})
    return [found[i] for i in range(len(found))]


def kinds(model: Any) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ordered_ops())


def canvas_of(height: int = 16, width: int = 24) -> Any:
    return np.random.default_rng(3).integers(0, 256, (1, height, width, 3), np.uint8)


def check_same(model: Any, rewrites: int, rows: bool = True) -> Any:
    """Rewrite a model, and hold that the same bits come out."""
    before = run(model, canvas_of())
    rewritten = model.clone()
    assert straighten(rewritten) == rewrites
    assert take_rows(rewritten, "images") == rows
    for one, other in zip(before, run(rewritten, canvas_of()), strict=True):
        np.testing.assert_array_equal(other, one)
    return rewritten


def test_nothing_is_joined_to_be_split_again() -> None:
    model = build(lambda canvas: chosen(head(canvas)))
    rewritten = check_same(model, 5)
    assert (kinds(model)["VariadicSplit"], kinds(rewritten)["VariadicSplit"]) == (1, 0)
    assert kinds(rewritten)["Concat"] == 2, "the levels of boxes and those of scores"
    gates = [node for node in rewritten.get_ordered_ops() if node.get_type_name() == "Sigmoid"]
    assert [node.get_output_shape(0) for node in gates] == [[1, 16 * 24 + 8 * 12], [1, WANTED, CLASSES]]
    assert rewritten.inputs[0].get_names() == {"images"}


def test_free_shapes_stay_free() -> None:
    model = build(lambda canvas: chosen(head(canvas)), (1, -1, -1, 3))
    rewritten = check_same(model, 5)
    for height, width in ((8, 40), (24, 16)):
        canvas = canvas_of(height, width)
        for one, other in zip(run(model, canvas), run(rewritten, canvas), strict=True):
            np.testing.assert_array_equal(other, one)


def test_scores_that_go_out_whole_go_out_as_scores() -> None:
    def outputs(canvas: Any) -> list[Any]:
        split = head(canvas)
        return [*chosen(split), *split.outputs()]

    rewritten = check_same(build(outputs), 5)
    assert kinds(rewritten)["Sigmoid"] == 3


def test_another_split_is_left_alone() -> None:
    rewritten = check_same(build(lambda canvas: head(canvas, lengths=(3, CLASSES + 1)).outputs()), 0)
    assert kinds(rewritten)["VariadicSplit"] == 1


def test_another_order_is_left_alone() -> None:
    check_same(build(lambda canvas: [head(canvas, order=(0, 1, 2), lengths=(4, 476))]), 0)


def test_rows_that_are_no_maps_are_left_alone() -> None:
    def outputs(canvas: Any) -> list[Any]:
        rows = ops.reshape(ops.convert(canvas, "f32"), axes(1, 3, -1), False)
        return [ops.transpose(ops.sigmoid(ops.concat([rows, rows], 2)), axes(0, 2, 1))]

    check_same(build(lambda canvas: outputs(ops.reshape(canvas, axes(1, 3, 16, 24), False))), 1, rows=False)
    check_same(build(lambda canvas: outputs(ops.reshape(canvas, axes(1, 1152), False))), 0, rows=False)


def test_only_canvases_are_taken_as_rows() -> None:
    other = build(lambda canvas: [ops.convert(canvas, "f32")], (1, 16, 24, 4))
    assert not take_rows(other, "images")
    assert other.inputs[0].shape == [1, 16, 24, 4]


@pytest.mark.parametrize(
    ("name", "colours", "rewrites"),
    [("yolo26n.onnx", "RGB", 5), ("yolo11n_320.onnx", "RGB", 0), ("yolox_nano_416.onnx", "BGR", 1)],
)
def test_real_models_give_the_same_bits(name: str, colours: str, rewrites: int) -> None:
    path = SHARED / "models" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    from openvino.preprocess import PrePostProcessor

    model = ov.Core().read_model(path)
    steps = PrePostProcessor(model)
    image = steps.input(0)
    image.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    image.model().set_layout(ov.Layout("NCHW"))
    if colours == "BGR":
        image.preprocess().reverse_channels()
    image.preprocess().convert_element_type(ov.Type.f32).scale(255.0)
    model = steps.build()
    rewritten = model.clone()
    assert straighten(rewritten) == rewrites
    assert take_rows(rewritten, "images") == (colours == "RGB")
    side = 416 if "416" in name else 320
    photograph = cv2.resize(cv2.imread(str(next((SHARED / "images").rglob("*.jpg")))), (side, side))[None]
    for one, other in zip(run(model, photograph), run(rewritten, photograph), strict=True):
        np.testing.assert_array_equal(other, one)
