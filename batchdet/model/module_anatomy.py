"""The anatomy of a module of PyTorch, seen by watching one run: what each module inside returns, and what it costs.

Parts are known by the names that their authors gave the modules: what stands in a ``backbone`` is backbone, what stands
in an ``encoder``, ``neck``, ``fpn`` or ``pan`` beside it is neck, and the rest is head.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from batchdet.errors import ModelError
from batchdet.model.anatomy import PARTS, Anatomy, FeatureMap, Part, PartName

_BACKBONE: Final = ("backbone", "conv_encoder", "vit")
_NECK: Final = ("neck", "fpn", "pan", "encoder", "hybrid_encoder")
_TOKENS: Final = ".patch_embeddings.projection"
"""A map that becomes the first tokens of a plain ViT: no stage of a backbone, which has no maps then."""
_STRIDES: Final = (2, 4, 8, 16, 32, 64, 128)


def watch_modules(
    module: Any, call: Callable[[Any], Mapping[str, Any]], canvas: tuple[int, int], device: Any
) -> Anatomy:
    """Run a module once on an empty canvas and say what is inside.

    Args:
        module: The whole module.
        call: Computes its outputs of images ``(1, 3, H, W)``.
        canvas: ``(width_px, height_px)``.
        device: Where it stands.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    width, height = canvas
    seen: list[tuple[str, str, Any]] = []

    def watch(name: str) -> Any:
        return module.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output: seen.extend((name, inner, t.shape) for inner, t in _planes(name, output))
        )

    hooks = [watch(name) for name, _ in module.named_modules() if name]
    counter = FlopCounterMode(display=False)
    try:
        with torch.inference_mode(), counter:
            outputs = call(torch.zeros(1, 3, height, width, device=device))
    finally:
        for handle in hooks:
            handle.remove()
    plane = {}
    for name, inner, shape in seen:  # of a module and its last child, which return the same, the outer one stays
        stride = _stride(shape, canvas)
        if stride and not name.endswith(_TOKENS):
            plane[inner] = FeatureMap(_part(name), inner, stride, int(shape[1]))
    maps = [m for part in ("backbone", "neck") for m in _deepest(plane.values(), part)]
    return Anatomy(
        canvas,
        tuple(maps),
        _costs(module, counter.get_flop_counts()),
        tuple((name, tuple(tensor.shape)) for name, tensor in outputs.items()),
        tuple(plane.values()),
    )


def hook(module: Any, name: str, into: dict[str, Any]) -> None:
    """Have a map that :func:`watch_modules` named put into a dict whenever the module runs.

    Raises:
        ModelError: There is no such map.
    """
    owner = next((n for n in _owners(name) if n in dict(module.named_modules())), None)
    if owner is None:
        raise ModelError(f"the model has no module {name!r}")

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        for inner, tensor in _planes(owner, output):
            if inner == name:
                into[name] = tensor.clone()  # an activation in place would change it

    module.get_submodule(owner).register_forward_hook(keep)


def _owners(name: str) -> Iterator[str]:
    """Yield the modules that may return a map of this name, the longest first."""
    while name:
        yield name
        name = name.rpartition(":")[0]


def _planes(name: str, output: Any) -> Iterator[tuple[str, Any]]:
    """Yield the maps that a module returned: under its name, or with the place in what it returned behind a colon."""
    import torch

    if isinstance(output, torch.Tensor):
        if output.ndim == 4:
            yield name, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from _planes(f"{name}:{key}", value)
    elif isinstance(output, list | tuple):
        for i, value in enumerate(output):
            yield from _planes(f"{name}:{i}", value)


def _stride(shape: Sequence[int], canvas: tuple[int, int]) -> int | None:
    width, height = canvas
    return next((s for s in _STRIDES if (-(-height // s), -(-width // s)) == tuple(shape[2:])), None)


def _part(name: str) -> PartName:
    pieces = name.split(".")
    if any(piece in _BACKBONE for piece in pieces):
        return "backbone"
    return "neck" if any(piece in _NECK for piece in pieces) else "head"


def _deepest(plane: Any, part: str) -> list[FeatureMap]:
    last = {m.stride: m for m in plane if m.part == part}
    return [last[stride] for stride in sorted(last)]


def _costs(module: Any, counts: Mapping[str, Mapping[Any, int]]) -> tuple[Part, ...]:
    """Return what each part costs; the counter names modules by the class of the whole and their path."""
    parameters = dict.fromkeys(PARTS, 0)
    for name, parameter in module.named_parameters():
        parameters[_part(name)] += parameter.numel()
    flops = dict.fromkeys(PARTS, 0)
    flops["head"] = sum(counts.get("Global", {}).values())
    root = type(module).__name__
    for name, _ in module.named_modules():
        part = _part(name)
        if part != "head" and _part(name.rpartition(".")[0]) == "head":  # the outermost of its part
            cost = sum(counts.get(f"{root}.{name}", {}).values())
            flops[part] += cost
            flops["head"] -= cost
    return tuple(Part(part, parameters[part], flops[part] / 1e9) for part in PARTS if parameters[part] or flops[part])
