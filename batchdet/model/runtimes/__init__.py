"""Runtimes: what executes a model file.

A runtime knows tensors, not detections. Each stands in a module of its own and imports its package when it is
made, so that ``import batchdet`` needs neither.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from batchdet.errors import ClusterError, MissingExtra, SpecError
from batchdet.model.format import Format, format_of
from batchdet.model.onnx_file import read_onnx
from batchdet.model.preprocess import Preprocess
from batchdet.packages import missing_extra

if TYPE_CHECKING:
    from batchdet.model.anatomy import Anatomy

Tensor = npt.NDArray[Any]
Device = Literal["cpu", "gpu"]
Precision = Literal["fp32", "bf16", "fp16"]
Silu = Literal["exact", "rational"]
_NO_MEMORY: Final = (
    "out of memory",
    "failed to allocate memory",
    "alloc_failed",
    "cuda failure 2:",
    "cuda error 2:",
    "bfcarena",
)
"""How CUDA, cuBLAS, cuDNN and the allocators of ONNX Runtime and PyTorch say so."""
_PREFIX: Final = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (?:Load model from .*? failed: ?)?")
_MAX_LINE: Final = 300
_HEAD: Final = 100
_PLACE: Final = re.compile(r"(?:Exception from )?(?:(?<=[\s:])|^)[\w./+-]*\.(?:cc|cpp|cxx|cu|h|hpp):\d+:? ?")
_SIGNATURE: Final = re.compile(r"(?:[\w~<>,&*]+ )*[\w~<>,&*]*::[\w~<>:,&*]*\(")
_TRAILER: Final = re.compile(r"(?: const| noexcept)*(?: \[with [^\]]*\])?")


@dataclass(frozen=True)
class TensorInfo:
    """Name, number type and shape of one input or output.

    Args:
        name: As the model says.
        dtype: NumPy's name of the type: ``float32``, ``int64``, ...
        shape: One entry per axis; None where the axis is free.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join('?' if n is None else str(n) for n in self.shape)}]"


class Runtime(Protocol):
    """A loaded model. It is made by :func:`load_runtime` and used by one thread at a time."""

    @property
    def name(self) -> str:
        """``onnxruntime``, ``openvino`` or ``torch``, with its version, and TensorRT's where that computes."""

    @property
    def provider(self) -> str:
        """What computes: ``CUDAExecutionProvider``, ``TensorrtExecutionProvider``, ``CPU``, ..."""

    @property
    def precision(self) -> Precision:
        """Number format of the arithmetic."""

    @property
    def silus(self) -> int:
        """SiLUs that the runtime can compute by a rational function, see :mod:`batchdet.model.runtimes.silu`."""

    @property
    def batch_rows(self) -> int | None:
        """Images that one ``run`` should be given; None where more are better."""

    @property
    def one_shape(self) -> bool:
        """Whether it loses more by a change of the canvases' number or shape than by computing a few for nothing."""

    @property
    def inputs(self) -> Sequence[TensorInfo]:
        """The model's inputs, in its order."""

    @property
    def outputs(self) -> Sequence[TensorInfo]:
        """The model's outputs, in its order, as declared (exports often leave axes free that are not).

        Empty where the file does not say; a run does.
        """

    @property
    def metadata(self) -> Mapping[str, str]:
        """The model file's own key-value texts."""

    @property
    def preprocess(self) -> Preprocess | None:
        """What the model is fed, where its file says so."""

    def take_canvases(self, name: str, preprocess: Preprocess) -> bool:
        """Have the graph itself turn canvases into what an input wants, where the runtime can.

        Args:
            name: The input, declared as float32 ``(N, 3, H, W)``.
            preprocess: What the input wants.

        Returns:
            Whether ``run`` takes uint8 ``(N, H, W, 3)`` RGB for this input from now on, instead of what it declares.
        """

    def keep_best_class(self, name: str, axis: int, first: int) -> bool:
        """Have the graph itself choose the best class, where other class scores would have to leave a device.

        Args:
            name: An output.
            axis: Where its channels are.
            first: The first channel that is a class score.

        Returns:
            Whether that output has ``first`` channels from now on, then the highest class score, then its class.
        """

    def anatomy(self, canvas: tuple[int, int]) -> "Anatomy":
        """Find the model's parts and the maps inside it.

        Args:
            canvas: ``(width_px, height_px)`` for which figures are given.

        Raises:
            MissingExtra: A package that reads graphs is not installed.
            ModelError: The graph cannot be read.
        """

    def tap(self, names: Sequence[str]) -> None:
        """Have ``run`` return inner tensors, too, from now on; called before :meth:`take_canvases`.

        Args:
            names: Of maps that :meth:`anatomy` lists.

        Raises:
            ModelError: The runtime has no such tensor.
        """

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute all outputs.

        Args:
            feeds: One array per input, of its dtype (but see :meth:`take_canvases`), C-contiguous.

        Returns:
            One array per output.

        Raises:
            OutOfDeviceMemory: The device does not hold so many images at once.
            ModelError: The runtime refused or failed; the message is its reason on one line.
        """


def load_runtime(
    name: str,
    path: str,
    device: Device,
    threads: int,
    precision: Precision = "fp32",
    own_graphs: Collection[tuple[int, int]] = (),
    largest_batch: int = 64,
    silu: Silu = "exact",
) -> Runtime:
    """Load a model.

    Args:
        name: ``onnxruntime``, ``openvino``, ``tensorrt`` or ``torch``; ``auto`` is ``onnxruntime`` for ONNX files and
            ``torch`` for all others.
        path: A local file or folder, as :func:`batchdet.model.fetch.fetch_model` gives it.
        device: ``gpu`` is CUDA by ONNX Runtime, or TensorRT. Nothing falls back to the CPU in silence.
        threads: Threads of one ``run`` on the CPU.
        precision: Of the arithmetic; ``bf16`` is OpenVINO's and PyTorch's, ``fp16`` a GPU's.
        own_graphs: OpenVINO: canvases ``(width_px, height_px)`` for which a graph of its own is compiled.
        largest_batch: No ``run`` is given more images.
        silu: ``rational`` is OpenVINO's, for ``own_graphs``.

    Raises:
        MissingExtra: The runtime's package is not installed.
        ClusterError: ``gpu`` or ``bf16`` was asked for and is not to be had.
        SpecError: The runtime has no such precision, or no rational function.
        ModelError: The file cannot be loaded.
    """
    kind = format_of(path)
    if silu == "rational" and name != "openvino":
        raise SpecError("model.silu: rational needs model.runtime: openvino, or both auto")
    fitting = ("onnxruntime", "openvino", "tensorrt") if kind is Format.ONNX else ("torch",)
    if name not in ("auto", *fitting):
        raise SpecError(f"model.runtime: {name} does not run {kind.words}; take auto or {', '.join(fitting)}")
    if kind is not Format.ONNX:
        from batchdet.model.runtimes.torch import Torch

        return Torch(path, kind, device, threads, precision)
    metadata = read_onnx(path).metadata
    if name in ("auto", "onnxruntime", "tensorrt"):
        if precision == "bf16":
            raise SpecError("model.precision: bf16 needs model.runtime: openvino; ONNX Runtime has fp32 and fp16")
        if device == "cpu" and name == "tensorrt":
            raise ClusterError("model.runtime: tensorrt computes on GPUs; take onnxruntime or openvino for a CPU")
        if device == "cpu" and precision == "fp16":
            raise ClusterError("model.precision: fp16 is for GPUs; take fp32, bf16 or auto for a CPU")
        from batchdet.model.runtimes.onnxruntime import CPU, CUDA, TENSORRT, OnnxRuntime

        place = CPU if device == "cpu" else TENSORRT if name == "tensorrt" else CUDA
        return OnnxRuntime(path, metadata, place, threads, precision, largest_batch)
    if name == "openvino":
        if precision == "fp16":
            raise SpecError("model.precision: fp16 needs model.runtime: onnxruntime or tensorrt, on a GPU")
        from batchdet.model.runtimes.openvino import OpenVino

        return OpenVino(path, metadata, device, threads, precision, own_graphs, silu == "rational")
    raise ValueError(f"no runtime {name!r}")


def one_line(error: BaseException) -> str:
    """Return an exception's text as one line of at most 300 characters, without places in a library's C++ code.

    What is too long loses its middle, because the reason may stand at either end.
    """
    text = _without_places(_PREFIX.sub("", " ".join(str(error).split()))) or type(error).__name__
    return text if len(text) <= _MAX_LINE else f"{text[:_HEAD]} ... {text[_HEAD + 5 - _MAX_LINE :]}"


def _without_places(text: str) -> str:
    """Drop ``/x/model.cc:256 ns::Model::Model(const ns::A&, ...)``: file, line and signature before a reason."""
    while place := _PLACE.search(text):
        end = _end_of_signature(text, place.end())
        text = f"{text[: place.start()].rstrip()} {text[end:].lstrip()}".strip()
    return text


def _end_of_signature(text: str, start: int) -> int:
    """Return where a C++ signature ends that may begin here: behind its parameters, ``start`` if there is none."""
    found = _SIGNATURE.match(text, start)
    if found is None:
        return start
    depth = 0
    for at in range(found.end() - 1, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            trailer = _TRAILER.match(text, at + 1)
            return trailer.end() if trailer else at + 1
    return start


def no_memory(error: BaseException) -> bool:
    """Tell whether a device's memory was too small, by what libraries say of it."""
    text = str(error).lower()
    return any(words in text for words in _NO_MEMORY)


def missing(package: str, extra: str) -> MissingExtra:
    """Name a runtime's package that is missing, and the extra that brings it."""
    return missing_extra(
        "model.runtime: this model needs", extra, _FOR_GPUS.get(package, package) if extra == "gpu" else package
    )


_FOR_GPUS: Final = {"onnxruntime": "onnxruntime-gpu"}


def free_axis(size: Any) -> int | None:
    """Return the size of an axis, None for symbols, -1 and the like."""
    return int(size) if isinstance(size, int | np.integer) and size > 0 else None
