"""What a model is fed: colours, numbers, and how an image is put on the canvas."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from batchdet.geometry.letterbox import PAD_VALUE, Letterbox

Colours = Literal["RGB", "BGR"]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocess:
    """What a model expects to be fed: ``(pixel * scale - mean) / std`` of each channel.

    Args:
        colours: Order of the channels.
        scale: What 0..255 is multiplied with.
        letterbox: How the image is put on the canvas.
        pad_value: Gray around the image, 0..255.
        mean: Of each channel, in the order of ``colours``, after scaling.
        std: Likewise; positive.
    """

    colours: Colours = "RGB"
    scale: float = 1 / 255
    letterbox: Literal["centred", "top_left", "stretch"] = "centred"
    pad_value: int = PAD_VALUE
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)

    def place(self, source: tuple[int, int], canvas: tuple[int, int]) -> Letterbox:
        """Return the map of an image onto a canvas, both as ``(width_px, height_px)``."""
        if self.letterbox == "stretch":
            return Letterbox.stretch(source, canvas)
        make = Letterbox.centred if self.letterbox == "centred" else Letterbox.top_left
        return make(source, canvas, self.pad_value)

    def affine(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return what pixels are multiplied with and what is then added, ``(3,)`` float32 in the order of colours."""
        mean, std = np.array(self.mean), np.array(self.std)
        return (self.scale / std).astype(np.float32), (-mean / std).astype(np.float32)
