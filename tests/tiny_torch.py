"""The tiny models of tests/tiny_onnx.py as files of PyTorch."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np


def save_module(path: Path, module: Any, example: Any, texts: dict[str, str]) -> Path:
    """Write a module as what the path's ending says: .torchscript, or .pt2 with free batch, height and width."""
    import torch

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if path.suffix == ".torchscript":
            traced = torch.jit.trace(module, example, strict=False)
            torch.jit.save(traced, path, _extra_files={"metadata.json": json.dumps(texts)})
        else:
            free = torch.export.Dim.AUTO
            program = torch.export.export(module, (example,), dynamic_shapes=({0: free, 2: free, 3: free},))
            torch.export.save(program, path, extra_files={"metadata.json": json.dumps(texts)})
    return path


def convolution(path: Path) -> Path:
    """Write the model of :func:`tests.tiny_onnx.convolution`."""
    import torch

    class Convolution(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = np.random.default_rng(3).normal(size=(4, 3, 3, 3)).astype(np.float32)
            self.weight = torch.nn.Parameter(torch.from_numpy(weight))

        def forward(self, images: Any) -> Any:
            features = torch.nn.functional.conv2d(images, self.weight, stride=2, padding=1)
            return {"features": features, "squares": features * features}

    return save_module(path, Convolution().eval(), torch.zeros(2, 3, 16, 24), {"stride": "2", "note": "ünïcode"})
