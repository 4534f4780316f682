import contextlib
import random
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from batchdet.errors import ModelError
from batchdet.model import onnx_file
from batchdet.model.onnx_file import read_onnx
from tests import tiny_onnx


def test_what_a_file_says_about_itself(tmp_path: Path) -> None:
    info = read_onnx(str(tiny_onnx.convolution(tmp_path / "model.onnx")))
    assert (info.ir_version, info.producer, info.opsets, info.node_count) == (8, "tests", {"": 17}, 2)
    assert info.metadata == {"stride": "2", "note": "ünïcode"}


@pytest.mark.parametrize("location", ["weights.bin", "../../etc/passwd", "/etc/passwd"])
@pytest.mark.acceptance("S5")
def test_external_data_is_refused(tmp_path: Path, location: str) -> None:
    path = tiny_onnx.with_external_data(tmp_path / "model.onnx", location)
    with pytest.raises(ModelError, match="keeps weights in other files"):
        read_onnx(str(path))


@pytest.mark.acceptance("S5")
def test_external_data_in_an_attribute_of_a_nested_graph_is_refused(tmp_path: Path) -> None:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1])
    tensor.external_data.add(key="location", value="x")
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "inner", [], [])
    node = helper.make_node("If", ["images"], ["output0"], then_branch=inner, else_branch=inner)
    path = tiny_onnx.save(tmp_path / "model.onnx", helper.make_graph([node], "outer", [], []), {})
    with pytest.raises(ModelError, match="keeps weights in other files"):
        read_onnx(str(path))


@pytest.mark.acceptance("S5")
def test_external_data_in_a_sparse_tensor_is_refused(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    values.external_data.add(key="location", value="x")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    graph = helper.make_graph([], "g", [], [])
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    with pytest.raises(ModelError, match="keeps weights in other files"):
        read_onnx(str(tiny_onnx.save(tmp_path / "model.onnx", graph, {})))


@pytest.mark.acceptance("S6")
def test_custom_operators_are_refused(tmp_path: Path) -> None:
    path = tiny_onnx.with_custom_operator(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"custom operators \('com\.example\.evil'\)"):
        read_onnx(str(path))


def test_functions_of_the_model_itself_are_no_custom_operators(tmp_path: Path) -> None:
    path = tiny_onnx.with_custom_operator(tmp_path / "model.onnx")
    model = onnx.load(path)
    body = [helper.make_node("Identity", ["x"], ["y"])]
    model.functions.append(
        helper.make_function("com.example.evil", "Evil", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    )
    path.write_bytes(model.SerializeToString())
    assert read_onnx(str(path)).opsets["com.example.evil"] == 1


@pytest.mark.acceptance("S7")
def test_a_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_onnx.end2end(tmp_path / "model.onnx")
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 100)
    with pytest.raises(ModelError, match="at most 100 bytes"):
        read_onnx(str(path))


def test_every_cut_is_refused(tmp_path: Path) -> None:
    whole = tiny_onnx.end2end(tmp_path / "model.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    accepted = 0
    for length in range(1, len(whole), 7):
        path.write_bytes(whole[:length])
        try:
            read_onnx(str(path))
        except ModelError:
            continue
        accepted += 1
    assert accepted <= 3  # a cut between two fields behind the graph leaves a smaller but whole file


@pytest.mark.acceptance("S24")
def test_mutations_give_model_errors_only(tmp_path: Path) -> None:
    whole = tiny_onnx.convolution(tmp_path / "model.onnx").read_bytes()
    path = tmp_path / "mutated.onnx"
    chance = random.Random(0)
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data)
        with contextlib.suppress(ModelError):
            read_onnx(str(path))


def _message(number: int, payload: bytes) -> bytes:
    length, head = len(payload), bytearray([number << 3 | 2])
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(head) + bytes([length]) + payload


@pytest.mark.acceptance("S7")
def test_graphs_nested_without_end_are_refused(tmp_path: Path) -> None:
    graph = b""
    for _ in range(1000):  # a node with an attribute that is a graph
        graph = _message(1, _message(5, _message(6, graph)))
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08" + _message(8, b"\x10\x11") + _message(7, graph))
    start = time.perf_counter()
    with pytest.raises(ModelError, match="not an ONNX model"):
        read_onnx(str(path))
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("domain", ["", "TRT"])
def test_plug_ins_of_tensorrt_are_named(tmp_path: Path, domain: str) -> None:
    value = helper.make_tensor_value_info
    node = helper.make_node("EfficientNMS_TRT", ["images"], ["num_dets"], domain=domain)
    images, output = (
        value("images", TensorProto.FLOAT, ["N", 3, 64, 64]),
        value("num_dets", TensorProto.INT32, ["N", 1]),
    )
    path = tiny_onnx.save(
        tmp_path / "m.onnx",
        helper.make_graph([node], "nms", [images], [output]),
        {},
        {"": 17} | ({domain: 1} if domain else {}),
    )
    with pytest.raises(ModelError) as caught:
        read_onnx(str(path))
    assert caught.value.code == "model.custom_operators"
    assert "EfficientNMS_TRT" in caught.value.message
    assert "without NMS" in caught.value.message
