"""Makes every Python process that starts with this folder on its path take the CPU for a GPU.

What runs is the GPU's own code: IO binding, canvases into the graph, overlapping batches, shares of a GPU. Only the
provider is ONNX Runtime's for the CPU.
"""

from batchdet.model.runtimes import onnxruntime

onnxruntime.CUDA = onnxruntime.Place("CPUExecutionProvider", "cpu", True)  # type: ignore[misc]
