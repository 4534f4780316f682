"""ONNX Runtime: on the CPU, by CUDA, by TensorRT."""

import contextlib
import importlib
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from batchdet.errors import ClusterError, ModelError, OutOfDeviceMemory
from batchdet.model.anatomy import Anatomy, read_anatomy
from batchdet.model.cache import engine_folder
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import (
    Device,
    Precision,
    Tensor,
    TensorInfo,
    free_axis,
    missing,
    no_memory,
    one_line,
    tensorrt,
)
from batchdet.model.runtimes.canvas_graph import best_class_graph, best_of, canvas_graph, canvases_of, with_outputs
from batchdet.packages import install_command

_DTYPES: Final = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
_TENSORRT_FAILS: Final = ("execution context enqueue failed", "could not build execution context")
"""All that TensorRT says of a batch that does not fit; its log has the reason."""
_PLANS_SINCE: Final = (1, 20)
"""From this version on the CUDA provider plans a convolution anew whenever its input's shape is not that of the run
before, which takes longer than to compute it (microsoft/onnxruntime, issue 23006)."""
_NEWEST_OPSET: Final = re.compile(r"Opset (\d+) is under development.* is till opset (\d+)")
_MAX_BUFFERS: Final = 16
"""So many shapes of input keep their memory on the device; partial batches would fill it otherwise."""


@dataclass(frozen=True)
class Place:
    """Where a session computes.

    Args:
        provider: ONNX Runtime's name of it.
        memory: ONNX Runtime's name of its memory.
        bound: Keep input buffers there, and have the graph take canvases. On a CPU that would only copy once more.
    """

    provider: str
    memory: Literal["cpu", "cuda"]
    bound: bool


CPU: Final = Place("CPUExecutionProvider", "cpu", False)
CUDA: Final = Place("CUDAExecutionProvider", "cuda", True)
TENSORRT: Final = Place(tensorrt.PROVIDER, "cuda", True)


_CUDA_OPTIONS: Final = {
    # the arena would otherwise grow in powers of two, which two actors of a GPU compete for
    "arena_extend_strategy": "kSameAsRequested",
    # trying every algorithm takes seconds for each new shape
    "cudnn_conv_algo_search": "HEURISTIC",
    # fp32 is fp32: with TF32 products keep 10 bits
    "use_tf32": "0",
}


class OnnxRuntime:
    """One model; see :class:`batchdet.model.runtimes.Runtime`.

    On a GPU the session that computes is made by the first ``run`` with canvases, whose side is the largest that will
    come; until then the file as it is runs in fp32 by CUDA, to show the shapes of its outputs.

    Args:
        path: The ONNX file.
        metadata: Its key-value texts.
        place: Where it computes.
        threads: Threads of one ``run`` on the CPU.
        precision: ``fp32``, or ``fp16`` on a GPU.
        largest_batch: No ``run`` is given more images; an engine of TensorRT is built for so many.
    """

    batch_rows = None
    preprocess = None
    silus = 0

    def __init__(
        self,
        path: str,
        metadata: Mapping[str, str],
        place: Place = CPU,
        threads: int = 1,
        precision: Precision = "fp32",
        largest_batch: int = 64,
    ) -> None:
        device: Device = "cpu" if place.memory == "cpu" else "gpu"
        try:
            import onnxruntime
        except ImportError as error:
            raise missing("onnxruntime", device) from error
        self.name = f"onnxruntime {onnxruntime.__version__}"
        self.provider = place.provider
        self.precision = precision
        self.metadata = metadata
        self._path, self._place, self._largest_batch = path, place, largest_batch
        self._source: str | bytes = path
        self._taps: tuple[str, ...] = ()
        if self.provider not in onnxruntime.get_available_providers():
            raise ClusterError(
                f"compute.device: gpu needs ONNX Runtime's {self.provider}, and the installed {self.name} has none: "
                f"{install_command('gpu', 'onnxruntime-gpu')} in place of onnxruntime, or set compute.device to cpu"
            )
        version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
        self.one_shape = place == CUDA and version >= _PLANS_SINCE
        self._not_found = _load_cuda() if device == "gpu" else ""
        self._engine_versions: list[str] = []
        if place == TENSORRT:
            if precision == "fp32":
                os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # before its libraries look for it
            self._engine_versions = [self.name, tensorrt.version(), tensorrt.gpu()]
            self.name += f", TensorRT {self._engine_versions[1]}"
        self._options = onnxruntime.SessionOptions()
        self._options.log_severity_level = 3  # exports cause dozens of graph warnings that tell a user nothing
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._session = self._open(path, (CUDA if place == TENSORRT else place).provider)
        self._graph: bytes | None = None
        self._largest: tuple[int, int, int] | None = None
        self._renamed: dict[str, str] = {}
        self._buffers: dict[tuple[str, str, tuple[int, ...]], Any] = {}
        self.inputs = _infos(self._session.get_inputs())
        self.outputs = _infos(self._session.get_outputs())

    def anatomy(self, canvas: tuple[int, int]) -> Anatomy:
        """Find the parts in the file's graph."""
        return read_anatomy(self._path, canvas)

    def tap(self, names: Sequence[str]) -> None:
        """Make outputs of inner tensors; the file stays as it is."""
        self._source = with_outputs(self._path, names, "cpu" if self._place.memory == "cpu" else "gpu")
        self._taps = tuple(names)
        if not self._place.bound:  # otherwise the session that computes is made of it later
            self._session = self._open(self._source, self.provider)

    def take_canvases(self, name: str, preprocess: Preprocess) -> bool:
        """Put colour order, scaling and layout into the graph on a GPU; on a CPU the graph is used as it is."""
        if not self._place.bound:
            return False
        half = self.precision == "fp16" and self._place != TENSORRT  # which chooses by itself what it computes in fp16
        self._graph, self._session = canvas_graph(self._source, name, preprocess, half), None
        self._renamed = {name: canvases_of(name)}
        return True

    def keep_best_class(self, name: str, axis: int, first: int) -> bool:
        """Drop all class scores but the best on a GPU; behind :meth:`take_canvases`, before the first run with them."""
        if self._graph is None:
            return False
        self._graph = best_class_graph(self._graph, name, axis, first)
        self._renamed[name] = best_of(name)
        return True

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute all outputs."""
        if self._session is None and self._graph is not None:
            self._session = self._open_graph(self._graph, feeds)
            if self._place != TENSORRT:
                self._graph = None  # its bytes are needed no more
        names = [*(o.name for o in self.outputs), *self._taps]
        inside = [self._renamed.get(name, name) for name in names]
        try:
            if self._place.bound:
                arrays = self._run_bound({self._renamed.get(name, name): a for name, a in feeds.items()}, inside)
            else:
                arrays = self._session.run(names, dict(feeds))
        except Exception as error:
            text = f"ONNX Runtime failed on this input: {one_line(error)}"
            no_room = no_memory(error)
            if self._place == TENSORRT and any(words in str(error).lower() for words in _TENSORRT_FAILS):
                # its session would end the process if it were used again (microsoft/onnxruntime, issue 26655)
                self._session, no_room = None, True
            raise (OutOfDeviceMemory if no_room else ModelError)(text) from error
        return dict(zip(names, arrays, strict=True))

    def _run_bound(self, feeds: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
        """Copy inputs into the device's buffers, compute there, and copy outputs back."""
        binding = self._session.io_binding()
        for name, array in feeds.items():
            buffer = self._buffer(name, array)
            buffer.update_inplace(array)
            binding.bind_ortvalue_input(name, buffer)
        for name in names:
            binding.bind_output(name, self._place.memory)
        self._session.run_with_iobinding(binding)
        arrays: list[Tensor] = binding.copy_outputs_to_cpu()
        return arrays

    def _buffer(self, name: str, array: Tensor) -> Any:
        from onnxruntime import OrtValue

        key = (name, array.dtype.name, array.shape)
        if key not in self._buffers:
            if len(self._buffers) >= _MAX_BUFFERS:
                del self._buffers[next(iter(self._buffers))]
            self._buffers[key] = OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, self._place.memory)
        return self._buffers[key]

    def _open_graph(self, graph: bytes, feeds: Mapping[str, Tensor]) -> Any:
        """Make the session that takes canvases."""
        if self._place != TENSORRT:
            return self._open(graph, self.provider)
        name = next(info.name for info in self.inputs if info.name in self._renamed)
        self._largest = self._largest or feeds[name].shape[:3]
        declared = next(info.shape for info in self.inputs if info.name == name)
        stride = self.metadata.get("stride", "")
        profile = tensorrt.Profile.around(
            self._largest, declared, self._largest_batch, int(stride) if stride.isdigit() else None
        )
        others = [info.name for info in self.inputs if info.name != name]
        with engine_folder(tensorrt.engine_key(graph, self.precision, self._engine_versions, profile)) as folder:
            chosen = tensorrt.settings(folder, self.precision == "fp16", name, others, profile)
            try:
                return self._open(graph, (self.provider, chosen), CUDA.provider)
            except ModelError:
                # where it leaves out a node inside, it wants a profile for tensors that have no name here
                chosen = {key: value for key, value in chosen.items() if not key.startswith("trt_profile_")}
                return self._open(graph, (self.provider, chosen), CUDA.provider)

    def _open(self, model: str | bytes, *providers: Any) -> Any:
        import onnxruntime

        wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
        listed = [(CUDA.provider, _CUDA_OPTIONS) if p == CUDA.provider else p for p in providers]
        try:
            session = onnxruntime.InferenceSession(model, self._options, providers=listed)
        except Exception as error:
            raise ModelError(_unloadable(one_line(error), str(error))) from error
        if wanted not in session.get_providers():  # a driver or CUDA library that does not fit
            raise ClusterError(
                f"compute.device: ONNX Runtime could not start {wanted} on this machine (driver, CUDA, cuDNN or "
                "TensorRT missing or too old) and batchdet does not fall back to the CPU in silence"
                + (f"; {self._not_found}" if self._not_found else "")
            )
        session.disable_fallback()  # ONNX Runtime would go on without the provider when a run fails
        return session


def _unloadable(reason: str, whole: str) -> str:
    """Say why a session cannot be made, and what to do if that is known."""
    newest = _NEWEST_OPSET.search(" ".join(whole.split()))
    if newest:
        reason = f"it needs opset {newest[1]}, and {newest[2]} is the newest that is read"
    if newest or "model IR version" in reason:
        reason += "; export it for an older opset, such as 17, or install a newer onnxruntime"
    elif "No Op registered" in reason or "not a registered function/op" in reason:
        reason += "; export it with ONNX's own operators"
    return f"ONNX Runtime cannot load the model: {reason}"


def _infos(nodes: Sequence[Any]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(n.name, _DTYPES.get(n.type, n.type), tuple(free_axis(s) for s in n.shape)) for n in nodes)


def _load_cuda() -> str:
    """Load CUDA and cuDNN from pip's nvidia packages, or else from PyTorch's; say what the former lack."""
    import onnxruntime

    if not hasattr(onnxruntime, "preload_dlls"):
        return ""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints what it does not find
        onnxruntime.preload_dlls()
    if said.getvalue().strip():
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("torch")  # its libraries serve ONNX Runtime, too, once they are loaded
    return " ".join(said.getvalue().split())[:300]
