"""How a model wants images placed: all that is to be known of it for painting canvases, without loading it."""

from dataclasses import dataclass

from batchdet.geometry.letterbox import Letterbox, rectangle_canvas
from batchdet.model.preprocess import Preprocess


@dataclass(frozen=True)
class Placement:
    """Gives each image its canvas.

    Args:
        preprocess: What the model expects; where it gives each image a canvas of its own, the rest is not looked at.
        canvas: The largest canvas, ``(width_px, height_px)``.
        stride: Shorter sides are cut to multiples of it; None keeps all canvases whole.
    """

    preprocess: Preprocess
    canvas: tuple[int, int]
    stride: int | None

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
        return self.preprocess.place((width_px, height_px), canvas)
