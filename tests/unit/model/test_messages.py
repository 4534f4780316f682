"""Messages of runtimes: the reason is shown, not the C++ code that found it."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from batchdet.errors import ModelError
from batchdet.model.runtimes import load_runtime, one_line
from tests import tiny_onnx

SIGNATURE = (
    "/onnxruntime_src/onnxruntime/core/graph/model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, const "
    "onnxruntime::PathString&, const onnxruntime::IOnnxRuntimeOpSchemaRegistryList*, const onnxruntime::logging::"
    "Logger&, const onnxruntime::ModelOptions&) "
)
TEMPLATE = (
    "/src/core/framework/x.h:46 void onnxruntime::ns::Check(const std::unordered_map<std::__cxx11::basic_string<char>, "
    "int>&, std::function<void(int)>) const [with T = float] "
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"[ONNXRuntimeError] : 1 : FAIL : Load model from /a b/m.onnx failed:{SIGNATURE}Too new: 99", "Too new: 99"),
        (f"{TEMPLATE}Opset 40", "Opset 40"),
        ("Exception from src/inference/src/cpp/core.cpp:132:\nException from src/x.cpp:59:\nNo rule", "No rule"),
        ("plain (text) of a model: x.onnx", "plain (text) of a model: x.onnx"),
        ("see /a/b.cc:12 (unbalanced", "see (unbalanced"),
        ("", "RuntimeError"),
        ("a" * 90 + "\n" + "b" * 900 + " reason", None),
    ],
)
def test_one_line(text: str, shown: str | None) -> None:
    found = one_line(RuntimeError(text))
    if shown is not None:
        assert found == shown
    else:
        assert len(found) == 300
        assert found.startswith("aaa")
        assert found.endswith("b reason")


def changed(tmp_path: Path, ir_version: int = 8, opset: int = 17, kind: str = "") -> Path:
    path = tiny_onnx.end2end(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.ir_version = ir_version
    model.opset_import[0].version = opset
    if kind:
        model.graph.node[0].op_type = kind
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ir_version": 99}, ["Unsupported model IR version: 99", "older opset"]),
        ({"opset": 40}, ["opset 40", "older opset"]),
        ({"kind": "NoSuchOperator"}, ["NoSuchOperator", "ONNX's own operators"]),
    ],
)
def test_what_onnx_runtime_does_not_load(tmp_path: Path, change: dict[str, int], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        load_runtime("onnxruntime", str(changed(tmp_path, **change)), "cpu", 1)  # type: ignore[arg-type]
    assert caught.value.exit_status == 5
    assert all(word in caught.value.message for word in words), caught.value.message
    assert "::" not in caught.value.message
    assert len(caught.value.message) < 400


def test_the_model_itself_loads(tmp_path: Path) -> None:
    runtime = load_runtime("onnxruntime", str(changed(tmp_path)), "cpu", 1)
    assert runtime.run({"images": np.zeros((1, 3, 64, 64), np.float32)})["output0"].shape == (1, 1, 6)
