"""Kinds of preprocessing, and what they are: the plain formula, on whole arrays."""

from typing import Any, Final

import numpy as np

from batchdet.model.preprocess import Preprocess

PREPROCESSES: Final = (
    Preprocess(),
    Preprocess(scale=1.0),
    Preprocess(colours="BGR"),
    Preprocess(colours="BGR", scale=1.0),
    Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    Preprocess(colours="BGR", scale=1.0, mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395)),
)


def planes_of(canvases: Any, preprocess: Preprocess) -> Any:
    """Turn ``(N, H, W, 3)`` uint8 RGB into what a model is fed, ``(N, 3, H, W)`` float32."""
    channels = canvases if preprocess.colours == "RGB" else canvases[..., ::-1]
    values = (channels * preprocess.scale - np.array(preprocess.mean)) / np.array(preprocess.std)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)
