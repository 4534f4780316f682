"""The rehearsal: a model is run on empty canvases before it sees an image, because files declare what is not true."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from batchdet.errors import ModelError, OutOfDeviceMemory
from batchdet.model.families.plugin import PluginError
from batchdet.model.runtimes import Runtime, Tensor, TensorInfo


@dataclass(frozen=True)
class Rehearsed:
    """What running a model on empty canvases has shown, for others who load the same model.

    Args:
        outputs: Names, number types and shapes of what one run gives.
        fixed_batch: Images that each run must be given; None where that is free.
        shape: ``square``, ``rectangle``, ``fixed`` or ``own``: canvases that work.
        notes: What is not used although the file declares it, and why.
    """

    outputs: tuple[TensorInfo, ...]
    fixed_batch: int | None
    shape: str
    notes: tuple[str, ...] = ()


def look(runtime: Runtime, image: TensorInfo, canvas: tuple[int, int]) -> tuple[TensorInfo, ...]:
    """Run once on an empty canvas to see the true shapes of the outputs.

    Args:
        runtime: With the model.
        image: Its input for images.
        canvas: ``(width_px, height_px)``.

    Raises:
        ModelError: It fails, or wants an input that no known family has.
    """
    width, height = canvas
    batch = image.shape[0] or 1
    feeds: dict[str, Tensor] = {image.name: np.zeros((batch, 3, height, width), np.float32)}
    for info in runtime.inputs:
        if info.name == image.name:
            continue
        if info.shape[1:] != (2,) or info.dtype not in ("int64", "int32"):
            raise ModelError(f"the model wants an input that no known family has: {info}")
        feeds[info.name] = np.array([canvas] * batch, info.dtype)
    return tuple(TensorInfo(name, a.dtype.name, tuple(a.shape)) for name, a in runtime.run(feeds).items())


def rehearse(
    declared: Rehearsed,
    run: Callable[[int, tuple[int, int]], bool],
    usual_batch: int,
    canvas: tuple[int, int],
    stride: int,
) -> Rehearsed:
    """Run a model as it will be used. What does not work is not used.

    Args:
        declared: What its file says.
        run: Runs the model on so many empty canvases of one size, and tells whether as many results came.
        usual_batch: Images of a run, where that is free.
        canvas: ``(width_px, height_px)``, before a rectangle is cut.
        stride: Sides of a canvas are multiples of it.

    Raises:
        ModelError: It does not run at all, or the device has no memory for so little.
    """
    found, (width, height), ran = declared, canvas, False

    def works(batch: int, size: tuple[int, int]) -> bool:
        nonlocal ran
        try:
            done = run(batch, size)
        except (OutOfDeviceMemory, PluginError):
            raise
        except (ModelError, ValueError, IndexError):
            return False
        ran = True
        return done

    if found.fixed_batch is None and not works(usual_batch, canvas):
        note = "declares a free batch but runs only one image at once, so that is what it is given"
        found = replace(found, fixed_batch=1, notes=(*found.notes, note))
    if found.shape == "rectangle":
        half = max(stride, height // 2 // stride * stride)
        if not works(found.fixed_batch or usual_batch, (width, half)):
            note = "declares a free canvas but fails on a rectangle, so squares are used"
            found = replace(found, shape="square", notes=(*found.notes, note))
    if not ran:  # a graph that does not build, say: here is where its reason is told
        run(1, canvas)
    return found
