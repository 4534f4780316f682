"""A one-stage detector put together from backbone, neck and head."""

from dataclasses import asdict, dataclass
from typing import Any, Final

from torch import Tensor, nn

from batchdet.errors import SpecError
from batchdet.model.nets.backbones import BACKBONES, PUBLISHED, make_backbone
from batchdet.model.nets.contract import check_fit
from batchdet.model.nets.head import DualHead, DualPredictions
from batchdet.model.nets.layers import widened
from batchdet.model.nets.necks import NECKS

HEADS: Final = ("one_to_one",)


@dataclass(frozen=True)
class Composition:
    """Which parts a net is made of; enough to build it again.

    Args:
        classes: Number of classes.
        backbone: A name in `BACKBONES` or `PUBLISHED`.
        neck: A name in `NECKS`.
        head: A name in `HEADS`.
        width: Factor on the channels of every part but a published backbone.
        detections: Boxes that leave for each image.

    Raises:
        SpecError: A name is not known, or a number is out of range.
    """

    classes: int
    backbone: str = "csp"
    neck: str = "pan"
    head: str = "one_to_one"
    width: float = 1.0
    detections: int = 100

    def __post_init__(self) -> None:
        for key, known in (("backbone", (*BACKBONES, *PUBLISHED)), ("neck", NECKS), ("head", HEADS)):
            if getattr(self, key) not in known:
                raise SpecError(f"{key} is {getattr(self, key)!r}; known are {', '.join(known)}")
        if self.classes < 1 or self.detections < 1:
            raise SpecError(f"classes is {self.classes}, detections {self.detections}; both must be 1 or more")
        if not 0.25 <= self.width <= 8:
            raise SpecError(f"width is {self.width:g}; it must be from 0.25 to 8")

    def to_dict(self) -> dict[str, Any]:
        """Return the composition as JSON-ready data."""
        return asdict(self)


class DetectorNet(nn.Module):
    """A one-stage detector whose output needs no NMS.

    The contract between the parts is channels and strides, level by level, finest first.

    Args:
        backbone: see `batchdet.model.nets.contract.Backbone`.
        neck: see `batchdet.model.nets.contract.Neck`.
        head: takes the neck's maps.

    Raises:
        ValueError: the parts do not fit together.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module, head: DualHead) -> None:
        super().__init__()
        self.strides: tuple[int, ...] = tuple(backbone.strides)  # type: ignore[arg-type]
        self.channels: tuple[int, ...] = tuple(backbone.channels)  # type: ignore[arg-type]
        self.neck_channels: tuple[int, ...] = tuple(neck.channels)  # type: ignore[arg-type]
        check_fit(
            self.channels,
            self.strides,
            neck.channels_in,  # type: ignore[arg-type]
            self.neck_channels,
            head.channels,
            head.strides,
        )
        self.backbone = backbone
        self.neck = neck
        self.head = head

    def forward(self, images: Tensor) -> DualPredictions | Tensor:
        """Detect objects.

        Args:
            images: (N, 3, H, W) float32, RGB in [0, 1]; H and W multiples of the coarsest stride.

        Returns:
            While training `DualPredictions` for the loss; otherwise (N, K, 6) float32: x_min, y_min,
            x_max, y_max in canvas pixels, score, class_id; best first.
        """
        features = self.backbone(images)  # (N, channels[i], H / strides[i], W / strides[i]), finest first
        pyramid = self.neck(features)  # (N, neck_channels[i], ...) at the same strides
        detections: DualPredictions | Tensor = self.head(pyramid)
        return detections

    def deployed_parameters(self) -> int:
        """Count the parameters that inference needs, without the one-to-many branch."""
        kept = sum(parameter.numel() for parameter in self.parameters())
        return kept - sum(parameter.numel() for parameter in self.head.one_to_many.parameters())


def compose(composition: Composition) -> DetectorNet:
    """Build a net with fresh weights (torch's random state decides them)."""
    backbone = make_backbone(composition.backbone, composition.width)
    neck = NECKS[composition.neck](backbone.channels, widened(48, composition.width))
    head = DualHead(neck.channels, backbone.strides, composition.classes, composition.detections, composition.width)
    return DetectorNet(backbone, neck, head)
