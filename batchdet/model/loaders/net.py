"""Loading a net of batchdet's own."""

from collections.abc import Mapping
from typing import Any

from batchdet.model.loaders.loaded import FREE_IMAGES, LoadedModule, named
from batchdet.model.nets.checkpoint import load_net
from batchdet.model.runtimes import TensorInfo


def load(path: str) -> LoadedModule:
    """Load a checkpoint that ``batchdet train`` wrote.

    Raises:
        ModelError: It is none, or damaged.
        MissingExtra: The package safetensors is not installed.
    """
    loaded = load_net(path)

    def call(images: Any) -> Mapping[str, Any]:
        return named(loaded.net(images))

    images = TensorInfo("images", "float32", FREE_IMAGES)
    outputs = (TensorInfo("output0", "float32", (None, None, 6)),)
    return LoadedModule(loaded.net, call, images, outputs, dict(loaded.properties))
