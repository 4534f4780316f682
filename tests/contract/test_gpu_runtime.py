"""What a GPU runs, run on the CPU: the same code with ONNX Runtime's CPU provider, and fakes for the rest."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from batchdet.errors import ClusterError, MissingExtra, ModelError, OutOfDeviceMemory, SpecError
from batchdet.geometry.letterbox import Letterbox
from batchdet.model import detector as detectors
from batchdet.model.cache import engine_folder
from batchdet.model.detector import Detector, open_detector
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Precision, load_runtime, onnxruntime, pinned, tensorrt
from batchdet.model.runtimes.canvas_graph import best_class_graph, best_of
from batchdet.model.runtimes.onnxruntime import Place
from batchdet.records.detections import Detections
from batchdet.spec import ModelSpec
from tests import tiny_onnx
from tests.coco120 import as_rows, detect_all, matched
from tests.preprocessing import PREPROCESSES, planes_of

BOUND = Place("CPUExecutionProvider", "cpu", True)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHDET_CACHE", str(tmp_path / "cache"))


def bound(path: Path, precision: Precision = "fp32", **metadata: str) -> onnxruntime.OnnxRuntime:
    return onnxruntime.OnnxRuntime(str(path), metadata, BOUND, 1, precision)


@pytest.mark.parametrize("preprocess", PREPROCESSES, ids=str)
def test_the_graph_makes_of_canvases_what_its_input_wants(tmp_path: Path, preprocess: Preprocess) -> None:
    path = tiny_onnx.convolution(tmp_path / "m.onnx")
    plain, runtime = load_runtime("onnxruntime", str(path), "cpu", 1), bound(path)
    canvases = np.random.default_rng(1).integers(0, 256, (2, 8, 12, 3), np.uint8)
    wanted = plain.run({"images": planes_of(canvases, preprocess)})["features"]
    np.testing.assert_allclose(runtime.run({"images": planes_of(canvases, preprocess)})["features"], wanted)
    assert runtime.take_canvases("images", preprocess)
    np.testing.assert_allclose(runtime.run({"images": canvases})["features"], wanted, rtol=1e-5, atol=1e-5)
    assert not runtime._session._enable_fallback, "ONNX Runtime would go on without the provider when a run fails"
    assert [(i.name, i.dtype) for i in runtime.inputs] == [("images", "float32")], "the signature stays the model's own"
    assert not plain.take_canvases("images", preprocess), "on a CPU the graph stays as it is"


def test_results_and_shapes_do_not_mix(tmp_path: Path) -> None:
    runtime = bound(tiny_onnx.convolution(tmp_path / "m.onnx"))
    runtime.take_canvases("images", Preprocess(scale=1.0))
    sizes = [(1 + i % 3, 8 + 2 * i) for i in range(onnxruntime._MAX_BUFFERS + 4)]
    pictures = [np.full((n, side, 8, 3), 1 + i, np.uint8) for i, (n, side) in enumerate(sizes)]
    first = [runtime.run({"images": picture})["features"] for picture in pictures]
    again = [runtime.run({"images": picture})["features"] for picture in reversed(pictures)]
    for one, other in zip(first, reversed(again), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(runtime._buffers) <= onnxruntime._MAX_BUFFERS


def test_half_precision_is_near(tmp_path: Path) -> None:
    path = tiny_onnx.convolution(tmp_path / "m.onnx")
    canvases = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8)
    found = {}
    for precision in ("fp32", "fp16"):
        runtime = bound(path, precision)  # type: ignore[arg-type]
        assert runtime.precision == precision
        runtime.take_canvases("images", Preprocess())
        found[precision] = runtime.run({"images": canvases})["features"]
    assert found["fp16"].dtype == np.float32
    difference = np.abs(found["fp16"] - found["fp32"]).max()
    assert 0 < difference < 0.02


@pytest.mark.parametrize(("axis", "shape"), [(1, (2, 7, 50)), (2, (2, 50, 7))])
@pytest.mark.parametrize("opset", [13, 21])
def test_of_class_scores_the_best_leaves_the_device(
    tmp_path: Path, axis: int, shape: tuple[int, ...], opset: int
) -> None:
    values = np.random.default_rng(2).integers(0, 4, shape).astype(np.float32)  # with many ties
    value = onnx.helper.make_tensor_value_info
    model = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "same", [value("x", 1, shape)], [value("y", 1, shape)]
    )
    tiny_onnx.save(tmp_path / "m.onnx", model, {}, {"": opset})
    graph = best_class_graph((tmp_path / "m.onnx").read_bytes(), "y", axis, 4)
    session = importlib.import_module("onnxruntime").InferenceSession(graph, providers=["CPUExecutionProvider"])
    (found,) = session.run([best_of("y")], {"x": values})
    kept, scores = np.split(values, [4], axis)
    wanted = np.concatenate([kept, scores.max(axis, keepdims=True), scores.argmax(axis, keepdims=True)], axis)
    np.testing.assert_array_equal(found, wanted)


def test_a_dense_head_sends_six_channels(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu_code(monkeypatch)
    detector = open_detector(ModelSpec(uri=str(shared / "models/yolo11n_320.onnx")))
    width, height = detector.canvas
    canvases = np.zeros((1, height, width, 3), np.uint8)
    (output,) = detector._infer(canvases, [detector.letterbox(width, height)]).values()
    assert output.shape[1] == 6
    assert detector.signature.output is not None
    assert detector.signature.output.shape[1] == 84, "the card shows the model's own"


def with_gpu_code(monkeypatch: pytest.MonkeyPatch, precision: Precision = "fp32") -> None:
    """Have detectors run what a GPU runs, with the CPU provider."""

    def load(name: str, path: str, device: str, threads: int, *rest: Any) -> Any:
        return onnxruntime.OnnxRuntime(path, detectors.read_onnx(path).metadata, BOUND, threads, precision)

    monkeypatch.setattr(detectors, "load_runtime", load)


@pytest.mark.parametrize("name", ["yolo26n", "yolo11n_320", "yolox_nano_416", "deimv2_atto_320"])
def test_detections_are_those_of_the_hosts_own_preparation(
    name: str, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(uri=str(shared / f"models/{name}.onnx"))
    wanted = as_rows(detect_all(open_detector(spec), shared, first=4), 0)
    with_gpu_code(monkeypatch)
    found = as_rows(detect_all(open_detector(spec), shared, first=4), 0)
    assert sum(map(len, wanted.values())) > 4
    assert matched(found, wanted, iou=0.99, score=0.001) == matched(wanted, found, iou=0.99, score=0.001) == 1


def test_half_precision_finds_the_same(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec(uri=str(shared / "models/yolo26n.onnx"))
    wanted = as_rows(detect_all(open_detector(spec), shared, first=2), 0.3)
    with_gpu_code(monkeypatch, "fp16")
    found = as_rows(detect_all(open_detector(spec), shared, first=2), 0.25)
    assert matched(wanted, found, iou=0.9, score=0.02) == 1


@pytest.mark.parametrize(
    "words",
    [
        "onnxruntime::BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 939524096",
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=x",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
    ],
)
def test_memory_that_runs_out_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    runtime = bound(tiny_onnx.convolution(tmp_path / "m.onnx"))
    image = {"images": np.zeros((1, 3, 8, 8), np.float32)}
    for text, kind in ((words, OutOfDeviceMemory), ("CUDA failure 700: illegal access", ModelError)):

        def fails(*_: Any, text: str = text) -> None:
            raise RuntimeError(text)

        monkeypatch.setattr(runtime, "_run_bound", fails)
        with pytest.raises(ModelError) as caught:
            runtime.run(image)
        assert type(caught.value) is kind


def test_precisions_and_runtimes_that_need_a_gpu_say_so(tmp_path: Path) -> None:
    path = str(tiny_onnx.convolution(tmp_path / "m.onnx"))
    with pytest.raises(ClusterError, match=r"^model\.precision: fp16 is for GPUs"):
        load_runtime("onnxruntime", path, "cpu", 1, "fp16")
    with pytest.raises(ClusterError, match=r"^model\.runtime: tensorrt computes on GPUs"):
        load_runtime("tensorrt", path, "cpu", 1)
    with pytest.raises(SpecError, match=r"^model\.precision: fp16 needs model\.runtime: onnxruntime or tensorrt"):
        load_runtime("openvino", path, "cpu", 1, "fp16")


def test_tensorrt_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtra, match=r"pip install .*'tensorrt-cu13.* with the extra tensorrt"):
        tensorrt.version()


def test_the_gpu_is_asked_for_by_the_number_that_ray_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text('#!/bin/sh\n[ "$3$4" = -i3 ] && echo "NVIDIA H100, 9.0"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    assert tensorrt.gpu() == "NVIDIA H100, 9.0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ClusterError, match="nvidia-smi fails"):
        tensorrt.gpu()


def test_a_profile_reaches_from_one_stride_to_the_largest_batch() -> None:
    free = tensorrt.Profile.around((2, 640, 640), (None, 3, None, None), 64, None)
    assert (free.least, free.usual, free.most) == ((1, 32, 32), (64, 640, 640), (64, 640, 640))
    half = tensorrt.Profile.around((2, 320, 640), (None, 3, None, None), 64, 64)
    assert (half.least, half.most) == ((1, 64, 64), (64, 640, 640))
    fixed = tensorrt.Profile.around((1, 320, 416), (1, 3, 320, 416), 64, None)
    assert fixed.least == fixed.usual == fixed.most == (1, 320, 416)
    chosen = tensorrt.settings("/engines", True, "images", ["sizes"], half)
    assert chosen["trt_fp16_enable"] is True
    assert chosen["trt_profile_min_shapes"] == (
        "images_canvases:1x64x64x3,images_float:1x64x64x3,images:1x3x64x64,sizes:1x2"
    )


def test_engines_are_kept_by_all_that_they_depend_on() -> None:
    profile = tensorrt.Profile((1, 32, 32), (2, 64, 64), (2, 64, 64))
    other = tensorrt.Profile((1, 32, 32), (4, 64, 64), (4, 64, 64))
    keys = {
        tensorrt.engine_key(graph, precision, versions, each)
        for graph in (b"a", b"b")
        for precision in ("fp32", "fp16")
        for versions in (("1.31", "10", "H100, 9.0"), ("1.31", "11", "H100, 9.0"), ("1.31", "10", "A100, 8.0"))
        for each in (profile, other)
    }
    assert len(keys) == 24
    with engine_folder(min(keys)) as folder:
        assert Path(folder).stat().st_mode & 0o777 == 0o700


Opened = list[tuple[Any, tuple[Any, ...]]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Have TensorRT's sessions be opened with the CPU provider; what was asked for: model and providers, in order."""
    asked: Opened = []
    real = onnxruntime.OnnxRuntime._open

    def opens(self: Any, model: Any, *providers: Any) -> Any:
        asked.append((model, providers))
        return real(self, model, "CPUExecutionProvider")

    monkeypatch.setattr(onnxruntime.OnnxRuntime, "_open", opens)
    monkeypatch.setattr(importlib.import_module("onnxruntime"), "get_available_providers", lambda: [tensorrt.PROVIDER])
    monkeypatch.setattr(tensorrt, "version", lambda: "10.9")
    monkeypatch.setattr(tensorrt, "gpu", lambda: "H100, 9.0")
    return asked


def by_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> onnxruntime.OnnxRuntime:
    """Make a runtime that would compute by TensorRT; running it is left to the test."""
    monkeypatch.setattr(onnxruntime, "TENSORRT", Place(tensorrt.PROVIDER, "cuda", True))
    path = tiny_onnx.convolution(tmp_path / "m.onnx")
    return onnxruntime.OnnxRuntime(str(path), {"stride": "2"}, onnxruntime.TENSORRT, 1, "fp16", 16)


def engines(opened: Opened) -> list[dict[str, Any]]:
    """Settings of the sessions that compute; the first shows the outputs, and builds no engine."""
    return [providers[0][1] for _, providers in opened[1:]]


def test_tensorrt_opens_the_graph_that_takes_canvases_with_its_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Opened
) -> None:
    """As far as it goes without a GPU: which sessions are asked for, and with what."""
    runtime = by_tensorrt(tmp_path, monkeypatch)
    assert runtime.name.endswith(", TensorRT 10.9")
    path = tmp_path / "m.onnx"
    assert opened == [(str(path), ("CUDAExecutionProvider",))], "to look at the outputs, no engine is built"
    runtime.take_canvases("images", Preprocess(scale=1.0))
    monkeypatch.setattr(runtime, "_run_bound", lambda feeds, names: [np.zeros(1)] * len(names))
    canvases = {"images": np.zeros((2, 64, 64, 3), np.uint8)}
    runtime.run(canvases)
    runtime.run(canvases)
    ((_, (chosen, behind)),) = opened[1:]
    assert chosen[0] == tensorrt.PROVIDER
    assert behind == "CUDAExecutionProvider"
    assert chosen[1]["trt_profile_max_shapes"].startswith("images_canvases:16x64x64x3,")
    assert Path(chosen[1]["trt_engine_cache_path"]).parent == tmp_path / "cache/engines"


def test_a_session_of_tensorrt_that_failed_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Opened
) -> None:
    runtime = by_tensorrt(tmp_path, monkeypatch)
    runtime.take_canvases("images", Preprocess(scale=1.0))

    def fits(feeds: Any, names: Any) -> list[Any]:
        if len(feeds["images_canvases"]) > 2:
            raise RuntimeError("TensorRT EP execution context enqueue failed.")
        return [np.zeros(1)] * len(names)

    monkeypatch.setattr(runtime, "_run_bound", fits)
    runtime.run({"images": np.zeros((2, 64, 64, 3), np.uint8)})
    first = runtime._session
    with pytest.raises(OutOfDeviceMemory):
        runtime.run({"images": np.zeros((4, 32, 32, 3), np.uint8)})
    runtime.run({"images": np.zeros((2, 32, 32, 3), np.uint8)})
    assert runtime._session is not first
    first_engine, second_engine = engines(opened)
    assert first_engine == second_engine, "the same engine serves again, whatever shape comes first"


def test_tensorrt_does_without_profiles_where_it_wants_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Opened
) -> None:
    runtime = by_tensorrt(tmp_path, monkeypatch)
    runtime.take_canvases("images", Preprocess(scale=1.0))
    opens = onnxruntime.OnnxRuntime._open

    def refuses(self: Any, model: Any, *providers: Any) -> Any:
        if not isinstance(providers[0], str) and "trt_profile_min_shapes" in providers[0][1]:
            raise ModelError("User needs to provide all the dynamic shape inputs with associated profiles")
        return opens(self, model, *providers)

    monkeypatch.setattr(onnxruntime.OnnxRuntime, "_open", refuses)
    monkeypatch.setattr(runtime, "_run_bound", lambda feeds, names: [np.zeros(1)] * len(names))
    runtime.run({"images": np.zeros((2, 64, 64, 3), np.uint8)})
    assert [sorted(each) for each in engines(opened)] == [
        [
            "trt_engine_cache_enable",
            "trt_engine_cache_path",
            "trt_fp16_enable",
            "trt_timing_cache_enable",
            "trt_timing_cache_path",
        ]
    ]


def test_cuda_is_asked_for_exact_products_and_quick_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = importlib.import_module("onnxruntime")
    asked: list[Any] = []

    def session(model: Any, options: Any, providers: Any) -> Any:
        asked.extend(providers)
        known = SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider"], disable_fallback=lambda: None)
        return SimpleNamespace(**vars(known), get_inputs=list, get_outputs=list)

    monkeypatch.setattr(package, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(package, "InferenceSession", session)
    path = tiny_onnx.convolution(tmp_path / "m.onnx")
    runtime = load_runtime("onnxruntime", str(path), "gpu", 1)
    assert runtime.one_shape
    ((provider, options),) = asked
    assert (provider, options["use_tf32"], options["cudnn_conv_algo_search"]) == (
        "CUDAExecutionProvider",
        "0",
        "HEURISTIC",
    )


def test_what_cuda_lacks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = importlib.import_module("onnxruntime")
    monkeypatch.setattr(package, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(package, "InferenceSession", lambda *_, **__: SimpleNamespace(get_providers=list))
    monkeypatch.setattr(package, "preload_dlls", lambda: print("Failed to load libcublasLt.so.13"), raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)  # whose libraries would serve, too
    path = tiny_onnx.convolution(tmp_path / "m.onnx")
    with pytest.raises(ClusterError, match=r"could not start CUDAExecutionProvider .*; Failed to load libcublasLt"):
        load_runtime("onnxruntime", str(path), "gpu", 1)


class TestOneShape:
    """A runtime that loses by every change of shape is given one."""

    @pytest.fixture
    def shapes(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
        """Shapes of the canvases that the runtime was given, in order."""
        with_gpu_code(monkeypatch)
        given: list[tuple[int, ...]] = []
        real = onnxruntime.OnnxRuntime.run

        def run(self: Any, feeds: Any) -> Any:
            given.append(feeds["images"].shape)
            return real(self, feeds)

        monkeypatch.setattr(onnxruntime.OnnxRuntime, "run", run)
        monkeypatch.setattr(onnxruntime.OnnxRuntime, "one_shape", property(lambda _: True, lambda *_: None), False)
        return given

    def detector(self, tmp_path: Path, **canvas: str) -> Detector:
        about = {"names": "{0: 'cat', 1: 'dog'}", "imgsz": "[64, 64]", "stride": "32"}
        path = tiny_onnx.end2end(tmp_path / "m.onnx", images=("N", 3, "H", "W"), **about)
        spec = ModelSpec.model_validate({"uri": str(path), "canvas": canvas})
        return Detector(spec, str(path), "0" * 64)

    def detect(self, detector: Detector, images: int) -> int:
        box = detector.letterbox(128, 64)
        canvases = np.full((images, box.canvas[1], box.canvas[0], 3), 114, np.uint8)
        return len(detector.detect(canvases, [box] * images))

    def test_canvases_are_squares_unless_asked_for(self, tmp_path: Path, shapes: list[tuple[int, ...]]) -> None:
        detector = self.detector(tmp_path)
        assert detector.letterbox(128, 64).canvas == (64, 64)
        assert "prepares itself anew for each other shape" in detector.card.notes[0]
        assert self.detector(tmp_path, shape="rectangle").letterbox(128, 64).canvas == (64, 32)

    def test_a_batch_that_is_not_full_is_filled_up(self, tmp_path: Path, shapes: list[tuple[int, ...]]) -> None:
        detector = self.detector(tmp_path)
        shapes.clear()
        assert [self.detect(detector, images) for images in (5, 3, 5, 1)] == [5, 3, 5, 1]
        assert shapes == [(5, 64, 64, 3)] * 4

    def test_what_the_memory_did_not_hold_is_not_asked_for_again(
        self, tmp_path: Path, shapes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        detector = self.detector(tmp_path)
        real = detector._runtime.run

        def run(feeds: Any) -> Any:
            if len(feeds["images"]) > 4:
                raise OutOfDeviceMemory("no memory")
            return real(feeds)

        monkeypatch.setattr(detector._runtime, "run", run)
        shapes.clear()
        with pytest.raises(OutOfDeviceMemory):
            self.detect(detector, 8)
        assert [self.detect(detector, images) for images in (4, 1)] == [4, 1]
        assert shapes == [(4, 64, 64, 3)] * 2


def test_memory_is_pinned_where_cuda_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []

    def cuda(status: int) -> Any:
        return SimpleNamespace(
            cudaHostRegister=lambda address, size, flags: calls.append(("pin", size.value)) or status,
            cudaHostUnregister=lambda address: calls.append(("unpin", 0)),
        )

    assert pinned._cuda() is None, "nothing of CUDA is loaded here"
    for status, expected in ((0, [("pin", 100), ("unpin", 0)]), (2, [("pin", 100)])):
        calls.clear()
        monkeypatch.setattr(pinned, "_cuda", lambda status=status: cuda(status))
        buffer = pinned.pinned_buffer(100)
        assert (buffer.dtype, buffer.shape) == (np.uint8, (100,))
        view = buffer[:12].reshape(3, 4)
        del buffer
        assert calls == [("pin", 100)], "a view keeps it"
        del view
        assert calls == expected


def test_a_detector_never_mixes_what_its_letterboxes_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu_code(monkeypatch)
    about = {"names": "{0: 'cat', 1: 'dog'}", "imgsz": "[64, 64]", "stride": "32"}
    path = tiny_onnx.end2end(tmp_path / "m.onnx", ((8, 8, 24, 24, 0.9, 1),), **about)
    detector = Detector(ModelSpec(uri=str(path)), str(path), "0" * 64)
    box: Letterbox = detector.letterbox(128, 64)
    (found,) = detector.detect(np.full((1, 32, 64, 3), 114, np.uint8), [box])
    assert isinstance(found, Detections)
    assert found.class_ids.tolist() == [1]
