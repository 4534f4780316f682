"""The anatomy of a detector: which of its nodes are backbone, neck and head, found in the graph alone.

A detector's graph shows its parts. What a backbone computes does not depend on anything that was enlarged; the neck is
where maps of several strides meet, the coarser ones enlarged first; heads leave the plane and never come back to it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from batchdet.model.onnx_graph import Node, OnnxGraph, read_graph

PartName = Literal["backbone", "neck", "head"]
PARTS: Final[tuple[PartName, ...]] = ("backbone", "neck", "head")
_UPSAMPLING: Final = frozenset({"Resize", "Upsample", "ConvTranspose"})
_MERGING: Final = frozenset({"Add", "Concat", "Sum"})
_POINTWISE: Final = frozenset(
    {"Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Mul", "Clip", "Elu", "Gelu", "Softplus", "Mish"}
    | {"BatchNormalization", "Exp", "PRelu", "QuickGelu", "Swish"}
)
_POOLING: Final = frozenset({"AveragePool", "MaxPool"})
_ASKING: Final = frozenset({"Shape", "Size"})
_STRIDES: Final = (2, 4, 8, 16, 32, 64, 128)
_BACKBONE_SCOPE: Final = "backbone"


@dataclass(frozen=True)
class FeatureMap:
    """A tensor ``(N, channels, H / stride, W / stride)`` on the way through a detector.

    Args:
        part: What computes it.
        name: The tensor's name in the graph.
        stride: Canvas pixels for one cell.
        channels: Its width.
    """

    part: PartName
    name: str
    stride: int
    channels: int


@dataclass(frozen=True)
class Part:
    """What a part costs.

    Args:
        name: Which one.
        parameters: Numbers learned.
        gflops: 10^9 operations for one image on the canvas, a multiplication and an addition counted as two;
            convolutions and matrix products only.
        unknown_products: Convolutions and products whose shape the graph does not tell; ``gflops`` lacks them.
    """

    name: PartName
    parameters: int
    gflops: float
    unknown_products: int = 0


@dataclass(frozen=True)
class Anatomy:
    """The parts of a detector.

    Args:
        canvas: ``(width_px, height_px)`` for which the figures stand.
        maps: Stages of the backbone, finest first, then levels of the neck, finest first.
        parts: Costs; one part "backbone" alone where the graph shows no neck.
        outputs: The graph's outputs: name and shape for one image, None where a length is not known.
        plane: All maps inside the graph, in its order.
    """

    canvas: tuple[int, int]
    maps: tuple[FeatureMap, ...]
    parts: tuple[Part, ...]
    outputs: tuple[tuple[str, tuple[int | None, ...]], ...]
    plane: tuple[FeatureMap, ...]

    def of(self, part: PartName) -> tuple[FeatureMap, ...]:
        """Return the maps of a part, finest first."""
        return tuple(m for m in self.maps if m.part == part)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the plane."""
        parts = {
            part.name: {
                "maps": [{"name": m.name, "stride": m.stride, "channels": m.channels} for m in self.of(part.name)],
                "parameters": part.parameters,
                "gflops": round(part.gflops, 4),
                "unknown_products": part.unknown_products,
            }
            for part in self.parts
        }
        return {"canvas_px": list(self.canvas), "parts": parts}

    def describe(self) -> list[str]:
        """Draw the parts as lines of text: stages, levels, outputs, and what each part costs."""
        width, height = self.canvas
        lines = [f"{f'anatomy at {width} x {height} px':<34}{'parameters':>14}{'GFLOPs':>10}"]
        for part in self.parts:
            lines.append(f"{part.name:<34}{part.parameters:>14,}{part.gflops:>10.2f}")
            for m in self.of(part.name):
                size = f"{width // m.stride} x {height // m.stride}"
                lines.append(f"  stride {m.stride:<4}{m.channels:>5} channels  {size:>11}  {m.name}")
            if part.name == "head" or len(self.parts) == 1:
                lines += [
                    f"  output {name} [{', '.join('?' if n is None else str(n) for n in shape)}]"
                    for name, shape in self.outputs
                ]
        total = sum(part.parameters for part in self.parts), sum(part.gflops for part in self.parts)
        lines.append(f"{'in all':<34}{total[0]:>14,}{total[1]:>10.2f}")
        if unknown := [f"{part.unknown_products} of the {part.name}" for part in self.parts if part.unknown_products]:
            lines.append(f"not in GFLOPs: products whose shape the graph does not tell ({', '.join(unknown)})")
        return lines


def read_anatomy(path: str, canvas: tuple[int, int]) -> Anatomy:
    """Find the parts of the detector in an ONNX file.

    Args:
        path: A local file, checked by :func:`batchdet.model.onnx_file.read_onnx`.
        canvas: ``(width_px, height_px)``.

    Raises:
        MissingExtra: The package onnx is not installed.
        ModelError: The graph cannot be read.
    """
    return _Dissection(read_graph(path, canvas), canvas).anatomy()


class _Dissection:
    """A graph with what follows from its shapes."""

    def __init__(self, graph: OnnxGraph, canvas: tuple[int, int]) -> None:
        self.graph, self.canvas = graph, canvas
        self.maps = {name: stride for name in graph.place if (stride := self._stride(name))}
        self.plane = graph.before(self.maps)  # what leads to a map; the rest has left for good
        self.upsamplers = [n for n in graph.nodes if n.kind in _UPSAMPLING and self._enlarges(n)]
        self.enlarged = graph.after(n.output for n in self.upsamplers)
        self.merges = [n for n in graph.nodes if n.kind in _MERGING and n.output in self.maps and self._meets(n)]

    def anatomy(self) -> Anatomy:
        """Put the findings together."""
        stages = self._stages()
        levels = self._levels(stages)
        maps = [self._map("backbone", stages[s]) for s in sorted(stages)]
        maps += [self._map("neck", levels[s]) for s in sorted(levels)]
        backbone = self.graph.before(stages.values())
        neck = self.graph.before(levels.values()) - backbone
        sets: dict[PartName, set[str]] = {
            "backbone": backbone,
            "neck": neck,
            "head": set(self.graph.place) - backbone - neck,
        }
        parts = tuple(Part(name, *self.graph.cost(sets[name])) for name in PARTS if sets[name])
        part_of = {name: part for part, names in sets.items() for name in names}
        outputs = {name for name, _ in self.graph.outputs}
        inner = [name for name in self.graph.place if name in self.maps and name not in outputs]
        plane = tuple(self._map(part_of[name], name) for name in inner)
        return Anatomy(self.canvas, tuple(maps), parts, self.graph.outputs, plane)

    def _map(self, part: PartName, name: str) -> FeatureMap:
        return FeatureMap(part, name, self.maps[name], self.graph.shapes[name][1] or 0)

    def _stride(self, name: str) -> int:
        """Return the stride of a map over the whole canvas; 0 for other tensors."""
        shape = self.graph.shapes.get(name, ())
        if len(shape) != 4 or shape[0] != 1 or not shape[1]:
            return 0
        width, height = self.canvas
        return next((s for s in _STRIDES if (width // s, height // s) == (shape[3], shape[2])), 0)

    def _enlarges(self, node: Node) -> bool:
        source = self.maps.get(node.inputs[0], 0)
        return 0 < self.maps.get(node.output, 0) < source

    def _meets(self, node: Node) -> bool:
        """Tell whether a node joins an enlarged map with one that is not."""
        sides = {name in self.enlarged for name in node.inputs if name in self.maps}
        return sides == {True, False}

    def _stages(self) -> dict[int, str]:
        """Find the last map of the backbone at each stride."""
        scoped = [n.output for n in self.graph.nodes if _BACKBONE_SCOPE in n.scope and n.output in self.maps]
        if scoped:
            return {self.maps[name]: name for name in scoped}
        ends = [name for n in self.merges for name in n.inputs if name in self.maps and name not in self.enlarged]
        ends += [n.inputs[0] for n in self.upsamplers if n.inputs[0] not in self.enlarged]
        last = self._last_by_stride(self._without_laterals(ends))
        if not last:  # no neck: maps that never leave the plane are all the backbone there is
            plane = [name for name in self.maps if name not in self.enlarged and not self._is_branch(name)]
            return self._last_by_stride(plane)
        finest = min(last)
        before = self.graph.before([last[finest]])
        coarser = {s: n for s, n in self._last_by_stride(n for n in self.maps if n in before).items() if s < finest}
        return coarser | last

    def _without_laterals(self, ends: Iterable[str]) -> list[str]:
        """Go back from what enters a neck to what the backbone has made.

        A level that a neck adds of its own, such as PicoDet's of stride 64, is computed of a lateral of another one.
        """
        found = {end: self._without_lateral(end) for end in ends}
        laterals = {end for end, stage in found.items() if end != stage}
        return [stage for end, stage in found.items() if not self.graph.before([end]) & (laterals - {end})]

    def _without_lateral(self, end: str) -> str:
        """Go back before what only fits a finished map to the neck: other channels, or a coarser stride by pooling."""
        node = self.graph.maker.get(end)
        if (
            node is not None
            and node.kind in _POOLING
            and self.maps.get(node.inputs[0], self.maps[end]) < self.maps[end]
        ):
            return node.inputs[0]
        return self._without_adapter(end, lambda into, out: out < into)

    def _last_by_stride(self, names: Iterable[str]) -> dict[int, str]:
        return {self.maps[name]: name for name in sorted(names, key=self.graph.place.__getitem__)}

    def _is_branch(self, name: str) -> bool:
        """Tell whether a map only leads off the plane, as those of heads do."""
        return not any(user.output in self.plane for user in self.graph.users.get(name, ()))

    def _without_adapter(self, name: str, fits: Callable[[int, int], bool]) -> str:
        """Go back before a 1 x 1 convolution that only changes a finished map's channels, and what follows it.

        One behind a Concat closes a block; one behind a map is a lateral or a stem, which belongs to what it feeds.
        """
        at = name
        for _ in range(4):
            node = self.graph.maker.get(at)
            if node is None:
                return name
            if node.kind == "Conv":
                source = node.inputs[0]
                made = self.graph.maker.get(source)
                closes = made is None or made.kind in _MERGING or source not in self.maps
                into, out = (self.graph.shapes[n][1] or 0 for n in (source, at) if n in self.maps)
                adapts = fits(into, out) or (len(self.graph.users[source]) > 1 and source not in self.enlarged)
                return source if node.kernel == (1, 1) and node.group == 1 and not closes and adapts else name
            if node.kind not in _POINTWISE:
                return name
            inputs = [n for n in node.inputs if n in self.maps]
            at = min(inputs, key=self.graph.place.__getitem__)
        return name

    def _levels(self, stages: Mapping[int, str]) -> dict[int, str]:
        """Find the last map of each stride that all branches of the head share there."""
        if not self.upsamplers:
            return {}
        levels = {}
        for stride in sorted(set(self.maps.values())):
            ends = self._leaves(stride)
            if not ends:
                continue
            shared = set.intersection(*(self.graph.before([end]) for end in ends))
            backbone = self.graph.before(stages.values())
            found = [n for n in shared if self.maps.get(n) == stride and n not in backbone]
            if not found:
                continue
            last = max(found, key=self.graph.place.__getitem__)
            levels[stride] = self._without_adapter(self._without_prediction(last, ends), lambda into, out: out <= into)
        return levels

    def _leaves(self, stride: int) -> list[str]:
        """List the maps of a stride with which branches leave the plane for good."""
        outputs = {name for name, _ in self.graph.outputs}
        leaving = [
            name
            for name, its in self.maps.items()
            if its == stride and (name in outputs or any(map(self._leaves_the_plane, self.graph.users.get(name, ()))))
        ]
        return [part for name in leaving for part in self._joined(name)]

    def _leaves_the_plane(self, node: Node) -> bool:
        return node.kind not in _ASKING and node.output not in self.plane

    def _joined(self, name: str) -> list[str]:
        """Return the maps that a last Concat has put side by side."""
        node = self.graph.maker.get(name)
        if node is not None and node.kind == "Concat":
            return [part for source in node.inputs if source in self.maps for part in self._joined(source)]
        return [name]

    def _without_prediction(self, last: str, ends: Sequence[str]) -> str:
        """Go back before the convolution that predicts, where a level has one branch alone."""
        node = self.graph.maker.get(last)
        alone = list(ends) == [last]
        return node.inputs[0] if alone and node is not None and node.kind == "Conv" else last
