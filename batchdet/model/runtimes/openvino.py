"""OpenVINO on the CPU, in fp32 or bf16, fed with uint8 canvases."""

import contextlib
import ctypes
import functools
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from batchdet.errors import ClusterError, ModelError
from batchdet.model.anatomy import Anatomy, read_anatomy
from batchdet.model.cache import CacheError, digest_of, engine_folder, read_engine, write_engine
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Device, Precision, Tensor, TensorInfo, channels_last, missing, one_line, silu

_PRECISIONS: Final = {"fp32": "f32", "bf16": "bf16"}
_BLOB: Final = "graph.blob"
_KEPT_MAX_BYTES: Final = 64 * 1024 * 1024
"""Of the model's file: each of its compiled graphs is about as large."""


class OpenVino:
    """One model; see :class:`batchdet.model.runtimes.Runtime`.

    One graph serves all canvases; one compiled for a single canvas is a fifth faster, takes half a second to compile,
    and rounds otherwise in bf16. So which canvases have graphs of their own is fixed for a run, not found out on the
    way: an image gives the same numbers in every actor (yolo26n on a CPU with AVX512-BF16). Batches bring nothing on
    one core. What is compiled is kept in the model cache, so that a node compiles each graph once: to read one back
    takes a third of the time, and it computes the same bits.

    Args:
        path: The ONNX file.
        metadata: Its key-value texts.
        device: Only ``cpu``.
        threads: Threads of one ``run``.
        precision: Of the arithmetic; ``bf16`` needs a processor that has it.
        own_graphs: Canvases ``(width_px, height_px)`` that have graphs of their own, see :meth:`take_canvases`.
        rational: In those graphs SiLU is a rational function, see :mod:`batchdet.model.runtimes.silu`.
    """

    provider = "CPU"
    batch_rows = 1
    one_shape = False
    preprocess = None

    def __init__(
        self,
        path: str,
        metadata: Mapping[str, str],
        device: Device,
        threads: int,
        precision: Precision = "fp32",
        own_graphs: Collection[tuple[int, int]] = (),
        rational: bool = False,
    ) -> None:
        try:
            import openvino
        except ImportError as error:
            raise missing("openvino", "cpu") from error
        if device != "cpu":
            raise ClusterError(
                "compute.device: gpu works with model.runtime onnxruntime; openvino computes on the CPU here"
            )
        self.name = f"openvino {openvino.__version__.split('-')[0]}"
        self._build = openvino.__version__
        self.precision = precision
        self.metadata = metadata
        self._settings = {
            # CPUs with AMX or AVX512-BF16 would compute in bf16 unless told otherwise
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # it would bind each process to the first cores, so that the actors of a node share one and idle the others
            "ENABLE_CPU_PINNING": False,
        }
        self._own_graphs = frozenset(own_graphs)
        self._rational = rational
        self._canvas_input = ""
        self._takes_rows = False
        self._requests: dict[tuple[int, int] | None, Any] = {}
        try:
            with _own_signal_stack():
                self._core = openvino.Core()
                capabilities = self._core.get_property(self.provider, "OPTIMIZATION_CAPABILITIES")
            self._model = self._core.read_model(path)
        except Exception as error:
            raise ModelError(f"OpenVINO cannot load the model: {one_line(error)}") from error
        if precision == "bf16" and "BF16" not in capabilities:
            raise ClusterError("model.precision: bf16, but this processor has no bf16 arithmetic; take fp32 or auto")
        self._path = path
        self._steps: list[str] = []
        self._machine = self._core.get_property(self.provider, "FULL_DEVICE_NAME"), *sorted(capabilities)
        self.inputs = tuple(_info(port) for port in self._model.inputs)
        self.outputs = tuple(_info(port) for port in self._model.outputs)
        self._names = [info.name for info in self.outputs]
        self.silus = sum(1 for _ in silu.silus(self._model))

    def anatomy(self, canvas: tuple[int, int]) -> Anatomy:
        """Find the parts in the file's graph."""
        return read_anatomy(self._path, canvas)

    def tap(self, names: Sequence[str]) -> None:
        """Make outputs of inner tensors."""
        try:
            self._model.add_outputs(list(names))
        except Exception as error:
            raise ModelError(f"OpenVINO has no such tensor inside the model: {one_line(error)}") from error
        self._names = [info.name for info in self.outputs] + list(names)
        self._steps += ["tap", *names]
        self._requests.clear()

    def take_canvases(self, name: str, preprocess: Preprocess) -> bool:
        """Put colour order, scaling and layout into the graph, so that input ``name`` takes uint8 canvases."""
        from openvino import Layout, Type
        from openvino.preprocess import PrePostProcessor

        try:
            steps = PrePostProcessor(self._model)
            image = steps.input(name)
            image.tensor().set_element_type(Type.u8).set_layout(Layout("NHWC"))
            image.model().set_layout(Layout("NCHW"))
            if preprocess.colours == "BGR":
                image.preprocess().reverse_channels()
            steps_to_input = image.preprocess().convert_element_type(Type.f32).scale(1 / preprocess.scale)
            if preprocess.mean != Preprocess.mean or preprocess.std != Preprocess.std:
                steps_to_input.mean(list(preprocess.mean)).scale(list(preprocess.std))
            self._model = steps.build()
            self._takes_rows = channels_last.take_rows(self._model, name)
            channels_last.straighten(self._model)
        except Exception as error:
            raise ModelError(f"OpenVINO cannot feed the model with canvases: {one_line(error)}") from error
        self._canvas_input = name
        self._steps += ["canvases", name, repr(preprocess)]
        self._requests.clear()
        return True

    def keep_best_class(self, name: str, axis: int, first: int) -> bool:
        """Leave that to the caller: nothing leaves a device here."""
        return False

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute all outputs."""
        canvas = None
        if self._canvas_input:
            canvases = feeds[self._canvas_input]
            count, height, width, _ = canvases.shape
            canvas = (width, height) if count == 1 and (width, height) in self._own_graphs else None
            if self._takes_rows:
                feeds = {**feeds, self._canvas_input: canvases.reshape(count, height, -1)}
        try:
            result = self._request(canvas, feeds).infer(dict(feeds), share_inputs=True)
        except Exception as error:
            raise ModelError(f"OpenVINO failed on this input: {one_line(error)}") from error
        return {name: result[i].copy() for i, name in enumerate(self._names)}

    def _request(self, canvas: tuple[int, int] | None, feeds: Mapping[str, Tensor]) -> Any:
        """Return what computes these inputs, compiled when it is first wanted."""
        if canvas not in self._requests:
            shapes = {name: array.shape for name, array in feeds.items()}
            self._requests[canvas] = self._kept_or_compiled(canvas, shapes).create_infer_request()
        return self._requests[canvas]

    def _kept_or_compiled(self, canvas: tuple[int, int] | None, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """Compile a graph, or read it back where this node has compiled it before."""
        with _own_signal_stack():
            if os.path.getsize(self._path) > _KEPT_MAX_BYTES:
                return self._compile(canvas, shapes)
            key = self._key(canvas)
            blob = read_engine(key, _BLOB)
            if blob is None:
                compiled = None
                with contextlib.suppress(CacheError), engine_folder(key) as folder:
                    blob = read_engine(key, _BLOB)  # another process may have been faster
                    if blob is None:
                        compiled = self._compile(canvas, shapes)
                        write_engine(folder, _BLOB, compiled.export_model().getvalue())
                if blob is None:  # where the cache is full, each process compiles for itself
                    return compiled or self._compile(canvas, shapes)
            return self._core.import_model(blob, self.provider, self._settings)

    def _compile(self, canvas: tuple[int, int] | None, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """Compile the graph of a canvas, whose inputs have these shapes; the one for all others for None."""
        model = self._model
        if canvas is not None:
            model = model.clone()
            model.reshape({port: list(shapes[port.any_name]) for port in model.inputs})
            if self._rational:
                silu.approximate(model)
        return self._core.compile_model(model, self.provider, self._settings)

    @functools.cached_property
    def _made_of(self) -> tuple[str, ...]:
        """Digests of the model's file, and of the code that makes graphs of it."""
        return tuple(digest_of(file) for file in (self._path, __file__, channels_last.__file__, silu.__file__))

    def _key(self, canvas: tuple[int, int] | None) -> str:
        """Name a graph by all that it is made of."""
        settings = sorted(self._settings.items())
        rational = self._rational and canvas is not None
        facts = (self._build, self._machine, self._made_of, settings, self._steps, rational, canvas)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def has_bf16() -> bool:
    """Tell whether OpenVINO is installed and this processor has bf16 arithmetic."""
    try:
        import openvino
    except ImportError:
        return False
    with _own_signal_stack():
        return "BF16" in openvino.Core().get_property(OpenVino.provider, "OPTIMIZATION_CAPABILITIES")


class _SignalStack(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def _own_signal_stack() -> Iterator[None]:
    """Put this thread's signal stack back.

    OpenVINO 2026.4 sets one of its own when it loads its CPU plug-in and frees it with that, while the kernel goes on
    using it: the next signal would end the process.
    """
    library, before = ctypes.CDLL(None), _SignalStack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)


def _info(port: Any) -> TensorInfo:
    shape = tuple(d.get_length() if d.is_static else None for d in port.partial_shape)
    return TensorInfo(port.any_name, np.dtype(port.element_type.to_dtype()).name, shape)
