"""A batch that a device does not hold is let go before half of it is tried."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchdet.errors import ModelError, OutOfDeviceMemory
from batchdet.model.format import Format
from tests import tiny_torch


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 MiB", OutOfDeviceMemory),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", OutOfDeviceMemory),
        ("CUDA error: an illegal memory access was encountered", ModelError),
    ],
)
def test_no_map_stays_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, kind: type[Exception]) -> None:
    torch = pytest.importorskip("torch")
    from batchdet.model.runtimes.torch import Torch

    runtime = Torch(str(tiny_torch.convolution(tmp_path / "m.torchscript")), Format.TORCHSCRIPT)
    maps: list[Any] = []

    def call(images: Any) -> Any:
        activation = torch.zeros(8)
        maps.append(weakref.ref(activation))
        raise RuntimeError(text)

    monkeypatch.setattr(runtime, "_model", replace(runtime._model, call=call))
    gc.disable()  # as nobody may wait for it
    try:
        with pytest.raises(ModelError) as caught:
            runtime.run({"images": np.zeros((1, 3, 8, 8), np.float32)})
        assert type(caught.value) is kind
        assert maps[0]() is None
    finally:
        gc.enable()
