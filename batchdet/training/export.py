"""Write a trained network as one ONNX file that carries its own description."""

import copy
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from batchdet.model.nets.detector_net import DetectorNet
from batchdet.model.nets.layers import ConvNormAct
from batchdet.training.plan import STRIDE_PX

OPSET = 18
IR_VERSION = 9  # onnxruntime 1.20 reads up to 10
CANVAS_PX = 320


def export_onnx(net: DetectorNet, path: Path, properties: Mapping[str, str]) -> None:
    """Export the one-to-one branch, batch norm folded into the convolutions, all weights inside the file.

    Args:
        net: trained network; it is not changed.
        path: file to write. Input ``images`` (N, 3, H, W) float32 RGB in [0, 1], H and W multiples of 32;
            output ``output0`` (N, K, 6), see `DetectorNet.forward`.
        properties: metadata to store beside the graph.
    """
    deployed = fuse(net)
    example = torch.zeros(2, 3, CANVAS_PX, CANVAS_PX - STRIDE_PX)
    free: dict[int, Any] = {
        0: torch.export.Dim("N", min=1),
        2: STRIDE_PX * torch.export.Dim("rows", min=1, max=256),
        3: STRIDE_PX * torch.export.Dim("columns", min=1, max=256),
    }
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of a torchvision that nothing here needs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter speaks of its own deprecations
        program = torch.onnx.export(
            deployed,
            (example,),
            input_names=["images"],
            output_names=["output0"],
            dynamic_shapes=(free,),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    model.ir_version = IR_VERSION
    model.producer_name = "batchdet"
    _strip(model)
    onnx.helper.set_model_props(model, dict(properties))
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def fuse(net: DetectorNet) -> DetectorNet:
    """Copy a network for inference: evaluation mode, batch norm folded, no one-to-many branch."""
    deployed = copy.deepcopy(net).cpu().float().eval()
    deployed.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stub lacks it
    del deployed.head.one_to_many
    for module in deployed.modules():
        if isinstance(module, ConvNormAct):
            conv, norm = module[0], module[1]
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            module[0] = fuse_conv_bn_eval(conv, norm)
            module[1] = nn.Identity()
            if isinstance(module[2], nn.SiLU | nn.ReLU):
                module[2] = type(module[2])()  # not in place
    return deployed


def _strip(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes about source lines, a good part of so small a file; name the axes plainly."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for axis, name in ((2, "H"), (3, "W")):  # the exporter says "32*rows"
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    del model.functions[:]
