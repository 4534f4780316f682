"""Runtimes: what executes a model file.

A runtime knows tensors, not detections. Each stands in a module of its own and imports its package when it is
made, so that ``import batchdet`` needs neither.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from batchdet.errors import MissingExtra
from batchdet.model.onnx_file import read_onnx

Tensor = npt.NDArray[Any]
Device = Literal["cpu", "gpu"]


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
        """``onnxruntime`` or ``openvino``, with its version."""

    @property
    def provider(self) -> str:
        """What computes: ``CPUExecutionProvider``, ``CUDAExecutionProvider``, ``CPU``."""

    @property
    def inputs(self) -> Sequence[TensorInfo]:
        """The model's inputs, in its order."""

    @property
    def outputs(self) -> Sequence[TensorInfo]:
        """The model's outputs, in its order, as declared (exports often leave axes free that are not)."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The model file's own key-value texts."""

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute all outputs.

        Args:
            feeds: One array per input, of its dtype, C-contiguous.

        Returns:
            One array per output.

        Raises:
            ModelError: The runtime refused or failed; the message is its reason on one line.
        """


def load_runtime(name: str, path: str, device: Device, threads: int) -> Runtime:
    """Load an ONNX file.

    Args:
        name: ``onnxruntime`` or ``openvino``; ``auto`` is ``onnxruntime``.
        path: A local file, checked by :func:`batchdet.model.onnx_file.read_onnx` first.
        device: ``gpu`` is CUDA by ONNX Runtime. Nothing falls back to the CPU in silence.
        threads: Threads of one ``run``.

    Raises:
        MissingExtra: The runtime's package is not installed.
        ClusterError: ``gpu`` was asked for and is not to be had.
        ModelError: The file cannot be loaded.
    """
    metadata = read_onnx(path).metadata
    if name in ("auto", "onnxruntime"):
        from batchdet.model.runtimes.onnxruntime import OnnxRuntime

        return OnnxRuntime(path, metadata, device, threads)
    if name == "openvino":
        from batchdet.model.runtimes.openvino import OpenVino

        return OpenVino(path, metadata, device, threads)
    raise ValueError(f"no runtime {name!r}")


def one_line(error: BaseException) -> str:
    """Return an exception's text as one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def missing(package: str, extra: str) -> MissingExtra:
    """Say which extra brings a runtime's package."""
    return MissingExtra(f'model.runtime: the package {package} is not installed: pip install "batchdet[{extra}]"')


def free_axis(size: Any) -> int | None:
    """Return the size of an axis, None for symbols, -1 and the like."""
    return int(size) if isinstance(size, int | np.integer) and size > 0 else None
