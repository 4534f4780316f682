"""Small ONNX models made on the spot, right and wrong ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Shape = Sequence[int | str]
DYNAMIC: Shape = ("N", 3, "H", "W")


def save(
    path: Path, graph: onnx.GraphProto, metadata: Mapping[str, str], opsets: Mapping[str, int] | None = None
) -> Path:
    """Write a graph as a model file with key-value texts."""
    imports = [helper.make_opsetid(domain, version) for domain, version in (opsets or {"": 17}).items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8, producer_name="tests")
    helper.set_model_props(model, dict(metadata))
    path.write_bytes(model.SerializeToString())
    return path


def constant(
    path: Path,
    outputs: Mapping[str, Array],
    images: Shape = DYNAMIC,
    sizes: bool = False,
    silu: bool = False,
    **metadata: str,
) -> Path:
    """Write a model that gives the same outputs for every image.

    Args:
        path: The file.
        outputs: Name to the array of one image, without the batch axis.
        images: Shape of the input ``images``.
        sizes: Add the input ``orig_target_sizes`` int64 ``(N, 2)``.
        silu: Put images through a SiLU first.
        metadata: Key-value texts.
    """
    nodes, initializers, infos = [], [], []
    if silu:
        nodes.append(helper.make_node("Sigmoid", ["images"], ["gate"]))
        nodes.append(helper.make_node("Mul", ["images", "gate"], ["gated"]))
    seen = "gated" if silu else "images"
    nodes.append(helper.make_node("ReduceMean", [seen], ["mean"], axes=[1, 2, 3], keepdims=0))
    nodes.append(helper.make_node("Mul", ["mean", "zero"], ["nothing"]))
    initializers.append(numpy_helper.from_array(np.float32(0), "zero"))
    for name, array in outputs.items():
        initializers.append(numpy_helper.from_array(array[None], f"{name}_value"))
        initializers.append(numpy_helper.from_array(np.array([-1] + [1] * array.ndim), f"{name}_axes"))
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        nodes.append(helper.make_node("Reshape", ["nothing", f"{name}_axes"], [f"{name}_nothing"]))
        nodes.append(helper.make_node("Cast", [f"{name}_nothing"], [f"{name}_zero"], to=kind))
        nodes.append(helper.make_node("Add", [f"{name}_zero", f"{name}_value"], [name]))
        infos.append(helper.make_tensor_value_info(name, kind, [images[0], *array.shape]))
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, list(images))]
    if sizes:
        inputs.append(helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, [images[0], 2]))
    return save(path, helper.make_graph(nodes, "constant", inputs, infos, initializers), metadata)


def end2end(path: Path, rows: Sequence[Sequence[float]] = ((8, 8, 24, 24, 0.9, 1),), **options: Any) -> Path:
    """Write a detector of the family yolo_end2end that always finds ``rows`` (canvas xyxy, score, class)."""
    return constant(path, {"output0": np.array(rows, np.float32)}, **options)


def convolution(path: Path, seed: int = 3) -> Path:
    """Write a model that computes: a 3 x 3 convolution of stride 2, then its square; two outputs."""
    weight = np.random.default_rng(seed).normal(size=(4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["features"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Mul", ["features", "features"], ["squares"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "convolution",
        [value("images", TensorProto.FLOAT, list(DYNAMIC))],
        [value(name, TensorProto.FLOAT, ["N", 4, "h", "w"]) for name in ("features", "squares")],
        [numpy_helper.from_array(weight, "weight")],
    )
    return save(path, graph, {"stride": "2", "note": "ünïcode"})


def gated(path: Path) -> Path:
    """Write a model of three gates: a SiLU, its mirror, and a gate by another tensor; an output each."""
    weights = np.random.default_rng(5).normal(size=(2, 4, 3, 3, 3)).astype(np.float32)
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Conv", ["images", "w0"], ["x"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Conv", ["images", "w1"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Sigmoid", ["x"], ["sx"]),
        node("Sigmoid", ["y"], ["sy"]),
        node("Mul", ["x", "sx"], ["silu"]),
        node("Mul", ["sy", "y"], ["mirror"]),
        node("Mul", ["x", "sy"], ["gate"]),
    ]
    graph = helper.make_graph(
        nodes,
        "gated",
        [value("images", TensorProto.FLOAT, list(DYNAMIC))],
        [value(name, TensorProto.FLOAT, ["N", 4, "h", "w"]) for name in ("silu", "mirror", "gate")],
        [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)],
    )
    return save(path, graph, {"stride": "2"})


def classifier(path: Path) -> Path:
    """Write a model that is no detector: ``(N, 1000)`` class scores."""
    return constant(path, {"logits": np.linspace(0, 1, 1000, dtype=np.float32)}, ("N", 3, 224, 224))


def with_external_data(path: Path, location: str) -> Path:
    """Write a model whose weights would be read from another file."""
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[4])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["images", "weight"], ["output0"])],
        "external",
        [value("images", TensorProto.FLOAT, [4])],
        [value("output0", TensorProto.FLOAT, [4])],
        [weight],
    )
    return save(path, graph, {})


def with_custom_operator(path: Path) -> Path:
    """Write a model that needs somebody's library of operators."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Evil", ["images"], ["output0"], domain="com.example.evil")],
        "custom",
        [value("images", TensorProto.FLOAT, list(DYNAMIC))],
        [value("output0", TensorProto.FLOAT, ["N", 300, 6])],
    )
    return save(path, graph, {}, {"": 17, "com.example.evil": 1})


def one_image_only(path: Path, rows: Array) -> Path:
    """Write a model that declares a free batch and canvas but whose graph works with 1 x 64 x 64 only."""
    nodes = [
        helper.make_node("Reshape", ["images", "axes"], ["flat"]),
        helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "rows"], ["output0"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "one",
        [value("images", TensorProto.FLOAT, list(DYNAMIC))],
        [value("output0", TensorProto.FLOAT, ["N", *rows.shape])],
        [
            numpy_helper.from_array(np.array([1, 3 * 64 * 64]), "axes"),
            numpy_helper.from_array(np.float32(0), "zero"),
            numpy_helper.from_array(rows[None].astype(np.float32), "rows"),
        ],
    )
    return save(path, graph, {"imgsz": "[64, 64]", "names": "['cat', 'dog']"})


def centre_net(path: Path) -> Path:
    """Write a CenterNet-like model: ``heatmap`` (N, 2, h, w) and ``size`` (N, 2, h, w) at stride 4.

    Fed with images normalised by ImageNet's mean and deviation. Class 1 scores how bright a cell is, class 0 how dark;
    objects are 24 x 16 canvas pixels.
    """
    value = helper.make_tensor_value_info
    gray = np.full((1, 3, 4, 4), 1 / 48, np.float32) * np.array([0.229, 0.224, 0.225], np.float32)[None, :, None, None]
    mean = np.float32(np.mean([0.485, 0.456, 0.406]))
    weight = np.concatenate([-gray, gray])
    bias = np.array([1 - mean, mean], np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "weight", "bias"], ["light"], strides=[4, 4]),
        helper.make_node("Mul", ["light", "light"], ["heatmap"]),
        helper.make_node("Mul", ["light", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "sides"], ["size"]),
    ]
    constants = {
        "weight": weight, "bias": bias, "zero": np.zeros(1, np.float32),
        "sides": np.array([24, 16], np.float32).reshape(1, 2, 1, 1),
    }  # fmt: skip
    outputs = [value(name, TensorProto.FLOAT, ["N", 2, "h", "w"]) for name in ("heatmap", "size")]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    return save(
        path,
        helper.make_graph(nodes, "centre", [value("images", TensorProto.FLOAT, list(DYNAMIC))], outputs, tensors),
        {},
    )


def of_one_image(path: Path, outputs: Mapping[str, Array]) -> Path:
    """Write a model whose outputs have no axis of images, as torchvision exports detectors."""
    value = helper.make_tensor_value_info
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in outputs.items()}
    nodes = [helper.make_node("Identity", [f"{name}_constant"], [name]) for name in outputs]
    infos = [value(name, kinds[name], [f"found{array.ndim}", *array.shape[1:]]) for name, array in outputs.items()]
    tensors = [numpy_helper.from_array(array, f"{name}_constant") for name, array in outputs.items()]
    images = value("images", TensorProto.FLOAT, list(DYNAMIC))
    return save(path, helper.make_graph(nodes, "of_one_image", [images], infos, tensors), {})


def endless(path: Path, with_images: bool = False) -> Path:
    """Write a detector of the family yolo_end2end whose graph holds a loop without end.

    Args:
        path: The file.
        with_images: The loop begins only when the canvas holds something, so that an empty one passes.
    """
    node, value, boolean = helper.make_node, helper.make_tensor_value_info, TensorProto.BOOL
    body = helper.make_graph(
        [node("Identity", ["goes_on"], ["still"]), node("Add", ["x", "one"], ["y"])],
        "body",
        [value("i", TensorProto.INT64, []), value("goes_on", boolean, []), value("x", TensorProto.FLOAT, None)],
        [value("still", boolean, []), value("y", TensorProto.FLOAT, None)],
    )
    nodes = [
        node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=1),
        node("ReduceMax", ["mean"], ["most"], keepdims=0),
        node("Greater", ["most", "from"], ["begins"]),
        node("Reshape", ["mean", "shape"], ["small"]),
        node("Loop", ["", "begins", "small"], ["looped"], body=body),
        node("Mul", ["looped", "zero"], ["nothing"]),
        node("Add", ["nothing", "rows"], ["output0"]),
    ]
    rows = np.array([[[8, 8, 24, 24, 0.9, 1]]], np.float32)
    start = np.float32(0.999 if with_images else -1)  # an empty canvas is black
    constants = {
        "one": np.float32(1),
        "zero": np.float32(0),
        "from": start,
        "rows": rows,
        "shape": np.array([-1, 1, 1]),
    }
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    inputs = [value("images", TensorProto.FLOAT, list(DYNAMIC))]
    outputs = [value("output0", TensorProto.FLOAT, ["N", 1, 6])]
    return save(path, helper.make_graph(nodes, "endless", inputs, outputs, initializers), {})


def folded(path: Path, size_bytes: int) -> Path:
    """Write a detector with a constant of so many bytes that the file only describes, and the loader computes."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("ConstantOfShape", ["count"], ["much"], value=numpy_helper.from_array(np.array([1], np.float32))),
        node("ReduceMean", ["much"], ["one"], keepdims=0),
        node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=1),
        node("Reshape", ["mean", "shape"], ["small"]),
        node("Mul", ["small", "one"], ["shown"]),
        node("Mul", ["shown", "zero"], ["nothing"]),
        node("Add", ["nothing", "rows"], ["output0"]),
    ]
    rows = np.array([[[8, 8, 24, 24, 0.9, 1]]], np.float32)
    constants = {
        "count": np.array([size_bytes // 4]),
        "zero": np.float32(0),
        "rows": rows,
        "shape": np.array([-1, 1, 1]),
    }
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    inputs = [value("images", TensorProto.FLOAT, list(DYNAMIC))]
    outputs = [value("output0", TensorProto.FLOAT, ["N", 1, 6])]
    return save(path, helper.make_graph(nodes, "folded", inputs, outputs, initializers), {})
