"""The parts of a detector, found in its graph: as their papers and code describe them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from batchdet.errors import ModelError
from batchdet.model.anatomy import read_anatomy
from batchdet.model.fetch import BUILTIN_SAMPLE, fetch_model
from tests import tiny_onnx, tiny_pyramids

# (stride, channels) of the backbone's stages from stride 8 on, of the neck's levels; millions of parameters; GFLOPs
PUBLISHED = {
    # ultralytics/cfg/models/26/yolo26.yaml and 11/yolo11.yaml at width 0.25; "YOLO26n summary: 2.4M, 5.4 GFLOPs",
    # "YOLO11n: 2.6M, 6.5 GFLOPs" at 640 px, of which 320 px are a quarter
    "yolo26n": (640, [(8, 128), (16, 128), (32, 256)], [(8, 64), (16, 128), (32, 256)], 2.4, 5.4),
    "yolo11n_320": (320, [(8, 128), (16, 128), (32, 256)], [(8, 64), (16, 128), (32, 256)], 2.6, 6.5 / 4),
    # CSPDarknet and PAFPN at depth 0.33, width 0.25; "YOLOX-Nano: 0.91M, 1.08 GFLOPs"
    "yolox_nano_416": (416, [(8, 64), (16, 128), (32, 256)], [(8, 64), (16, 128), (32, 256)], 0.91, 1.08),
    # HGNetv2 atto without its last stage, lite encoder of 64 channels; "DEIMv2-Atto: 0.49M, 0.76 GFLOPs"
    "deimv2_atto_320": (320, [(8, 256), (16, 256)], [(16, 64), (32, 64)], 0.49, 0.76),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_detectors(shared: Path, name: str) -> None:
    canvas, stages, levels, millions, gflops = PUBLISHED[name]
    anatomy = read_anatomy(str(shared / "models" / f"{name}.onnx"), (canvas, canvas))
    assert [(m.stride, m.channels) for m in anatomy.of("backbone") if m.stride >= 8] == stages
    assert [m.stride for m in anatomy.of("backbone") if m.stride < 8] == [2, 4]
    assert [(m.stride, m.channels) for m in anatomy.of("neck")] == levels
    assert [part.name for part in anatomy.parts] == ["backbone", "neck", "head"]
    assert sum(part.parameters for part in anatomy.parts) / 1e6 == pytest.approx(millions, abs=0.03)
    assert sum(part.gflops for part in anatomy.parts) == pytest.approx(gflops, rel=0.08)


def test_the_embedded_detector() -> None:
    anatomy = read_anatomy(fetch_model(BUILTIN_SAMPLE).path, (320, 256))
    assert [(m.stride, m.channels) for m in anatomy.of("backbone")][2:] == [(8, 64), (16, 96), (32, 96)]
    assert [(m.stride, m.channels) for m in anatomy.of("neck")] == [(8, 48), (16, 48), (32, 48)]
    lines = anatomy.describe()
    assert lines[0].startswith("anatomy at 320 x 256 px")
    assert any(line.split()[:6] == ["stride", "32", "96", "channels", "10", "x"] for line in lines)
    assert set(anatomy.to_dict()["parts"]) == {"backbone", "neck", "head"}


def _convolutions(path: Path, widths: list[int], tail: list[onnx.NodeProto], outputs: list[str]) -> Path:
    """Write a chain of convolutions of stride 2 with ReLU, ``stage0`` and on, and what is hung on to it."""
    nodes, weights, before = [], [], 3
    for i, width in enumerate(widths):
        weights.append(numpy_helper.from_array(np.zeros((width, before, 3, 3), np.float32), f"w{i}"))
        source = "images" if i == 0 else f"stage{i - 1}"
        nodes.append(helper.make_node("Conv", [source, f"w{i}"], [f"c{i}"], strides=[2, 2], pads=[1, 1, 1, 1]))
        nodes[-1].attribute.append(helper.make_attribute("kernel_shape", [3, 3]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"stage{i}"]))
        before = width
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, "H", "W"])
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    return tiny_onnx.save(path, helper.make_graph([*nodes, *tail], "chain", [images], infos, weights), {})


def test_a_detector_without_a_neck_is_backbone_and_head(tmp_path: Path) -> None:
    flat = [helper.make_node("Flatten", ["stage2"], ["output0"])]
    anatomy = read_anatomy(str(_convolutions(tmp_path / "m.onnx", [4, 8, 16], flat, ["output0"])), (64, 64))
    assert [(m.stride, m.channels) for m in anatomy.of("backbone")][:2] == [(2, 4), (4, 8)]
    assert anatomy.of("neck") == ()
    parameters = 4 * 3 * 9 + 8 * 4 * 9 + 16 * 8 * 9
    assert sum(part.parameters for part in anatomy.parts) == parameters
    flops = 2 * 9 * (32 * 32 * 4 * 3 + 16 * 16 * 8 * 4 + 8 * 8 * 16 * 8)
    assert sum(part.gflops for part in anatomy.parts) * 1e9 == pytest.approx(flops)
    assert [m.name for m in anatomy.plane] == ["c0", "stage0", "c1", "stage1", "c2", "stage2"]


PHONES = {
    "picodet": (tiny_pyramids.picodet, [(8, 96), (16, 192), (32, 384)], [(s, 96) for s in (8, 16, 32, 64)]),
    "nanodet": (tiny_pyramids.nanodet, [(8, 116), (16, 232), (32, 464)], [(s, 96) for s in (8, 16, 32)]),
    "fastestdet": (tiny_pyramids.fastestdet, [(8, 48), (16, 96), (32, 192)], [(16, 96)]),
}


@pytest.mark.parametrize("name", PHONES)
@pytest.mark.parametrize("canvas", [128, 256])
def test_detectors_for_phones(tmp_path: Path, name: str, canvas: int) -> None:
    make, stages, levels = PHONES[name]
    anatomy = read_anatomy(str(make(tmp_path / "m.onnx", canvas)), (canvas, canvas))
    assert [(m.stride, m.channels) for m in anatomy.of("backbone") if m.stride >= 8] == stages
    assert [(m.stride, m.channels) for m in anatomy.of("neck")] == levels
    assert [part.name for part in anatomy.parts] == ["backbone", "neck", "head"]
    assert not any(part.unknown_products for part in anatomy.parts)


@pytest.mark.parametrize("levels", [64, 96, 128, 256])
@pytest.mark.parametrize("separable_backbone", [False, True])
def test_laterals_belong_to_the_neck_whatever_their_width(
    tmp_path: Path, levels: int, separable_backbone: bool
) -> None:
    path = tiny_pyramids.picodet(tmp_path / "m.onnx", 128, levels, separable_backbone)
    anatomy = read_anatomy(str(path), (128, 128))
    assert [(m.stride, m.channels) for m in anatomy.of("backbone") if m.stride >= 8] == [(8, 96), (16, 192), (32, 384)]
    assert [(m.stride, m.channels) for m in anatomy.of("neck")] == [(s, levels) for s in (8, 16, 32, 64)]


def test_weights_among_the_inputs_and_wrong_notes_change_nothing(tmp_path: Path) -> None:
    path = tiny_pyramids.nanodet(tmp_path / "m.onnx")
    plain = onnx.load(path)
    del plain.graph.input[1:], plain.graph.value_info[:]
    for output in plain.graph.output:
        output.type.tensor_type.ClearField("shape")
    onnx.save(plain, tmp_path / "plain.onnx")
    assert read_anatomy(str(path), (128, 128)) == read_anatomy(str(tmp_path / "plain.onnx"), (128, 128))


def test_products_of_unknown_shape_are_said(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("NonZero", ["images"], ["places"]),  # as many columns as the pixels say
        helper.make_node("Cast", ["places"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["output0"]),
    ]
    weights = [numpy_helper.from_array(np.zeros((4, 2), np.float32), "w")]
    ends = [value("images", TensorProto.FLOAT, ["N", 3, "H", "W"])], [value("output0", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", *ends, weights)
    anatomy = read_anatomy(str(tiny_onnx.save(tmp_path / "m.onnx", graph, {})), (64, 64))
    assert [(part.name, part.parameters, part.unknown_products) for part in anatomy.parts] == [("head", 8, 1)]
    assert anatomy.to_dict()["parts"]["head"]["unknown_products"] == 1
    assert "1 of the head" in anatomy.describe()[-1]


def test_no_graph_no_anatomy(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x07nothing")
    with pytest.raises(ModelError, match="the graph cannot be read"):
        read_anatomy(str(tmp_path / "m.onnx"), (64, 64))
