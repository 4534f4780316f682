"""The decode stage's step: segments of encoded images become segments of canvases."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchdet.errors import ImageError
from batchdet.model.placement import Placement
from batchdet.pipeline.pictures import Decoder, Inline
from batchdet.records.painted import painted_row
from batchdet.records.segment import Segment


class SegmentPainter:
    """Decodes the images of segments and paints them. Pure: a retry is harmless.

    Args:
        placement: How the model wants images placed.
        max_pixels: Larger images become failed rows.
        step: Called before each image with 1.
        reduce: Decode JPEGs no larger than their place on the canvas takes, which is quicker and gives other pixels.
    """

    def __init__(
        self,
        placement: Placement,
        max_pixels: int,
        step: Callable[[int], None] = lambda images: None,
        reduce: bool = False,
    ) -> None:
        self._placement = placement
        self._decoder = Decoder(max_pixels, Inline(), 0, step, placement if reduce else None)

    def paint(self, segment: Segment, fatal: Mapping[int, ImageError] | None = None) -> pa.Table:
        """Return the segment's row with canvases in the place of images, see :func:`painted_row`.

        Args:
            segment: Images, still encoded.
            fatal: Place in the segment -> error, of images that may not be touched.
        """
        errors = segment.errors() | dict(fatal or {})
        good = [i for i in range(len(segment.data)) if i not in errors]
        width, height = self._placement.canvas
        room: npt.NDArray[np.uint8] = np.empty(len(good) * max(width, height) ** 2 * 3, np.uint8)
        sizes = [(0, 0)] * len(segment.data)
        ends, end = np.zeros(len(segment.data) + 1, np.int64), 0
        pictures = iter(zip(good, self._decoder.pictures(segment.data[i] for i in good), strict=True))
        for index, picture in pictures:
            if isinstance(picture, ImageError):
                errors[index] = picture
                continue
            letterbox = self._placement.letterbox(picture.width_px, picture.height_px)
            shape = (letterbox.canvas[1], letterbox.canvas[0], 3)
            start, end = end, end + shape[0] * shape[1] * 3
            picture.put(letterbox, room[start:end].reshape(shape))
            sizes[index] = (picture.width_px, picture.height_px)
            ends[index + 1] = end
        canvases = _binaries(room[:end], np.maximum.accumulate(ends), [size != (0, 0) for size in sizes])
        return painted_row(replace(segment, members=_with_errors(segment.members, errors)), sizes, canvases)


def _binaries(data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64], valid: list[bool]) -> pa.LargeBinaryArray:
    """Cut memory into values, without a copy."""
    mask = pa.array(valid, pa.bool_()).buffers()[1]
    buffers: list[Any] = [mask, pa.py_buffer(ends), pa.py_buffer(data)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(valid), buffers)


def _with_errors(members: pa.Table, errors: Mapping[int, ImageError]) -> pa.Table:
    for name in ("error_code", "error_message"):
        values: list[str | None] = [None] * members.num_rows
        for index, error in errors.items():
            values[index] = error.code if name == "error_code" else error.message
        at = members.schema.get_field_index(name)
        members = members.set_column(at, members.schema.field(name), pa.array(values, pa.string()))
    return members
