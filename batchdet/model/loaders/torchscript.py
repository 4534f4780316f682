"""Loading TorchScript and torch.export files, which batchdet does only when the spec says that they are trusted."""

import warnings
from collections.abc import Mapping
from typing import Any

from batchdet.errors import ModelError
from batchdet.model.format import archive_texts
from batchdet.model.labels import numbers
from batchdet.model.loaders.loaded import FREE_IMAGES, LoadedModule, named
from batchdet.model.runtimes import TensorInfo, one_line


def load(path: str) -> LoadedModule:
    """Load a TorchScript file. It does not say its shapes; the texts in it may: ``imgsz``, unless ``dynamic`` is true.

    Raises:
        ModelError: PyTorch cannot load it.
    """
    import torch

    texts = archive_texts(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch speaks of the format's future
            module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ModelError(f"PyTorch cannot load the model: {one_line(error)}") from error
    module.eval()
    sides = numbers(texts.get("imgsz", ""))
    free = texts.get("dynamic", "").lower() == "true" or not sides
    images = TensorInfo("images", "float32", FREE_IMAGES if free else (None, 3, sides[0], sides[-1]))

    def call(images: Any) -> Mapping[str, Any]:
        return named(module(images))

    return LoadedModule(module, call, images, (), texts, open_inside=False)


def load_exported(path: str, device: Any) -> LoadedModule:
    """Load a torch.export file.

    Args:
        path: The file.
        device: Of torch, where it will run: tensors that its graph makes by itself have to be made there.

    Raises:
        ModelError: PyTorch cannot load it, or it takes anything but images.
    """
    import torch
    from torch.export.passes import move_to_device_pass

    try:
        program = torch.export.load(path)
        if device.type != "cpu":
            program = move_to_device_pass(program, device)
        module = program.module()
    except Exception as error:
        raise ModelError(f"PyTorch cannot load the model: {one_line(error)}") from error
    signature = program.graph_signature
    nodes = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    if len(signature.user_inputs) != 1:
        raise ModelError(f"the model takes {len(signature.user_inputs)} inputs; a detector takes images only")
    (name,) = signature.user_inputs

    def call(images: Any) -> Mapping[str, Any]:
        return named(module(images))

    images = _info(str(name), nodes[name])
    return LoadedModule(module, call, images, (), archive_texts(path), open_inside=False)


def _info(name: str, value: Any) -> TensorInfo:
    shape = tuple(int(n) if isinstance(n, int) else None for n in getattr(value, "shape", ()))
    return TensorInfo(name, str(getattr(value, "dtype", "")).removeprefix("torch."), shape)
