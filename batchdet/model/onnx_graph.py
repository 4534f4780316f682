"""An ONNX graph as nodes and shapes: what follows what, and what it costs."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from batchdet.errors import ModelError
from batchdet.model.runtimes import missing, one_line

Shape = tuple[int | None, ...]
_PRODUCTS: Final = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})


@dataclass(frozen=True)
class Node:
    """One operation.

    Args:
        kind: Its operator.
        scope: Components of its name, ``("model", "backbone", "stem", ...)``.
        inputs: Tensors that go in.
        outputs: Tensors that come out.
        kernel: Of a convolution, ``(height, width)``.
        group: Of a convolution.
    """

    kind: str
    scope: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kernel: tuple[int, ...] = ()
    group: int = 1

    @property
    def output(self) -> str:
        """The first output."""
        return self.outputs[0]


class Cost(NamedTuple):
    """What some nodes cost.

    Args:
        parameters: Numbers learned.
        gflops: 10^9 operations of the convolutions and matrix products of known shape.
        unknown_products: The others.
    """

    parameters: int
    gflops: float
    unknown_products: int


@dataclass
class OnnxGraph:
    """The nodes in an order in which they can be computed, and the shapes for one image.

    Args:
        nodes: All nodes of the main graph.
        shapes: Shape by tensor, where it is known; None where a length is not.
        weights: Numbers of each learned tensor.
        outputs: Name and shape of each output.
    """

    nodes: tuple[Node, ...]
    shapes: dict[str, Shape]
    weights: dict[str, int]
    outputs: tuple[tuple[str, Shape], ...]
    place: dict[str, int] = field(init=False)
    maker: dict[str, Node] = field(init=False)
    users: dict[str, list[Node]] = field(init=False)

    def __post_init__(self) -> None:
        self.place = {name: i for i, node in enumerate(self.nodes) for name in node.outputs}
        self.maker = {name: node for node in self.nodes for name in node.outputs}
        self.users = defaultdict(list)
        for node in self.nodes:
            for name in node.inputs:
                self.users[name].append(node)

    def before(self, names: Iterable[str]) -> set[str]:
        """Return all tensors that some tensors depend on, with themselves."""
        found, open_ = set[str](), [n for n in names if n in self.maker]
        while open_:
            name = open_.pop()
            if name not in found:
                found.update(self.maker[name].outputs)
                open_ += [n for n in self.maker[name].inputs if n in self.maker]
        return found

    def after(self, names: Iterable[str]) -> set[str]:
        """Return all tensors that depend on some tensors, with themselves."""
        found, open_ = set[str](), list(names)
        while open_:
            name = open_.pop()
            if name not in found:
                found.add(name)
                open_ += [n for node in self.users.get(name, ()) for n in node.outputs]
        return found

    def cost(self, names: set[str]) -> Cost:
        """Return what the nodes cost that make some tensors; a weight that is shared counts once."""
        nodes = [node for node in self.nodes if node.output in names]
        learned = {name for node in nodes for name in node.inputs if name in self.weights}
        flops = [self._flops(node) for node in nodes if node.kind in _PRODUCTS]
        known = sum(one for one in flops if one is not None)
        return Cost(sum(self.weights[name] for name in learned), known / 1e9, flops.count(None))

    def _flops(self, node: Node) -> float | None:
        """Twice the multiplications of a convolution or product; None if lengths are not known."""
        sizes = [self.shapes.get(name, ()) for name in (node.output, *node.inputs[:2])]
        if any(not shape or None in shape for shape in sizes):
            return None
        out, first, second = ([n or 0 for n in shape] for shape in sizes)
        if node.kind == "Conv":
            return 2.0 * math.prod(out) * math.prod(second[1:])
        if node.kind == "ConvTranspose":
            return 2.0 * math.prod(first) * math.prod(second[1:])
        return 2.0 * math.prod(out) * first[-1]


def read_graph(path: str, canvas: tuple[int, int]) -> OnnxGraph:
    """Read an ONNX file and work out the shapes of all tensors for one image.

    Args:
        path: A local file.
        canvas: ``(width_px, height_px)``.

    Raises:
        MissingExtra: The package onnx is not installed.
        ModelError: The graph cannot be read.
    """
    try:
        import onnx
    except ImportError as error:
        raise missing("onnx", "cpu") from error
    try:
        model = onnx.load(path, load_external_data=False)
        _forget_shapes(model.graph)
        for value in model.graph.input:
            _fix(value.type.tensor_type.shape.dim, canvas)
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as error:
        raise ModelError(f"the graph cannot be read: {one_line(error)}") from error
    shapes = {v.name: _shape(v) for v in (*graph.value_info, *graph.input, *graph.output)}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    weights = {t.name: math.prod(t.dims) for t in graph.initializer if t.data_type in floats}
    nodes = tuple(_node(node) for node in graph.node)
    return OnnxGraph(nodes, shapes, weights, tuple((v.name, _shape(v)) for v in graph.output))


def _forget_shapes(graph: Any) -> None:
    """Leave of a graph's notes those alone that hold for any canvas.

    Exporters note shapes that hold for their own canvas. Paddle and older versions of PyTorch list weights as inputs.
    """
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:], graph.value_info[:]
    graph.input.extend(inputs)
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")


def _fix(axes: Any, canvas: tuple[int, int]) -> None:
    """Set the free axes of an input: one image, on the canvas."""
    sizes = (1, 3, canvas[1], canvas[0]) if len(axes) == 4 else (1,)
    for axis, size in zip(axes, sizes, strict=False):
        axis.Clear()
        axis.dim_value = size


def _shape(value: Any) -> Shape:
    axes = value.type.tensor_type.shape.dim
    return tuple(axis.dim_value if axis.HasField("dim_value") and axis.dim_value else None for axis in axes)


def _node(node: Any) -> Node:
    attributes = {a.name: a for a in node.attribute}
    kernel = tuple(attributes["kernel_shape"].ints) if "kernel_shape" in attributes else ()
    group = attributes["group"].i if "group" in attributes else 1
    scope = tuple(part for part in node.name.split("/") if part)
    return Node(node.op_type, scope, tuple(n for n in node.input if n), tuple(node.output), kernel, group)
