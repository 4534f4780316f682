"""One suite that every runtime passes."""

import builtins
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchdet.errors import ClusterError, MissingExtra, ModelError, SpecError
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Precision, Runtime, Silu, TensorInfo, load_runtime
from batchdet.model.runtimes.openvino import has_bf16
from tests import tiny_onnx, tiny_torch
from tests.preprocessing import PREPROCESSES, planes_of

REPOSITORY = Path(__file__).parents[2]
RUNTIMES = ("onnxruntime", "openvino")
TORCH_FILES = ("torchscript", "pt2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_onnx.convolution(tmp_path_factory.mktemp("model") / "convolution.onnx")


def load(name: str, model: Path) -> Runtime:
    """Load the tiny model by a runtime of ONNX files, or as a file of PyTorch."""
    if name in TORCH_FILES:
        pytest.importorskip("torch")
        path = model.with_suffix(f".{name}")
        return load_runtime("torch", str(path if path.exists() else tiny_torch.convolution(path)), "cpu", 1)
    pytest.importorskip(name)
    return load_runtime(name, str(model), "cpu", 1)


@pytest.fixture(scope="module", params=RUNTIMES + TORCH_FILES)
def runtime(request: pytest.FixtureRequest, model: Path) -> Runtime:
    return load(request.param, model)


def images(batch: int, height: int, width: int) -> Any:
    return np.random.default_rng(0).normal(size=(batch, 3, height, width)).astype(np.float32)


def test_it_says_what_it_is(runtime: Runtime) -> None:
    assert runtime.name.split()[0] in (*RUNTIMES, "torch")
    assert runtime.name.split()[1][0].isdigit()
    assert "CPU" in runtime.provider


def test_signatures(runtime: Runtime) -> None:
    assert list(runtime.inputs) == [TensorInfo("images", "float32", (None, 3, None, None))]
    if not runtime.name.startswith("torch"):  # whose files do not name their outputs
        assert [o.name for o in runtime.outputs] == ["features", "squares"]
        assert [o.shape[1] for o in runtime.outputs] == [4, 4]
    assert str(runtime.inputs[0]) == "images float32 [?, 3, ?, ?]"


def test_metadata_comes_from_the_file(runtime: Runtime) -> None:
    assert runtime.metadata == {"stride": "2", "note": "ünïcode"}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 12), (2, 6, 4)])
def test_free_axes_are_free(runtime: Runtime, shape: tuple[int, int, int]) -> None:
    outputs = runtime.run({"images": images(*shape)})
    assert {name: a.shape for name, a in outputs.items()} == dict.fromkeys(
        ("features", "squares"), (shape[0], 4, shape[1] // 2, shape[2] // 2)
    )
    np.testing.assert_allclose(outputs["squares"], outputs["features"] ** 2, rtol=1e-6)


def test_images_of_a_batch_do_not_touch_each_other(runtime: Runtime) -> None:
    batch = images(3, 8, 8)
    whole = runtime.run({"images": batch})["features"]
    alone = np.concatenate([runtime.run({"images": batch[i : i + 1]})["features"] for i in range(3)])
    np.testing.assert_allclose(whole, alone, rtol=1e-5, atol=1e-6)


def test_a_result_is_not_overwritten_by_the_next(runtime: Runtime) -> None:
    first = runtime.run({"images": images(1, 8, 8)})["features"]
    kept = first.copy()
    runtime.run({"images": images(1, 8, 8) * 2})
    np.testing.assert_array_equal(first, kept)


def test_wrong_input_is_a_model_error_of_one_line(runtime: Runtime) -> None:
    with pytest.raises(ModelError) as caught:
        runtime.run({"images": np.zeros((1, 5, 8, 8), np.float32)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("name", ["openvino", *TORCH_FILES])
def test_runtimes_agree(name: str, rows: int, model: Path) -> None:
    batch = images(rows, 32, 32)
    one, other = (load(each, model).run({"images": batch}) for each in ("onnxruntime", name))
    np.testing.assert_allclose(one["features"], other["features"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), [("torch", "onnx"), ("openvino", "torchscript"), ("tensorrt", "pt2")])
def test_a_runtime_that_does_not_run_such_files_says_which_does(name: str, kind: str, model: Path) -> None:
    pytest.importorskip("torch")
    if kind != "onnx":
        load(kind, model)
    with pytest.raises(SpecError, match=rf"model\.runtime: {name} does not run an? .* file; take auto or "):
        load_runtime(name, str(model.with_suffix(f".{kind}")), "cpu", 1)


@pytest.mark.parametrize("kind", TORCH_FILES)
def test_a_damaged_file_of_pytorch_is_a_model_error(kind: str, model: Path, tmp_path: Path) -> None:
    load(kind, model)
    with zipfile.ZipFile(model.with_suffix(f".{kind}")) as whole, zipfile.ZipFile(tmp_path / "m", "w") as harmed:
        for name in whole.namelist():
            inside = whole.read(name)
            harmed.writestr(name, inside[:3] if name.endswith((".py", "model.json")) else inside)
    with pytest.raises(ModelError, match="PyTorch cannot load the model") as caught:
        load_runtime("auto", str(tmp_path / "m"), "cpu", 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_graph_that_makes_no_sense_is_a_model_error(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    node = helper.make_node("NoSuchOperator", ["images"], ["output0"])
    infos = [value("images", TensorProto.FLOAT, [1])], [value("output0", TensorProto.FLOAT, [1])]
    path = tiny_onnx.save(tmp_path / "odd.onnx", helper.make_graph([node], "odd", *infos), {})
    with pytest.raises(ModelError, match="cannot load the model") as caught:
        load_runtime(name, str(path), "cpu", 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "device", "extra"), [
    ("onnxruntime", "cpu", "cpu"), ("onnxruntime", "gpu", "gpu"), ("openvino", "cpu", "cpu"),
])  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(
    name: str, device: Any, extra: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def fails(module: str, *rest: Any) -> Any:
        if module == name:
            raise ImportError(module)
        return real(module, *rest)

    monkeypatch.setattr(builtins, "__import__", fails)
    with pytest.raises(MissingExtra, match=rf"pip install '?{name}[^ ]*>=.* with the extra {extra}\)") as caught:
        load_runtime(name, str(model), device, 1)
    assert caught.value.key == (f"{name}-gpu" if device == "gpu" else name)


@pytest.mark.parametrize("name", RUNTIMES)
def test_no_gpu_is_an_error_and_never_the_cpu(name: str, model: Path) -> None:
    package = pytest.importorskip(name)
    if name == "onnxruntime" and "CUDAExecutionProvider" in package.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(ClusterError, match=r"compute\.device: gpu"):
        load_runtime(name, str(model), "gpu", 1)


@pytest.mark.parametrize("preprocess", PREPROCESSES, ids=str)
@pytest.mark.parametrize("name", RUNTIMES + TORCH_FILES)
def test_canvases_are_what_the_input_wants(name: str, preprocess: Preprocess, model: Path) -> None:
    runtime = load(name, model)
    canvases = np.random.default_rng(1).integers(0, 256, (2, 8, 12, 3), np.uint8)
    planes = planes_of(canvases, preprocess)
    wanted = runtime.run({"images": planes})["features"]
    if runtime.take_canvases("images", preprocess):
        assert runtime.inputs[0].dtype == "float32", "the signature stays the model's own"
        found = runtime.run({"images": canvases})["features"]
    else:
        found = runtime.run({"images": planes})["features"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_bf16_is_near_fp32_or_refused(model: Path) -> None:
    pytest.importorskip("openvino")
    if not has_bf16():
        with pytest.raises(ClusterError, match="this processor has no bf16"):
            load_runtime("openvino", str(model), "cpu", 1, "bf16")
        return
    batch = images(1, 64, 64)
    exact, near = (load_runtime("openvino", str(model), "cpu", 1, p) for p in ("fp32", "bf16"))
    assert (exact.precision, near.precision) == ("fp32", "bf16")
    one, other = exact.run({"images": batch})["features"], near.run({"images": batch})["features"]
    np.testing.assert_allclose(other, one, atol=0.02 * np.abs(one).max())


def test_a_canvas_with_a_graph_of_its_own_gives_the_same(model: Path) -> None:
    pytest.importorskip("openvino")
    shared, own = (load_runtime("openvino", str(model), "cpu", 1, "fp32", graphs) for graphs in ([], [(96, 64)]))
    for runtime in (shared, own):
        assert runtime.take_canvases("images", Preprocess())
    for height, width in ((64, 96), (96, 64), (64, 96)):
        canvas = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
        one, other = (runtime.run({"images": canvas})["features"] for runtime in (shared, own))
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4 * np.abs(one).max())
    assert set(own._requests) == {None, (96, 64)}  # type: ignore[attr-defined]
    assert set(shared._requests) == {None}  # type: ignore[attr-defined]


def test_bf16_of_onnx_runtime_is_refused(model: Path) -> None:
    with pytest.raises(SpecError, match=r"model\.precision: bf16 needs model\.runtime: openvino"):
        load_runtime("onnxruntime", str(model), "cpu", 1, "bf16")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_openvino_leaves_no_signal_stack_of_its_own_behind(precision: str, model: Path) -> None:
    """It would free it with its plug-in while the kernel goes on using it: the next signal would end the process."""
    pytest.importorskip("openvino")
    if precision == "bf16" and not has_bf16():
        pytest.skip("this processor has no bf16")
    code = f"""
import ctypes
import numpy as np
from batchdet.model.runtimes import load_runtime
from batchdet.model.runtimes.openvino import _SignalStack
def stack():
    found = _SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.start, found.size
before = stack()
runtime = load_runtime("openvino", {str(model)!r}, "cpu", 1, {precision!r})
runtime.run({{"images": np.zeros((1, 3, 8, 8), np.float32)}})
print(before == stack())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


class TestKeptGraphs:
    """OpenVINO's compiled graphs are kept in the model cache."""

    @pytest.fixture(autouse=True)
    def _own_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("openvino")
        monkeypatch.setenv("BATCHDET_CACHE", str(tmp_path / "cache"))

    def run(self, model: Path, own: bool = True, preprocess: Preprocess | None = None) -> Any:
        graphs = {(8, 8)} if own else set()
        runtime = load_runtime("openvino", str(model), "cpu", 1, "fp32", graphs)
        assert runtime.take_canvases("images", preprocess or Preprocess())
        canvas = np.random.default_rng(1).integers(0, 255, (1, 8, 8, 3), np.uint8)
        return runtime.run({"images": canvas})["features"]

    def kept(self, tmp_path: Path) -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in (tmp_path / "cache/engines").rglob("graph.blob")}

    def test_the_second_reads_back_what_the_first_compiled(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, before = self.run(model), self.kept(tmp_path)
        assert len(before) == 1
        monkeypatch.setattr("batchdet.model.runtimes.openvino.OpenVino._compile", None)
        np.testing.assert_array_equal(self.run(model), first)
        assert self.kept(tmp_path) == before

    def test_whatever_computes_otherwise_has_another(self, model: Path, tmp_path: Path) -> None:
        self.run(model)
        self.run(model, own=False)
        assert len(self.kept(tmp_path)) == 2
        self.run(model, preprocess=Preprocess(scale=1.0))
        assert len(self.kept(tmp_path)) == 3
        other = tiny_onnx.convolution(tmp_path / "other.onnx", seed=4)
        assert not np.array_equal(self.run(other), self.run(model))

    def test_a_damaged_one_is_made_again(self, model: Path, tmp_path: Path) -> None:
        first = self.run(model)
        (file,) = self.kept(tmp_path)
        whole = file.read_bytes()
        for broken in (b"", whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])):
            file.write_bytes(broken)
            np.testing.assert_array_equal(self.run(model), first)
            made = self.kept(tmp_path)
            assert file.read_bytes() != broken
            np.testing.assert_array_equal(self.run(model), first)
            assert self.kept(tmp_path) == made, "it is whole: the next one reads it back"


class TestSilu:
    """OpenVINO computes SiLU by a rational function where it is asked to, in graphs of their own only."""

    @pytest.fixture(autouse=True)
    def _own_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("openvino")
        monkeypatch.setenv("BATCHDET_CACHE", str(tmp_path / "cache"))

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        return tiny_onnx.gated(tmp_path / "gated.onnx")

    def run(self, model: Path, silu: Silu, side: int = 32, precision: Precision = "fp32") -> dict[str, Any]:
        runtime = load_runtime("openvino", str(model), "cpu", 1, precision, {(32, 32)}, silu=silu)
        assert runtime.silus == 2
        assert runtime.take_canvases("images", Preprocess(scale=1 / 64))
        canvas = np.random.default_rng(1).integers(0, 255, (1, side, side, 3), np.uint8)
        return runtime.run({"images": canvas})

    def test_it_is_near(self, model: Path) -> None:
        exact, near = self.run(model, "exact"), self.run(model, "rational")
        assert exact.keys() == near.keys() == {"silu", "mirror", "gate"}
        assert 12 < np.abs(exact["silu"]).max() < 60, "far beyond where it is held fast"
        for name in ("silu", "mirror"):
            off = np.abs(exact[name] - near[name])
            assert 0 < off.max() < 0.0035
            assert off.mean() < 0.001
        np.testing.assert_array_equal(exact["gate"], near["gate"])

    def test_free_canvases_are_exact(self, model: Path) -> None:
        exact, near = self.run(model, "exact", 64), self.run(model, "rational", 64)
        for name in exact:
            np.testing.assert_array_equal(exact[name], near[name])

    def test_in_bf16_it_rounds_as_bf16_does(self, model: Path) -> None:
        if not has_bf16():
            pytest.skip("this processor has no bf16 arithmetic")
        exact, near = self.run(model, "exact"), self.run(model, "rational", precision="bf16")
        plain = self.run(model, "exact", precision="bf16")
        for name in ("silu", "mirror"):
            rounded, approximate = (np.abs(exact[name] - other[name]).mean() for other in (plain, near))
            assert approximate < 2 * rounded

    def test_a_tensor_keeps_its_name(self, model: Path) -> None:
        runtime = load_runtime("openvino", str(model), "cpu", 1, "fp32", {(32, 32)}, silu="rational")
        runtime.tap(["x"])
        assert runtime.take_canvases("images", Preprocess())
        found = runtime.run({"images": np.zeros((1, 32, 32, 3), np.uint8)})
        assert set(found) == {"silu", "mirror", "gate", "x"}

    def test_others_have_no_rational_function(self, model: Path) -> None:
        with pytest.raises(SpecError, match=r"model\.silu: rational needs model\.runtime: openvino, or both auto"):
            load_runtime("onnxruntime", str(model), "cpu", 1, silu="rational")
        assert load_runtime("onnxruntime", str(model), "cpu", 1).silus == 0
