"""What every loader returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import TensorInfo


@dataclass(frozen=True)
class LoadedModule:
    """A module, ready to be called.

    Args:
        module: What moves to a device; in evaluation mode.
        call: Computes the outputs of images ``(N, 3, H, W)`` float32 by name.
        input: What it takes.
        outputs: What it gives, as far as that is known before a run.
        metadata: Texts about it, under the names that ONNX files use.
        preprocess: What it is fed, where the file says so.
        open_inside: Whether hooks see the modules inside.
    """

    module: Any
    call: Callable[[Any], Mapping[str, Any]]
    input: TensorInfo
    outputs: tuple[TensorInfo, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    preprocess: Preprocess | None = None
    open_inside: bool = True


FREE_IMAGES = (None, 3, None, None)
"""Shape of an input of which nothing but the channels is fixed."""


def named(value: Any) -> dict[str, Any]:
    """Give names to what a module returned: its own, or ``output0``, ``output1``, ...

    Raises:
        TypeError: It is no tensor, and no dict or sequence of tensors.
    """
    import torch

    if isinstance(value, torch.Tensor):
        value = (value,)
    if isinstance(value, Mapping):
        found = {str(key): tensor for key, tensor in value.items()}
    elif isinstance(value, list | tuple):
        found = {f"output{i}": tensor for i, tensor in enumerate(value)}
    else:
        raise TypeError(f"it returned {type(value).__name__}, not tensors")
    odd = next((key for key, tensor in found.items() if not isinstance(tensor, torch.Tensor)), None)
    if odd is not None:
        raise TypeError(f"its output {odd} is {type(found[odd]).__name__}, not a tensor")
    return found
