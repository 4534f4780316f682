"""Pictures: images of a segment on their way to a canvas, whether they arrive encoded or painted already."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from batchdet.decode.canvas import Pixels, paint
from batchdet.decode.image import decode_reduced
from batchdet.errors import ImageError
from batchdet.failpoint import failpoint
from batchdet.geometry.letterbox import Letterbox, Reduction, Size
from batchdet.model.placement import Placement
from batchdet.records.painted import Canvas


class Inline(Executor):
    """Does at once, in the caller's thread, what it is given."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Do it."""
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def threads_or_inline(threads: int, name: str) -> Executor:
    """Return threads, or the caller's own where one is all there is."""
    return ThreadPoolExecutor(threads, name) if threads > 1 else Inline()


@dataclass(frozen=True, eq=False)
class Picture:
    """An image whose size is known.

    Args:
        width_px: Of the upright original.
        height_px: Likewise.
        put: Fills a canvas ``(H, W, 3)`` with it, as a letterbox says.
    """

    width_px: int
    height_px: int
    put: Callable[[Letterbox, Pixels], None]


class Decoder:
    """Turns what a segment holds into pictures, in order.

    Args:
        max_pixels: Larger images are errors.
        pool: Where it decodes.
        ahead: Images decoded ahead of the one that is asked for, so that memory stays bounded; 0 with :class:`Inline`.
        step: Called before each image with 1.
        placement: How images will be placed; JPEGs are decoded no larger than that takes. None decodes in full.
    """

    def __init__(
        self,
        max_pixels: int,
        pool: Executor,
        ahead: int,
        step: Callable[[int], None],
        placement: Placement | None = None,
    ) -> None:
        self._max_pixels = max_pixels
        self._pool = pool
        self._ahead = ahead
        self._step = step
        self._placement = placement

    def pictures(self, images: Iterable[Any]) -> Iterator[Picture | ImageError]:
        """Yield the picture of each image, or what is wrong with it.

        Args:
            images: Encoded images, anything with the buffer interface, or canvases that are painted already.
        """
        ahead: deque[Future[Picture | ImageError]] = deque()
        for image in images:
            self._step(1)
            ahead.append(self._pool.submit(self._picture, image))
            if len(ahead) > self._ahead:
                yield ahead.popleft().result()
        while ahead:
            self._step(1)
            yield ahead.popleft().result()

    def _picture(self, image: Any) -> Picture | ImageError:
        if isinstance(image, Canvas):
            return Picture(image.width_px, image.height_px, lambda letterbox, out: image.copy_to(out))
        failpoint("decode", image)
        try:
            rgb, size = decode_reduced(image, self._max_pixels, self._reduction)
        except ImageError as error:
            return error
        return Picture(*size, lambda letterbox, out: paint(rgb, letterbox, out))

    def _reduction(self, size: Size) -> Reduction:
        return 1 if self._placement is None else self._placement.letterbox(*size).reduction
