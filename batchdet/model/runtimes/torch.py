"""PyTorch: Hugging Face folders, batchdet's own nets, TorchScript and torch.export files."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from batchdet.errors import ClusterError, ModelError, OutOfDeviceMemory, SpecError
from batchdet.model.anatomy import Anatomy
from batchdet.model.format import Format
from batchdet.model.loaders.loaded import LoadedModule
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Device, Precision, Tensor, missing, no_memory, one_line


class Torch:
    """One model; see :class:`batchdet.model.runtimes.Runtime`.

    Args:
        path: The file or folder.
        kind: What it is.
        device: ``gpu`` is CUDA.
        threads: Threads of one ``run`` on the CPU; PyTorch has one number for the whole process.
        precision: ``bf16`` and ``fp16`` are PyTorch's autocast: convolutions and matrix products are computed in them.

    Raises:
        MissingExtra: PyTorch, or a package that the format needs, is not installed.
        ClusterError: There is no GPU that PyTorch can use.
        SpecError: ``fp16`` on a CPU.
        ModelError: The model cannot be loaded.
    """

    batch_rows = None
    one_shape = False
    silus = 0

    def __init__(
        self, path: str, kind: Format, device: Device = "cpu", threads: int = 1, precision: Precision = "fp32"
    ) -> None:
        try:
            import torch
        except ImportError as error:
            raise missing("torch", "torch") from error
        if device == "gpu" and not torch.cuda.is_available():
            raise ClusterError(
                f"compute.device: gpu needs a PyTorch with CUDA and a driver that fits; torch {torch.__version__} "
                "finds no GPU, and batchdet does not fall back to the CPU in silence"
            )
        if device == "cpu" and precision == "fp16":
            raise SpecError("model.precision: fp16 is for GPUs; take fp32 or bf16 for a CPU")
        torch.set_num_threads(threads)
        self.name = f"torch {torch.__version__}"
        self.provider = "CPU" if device == "cpu" else f"CUDA, {torch.cuda.get_device_name()}"
        self.precision = precision
        self._device = torch.device("cpu" if device == "cpu" else "cuda")
        torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32; for other products that is PyTorch's own default
        self._model = _load(path, kind, self._device)
        self._words = kind.words
        self._model.module.to(self._device)
        self.inputs = (self._model.input,)
        self.outputs = self._model.outputs
        self.metadata: Mapping[str, str] = self._model.metadata
        self.preprocess = self._model.preprocess
        self._takes: Preprocess | None = None
        self._best: tuple[str, int, int] | None = None
        self._tapped: dict[str, Any] = {}

    def take_canvases(self, name: str, preprocess: Preprocess) -> bool:
        """Normalise on the device, to which uint8 goes in a quarter of the time."""
        self._takes = preprocess
        return True

    def keep_best_class(self, name: str, axis: int, first: int) -> bool:
        """Leave all class scores but the best on a GPU."""
        if self._device.type == "cpu":
            return False
        self._best = (name, axis, first)
        return True

    def anatomy(self, canvas: tuple[int, int]) -> Anatomy:
        """Watch the modules inside during one run."""
        from batchdet.model.module_anatomy import watch_modules

        if not self._model.open_inside:
            raise ModelError(f"{self._words} does not show its parts; the model's ONNX export does")
        return watch_modules(self._model.module, self._model.call, canvas, self._device)

    def tap(self, names: Sequence[str]) -> None:
        """Hook the modules whose maps are wanted."""
        from batchdet.model.module_anatomy import hook

        for name in names:
            hook(self._model.module, name, self._tapped)

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute all outputs."""
        import torch

        array = feeds[self.inputs[0].name]
        try:
            with torch.inference_mode(), self._autocast():
                found = dict(self._model.call(self._images(array)))
                found = self._with_best(found) | self._tapped
                return {name: _array(tensor) for name, tensor in found.items()}
        except Exception as error:
            no_room = isinstance(error, torch.OutOfMemoryError) or no_memory(error)
            text = f"PyTorch failed on this input: {one_line(error)}"
        finally:
            self._tapped.clear()
        # not from within: the frames of PyTorch's error would keep all maps of the batch while half of it is tried
        if no_room and self._device.type == "cuda":
            torch.cuda.empty_cache()
        raise (OutOfDeviceMemory if no_room else ModelError)(text)

    def _autocast(self) -> Any:
        import torch

        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)

    def _images(self, array: Tensor) -> Any:
        import torch

        tensor = torch.from_numpy(array).to(self._device)
        if self._takes is None or array.dtype != np.uint8:
            return tensor
        factors, offsets = (torch.from_numpy(part)[:, None, None].to(self._device) for part in self._takes.affine())
        if self._takes.colours == "BGR":
            tensor = tensor.flip(-1)
        return tensor.permute(0, 3, 1, 2).float().contiguous().mul_(factors).add_(offsets)

    def _with_best(self, found: dict[str, Any]) -> dict[str, Any]:
        import torch

        if self._best is None:
            return found
        name, axis, first = self._best
        output = found[name]
        before, classes = output.split([first, output.shape[axis] - first], axis)
        scores, numbers = classes.max(axis, keepdim=True)
        return found | {name: torch.cat([before, scores, numbers.to(before.dtype)], axis)}


def _array(tensor: Any) -> Tensor:
    """Copy a tensor from the device; half-width floats become float32."""
    import torch

    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    array: Tensor = tensor.cpu().contiguous().numpy()
    return array


def _load(path: str, kind: Format, device: Any) -> LoadedModule:
    if kind is Format.HUGGINGFACE:
        from batchdet.model.loaders import huggingface

        return huggingface.load(path)
    if kind is Format.NET:
        from batchdet.model.loaders import net

        return net.load(path)
    if kind in (Format.TORCHSCRIPT, Format.EXPORTED):
        from batchdet.model.loaders import torchscript

        return torchscript.load(path) if kind is Format.TORCHSCRIPT else torchscript.load_exported(path, device)
    raise ModelError(f"PyTorch runs no file that is {kind.words}")
