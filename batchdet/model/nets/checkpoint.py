"""Nets in files: weights as safetensors, and what they are as JSON in the file's header. No pickles.

The header's key ``batchdet`` holds::

    {"format": 1, "composition": {...}, "properties": {...}, "training": {...}}

``composition`` is what `compose` needs, ``properties`` the texts that the ONNX export carries (names, stride, imgsz,
license, family, ...), ``training`` what is known of how the weights came to be.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from batchdet.errors import ModelError, SpecError
from batchdet.model.nets.detector_net import Composition, DetectorNet, compose
from batchdet.packages import missing_extra

KEY: Final = "batchdet"
FORMAT: Final = 1


@dataclass(frozen=True)
class LoadedNet:
    """A net from a checkpoint.

    Args:
        net: In evaluation mode: the one-to-one branch, output as `DetectorNet.forward` says.
        properties: What the ONNX export's metadata says, by the same keys.
        composition: What it is made of.
        training: How the weights came to be; JSON-ready.
    """

    net: DetectorNet
    properties: dict[str, str]
    composition: Composition
    training: dict[str, Any]


def save_net(
    net: DetectorNet,
    path: str | Path,
    composition: Composition,
    properties: Mapping[str, str],
    training: Mapping[str, Any],
) -> None:
    """Write a net, both branches, so that a reader never sees half a file.

    Args:
        net: Built by `compose` from this composition.
        path: File to write, ``*.safetensors``.
        composition: What it is made of.
        properties: As `LoadedNet.properties`.
        training: As `LoadedNet.training`.
    """
    files = _safetensors()
    header = {
        "format": FORMAT,
        "composition": composition.to_dict(),
        "properties": dict(properties),
        "training": dict(training),
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    partial = Path(path).with_suffix(".partial")
    files.save_file(weights, str(partial), metadata={KEY: json.dumps(header, sort_keys=True)})
    partial.replace(path)


def load_net(path: str | Path) -> LoadedNet:
    """Read a net.

    Raises:
        ModelError: The file is not a whole checkpoint of batchdet's nets.
        MissingExtra: The package safetensors is not installed.
    """
    files = _safetensors()
    try:
        with _open(path) as opened:
            texts = opened.metadata() or {}
        header = _header(path, texts)
        composition = Composition(**header["composition"])
        properties = {str(key): str(value) for key, value in header["properties"].items()}
        training = dict(header["training"])
        weights = files.load_file(str(path))
    except (OSError, KeyError, TypeError, AttributeError, SpecError) as error:
        raise ModelError(f"{path}: not a checkpoint that this version reads: {_words(error)}") from error
    except Exception as error:  # safetensors has one class of its own for damaged files
        if type(error).__module__.partition(".")[0] not in ("safetensors", "safetensors_rust"):
            raise
        raise ModelError(f"{path}: not a whole safetensors file: {_words(error)}") from error
    with torch.device("meta"):
        net = compose(composition)
    try:
        net.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ModelError(f"{path}: its weights are not those of its composition: {_words(error)}") from error
    return LoadedNet(net.requires_grad_(False).eval(), properties, composition, training)


def _open(path: str | Path) -> Any:
    """Open a safetensors file for its header."""
    from safetensors import safe_open

    return safe_open(str(path), framework="pt")


def _header(path: str | Path, texts: Mapping[str, str]) -> dict[str, Any]:
    if KEY not in texts:
        raise ModelError(
            f"{path}: its header has no key {KEY!r}, so it does not say which net its weights are for; "
            "batchdet reads the checkpoints that `batchdet train` writes"
        )
    try:
        header = json.loads(texts[KEY])
    except ValueError as error:
        raise ModelError(f"{path}: the key {KEY!r} of its header is no JSON: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else header
        raise ModelError(f"{path}: a checkpoint of format {found!r}; this version reads {FORMAT}")
    return header


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise missing_extra("model.uri: checkpoints need", "torch", "safetensors") from error
    return safetensors.torch


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
