"""OpenVINO on the CPU, in fp32."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from batchdet.errors import ClusterError, ModelError
from batchdet.model.runtimes import Device, Tensor, TensorInfo, missing, one_line


class OpenVino:
    """One compiled model; see :class:`batchdet.model.runtimes.Runtime`.

    Args:
        path: The ONNX file.
        metadata: Its key-value texts.
        device: Only ``cpu``.
        threads: Threads of one ``run``.
    """

    provider = "CPU"

    def __init__(self, path: str, metadata: Mapping[str, str], device: Device, threads: int) -> None:
        try:
            import openvino
        except ImportError as error:
            raise missing("openvino", "cpu") from error
        if device != "cpu":
            raise ClusterError(
                "compute.device: gpu works with model.runtime onnxruntime; openvino computes on the CPU here"
            )
        self.name = f"openvino {openvino.__version__.split('-')[0]}"
        self.metadata = metadata
        # CPUs with AMX or AVX512-BF16 would compute in bf16 unless told otherwise
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        try:
            core = openvino.Core()
            model = core.read_model(path)
            self._compiled = core.compile_model(model, self.provider, settings)
            self._request = self._compiled.create_infer_request()
        except Exception as error:
            raise ModelError(f"OpenVINO cannot load the model: {one_line(error)}") from error
        self.inputs = tuple(_info(port) for port in model.inputs)
        self.outputs = tuple(_info(port) for port in model.outputs)

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute all outputs."""
        try:
            result = self._request.infer(dict(feeds), share_inputs=True)
        except Exception as error:
            raise ModelError(f"OpenVINO failed on this input: {one_line(error)}") from error
        return {info.name: result[i].copy() for i, info in enumerate(self.outputs)}


def _info(port: Any) -> TensorInfo:
    shape = tuple(d.get_length() if d.is_static else None for d in port.partial_shape)
    return TensorInfo(port.any_name, np.dtype(port.element_type.to_dtype()).name, shape)
