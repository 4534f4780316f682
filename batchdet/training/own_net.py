"""Training batchdet's own nets: parts by name, the dual loss, and export to safetensors and ONNX."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from batchdet.geometry.letterbox import Letterbox, Size
from batchdet.model.nets.checkpoint import save_net
from batchdet.model.nets.detector_net import Composition, DetectorNet, compose
from batchdet.training.assignment import Truth
from batchdet.training.initial import EMBEDDED, Initial, calibrate, take_over
from batchdet.training.loss import dual_loss
from batchdet.training.plan import STRIDE_PX
from batchdet.training.trainee import Exported

MODEL, CHECKPOINT = "model.onnx", "model.safetensors"
_CALIBRATION_BATCHES: Final = 4


@dataclass(frozen=True)
class OwnNet:
    """A net of batchdet's own as a trainee; see `Trainee`.

    Args:
        composition: What it is made of.
        labels: Its classes.
        initial: The weights that it begins with, if any.
        canvas_px: Longer side of the canvases.
        frozen: Whether a part of it keeps its first weights.
    """

    composition: Composition = EMBEDDED
    labels: tuple[str, ...] = ()
    initial: Initial | None = None
    canvas_px: int = 320
    frozen: bool = False

    decay: float = 0.02
    clip_norm: float = 10.0

    @property
    def name(self) -> str:
        """Its parts."""
        return f"{self.composition.backbone} + {self.composition.neck} + {self.composition.head}"

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return 1.5e-3 if self.initial and not self.frozen else 3e-3

    @property
    def canvases(self) -> tuple[Size, ...]:
        """Squares, and rectangles of 4 to 3."""
        return own_canvases(self.canvas_px)

    @property
    def began_with(self) -> tuple[str, str] | None:
        """URI and licence of the first weights."""
        return None if self.initial is None else (self.initial.uri, self.initial.properties.get("license", ""))

    def place(self, source: Size, canvas: Size) -> Letterbox:
        """Keep the aspect, centre, and pad with grey."""
        return Letterbox.centred(source, canvas)

    def build(self) -> nn.Module:
        """Compose a net."""
        net = compose(self.composition)
        return net.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]  # torch's stub

    def begin(self, net: nn.Module, batch: Callable[[int], Tensor]) -> str:
        """Take over the parts that are the same."""
        if self.initial is None:
            return ""
        net = cast(DetectorNet, net)
        taken = take_over(net, self.composition, self.labels, self.initial)
        if self.initial.folded:
            calibrate(net, [batch(i).float() / 255 for i in range(_CALIBRATION_BATCHES)])
        return taken

    def part(self, net: nn.Module, name: str) -> nn.Module:
        """Return a part by its name; of a backbone only the trunk, if it has one that weights are published for."""
        part = net.get_submodule(name)
        return getattr(part, "trunk", part)

    def loss(self, net: nn.Module, images: Tensor, truth: Truth, score_power: float) -> Tensor:
        """Compute the dual loss; the net computes in bfloat16 if the device has it."""
        canvases = images.float().div_(255).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=_computes_bf16(images.device)):
            predictions = net(canvases)
        return dual_loss(predictions, truth, score_power)

    def record(self) -> dict[str, Any]:
        """Return the composition."""
        return {"composition": self.composition.to_dict()}

    def texts(self) -> dict[str, str]:
        """Describe the net."""
        composition = self.composition
        parts = f"{composition.backbone} backbone, {composition.neck} neck, {composition.head} head"
        return {
            "backbone": composition.backbone,
            "description": f"trained by batchdet train: {parts}",
            "end2end": "True",
            "family": "yolo_end2end",
            "head": composition.head,
            "imgsz": str([self.canvas_px, self.canvas_px]),
            "neck": composition.neck,
            "stride": str(STRIDE_PX),
        }

    def export(self, net: nn.Module, folder: Path, texts: Mapping[str, str], facts: Mapping[str, Any]) -> Exported:
        """Write ``model.safetensors`` to train on and ``model.onnx`` to label with."""
        from batchdet.training.evaluation import detector_of_onnx
        from batchdet.training.export import export_onnx

        net = cast(DetectorNet, net)
        model = folder / MODEL
        save_net(net, folder / CHECKPOINT, self.composition, texts, facts)
        export_onnx(net, model, texts)
        about = (
            ("files", f"`{MODEL}` (ONNX, {model.stat().st_size:,} bytes), `{CHECKPOINT}` (to train on)"),
            ("parameters", f"{net.deployed_parameters():,}"),
            ("input", f"`images`: float32 [N, 3, H, W], RGB / 255; H and W multiples of {STRIDE_PX}"),
            ("canvas", texts["imgsz"]),
            (
                "output",
                f"`output0`: float32 [N, {self.composition.detections}, 6]: xyxy in canvas pixels, score, class_id; "
                "best first",
            ),
            ("family", f"`{texts['family']}`: no NMS is needed"),
        )
        return Exported(str(model), about, detector_of_onnx(model, self.canvas_px, threads=0))


def own_canvases(canvas_px: int) -> tuple[Size, ...]:
    """Return the canvases for a longer side: half of them squares, half rectangles of 4 to 3."""
    short_px = max(STRIDE_PX, round(0.75 * canvas_px / STRIDE_PX) * STRIDE_PX)
    square = (canvas_px, canvas_px)
    return square, square, (canvas_px, short_px), (short_px, canvas_px)


def _computes_bf16(device: torch.device) -> bool:
    """Say whether bfloat16 is arithmetic of this device; where it is emulated it only costs."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
