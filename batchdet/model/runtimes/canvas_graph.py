"""A model's graph, changed: uint8 canvases go in, inner tensors come out, the best class is chosen inside."""

from collections.abc import Sequence
from typing import Any, Final

from batchdet.errors import ModelError
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Device, Tensor, missing, one_line

_REVERSED: Final = (2, 1, 0)


def canvases_of(name: str) -> str:
    """Return the name of the input that takes canvases in the place of input ``name``."""
    return f"{name}_canvases"


def on_the_way(name: str) -> tuple[str, str]:
    """Return the tensors in front of the model: float32 ``(N, H, W, 3)``, then what the model's input was."""
    return f"{name}_float", name


def with_outputs(path: str, names: Sequence[str], device: Device) -> bytes:
    """Make outputs of inner tensors.

    Args:
        path: The ONNX file.
        names: The tensors, float32.
        device: For whom, to name the right extra when a package is missing.

    Returns:
        The new model's bytes; its own outputs come first.

    Raises:
        MissingExtra: The package onnx is not installed.
        ModelError: The graph cannot be changed.
    """
    try:
        import onnx
    except ImportError as error:
        raise missing("onnx", device) from error
    try:
        model = onnx.load(path, load_external_data=False)
        made = {name for node in model.graph.node for name in node.output}
        for name in names:
            if name not in made:
                raise ValueError(f"it has no tensor {name!r}")
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        data: bytes = model.SerializeToString()
    except Exception as error:
        raise ModelError(f"the model's graph cannot be tapped: {one_line(error)}") from error
    return data


def canvas_graph(source: str | bytes, name: str, preprocess: Preprocess, half: bool, device: Device = "gpu") -> bytes:
    """Put colour order, scaling and layout in front of a model.

    The model's own nodes stay as they are: what was its input is now computed from uint8 ``(N, H, W, 3)`` RGB.

    Args:
        source: The ONNX file, or its bytes.
        name: Its input for images, float32 ``(N, 3, H, W)``.
        preprocess: What the input wants.
        half: Compute in fp16; other inputs and all outputs keep their types.
        device: For whom, to name the right extra when a package is missing.

    Returns:
        The new model's bytes.

    Raises:
        MissingExtra: The package onnx is not installed.
        ModelError: The graph cannot be changed.
    """
    try:
        import numpy as np
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise missing("onnx", device) from error
    try:
        model = (
            onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(source, load_external_data=False)
        )
        if half:
            from onnxruntime.transformers.float16 import convert_float_to_float16

            model = convert_float_to_float16(model, keep_io_types=True)
        graph = model.graph
        place = next(i for i, value in enumerate(graph.input) if value.name == name)
        batch, _, height, width = graph.input[place].type.tensor_type.shape.dim
        canvases = helper.make_tensor_value_info(canvases_of(name), TensorProto.UINT8, [None] * 3 + [3])
        for ours, its in zip(canvases.type.tensor_type.shape.dim, (batch, height, width), strict=False):
            ours.CopyFrom(its)
        as_float, planes = on_the_way(name)
        factors, offsets = (part.reshape(1, 3, 1, 1) for part in preprocess.affine())
        constants: list[tuple[str, Tensor]] = [(f"{name}_factors", factors)]
        steps = [
            helper.make_node("Cast", [canvases.name], [as_float], to=TensorProto.FLOAT),
            helper.make_node("Transpose", [as_float], [f"{name}_planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Mul", [f"{name}_planes", f"{name}_factors"], [planes]),
        ]
        if offsets.any():
            constants.append((f"{name}_offsets", offsets))
            steps[2].output[0] = f"{name}_scaled"
            steps.append(helper.make_node("Add", [f"{name}_scaled", f"{name}_offsets"], [planes]))
        if preprocess.colours == "BGR":
            constants.append((f"{name}_order", np.array(_REVERSED, np.int64)))
            steps[1].output[0] = f"{name}_rgb"
            steps.insert(2, helper.make_node("Gather", [f"{name}_rgb", f"{name}_order"], [f"{name}_planes"], axis=1))
        graph.value_info.append(graph.input[place])
        graph.input[place].CopyFrom(canvases)
        graph.initializer.extend(numpy_helper.from_array(value, label) for label, value in constants)
        nodes = [*steps, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        data: bytes = model.SerializeToString()
    except Exception as error:
        raise ModelError(f"the model's graph cannot take canvases: {one_line(error)}") from error
    return data


def best_of(name: str) -> str:
    """Return the name of the output that has the best class in the place of output ``name``."""
    return f"{name}_best"


def best_class_graph(graph: bytes, name: str, axis: int, first: int) -> bytes:
    """Leave of all class scores the best one and its class: what is dropped there need not leave the device.

    Args:
        graph: A model's bytes.
        name: The output.
        axis: Where its channels are.
        first: The first channel that is a class score; those before it stay as they are.

    Returns:
        The new model's bytes, in which :func:`best_of` the output has ``first`` channels, then the highest score, then
        its class, the first of equal ones.

    Raises:
        ModelError: The graph cannot be changed.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    try:
        model = onnx.load_from_string(graph)
        place = next(i for i, value in enumerate(model.graph.output) if value.name == name)
        kind = model.graph.output[place].type.tensor_type.elem_type
        opset = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
        ends = {"start": 0, "first": first, "end": np.iinfo(np.int32).max, "axis": axis}
        for label, value in ends.items():
            model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), f"{name}_{label}"))
        kept, scores, best, number, class_id = (
            f"{name}_{part}" for part in ("kept", "all", "score", "number", "class")
        )
        axes_in = [f"{name}_axis"] if opset >= 18 else []
        axes: dict[str, Any] = {} if opset >= 18 else {"axes": [axis]}
        model.graph.node.extend(
            [
                helper.make_node("Slice", [name, f"{name}_start", f"{name}_first", f"{name}_axis"], [kept]),
                helper.make_node("Slice", [name, f"{name}_first", f"{name}_end", f"{name}_axis"], [scores]),
                helper.make_node("ReduceMax", [scores, *axes_in], [best], keepdims=1, **axes),
                helper.make_node("ArgMax", [scores], [number], axis=axis, keepdims=1),
                helper.make_node("Cast", [number], [class_id], to=kind),
                helper.make_node("Concat", [kept, best, class_id], [best_of(name)], axis=axis),
            ]
        )
        model.graph.output[place].CopyFrom(helper.make_tensor_value_info(best_of(name), kind, None))
        data: bytes = model.SerializeToString()
    except Exception as error:
        raise ModelError(f"the model's graph cannot choose the best class: {one_line(error)}") from error
    return data
