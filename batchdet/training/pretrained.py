"""Weights of published backbones (ImageNet): which backbone a file fits, and where its tensors go.

The names are those of timm (torchvision's for ResNets) and of Hugging Face transformers, old and new.

Sources: https://github.com/huggingface/pytorch-image-models (``resnet.py``, ``vision_transformer.py``);
https://github.com/huggingface/transformers (``modeling_resnet.py``, ``modeling_vit.py``).
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from batchdet.errors import ModelError, SpecError
from batchdet.model.format import safetensors_texts
from batchdet.model.huggingface import CONFIG, NO_WEIGHTS, PREPROCESSOR, WEIGHTS, card_licence
from batchdet.model.nets.backbones import PUBLISHED
from batchdet.model.nets.backbones.vit import PUBLISHED_GRID, resampled

_Rule = tuple[str, Callable[[re.Match[str]], str]]
_PREFIXES: Final = ("resnet.", "vit.", "backbone.", "model.")
_STAGES: Final = ("stage4", "stage8", "stage16", "stage32")
_POSITIONS: Final = "trunk.positions"
_COUNTER: Final = ".num_batches_tracked"
_NORM: Final = {"convolution": 0, "normalization": 1}
_NOT_NEEDED: Final = re.compile(r"(?:fc|head|classifier|pooler)\..*|(?:embeddings\.)?mask_token")
"""What published files hold beside a backbone."""
_QKV: Final = ("q", "k", "v")
_VIT: Final = {
    "norm1": "norm_attention", "attn.qkv": "attention.to_qkv", "attn.proj": "attention.to_out", "norm2": "norm_mlp",
    "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2", "layernorm_before": "norm_attention", "layernorm_after": "norm_mlp",
    "attention.attention.query": "q", "attention.attention.key": "k", "attention.attention.value": "v",
    "attention.q_proj": "q", "attention.k_proj": "k", "attention.v_proj": "v",
    "attention.output.dense": "attention.to_out", "attention.o_proj": "attention.to_out",
    "intermediate.dense": "mlp.0", "output.dense": "mlp.2",
}  # fmt: skip
"""Parts of a transformer block by their names in timm and in transformers."""

_RULES: Final[tuple[_Rule, ...]] = (
    # ResNet, timm and torchvision
    (r"conv1\.(\w+)", lambda m: f"stem.0.{m[1]}"),
    (r"bn1\.(\w+)", lambda m: f"stem.1.{m[1]}"),
    (
        r"layer([1-4])\.(\d+)\.(conv|bn)([1-3])\.(\w+)",
        lambda m: f"{_STAGES[int(m[1]) - 1]}.{m[2]}.convs.{int(m[4]) - 1}.{int(m[3] == 'bn')}.{m[5]}",
    ),
    (
        r"layer([1-4])\.(\d+)\.downsample\.([01])\.(\w+)",
        lambda m: f"{_STAGES[int(m[1]) - 1]}.{m[2]}.shortcut.{m[3]}.{m[4]}",
    ),
    # ResNet, transformers
    (r"embedder\.embedder\.(convolution|normalization)\.(\w+)", lambda m: f"stem.{_NORM[m[1]]}.{m[2]}"),
    (
        r"encoder\.stages\.([0-3])\.layers\.(\d+)\.layer\.([0-2])\.(convolution|normalization)\.(\w+)",
        lambda m: f"{_STAGES[int(m[1])]}.{m[2]}.convs.{m[3]}.{_NORM[m[4]]}.{m[5]}",
    ),
    (
        r"encoder\.stages\.([0-3])\.layers\.(\d+)\.shortcut\.(convolution|normalization)\.(\w+)",
        lambda m: f"{_STAGES[int(m[1])]}.{m[2]}.shortcut.{_NORM[m[3]]}.{m[4]}",
    ),
    # ViT, timm and transformers
    (r"cls_token|embeddings\.cls_token", lambda m: "trunk.class_token"),
    (r"pos_embed|embeddings\.position_embeddings", lambda m: _POSITIONS),
    (r"(?:patch_embed\.proj|embeddings\.patch_embeddings\.projection)\.(\w+)", lambda m: f"trunk.patches.{m[1]}"),
    (
        rf"(?:blocks|encoder\.layer|layers)\.(\d+)\.({'|'.join(map(re.escape, _VIT))})\.(\w+)",
        lambda m: f"trunk.blocks.{m[1]}.{_VIT[m[2]]}.{m[3]}",
    ),
    (r"(?:norm|layernorm)\.(\w+)", lambda m: f"trunk.norm.{m[1]}"),
)


@dataclass(frozen=True)
class Pretrained:
    """Weights of a published backbone.

    Args:
        backbone: Its name in `PUBLISHED`.
        weights: By the names of that backbone's state.
        said: What was taken and what was not, in words.
        licence: What the folder's model card names; "" for nothing.
    """

    backbone: str
    weights: dict[str, Tensor]
    said: str
    licence: str


def read_pretrained(uri: str) -> Pretrained:
    """Read the weights of a ResNet or ViT.

    Args:
        uri: A safetensors file, or a folder with ``model.safetensors`` and perhaps configurations.

    Raises:
        SpecError: They fit no backbone; the message says what was found.
        ModelError: The file is damaged, or the folder has none.
    """
    import safetensors.torch

    file = Path(uri) / WEIGHTS if Path(uri).is_dir() else Path(uri)
    if not file.is_file():
        raise ModelError(f"{uri} {NO_WEIGHTS}", code="model.no_weights", key="--init")
    safetensors_texts(str(file))
    found: dict[str, Tensor] = safetensors.torch.load_file(str(file))
    beside = file.parent if file.name == WEIGHTS else None  # a file of another name stands among others' files
    if beside:
        _refuse_other_computation(beside, uri)
    mapped, left = _mapped(found)
    name, weights = _fit(mapped, found, uri)
    mean, std, stated = _normalisation(beside)
    kind = "trunk." if name.startswith("vit") else ""
    for key, values in (("mean", mean), ("std", std)):
        default: Tensor = PUBLISHED[name]().state_dict()[f"{kind}normalise.{key}"]
        weights[f"{kind}normalise.{key}"] = torch.tensor(values).view(1, 3, 1, 1) if values else default
    said = (
        f"{name}, {len(found) - len(left)} of {len(found)} tensors of the file"
        + (f" (not {', '.join(left[:4])}{', ...' if len(left) > 4 else ''})" if left else "")
        + ("" if stated else "; no mean and deviation of the colours is stated beside it, the usual ones are taken")
    )
    return Pretrained(name, weights, said, card_licence(str(beside)) if beside else "")


def _mapped(found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Give tensors the names of batchdet's backbones; also return the names of those that no backbone needs."""
    mapped: dict[str, Tensor] = {}
    left = []
    for key, value in found.items():
        plain = next((key.removeprefix(prefix) for prefix in _PREFIXES if key.startswith(prefix)), key)
        if _NOT_NEEDED.fullmatch(plain):
            left.append(key)
        else:
            mapped[_own_name(plain)] = value.float() if value.dtype.is_floating_point else value
    for q in [key for key in mapped if re.search(r"\.q\.\w+$", key)]:
        stem, _, last = q.rpartition(".q.")
        parts = [mapped.pop(f"{stem}.{one}.{last}", None) for one in _QKV]
        there = [part for part in parts if part is not None]
        if len(there) == len(_QKV):
            mapped[f"{stem}.attention.to_qkv.{last}"] = torch.cat(there)
    return mapped, left


def _own_name(plain: str) -> str:
    """Name a tensor as batchdet's backbones do; one that they do not have keeps its name, and so fits none."""
    for pattern, name in _RULES:
        match = re.fullmatch(pattern, plain)
        if match:
            return name(match)
    return plain


def _fit(mapped: dict[str, Tensor], found: Mapping[str, Tensor], uri: str) -> tuple[str, dict[str, Tensor]]:
    """Return the backbone whose tensors these are, all of them and no others, and the weights for it."""
    nearest: tuple[int, str, str] = (10**9, "", "")
    for name in PUBLISHED:
        shapes = _shapes(name)
        grid = mapped.get(_POSITIONS)
        weights = dict(mapped)
        if grid is not None and _is_square(grid) and _POSITIONS in shapes and grid.shape != shapes[_POSITIONS]:
            plane = resampled(grid[:, 1:], PUBLISHED_GRID, PUBLISHED_GRID)
            weights[_POSITIONS] = torch.cat([grid[:, :1], plane], dim=1)
        wanted = {key: shape for key, shape in shapes.items() if not key.endswith(_COUNTER)}
        have = {key: tuple(value.shape) for key, value in weights.items() if not key.endswith(_COUNTER)}
        wrong = sorted(key for key in wanted.keys() | have.keys() if wanted.get(key) != have.get(key))
        if not wrong:
            return name, weights
        nearest = min(nearest, (len(wrong), name, wrong[0]))
    some = ", ".join(f"{key} {tuple(value.shape)}" for key, value in list(found.items())[:3])
    raise SpecError(
        f"--init {uri} fits no backbone that batchdet has ({', '.join(PUBLISHED)}): "
        f"it holds {len(found)} tensors, such as {some}; the nearest is {nearest[1]}, from which {nearest[0]} differ, "
        f"such as {nearest[2]}",
        code="train.init_backbone",
        key="--init",
    )


def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of a backbone that weights are published for."""
    with torch.device("meta"):
        backbone = PUBLISHED[name]()
    state = backbone.state_dict()
    parts = ("trunk.",) if hasattr(backbone, "trunk") else ("stem.", "stage")
    return {
        key: tuple(value.shape) for key, value in state.items() if key.startswith(parts) and ".normalise." not in key
    }


def _is_square(positions: Tensor) -> bool:
    count = positions.shape[1] - 1 if positions.ndim == 3 else 0
    return count > 0 and math.isqrt(count) ** 2 == count


def _refuse_other_computation(folder: Path, uri: str) -> None:
    """Refuse configurations by which the same tensors mean another computation."""
    config = _json(folder / CONFIG)
    usual = {
        "hidden_act": ("relu", "gelu"),
        "downsample_in_first_stage": (False,),
        "downsample_in_bottleneck": (False,),
        "patch_size": (16,),
        "model_type": ("resnet", "vit"),
    }
    for key, values in usual.items():
        if key in config and config[key] not in values:
            right = " or ".join(map(str, values))
            raise SpecError(
                f"--init {uri}: {CONFIG} says {key} {config[key]!r}; a backbone to begin with has {right}",
                code="train.init_backbone",
                key="--init",
            )


def _normalisation(folder: Path | None) -> tuple[Sequence[float], Sequence[float], bool]:
    """Return mean and deviation of the colours as configurations beside the weights state them, and whether they do."""
    if folder is None:
        return (), (), False
    processor, config = _json(folder / PREPROCESSOR), _json(folder / CONFIG)
    timm = config.get("pretrained_cfg")
    timm = timm if isinstance(timm, dict) else {}
    for stated, keys in ((processor, ("image_mean", "image_std")), (timm, ("mean", "std"))):
        mean, std = (_colours(stated.get(key)) for key in keys)
        if mean and std and min(std) > 0:
            return mean, std, True
    return (), (), False


def _colours(values: Any) -> tuple[float, ...]:
    """Return three numbers, or nothing."""
    there = isinstance(values, list) and len(values) == 3 and all(isinstance(n, int | float) for n in values)
    return tuple(values) if there else ()


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is no JSON: {error}", code="model.config", key=str(path)) from error
    return value if isinstance(value, dict) else {}
