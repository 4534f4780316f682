"""ONNX Runtime, on the CPU or by CUDA."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

from batchdet.errors import ClusterError, ModelError
from batchdet.model.runtimes import Colours, Device, Precision, Tensor, TensorInfo, free_axis, missing, one_line

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
_PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"}


class OnnxRuntime:
    """One inference session; see :class:`batchdet.model.runtimes.Runtime`.

    Args:
        path: The ONNX file.
        metadata: Its key-value texts.
        device: ``cpu`` or ``gpu``.
        threads: Threads of one ``run`` on the CPU.
    """

    precision: Precision = "fp32"
    batch_rows = None

    def __init__(self, path: str, metadata: Mapping[str, str], device: Device, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing("onnxruntime", "gpu" if device == "gpu" else "cpu") from error
        self.name = f"onnxruntime {onnxruntime.__version__}"
        self.provider = _PROVIDERS[device]
        self.metadata = metadata
        if self.provider not in onnxruntime.get_available_providers():
            raise ClusterError(
                f"compute.device: gpu needs ONNX Runtime's {self.provider}, and the installed {self.name} has none: "
                'pip install "batchdet[gpu]", or set compute.device to cpu'
            )
        if device == "gpu" and hasattr(onnxruntime, "preload_dlls"):
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
                onnxruntime.preload_dlls()  # CUDA and cuDNN from pip's nvidia packages, or torch's
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # exports cause dozens of graph warnings that tell a user nothing
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=[self.provider])
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot load the model: {one_line(error)}") from error
        if self.provider not in self._session.get_providers():  # a driver or CUDA library that does not fit
            raise ClusterError(
                f"compute.device: ONNX Runtime could not start {self.provider} on this machine (driver, CUDA or "
                "cuDNN missing or too old) and batchdet does not fall back to the CPU in silence"
            )
        self.inputs = _infos(self._session.get_inputs())
        self.outputs = _infos(self._session.get_outputs())

    def take_canvases(self, name: str, colours: Colours, scale: float) -> bool:
        """Leave that to the caller: the graph is used as it is."""
        return False

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute all outputs."""
        names = [o.name for o in self.outputs]
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except Exception as error:
            raise ModelError(f"ONNX Runtime failed on this input: {one_line(error)}") from error


def _infos(nodes: Sequence[Any]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(n.name, _DTYPES.get(n.type, n.type), tuple(free_axis(s) for s in n.shape)) for n in nodes)
