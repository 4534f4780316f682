"""What a model is fed: colours, numbers, and how an image is put on the canvas."""

import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from batchdet.geometry.letterbox import PAD_VALUE, Letterbox, Resample, Size

Colours = Literal["RGB", "BGR"]
Placing = Literal["centred", "top_left", "stretch", "edges"]
Triple = tuple[float, float, float]
_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "colours": get_args(Colours),
    "letterbox": get_args(Placing),
    "resample": get_args(Resample),
}


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

    Raises:
        ValueError: A word is unknown, or a number is out of range; the message names the argument and what is right.
    """

    colours: Colours = "RGB"
    scale: float = 1 / 255
    letterbox: Placing = "centred"
    pad_value: int = PAD_VALUE
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    resample: Resample = "linear"
    shortest_px: int = 0
    longest_px: int = 0
    multiple_px: int = 1

    def __post_init__(self) -> None:
        for name, known in _WORDS.items():
            _check_word(name, getattr(self, name), known)
        if not _is_number(self.scale) or self.scale <= 0:
            raise ValueError(f"Preprocess.scale is {self.scale!r}; it must be a positive number, such as 1 / 255")
        if not _is_number(self.pad_value) or not 0 <= self.pad_value <= 255 or self.pad_value != int(self.pad_value):
            raise ValueError(f"Preprocess.pad_value is {self.pad_value!r}; it must be a whole number in 0..255")
        for name in ("mean", "std"):
            values: Any = getattr(self, name)
            three = isinstance(values, tuple | list) and len(values) == 3 and all(map(_is_number, values))
            if not three or (name == "std" and min(values) <= 0):
                what = "three positive numbers" if name == "std" else "three numbers"
                raise ValueError(f"Preprocess.{name} is {values!r}; it must be {what}, one for each channel")
        if self.letterbox == "edges" and not (0 < self.shortest_px <= self.longest_px and self.multiple_px > 0):
            raise ValueError(
                "Preprocess.letterbox: 'edges' needs shortest_px and longest_px, the first no larger, and multiple_px "
                f"above 0; found {self.shortest_px}, {self.longest_px} and {self.multiple_px}"
            )

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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


def _check_word(name: str, word: Any, known: tuple[str, ...]) -> None:
    if word in known:
        return
    lowered = {each.lower(): each for each in known}
    near = get_close_matches(str(word).lower(), lowered, 1)
    hint = f"did you mean {lowered[near[0]]!r}?" if near else f"it must be one of {', '.join(map(repr, known))}"
    raise ValueError(f"Preprocess.{name} is {word!r}; {hint}")
