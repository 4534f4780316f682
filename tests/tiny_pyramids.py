"""Small ONNX graphs built like detectors for phones, with the habits of their exporters.

Weights are listed as inputs of the graph, and notes about shapes are those of another canvas, as Paddle and older
versions of PyTorch write them.

Sources: Yu et al., "PP-PicoDet", arXiv:2111.00902 (ESNet, CSP-PAN); RangiLyu/nanodet (ShuffleNetV2, PAN of additions by
interpolation); dog-qiuqiu/FastestDet (three stages joined at stride 16, one level).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests import tiny_onnx


class Pyramid:
    """A graph that grows by one operation at a time; each method returns the name of what it computes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.channels = {"images": 3}

    def add(self, kind: str, inputs: Sequence[str], channels: int, **attributes: Any) -> str:
        """Append any operation whose output has some channels."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        self.channels[name] = channels
        return name

    def constant(self, values: Any) -> str:
        """Add a weight."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def conv(self, x: str, out: int, kernel: int = 1, stride: int = 1, act: str = "HardSwish", group: int = 1) -> str:
        """Append a convolution and what follows it."""
        weight = self.constant(np.zeros((out, self.channels[x] // group, kernel, kernel), np.float32))
        pad = kernel // 2
        made = self.add(
            "Conv", [x, weight], out, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, group=group
        )
        return self.add(act, [made], out) if act else made

    def separable(self, x: str, out: int, stride: int = 1, kernel: int = 3) -> str:
        """Append a convolution of each channel by itself, then one of single cells."""
        return self.conv(self.conv(x, self.channels[x], kernel, stride, group=self.channels[x]), out)

    def concat(self, *parts: str) -> str:
        """Put maps side by side."""
        return self.add("Concat", parts, sum(self.channels[part] for part in parts), axis=1)

    def resize(self, x: str, factor: float) -> str:
        """Enlarge a map, or make it smaller."""
        scales = self.constant(np.array([1, 1, factor, factor], np.float32))
        return self.add("Resize", [x, "", scales], self.channels[x], mode="nearest")

    def shuffled(self, x: str, side: int) -> str:
        """Mix two halves of the channels, as ShuffleNet and ESNet do."""
        n = self.channels[x]
        apart = self.add("Reshape", [x, self.constant(np.array([1, 2, n // 2, side, side]))], n)
        turned = self.add("Transpose", [apart], n, perm=[0, 2, 1, 3, 4])
        return self.add("Reshape", [turned, self.constant(np.array([1, n, side, side]))], n)

    def shuffle_stage(self, x: str, out: int, side: int) -> str:
        """Append a stage of ShuffleNetV2: two branches of stride 2, then a block of half the channels."""
        first = self.conv(self.conv(x, self.channels[x], 3, 2, "", self.channels[x]), out // 2, act="Relu")
        second = self.conv(self.separable(self.conv(x, out // 2, act="Relu"), out // 2, 2), out // 2, act="Relu")
        joined = self.shuffled(self.concat(first, second), side)
        halves = self.constant(np.array([out // 2, out // 2]))
        node = helper.make_node("Split", [joined, halves], [f"{joined}_a", f"{joined}_b"], axis=1)
        self.nodes.append(node)
        self.channels |= {f"{joined}_a": out // 2, f"{joined}_b": out // 2}
        block = self.separable(self.conv(f"{joined}_b", out // 2, act="Relu"), out // 2)
        return self.shuffled(self.concat(f"{joined}_a", block), side)

    def save(self, path: Path, outputs: Sequence[str], canvas: int) -> Path:
        """Write the model, with weights among its inputs and notes of shapes that do not hold."""
        value = helper.make_tensor_value_info
        inputs = [value("images", TensorProto.FLOAT, [1, 3, canvas, canvas])]
        inputs += [value(w.name, w.data_type, list(w.dims)) for w in self.weights]
        infos = [value(name, TensorProto.FLOAT, [7, 7, 7]) for name in outputs]
        graph = helper.make_graph(self.nodes, "pyramid", inputs, infos, self.weights)
        graph.value_info.extend(value(node.output[0], TensorProto.FLOAT, [9, 9, 9, 9]) for node in self.nodes[:5])
        return tiny_onnx.save(path, graph, {})


def _head(net: Pyramid, level: str, side: int, batch_axis: bool) -> list[str]:
    """Append a branch for scores and one for boxes; return an output of each."""
    outputs = []
    for channels in (80, 32):
        made = net.conv(net.separable(level, net.channels[level]), channels, act="Sigmoid")
        shape = [1, channels, side * side] if batch_axis else [channels, side * side]
        flat = net.add("Reshape", [made, net.constant(np.array(shape))], 0)
        outputs.append(net.add("Transpose", [flat], 0, perm=[0, 2, 1] if batch_axis else [1, 0]))
    return outputs


def picodet(path: Path, canvas: int = 128, levels: int = 96, separable_backbone: bool = False) -> Path:
    """Write a PicoDet: ESNet (or LCNet) of 96, 192 and 384 channels, CSP-PAN with a level of stride 64."""
    net = Pyramid()
    x = net.conv("images", 24, 3, 2)
    x = net.add("MaxPool", [x], 24, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    stages = []
    for n, channels in enumerate((96, 192, 384)):
        if separable_backbone:
            x = net.separable(net.separable(x, channels, 2), channels, kernel=5)
        else:
            x = net.shuffle_stage(x, channels, canvas // (8 << n))
        stages.append(x)
    low, middle, high = (net.conv(stage, levels) for stage in stages)

    def csp(a: str, b: str) -> str:
        joined = net.concat(a, b)
        main = net.separable(net.conv(joined, levels // 2), levels // 2)
        return net.conv(net.concat(main, net.conv(joined, levels // 2)), levels)

    down_middle = csp(net.resize(high, 2), middle)
    out8 = csp(net.resize(down_middle, 2), low)
    out16 = csp(net.separable(out8, levels, 2), down_middle)
    out32 = csp(net.separable(out16, levels, 2), high)
    out64 = net.add("Add", [net.separable(high, levels, 2), net.separable(out32, levels, 2)], levels)
    outputs = [
        name
        for n, level in enumerate((out8, out16, out32, out64))
        for name in _head(net, level, canvas // (8 << n), batch_axis=True)
    ]
    return net.save(path, outputs, canvas)


def nanodet(path: Path, canvas: int = 128) -> Path:
    """Write a NanoDet-m: ShuffleNetV2 of 116, 232 and 464 channels, a PAN of sums; outputs without a batch axis."""
    net = Pyramid()
    x = net.conv("images", 24, 3, 2, "Relu")
    x = net.add("MaxPool", [x], 24, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    stages = []
    for n, channels in enumerate((116, 232, 464)):
        x = net.shuffle_stage(x, channels, canvas // (8 << n))
        stages.append(x)
    low, middle, high = (net.conv(stage, 96, act="") for stage in stages)
    middle = net.add("Add", [middle, net.resize(high, 2)], 96)
    low = net.add("Add", [low, net.resize(middle, 2)], 96)
    middle = net.add("Add", [middle, net.resize(low, 0.5)], 96)
    high = net.add("Add", [high, net.resize(middle, 0.5)], 96)
    outputs = [
        name
        for n, level in enumerate((low, middle, high))
        for name in _head(net, level, canvas // (8 << n), batch_axis=False)
    ]
    return net.save(path, outputs, canvas)


def fastestdet(path: Path, canvas: int = 128) -> Path:
    """Write a FastestDet: ShuffleNetV2 of 48, 96 and 192 channels, joined at stride 16; its output is a map."""
    net = Pyramid()
    x = net.conv("images", 24, 3, 2, "Relu")
    x = net.add("MaxPool", [x], 24, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    stages = []
    for n, channels in enumerate((48, 96, 192)):
        x = net.shuffle_stage(x, channels, canvas // (8 << n))
        stages.append(x)
    high = net.resize(stages[2], 2)
    low = net.add("AveragePool", [stages[0]], 48, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    joined = net.conv(net.concat(low, stages[1], high), 96, act="Relu")
    chains = []
    for length in (1, 2, 3):
        y = joined
        for _ in range(length):
            y = net.conv(y, 96, 5, act="Relu", group=96)
        chains.append(y)
    level = net.add("Relu", [net.add("Add", [joined, net.conv(net.concat(*chains), 96, act="")], 96)], 96)
    parts = []
    for channels, act in ((1, "Sigmoid"), (4, ""), (80, "Softmax")):
        y = net.conv(net.conv(level, 96, 5, act="Relu", group=96), channels, act="")
        parts.append(net.add(act, [y], channels, **({"axis": 1} if act == "Softmax" else {})) if act else y)
    return net.save(path, [net.concat(*parts)], canvas)
