"""Painted segments: what a decode stage makes of segments, on their way to the actors with the model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchdet.records.segment import Segment

_SIZES: Final = "sizes_px"


@dataclass(frozen=True, eq=False)
class Canvas:
    """An image on its canvas.

    Args:
        width_px: Width of the upright original.
        height_px: Its height.
        pixels: uint8 RGB, ``H * W * 3`` bytes of the canvas, row by row.
    """

    width_px: int
    height_px: int
    pixels: npt.NDArray[np.uint8]

    def copy_to(self, out: npt.NDArray[np.uint8]) -> None:
        """Fill ``(H, W, 3)`` with the pixels.

        Raises:
            ValueError: The canvas has another number of pixels.
        """
        np.copyto(out, self.pixels.reshape(out.shape))


def painted_row(segment: Segment, sizes_px: Sequence[tuple[int, int]], canvases: pa.LargeBinaryArray) -> pa.Table:
    """Return a table of one row, ready for Ray's object store.

    Args:
        segment: The segment, whose failed images are marked in its members.
        sizes_px: Width and height of each image, (0, 0) for those without.
        canvases: Pixels of each image, null for those without.
    """
    row = replace(segment, data=[None] * len(segment.data)).to_row()
    data = pa.LargeListArray.from_arrays(pa.array([0, len(canvases)], pa.int64()), canvases)
    flat = np.array(sizes_px, np.int32).reshape(-1).tolist()
    row = row.set_column(row.schema.get_field_index("data"), row.schema.field("data"), data)
    return row.append_column(_SIZES, pa.array([flat], pa.list_(pa.int32())))


def painted_again(segment: Segment) -> pa.Table:
    """Return the row that a painted segment was read from."""
    sizes = [(image.width_px, image.height_px) if image else (0, 0) for image in segment.data]
    pixels = pa.array([image and image.pixels.tobytes() for image in segment.data], pa.large_binary())
    return painted_row(segment, sizes, pixels)


def segments_of(table: pa.Table) -> Iterator[Segment]:
    """Read segments back, painted or not; of painted ones ``data`` holds a :class:`Canvas` an image.

    Pixels and bytes are views of the table's buffers, not copies.
    """
    for i, segment in enumerate(Segment.from_rows(table)):
        if _SIZES not in table.schema.names:
            yield segment
            continue
        sizes = np.asarray(table[_SIZES][i].as_py(), np.int64).reshape(-1, 2).tolist()
        data: list[Any] = [
            None if pixels is None else Canvas(width, height, np.frombuffer(pixels, np.uint8))
            for pixels, (width, height) in zip(segment.data, sizes, strict=True)
        ]
        yield replace(segment, data=data)
