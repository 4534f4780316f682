"""What a model is fed: colours, numbers, and how an image is put on the canvas."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from batchdet.geometry.letterbox import PAD_VALUE, Letterbox, Resample, Size

Colours = Literal["RGB", "BGR"]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocess:
    """What a model expects to be fed: ``(pixel * scale - mean) / std`` of each channel.

    Args:
        colours: Order of the channels.
        scale: What 0..255 is multiplied with.
        letterbox: How the image is put on the canvas; ``edges`` gives each image its own, see :meth:`canvas`.
        pad_value: Gray around the image, 0..255.
        mean: Of each channel, in the order of ``colours``, after scaling.
        std: Likewise; positive.
        resample: ``stretch`` and ``edges``: how pixels are made.
        shortest_px: ``edges``: what the shorter side becomes.
        longest_px: ``edges``: but the longer side gets no longer than that.
        multiple_px: ``edges``: both sides are cut to multiples of it.
    """

    colours: Colours = "RGB"
    scale: float = 1 / 255
    letterbox: Literal["centred", "top_left", "stretch", "edges"] = "centred"
    pad_value: int = PAD_VALUE
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    resample: Resample = "linear"
    shortest_px: int = 0
    longest_px: int = 0
    multiple_px: int = 1

    def place(self, source: tuple[int, int], canvas: tuple[int, int]) -> Letterbox:
        """Return the map of an image onto a canvas, both as ``(width_px, height_px)``."""
        if self.letterbox in ("stretch", "edges"):
            return Letterbox.stretch(source, canvas, self.resample)
        make = Letterbox.centred if self.letterbox == "centred" else Letterbox.top_left
        return make(source, canvas, self.pad_value)

    def canvas(self, source: Size) -> Size:
        """Return the canvas that ``edges`` gives to an image, both as ``(width_px, height_px)``.

        The sides are truncated and rounded as Hugging Face's image processors do, to the pixel.

        Source: ``get_size_with_aspect_ratio`` of the package transformers, which names DETR's transforms.
        """
        short, long = min(source), max(source)
        side = float(self.shortest_px)
        if long / short * side > self.longest_px:
            side = self.longest_px * short / long
        shorter = round(side)
        longer = long if shorter == short else int(side * long / short)  # an image that fits stays as it is
        sides = {long: longer, short: shorter}
        width, height = (max(sides[n] // self.multiple_px, 1) * self.multiple_px for n in source)
        return width, height

    def affine(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return what pixels are multiplied with and what is then added, ``(3,)`` float32 in the order of colours."""
        mean, std = np.array(self.mean), np.array(self.std)
        return (self.scale / std).astype(np.float32), (-mean / std).astype(np.float32)
