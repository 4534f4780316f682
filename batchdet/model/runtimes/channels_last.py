"""OpenVINO's graphs channel-last, from the canvas to the result.

Canvases are channel-last, and so are the feature maps of OpenVINO's convolutions on CPUs with AVX-512 or AMX. Only the
graph as written is channel-first: OpenVINO transposes the canvas to that order and back, and YOLO26's head joins boxes
and scores channel-first, transposes the whole and splits it again, after a sigmoid of all scores, of which it takes 300
rows. Each rewrite here is an identity, and the same numbers come out, bit for bit.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

_COLOURS: Final = 3
_LAST_TWO_SWAPPED: Final = (0, 2, 1)
_CHANNELS_LAST: Final = (0, 2, 3, 1)


def take_rows(model: Any, name: str) -> bool:
    """Have an input take canvases as rows of bytes, which are the same bytes.

    OpenVINO 2026.4 moves the transposition of an input before its conversion to floats, where it costs two passes over
    the image. It does not move it before a reshape, and then has none to do.

    Args:
        model: An OpenVINO model with fixed or free shapes; changed in place.
        name: An input, uint8 ``(batch, height, width, 3)``; afterwards ``(batch, height, width * 3)``.

    Returns:
        False where the graph begins otherwise; it is as it was then.
    """
    from openvino import Layout, PartialShape, Type
    from openvino import opset13 as ops

    canvas = next(port for port in model.inputs if name in port.get_names())
    users = [target.get_node() for target in canvas.get_target_inputs()]
    batch, height, width, colours = canvas.get_partial_shape()
    if [user.get_type_name() for user in users] != ["Convert"] or colours != _COLOURS:
        return False
    row = width.get_length() * _COLOURS if width.is_static else -1
    rows = ops.parameter(PartialShape([batch, height, row]), Type.u8)
    rows.set_friendly_name(canvas.get_node().get_friendly_name())
    pixels = ops.reshape(ops.convert(rows, users[0].get_output_element_type(0)), _axes(0, 0, -1, _COLOURS), True)
    users[0].output(0).replace(pixels.output(0))
    names = canvas.get_names()
    canvas.get_tensor().set_names(set())
    rows.output(0).get_tensor().set_names(names)
    model.replace_parameter(model.get_parameter_index(canvas.get_node()), rows)
    rows.set_layout(Layout("N..."))  # it has taken over that of the canvas
    model.validate_nodes_and_infer_types()
    return True


def straighten(model: Any) -> int:
    """Take out what a head transposes, joins and computes only to take it apart again.

    Args:
        model: An OpenVINO model with fixed or free shapes; changed in place. Its inputs keep their names, its outputs
            their order.

    Returns:
        How many rewrites there were.
    """
    count = 0
    for rewrite in (_split_before_join, _transpose_before_join, _sigmoid_after_choice):
        found = sum([rewrite(node) for node in model.get_ordered_ops()])
        if found:
            model.validate_nodes_and_infer_types()
        count += found
    return count


def _split_before_join(split: Any) -> bool:
    """``split(transpose(concat(a, b)))`` into a and b: ``transpose(a)``, ``transpose(b)``."""
    from openvino import opset13 as ops

    if split.get_type_name() not in ("VariadicSplit", "Split") or _numbers(split.input_value(1)) not in ([-1], [2]):
        return False
    turned = _node(split, 0)
    if not _is_transpose(turned, _LAST_TWO_SWAPPED) or _node(turned, 0).get_type_name() != "Concat":
        return False
    joined = _node(turned, 0)
    sides = joined.input_values()
    sizes = [_size(side, 1) for side in sides]
    if joined.get_attributes()["axis"] not in (1, -2) or sizes != [_size(part, 2) for part in split.outputs()]:
        return False
    for part, side in zip(split.outputs(), sides, strict=True):
        part.replace(ops.transpose(side, _axes(*_LAST_TWO_SWAPPED)).output(0))
    return True


def _transpose_before_join(turned: Any) -> bool:
    """``transpose(sigmoid(concat(maps as rows)))``: transpose each map instead, which is how it lies in memory."""
    from openvino import opset13 as ops

    if not _is_transpose(turned, _LAST_TWO_SWAPPED):
        return False
    gate = _node(turned, 0)
    joined = _node(gate, 0) if gate.get_type_name() == "Sigmoid" else gate
    if joined.get_type_name() != "Concat" or joined.get_attributes()["axis"] not in (2, -1):
        return False
    rows = [value.get_node() for value in joined.input_values()]
    if not all(_flattens_map(each) for each in rows):
        return False
    points = [
        ops.reshape(
            ops.transpose(each.input_value(0), _axes(*_CHANNELS_LAST)), _axes(0, -1, _size(each.output(0), 1)), True
        )
        for each in rows
    ]
    flat = ops.concat(points, 1)
    turned.output(0).replace((flat if gate is joined else ops.sigmoid(flat)).output(0))
    return True


def _sigmoid_after_choice(chosen: Any) -> bool:
    """``max(sigmoid(x))`` and ``gather(sigmoid(x))``: the sigmoid, which grows with x, of what is chosen only."""
    from openvino import opset13 as ops

    kind = chosen.get_type_name()
    if kind not in ("ReduceMax", "GatherElements", "ShapeOf") or _node(chosen, 0).get_type_name() != "Sigmoid":
        return False
    chosen.input(0).replace_source_output(_node(chosen, 0).input_value(0))
    if kind != "ShapeOf":
        users = chosen.output(0).get_target_inputs()  # before the sigmoid is one of them
        gate = ops.sigmoid(chosen)
        for user in users:
            user.replace_source_output(gate.output(0))
    return True


def _is_transpose(node: Any, order: Sequence[int]) -> bool:
    return node.get_type_name() == "Transpose" and _numbers(node.input_value(1)) == list(order)


def _flattens_map(node: Any) -> bool:
    """Tell whether a node makes ``(batch, channels, height * width)`` of a feature map."""
    if node.get_type_name() != "Reshape":
        return False
    before, after = node.input_value(0).get_partial_shape(), node.output(0).get_partial_shape()
    if before.rank.is_dynamic or after.rank.is_dynamic or (len(before), len(after)) != (4, 3):
        return False
    return _size(node.output(0), 1) is not None and before[1] == after[1]


def _node(user: Any, index: int) -> Any:
    return user.input_value(index).get_node()


def _numbers(value: Any) -> list[int] | None:
    node = value.get_node()
    return [int(each) for each in node.get_data().ravel()] if node.get_type_name() == "Constant" else None


def _size(value: Any, axis: int) -> int | None:
    """Return how large a tensor is along an axis, null where that is free."""
    shape = value.get_partial_shape()
    return shape[axis].get_length() if shape.rank.is_static and shape[axis].is_static else None


def _axes(*numbers: int | None) -> Any:
    return np.array(numbers, np.int64)
