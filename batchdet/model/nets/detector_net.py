"""The detector that batchdet brings along: backbone, neck, head."""

from torch import Tensor, nn

from batchdet.model.nets.backbone import CspBackbone
from batchdet.model.nets.head import DualHead, DualPredictions
from batchdet.model.nets.neck import FeaturePyramid


class DetectorNet(nn.Module):
    """A one-stage detector whose output needs no NMS.

    The contract between the parts is channels and strides, level by level, finest first.
    """

    def __init__(self, class_count: int, detections: int = 100) -> None:
        super().__init__()
        self.backbone = CspBackbone()
        self.neck = FeaturePyramid(self.backbone.channels)
        self.head = DualHead(self.neck.channels, self.backbone.strides, class_count, detections)

    def forward(self, images: Tensor) -> DualPredictions | Tensor:
        """Detect objects.

        Args:
            images: (N, 3, H, W) float32, RGB in [0, 1]; H and W multiples of 32.

        Returns:
            While training `DualPredictions` for the loss; otherwise (N, K, 6) float32: x_min, y_min,
            x_max, y_max in canvas pixels, score, class_id; best first.
        """
        features = self.backbone(images)  # (N, 64, H/8, W/8), (N, 96, H/16, W/16), (N, 96, H/32, W/32)
        pyramid = self.neck(features)  # (N, 48, ...) at the same three strides
        detections: DualPredictions | Tensor = self.head(pyramid)
        return detections

    def deployed_parameters(self) -> int:
        """Count the parameters that inference needs, without the one-to-many branch."""
        kept = sum(parameter.numel() for parameter in self.parameters())
        return kept - sum(parameter.numel() for parameter in self.head.one_to_many.parameters())
