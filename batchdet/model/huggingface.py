"""Hugging Face folders: which files are taken, and what they say of the model; read without transformers."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from batchdet.errors import ModelError
from batchdet.geometry.letterbox import Resample
from batchdet.model.format import safetensors_texts
from batchdet.model.preprocess import Preprocess

CONFIG: Final = "config.json"
PREPROCESSOR: Final = "preprocessor_config.json"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
NAMES: Final = (CONFIG, PREPROCESSOR, WEIGHTS, INDEX)
"""What is taken of a folder, with the files that the index names; never pickles, never code."""
NO_WEIGHTS: Final = (
    f"has no {WEIGHTS}; pickles (pytorch_model.bin) are never loaded: convert them with "
    "model.save_pretrained(FOLDER, safe_serialization=True)"
)
_SHARD: Final = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_LICENCE: Final = re.compile(r"\A---\s*$.*?^license:\s*['\"]?([^\s'\"]+)", re.MULTILINE | re.DOTALL)
_MAX_JSON_BYTES: Final = 16 * 1024 * 1024

_FOCAL, _SOFTMAX = "detr_focal", "detr_softmax"
FAMILIES: Final[dict[str, str]] = {
    "rt_detr": _FOCAL,
    "rt_detr_v2": _FOCAL,
    "d_fine": _FOCAL,
    "deimv2": _FOCAL,
    "conditional_detr": _FOCAL,
    "deformable_detr": _FOCAL,
    "dab-detr": _FOCAL,
    "lw_detr": _FOCAL,
    "detr": _SOFTMAX,
    "table-transformer": _SOFTMAX,
    "yolos": _SOFTMAX,
}
"""Family by ``model_type``: how the library's own image processor reads the outputs of each."""
_MULTIPLES: Final = {"yolos": 16}
"""YOLOS cuts sides to whole patches; the number stands in its image processor, not in its files."""
_RESAMPLES: Final[dict[int, Resample]] = {2: "bilinear", 3: "bicubic"}
"""By Pillow's numbers."""
_USUAL_LONGEST_PX: Final = 1333


@dataclass(frozen=True)
class FolderInfo:
    """What a Hugging Face folder says about itself.

    Args:
        model_type: ``rt_detr``, ``detr``, ...
        preprocess: What the model is fed.
        size: ``(height_px, width_px)`` of the canvas, where all images get the same.
        metadata: Texts under the names that other formats have, too: ``family``, ``names``, ``backbone``, ...
    """

    model_type: str
    preprocess: Preprocess
    size: tuple[int, int] | None
    metadata: dict[str, str]


def card_licence(folder: str) -> str:
    """Read the licence that the head of a folder's ``README.md`` names; "" if there is none."""
    try:
        with open(os.path.join(folder, "README.md"), encoding="utf-8", errors="replace") as card:
            found = _LICENCE.search(card.read(_MAX_JSON_BYTES))
    except OSError:
        return ""
    return found[1] if found else ""


def shards(index: Any) -> list[str]:
    """Return the weight files that an index names.

    Raises:
        ValueError: It is no index, or names anything else.
    """
    try:
        names = sorted(set(index["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("no weight_map, which an index of weights has") from error
    odd = next((name for name in names if not isinstance(name, str) or not _SHARD.fullmatch(name)), None)
    if odd is not None:
        raise ValueError(f"names {odd!r}; files of weights are called model-00001-of-00002.safetensors")
    return names


def read_folder(path: str) -> FolderInfo:
    """Read what a fetched folder says, and refuse what is not safe or not understood.

    Args:
        path: A local folder.

    Raises:
        ModelError: A file is missing or no JSON, weights are damaged, the folder wants code of its own to be run, or
            the model is of no type that batchdet knows. The message begins with the file's name.
    """
    config = _json(path, CONFIG)
    _refuse_code(config)
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ModelError(f"{CONFIG}: model_type is {model_type!r}; detectors that batchdet knows are {known}")
    files = [name for name in os.listdir(path) if name.endswith(".safetensors")]
    if not files:
        raise ModelError(NO_WEIGHTS)
    for name in files:
        safetensors_texts(os.path.join(path, name))
    preprocess, size = _preprocess(_json(path, PREPROCESSOR), _MULTIPLES.get(model_type, 1))
    return FolderInfo(model_type, preprocess, size, _metadata(config, model_type))


def _refuse_code(value: Any) -> None:
    """Refuse keys, however deep, by which a configuration has code loaded that is not the library's own."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        if key in ("auto_map", "custom_pipelines", "quantization_config") and inner:
            raise ModelError(f"{CONFIG} has the key {key}, which asks for code of its own to be run; that is refused")
        if "attn_implementation" in key and "/" in str(inner):
            raise ModelError(f"{CONFIG} wants the code {inner!r} for {key}; that is refused")
        _refuse_code(inner)
    for inner in value if isinstance(value, list) else ():
        _refuse_code(inner)


def _json(path: str, name: str) -> dict[str, Any]:
    file = os.path.join(path, name)
    try:
        if os.path.getsize(file) > _MAX_JSON_BYTES:
            raise ModelError(f"{name} has more than {_MAX_JSON_BYTES} bytes")
        with open(file, encoding="utf-8") as opened:
            value = json.load(opened)
    except FileNotFoundError as error:
        raise ModelError(f"{name} is missing in the folder") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{name} is a JSON {type(value).__name__}, not an object")
    return value


def _metadata(config: Mapping[str, Any], model_type: str) -> dict[str, str]:
    backbone = config.get("backbone_config")
    named = config.get("backbone") or (backbone.get("model_type") if isinstance(backbone, dict) else None)
    return {
        "family": FAMILIES[model_type],
        "names": json.dumps(config.get("id2label") or {}),
        "description": f"{model_type} of Hugging Face transformers",
        "backbone": str(named or ("vit" if model_type == "yolos" else "")),
        "producer": f"transformers {config.get('transformers_version') or '?'}",
    }


def _preprocess(config: Mapping[str, Any], multiple_px: int) -> tuple[Preprocess, tuple[int, int] | None]:
    """Return what the image processor does, and the ``(height, width)`` of its canvas where it has one."""
    resize, rescale, normalize = (config.get(f"do_{step}", True) for step in ("resize", "rescale", "normalize"))
    scale = _numbers(config, "rescale_factor", 1, 1 / 255)[0] if rescale else 1.0
    mean, std = (
        _numbers(config, key, 3, None) if normalize else (n,) * 3
        for key, n in (("image_mean", 0.0), ("image_std", 1.0))
    )
    if not resize or config.get("do_center_crop") or config.get("pad_size"):
        raise ModelError(
            f"{PREPROCESSOR}: do_resize false, do_center_crop and pad_size are not understood; batchdet resizes to "
            "height and width, or to shortest_edge and longest_edge"
        )
    if min(std) <= 0 or scale <= 0:
        raise ModelError(f"{PREPROCESSOR}: image_std and rescale_factor must be positive")
    resample = _RESAMPLES.get(config.get("resample", 2))
    if resample is None:
        raise ModelError(f"{PREPROCESSOR}: resample is {config['resample']!r}; known are 2 (bilinear) and 3 (bicubic)")
    size = config.get("size")
    if isinstance(size, int):
        size = {"shortest_edge": size, "longest_edge": config.get("max_size", _USUAL_LONGEST_PX)}
    sides = dict(size) if isinstance(size, dict) else {}
    sides = {key: value for key, value in sides.items() if value is not None}
    if not all(type(value) is int and 1 <= value <= 8192 for value in sides.values()):
        raise ModelError(f"{PREPROCESSOR}: size is {size!r}; its sides must be whole numbers from 1 to 8192")
    if sides.keys() == {"height", "width"}:
        own = Preprocess(scale=scale, letterbox="stretch", mean=mean, std=std, resample=resample)
        return own, (sides["height"], sides["width"])
    if sides.keys() == {"shortest_edge", "longest_edge"} and sides["shortest_edge"] <= sides["longest_edge"]:
        own = Preprocess(
            scale=scale,
            letterbox="edges",
            mean=mean,
            std=std,
            resample=resample,
            shortest_px=sides["shortest_edge"],
            longest_px=sides["longest_edge"],
            multiple_px=multiple_px,
        )
        return own, None
    raise ModelError(f"{PREPROCESSOR}: size is {size!r}; known are height and width, or shortest_edge and longest_edge")


def _numbers(config: Mapping[str, Any], key: str, count: int, usual: float | None) -> Any:
    value = config.get(key, usual)
    values = value if isinstance(value, list) else [value]
    if len(values) != count or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in values):
        raise ModelError(f"{PREPROCESSOR}: {key} is {value!r}; {count} numbers are wanted")
    return tuple(float(n) for n in values)
