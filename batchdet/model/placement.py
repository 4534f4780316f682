"""How a model wants images placed: all that is to be known of it for painting canvases, without loading it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from batchdet.geometry.letterbox import Letterbox, Size, rectangle_canvas
from batchdet.model.preprocess import Preprocess

MOST_LOOSE: Final = 1.5
"""So many times the pixels of its own canvas may an image be given. With yolo26n in fp32 scores of 120 photographs
move by 0.016 on average with a tenth more, by 0.020 to 0.028 with a fifth to a half more; to move a large photograph by
one pixel makes 0.025."""


@dataclass(frozen=True)
class Placement:
    """Gives each image its canvas.

    Args:
        preprocess: What the model expects; where it gives each image a canvas of its own, the rest is not looked at.
        canvas: The largest canvas, ``(width_px, height_px)``.
        stride: Shorter sides are cut to multiples of it; None keeps all canvases whole.
        loose: Canvases that an image may stand on in place of a smaller one of its own, see :func:`nearest`; those that
            the model cannot have are not looked at. What is added is whole cells of all feature maps, so that each
            cell with something of the image sees what it saw before, but for the margin.
    """

    preprocess: Preprocess
    canvas: tuple[int, int]
    stride: int | None
    loose: tuple[Size, ...] = ()

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Placement":
        """Return what ``dataclasses.asdict`` made plain, as it comes out of JSON."""
        fed = plain["preprocess"]
        preprocess = Preprocess(**{**fed, "mean": tuple(fed["mean"]), "std": tuple(fed["std"])})
        loose = tuple((width, height) for width, height in plain["loose"])
        return cls(preprocess, tuple(plain["canvas"]), plain["stride"], loose)

    def letterbox(self, width_px: int, height_px: int) -> Letterbox:
        """Choose the canvas for an image and place the image on it.

        Args:
            width_px: Width of the upright original.
            height_px: Its height.
        """
        canvas = self.canvas
        if self.preprocess.letterbox == "edges":
            canvas = self.preprocess.canvas((width_px, height_px))
        elif self.stride is not None:
            canvas = rectangle_canvas((width_px, height_px), max(canvas), self.stride)
        placed = self.preprocess.place((width_px, height_px), canvas)
        return placed if self.stride is None else self._loosened(placed, self.stride)

    def _loosened(self, placed: Letterbox, stride: int) -> Letterbox:
        """Give an image the canvas nearest to its own.

        Room is added left and above: with yolo26n scores then differ a little less than with room right and below
        (0.006 in place of 0.007 over 120 photographs on three canvases). A model that knows images in the corner
        finds them there.
        """
        able = [c for c in self.loose if max(c) <= max(self.canvas) and not (c[0] % stride or c[1] % stride)]
        canvas = nearest(placed.canvas, able)
        if self.preprocess.letterbox != "centred":
            return replace(placed, canvas=canvas)
        (width, height), (left, top) = placed.canvas, placed.pad
        return replace(placed, canvas=canvas, pad=(left + canvas[0] - width, top + canvas[1] - height))


def nearest(own: Size, canvases: Collection[Size]) -> Size:
    """Return the smallest canvas that holds an image's own one and is at most half larger; else its own.

    Args:
        own: ``(width_px, height_px)`` of the smallest canvas that the image fits.
        canvases: Those that it may stand on instead.
    """
    width, height = own
    most = MOST_LOOSE * width * height
    holding = [c for c in canvases if c[0] >= width and c[1] >= height and c[0] * c[1] <= most]
    return min(holding, key=lambda c: (c[0] * c[1], c), default=own)
