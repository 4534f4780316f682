"""The weights that a training begins with: another net's, as far as the parts are the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import batchdet
from batchdet.errors import SpecError
from batchdet.model.format import OWN_KEY, Format, format_of, pickled_modules, safetensors_texts
from batchdet.model.labels import parse_names
from batchdet.model.nets.backbones import PUBLISHED
from batchdet.model.nets.checkpoint import load_net
from batchdet.model.nets.detector_net import Composition, DetectorNet
from batchdet.model.nets.layers import ConvNormAct
from batchdet.sample.scene import CLASSES
from batchdet.training.pretrained import read_pretrained

BUILTIN: Final = "builtin:sample"
EMBEDDED: Final = Composition(classes=len(CLASSES))
"""What ``builtin:sample`` is made of."""
_PARTS: Final = ("backbone", "neck", "head")


@dataclass(frozen=True)
class Initial:
    """Weights to begin with.

    Args:
        uri: Where they come from.
        composition: Of the net that they are from.
        properties: What that net's file says of itself.
        labels: Its classes.
        weights: By the names of the net's state.
        folded: Batch norm is folded into the convolutions, as in ``builtin:sample``, which is an ONNX file.
        parts: The parts that the weights are of.
        said: More about them, in words.
    """

    uri: str
    composition: Composition
    properties: dict[str, str]
    labels: tuple[str, ...]
    weights: dict[str, Tensor]
    folded: bool = False
    parts: tuple[str, ...] = _PARTS
    said: str = ""


def open_initial(uri: str) -> Initial:
    """Read the weights of a checkpoint (``*.safetensors``), of ``builtin:sample``, or of a published backbone.

    Raises:
        SpecError: There is no such file, or it is of no backbone that batchdet has.
        ModelError: It is damaged.
    """
    if uri == BUILTIN:
        model = onnx.load(Path(batchdet.__file__).parent / "model" / "embedded" / "sample.onnx")
        properties = {item.key: item.value for item in model.metadata_props}
        arrays = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
        weights = {
            name: torch.from_numpy(array.copy()) for name, array in arrays.items() if name.partition(".")[0] in _PARTS
        }
        return Initial(uri, EMBEDDED, properties, parse_names(properties["names"]), weights, folded=True)
    _refuse_pickles(uri)
    if not Path(uri).exists():
        raise SpecError(f"init is {uri}; there is no such file (a checkpoint *.safetensors, or {BUILTIN})")
    if Path(uri).is_dir() or OWN_KEY not in safetensors_texts(uri):
        found = read_pretrained(uri)
        weights = {f"backbone.{name}": value for name, value in found.weights.items()}
        composition = Composition(classes=1, backbone=found.backbone)
        properties = {"license": found.licence}
        return Initial(uri, composition, properties, (), weights, parts=("backbone",), said=f" ({found.said})")
    loaded = load_net(uri)
    labels = parse_names(loaded.properties.get("names", ""))
    return Initial(uri, loaded.composition, loaded.properties, labels, loaded.net.state_dict())


def _refuse_pickles(uri: str) -> None:
    """Refuse what only unpickling would read, and say what trains it.

    Raises:
        SpecError: It is a checkpoint of Ultralytics, or another pickle.
    """
    path = Path(uri)
    if path.is_dir():
        return
    if not path.exists():
        pickled, ultralytics = False, path.suffix == ".pt" and path.name.lower().startswith("yolo")
    else:
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"
        pickled = not is_safetensors and format_of(uri) is Format.PICKLE
        ultralytics = pickled and "ultralytics" in pickled_modules(uri)
    if ultralytics:
        raise SpecError(
            f"--init {uri}: its own package trains checkpoints of Ultralytics (AGPL-3.0; yolo detect train "
            f"model={path.name} data=data.yaml), and batchdet labels with the result (model.uri: .../best.pt)",
            code="train.init_ultralytics",
            key="--init",
        )
    if pickled:
        raise SpecError(
            f"--init {uri} is a pickle, which can run code while it is loaded; save its weights as *.safetensors",
            code="train.init_pickle",
            key="--init",
        )


def take_over(net: DetectorNet, composition: Composition, labels: Sequence[str], initial: Initial) -> str:
    """Copy the weights of all parts that are the same; classes of the same label keep what scores them.

    Args:
        net: Receives them; its batch norm is the identity afterwards where they are folded, see `calibrate`.
        composition: What it is made of.
        labels: Its classes.
        initial: The weights.

    Returns:
        What was taken, in words.

    Raises:
        SpecError: The backbones differ, so that there is nothing to begin with.
    """
    before = initial.composition
    fixed = composition.backbone in PUBLISHED
    if composition.backbone != before.backbone or (composition.width != before.width and not fixed):
        raise SpecError(
            f"backbone is {composition.backbone} of width {composition.width:g}, that of {initial.uri} "
            f"is {before.backbone} of width {before.width:g}; leave both out to take its own"
        )
    same = [part for part in initial.parts if getattr(composition, part) == getattr(before, part)]
    if "neck" not in same or composition.width != before.width:
        same = ["backbone"]  # a head reads what its own neck writes
    common = [label for label in labels if label in initial.labels]
    state = net.state_dict()
    for name, weight in initial.weights.items():
        if name.partition(".")[0] not in same:
            continue
        for target in _targets(name, initial):
            if _scores_classes(target):
                for label in common:
                    state[target][labels.index(label)] = weight[initial.labels.index(label)]
            elif target.endswith(".0.bias") and initial.folded and target not in state:
                _unfold(net, target.removesuffix(".0.bias"), weight)
            else:
                state[target].copy_(weight)
    known = f", {len(common)} of {len(labels)} classes known" if "head" in same else ""
    return f"{', '.join(same)} of {initial.uri}{initial.said}{known}"


@torch.no_grad()
def calibrate(net: DetectorNet, batches: Sequence[Tensor]) -> None:
    """Give back to folded batch norm what it once knew: the mean and variance of its inputs.

    What the net computes in evaluation does not change. While training, batch norm uses each batch's own statistics,
    and what it multiplies and adds must be made for them.

    Args:
        net: As `take_over` leaves it, where weights were folded.
        batches: (N, 3, H, W) float, RGB in [0, 1], a few dozen images in all.
    """
    sums: dict[ConvNormAct, list[Tensor]] = {}
    layers = [module for module in net.modules() if isinstance(module, ConvNormAct)]
    hooks = [_watch(layer, sums.setdefault(layer, [])) for layer in layers]
    mode = {module: module.training for module in net.modules()}
    net.eval()
    net.head.training = True  # both branches speak, while all their layers evaluate
    for images in batches:
        net(images)
    for module, training in mode.items():
        module.training = training
    for hook in hooks:
        hook.remove()
    for layer, moments in sums.items():
        norm = layer[1]
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        means, squares = torch.stack(moments).mean(dim=0)
        variance = (squares - means.square()).clamp(min=0)
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * gain
        norm.running_mean.copy_(means)
        norm.running_var.copy_(variance)
        norm.weight.copy_(gain * (variance + norm.eps).sqrt())
        norm.bias.copy_(shift + means * gain)


def _watch(layer: ConvNormAct, moments: list[Tensor]) -> torch.utils.hooks.RemovableHandle:
    """Keep mean and mean square of each channel of what goes into a layer's batch norm."""
    axes = (0, 2, 3)
    return layer[0].register_forward_hook(
        lambda module, args, out: moments.append(torch.stack([out.mean(axes), out.square().mean(axes)]))
    )


def _targets(name: str, initial: Initial) -> list[str]:
    """Name the tensors that a weight goes to: exports lack the one-to-many branch, which begins like the other."""
    twin = name.replace("head.one_to_one.", "head.one_to_many.")
    return [name] if twin == name or twin in initial.weights else [name, twin]


def _scores_classes(name: str) -> bool:
    """Tell the last layer of a score tower, whose rows are classes."""
    parts = name.split(".")
    return "score_towers" in parts and len(parts) == 6 and parts[4] == "1"


def _unfold(net: DetectorNet, layer: str, bias: Tensor) -> None:
    """Let a batch norm add a folded convolution's bias, and change nothing else."""
    norm = net.get_submodule(f"{layer}.1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        norm.weight.fill_(1)
        norm.bias.copy_(bias)
