"""From encoded bytes to upright RGB pixels.

The rules, one for each kind of pixel:

==========================  ==========================================================================
kind                        becomes
==========================  ==========================================================================
gray                        three equal channels
1 bit                       0 or 255, then as gray
palette                     its colours
alpha, transparent colour   composited onto white; alpha that is 0 everywhere counts as opaque
CMYK, YCCK                  ``(255 - C) * (255 - K) / 255`` and so on; JPEGs as Adobe writes them (inverted)
16 bits a channel           the high 8 bits (12-bit TIFF: the high 8 of 12)
EXIF orientation            applied: pixels are upright, and so are boxes
several frames or pages     the first (GIF, APNG, WebP, TIFF: the first that is no smaller copy of another)
floating point, 32-bit      refused: ``unsupported_mode``; there is no range that would be right for all
colour profiles             passed over, as detectors are trained that way
other metadata              passed over: it cannot fail an image
==========================  ==========================================================================

JPEG is decoded by libjpeg-turbo with exact DCT and smooth upsampling, so that pixels equal those of OpenCV. A
JPEG that ends too early is an error here, where OpenCV fills the rest with gray; so is one without an end marker.

A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, by a DCT of fewer frequencies: for a photograph much larger than
the canvas that takes far less time. Pixels are then others than those of a full image resized.
"""

import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageFile, TiffImagePlugin
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from batchdet.decode.header import Header, read_header
from batchdet.decode.jpeg_markers import Frame, mended
from batchdet.decode.png_chunks import Chunks, pixels_only
from batchdet.decode.tags import BITS, EXTRA_SAMPLES, PHOTOMETRIC, PLANES, one_page
from batchdet.errors import ImageError
from batchdet.geometry.letterbox import Reduction, Size, reduced

Pixels = npt.NDArray[np.uint8]

# The classes are used themselves because Image.open would apply limits and warnings of its own.
_PLUGINS: Final[dict[str, type[ImageFile.ImageFile]]] = {
    "jpeg": JpegImageFile,
    "png": PngImageFile,
    "webp": WebPImageFile,
    "bmp": BmpImageFile,
    "tiff": TiffImageFile,
    "gif": GifImageFile,
}
_PILLOW_SETTINGS: Final = threading.Lock()  # warning filters and Pillow's settings belong to the whole process
_STRAY_BYTES: Final = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_MAX_STRAY_BYTES: Final = 16
_TWO: Final = (2).to_bytes(4, "little")
_STRIP_PIXELS: Final = 4_000_000


Buffer = bytes | bytearray | memoryview


def decode_image(data: Buffer, max_pixels: int, reduction: Reduction = 1) -> Pixels:
    """Decode an image into upright RGB.

    Args:
        data: The encoded image, anything with the buffer interface.
        max_pixels: Refuse an image with more, before it is decoded; its full size counts.
        reduction: By how much a JPEG is decoded smaller, see :func:`batchdet.geometry.letterbox.reduced`. Other
            formats, and JPEGs of rare chroma layouts, are decoded in full.

    Returns:
        ``(H, W, 3)`` uint8, RGB, C-contiguous.

    Raises:
        ImageError: With a code of :data:`batchdet.records.schema.ERROR_CODES`; nothing else is raised, whatever
            the bytes are.
    """
    return decode_reduced(data, max_pixels, lambda size: reduction)[0]


def decode_reduced(data: Buffer, max_pixels: int, choose: Callable[[Size], Reduction]) -> tuple[Pixels, Size]:
    """Decode an image as :func:`decode_image` does, with a reduction that depends on its size.

    Args:
        data: The encoded image, anything with the buffer interface.
        max_pixels: Refuse an image with more, before it is decoded; its full size counts.
        choose: Gives the reduction for ``(width_px, height_px)`` of an upright original; asked for JPEGs only.

    Returns:
        The pixels, and ``(width_px, height_px)`` of the upright original, whatever they were reduced by.

    Raises:
        ImageError: As of :func:`decode_image`.
    """
    view = memoryview(data).cast("B")
    header = read_header(view)
    _check_size(header.width_px, header.height_px, max_pixels)
    is_jpeg = header.format == "jpeg"
    reduction = choose(header.upright) if is_jpeg else 1
    try:
        pixels = _jpeg(view, header, reduction) if is_jpeg else None
        if pixels is None:
            pixels = _pillow(view, header, max_pixels)
        pixels = np.ascontiguousarray(_upright(pixels, header.orientation))
    except ImageError:
        raise
    except Exception as error:  # decoders raise all sorts of things when the data is broken
        raise _classified(header.format, error) from error
    # elsewhere the header does not have the last word: a TIFF's decoder turns it, a GIF's frame exceeds its screen
    return pixels, header.upright if is_jpeg else (pixels.shape[1], pixels.shape[0])


def _check_size(width_px: int, height_px: int, max_pixels: int) -> None:
    if width_px * height_px > max_pixels:
        raise ImageError("too_large", f"{width_px} x {height_px} pixels, {max_pixels} are allowed")


def _jpeg(data: memoryview, header: Header, reduction: Reduction) -> Pixels | None:
    """Decode with libjpeg-turbo; None when its simple interface does not know the chroma layout."""
    frame = header.frame
    assert frame is not None
    colours = "CMYK" if frame.channels == 4 else "RGB"
    stored = header.width_px, header.height_px
    size = -(-stored[0] // reduction), -(-stored[1] // reduction)  # libjpeg rounds up
    try:
        pixels = _turbo(data, colours, size, strict=True)
    except ValueError as error:
        if "subsampling" in str(error):
            return None
        pixels = _mended_jpeg(data, frame, colours, size)
    width, height = reduced(stored, reduction)
    pixels = pixels[:height, :width]
    return _inverted_cmyk_to_rgb(pixels) if colours == "CMYK" else pixels


def _mended_jpeg(data: memoryview, frame: Frame, colours: str, size: Size) -> Pixels:
    """Decode a JPEG of which libjpeg complains, if nothing that it complains of concerns pixels."""
    jpeg = memoryview(mended(data, frame))
    try:
        return _turbo(jpeg, colours, size, strict=True)
    except ValueError as error:
        stray = _STRAY_BYTES.search(str(error))
        if stray is None or int(stray[1]) > _MAX_STRAY_BYTES:
            raise
        return _turbo(jpeg, colours, size, strict=False)  # every pixel was there, then some padding


def _turbo(data: memoryview, colours: str, size: Size, strict: bool) -> Pixels:
    pixels: Pixels = simplejpeg.decode_jpeg(
        data, colours, fastdct=False, fastupsample=False, min_width=size[0], min_height=size[1], strict=strict
    )
    return pixels


def _pillow(data: memoryview, header: Header, max_pixels: int) -> Pixels:
    needed = _needed(data, header)
    planes_apart = header.tags.get(PLANES, (1,))[0] == 2
    with _quiet(planes_apart):
        image = _PLUGINS[header.format](io.BytesIO(needed))
        if header.format in ("tiff", "gif"):  # these read more of the file's structure while they load
            _check_size(*image.size, max_pixels)
            _keep_premultiplied(image)
            image.load()
    _check_size(*image.size, max_pixels)
    image.load()
    if planes_apart and image.mode in ("LA", "La", "PA"):
        raise ImageError(
            "unsupported_mode", f"{header.format}: alpha in a plane apart from gray or palette has no rule"
        )
    pixels = _to_rgb(image, header)
    if header.chunks is not None and header.chunks.transparent:
        _clear(pixels, header.chunks, image, needed)
    return pixels


def _needed(data: memoryview, header: Header) -> Buffer:
    """Return what the decoder should see of a file."""
    if header.chunks is not None:
        return pixels_only(data, header.chunks)
    if header.frame is not None:
        return mended(data, header.frame)
    if header.directory:
        return one_page(data, header.directory)
    if (
        header.format == "bmp"
        and len(data) > 50
        and data[14] >= 40
        and data[28] in (4, 8)
        and bytes(data[46:50]) == _TWO
    ):
        return b"".join([data[:46], bytes(4), data[50:]])  # Pillow takes black and white alone for 1 bit a pixel
    return data


def _keep_premultiplied(image: ImageFile.ImageFile) -> None:
    """Have Pillow load premultiplied colours of a TIFF as they are stored, not divided by an alpha that may be 0."""
    for i, tile in enumerate(image.tile):
        if isinstance(tile.args, tuple) and str(tile.args[0]).startswith("RGBa"):
            image.tile[i] = tile._replace(args=(tile.args[0].replace("RGBa", "RGBA"), *tile.args[1:]))


@contextmanager
def _quiet(by_libtiff: bool) -> Iterator[None]:
    """Keep Pillow's warnings about odd metadata from the user.

    Args:
        by_libtiff: Have libtiff read TIFFs that are not compressed, because Pillow mixes up planes of 16 bits.
    """
    with _PILLOW_SETTINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = TiffImagePlugin.READ_LIBTIFF
        TiffImagePlugin.READ_LIBTIFF = before or by_libtiff
        try:
            yield
        finally:
            TiffImagePlugin.READ_LIBTIFF = before


def _to_rgb(image: Image.Image, header: Header) -> Pixels:
    mode = image.mode
    if mode.startswith("I;16"):
        return _high_bits(np.asarray(image), header)
    if mode in ("I", "F", "LAB"):
        raise ImageError("unsupported_mode", f"{header.format}: pixels of the kind {mode!r} have no rule")
    if mode == "CMYK":
        return _inverted_cmyk_to_rgb(255 - np.asarray(image))
    if mode in ("RGBA", "LA", "PA", "La") or "transparency" in image.info:
        premultiplied = header.tags.get(EXTRA_SAMPLES, (2,))[0] == 1
        return _on_white(Image.merge("LA", image.split()) if mode == "La" else image, premultiplied)
    return np.array(image if mode == "RGB" else image.convert("RGB"))


def _high_bits(values: npt.NDArray[Any], header: Header) -> Pixels:
    """Turn 16-bit gray into RGB."""
    bits = header.tags.get(BITS, (16,))[0]
    gray = (values >> (bits - 8 if 8 <= bits <= 16 else 8)).astype(np.uint8)
    if header.tags.get(PHOTOMETRIC, (1,))[0] == 0:  # white is zero
        gray = 255 - gray
    return np.repeat(gray[:, :, None], 3, axis=2)


def _on_white(image: Image.Image, premultiplied: bool) -> Pixels:
    """Composite an image with alpha onto white, a strip at a time: the sums take several times the memory of pixels.

    Alpha that is 0 everywhere was never meant: Windows and Photoshop write BMPs like that, and show them.
    """
    width, height = image.size
    out = np.empty((height, width, 3), np.uint8)
    seen = False
    for top, below in _strips(width, height):
        rgba = np.asarray(image.crop((0, top, width, below)).convert("RGBA"))
        seen = seen or bool(rgba[:, :, 3].any())
        weight = rgba[:, :, 3:].astype(np.uint16)
        if premultiplied:
            out[top:below] = np.minimum(rgba[:, :, :3] + (255 - weight), 255)
        else:
            out[top:below] = (rgba[:, :, :3] * weight + 255 * (255 - weight) + 127) // 255
    return out if seen else _colours(image)


def _colours(image: Image.Image) -> Pixels:
    """Return the colours of an image whatever its alpha is."""
    width, height = image.size
    out = np.empty((height, width, 3), np.uint8)
    for top, below in _strips(width, height):
        out[top:below] = np.asarray(image.crop((0, top, width, below)).convert("RGBA"))[:, :, :3]
    return out


def _clear(pixels: Pixels, chunks: Chunks, image: Image.Image, png: Buffer) -> None:
    """Make the pixels of a PNG's transparent gray or colour white, unless all are of it.

    Args:
        pixels: ``(H, W, 3)`` uint8, RGB; changed in place.
        chunks: Name the transparent gray or colour.
        image: The decoded PNG.
        png: The file, which is decoded again if Pillow has kept fewer bits than it has.
    """
    samples: npt.NDArray[Any] = pixels
    scale = 255 // ((1 << chunks.bits) - 1) if chunks.bits < 8 else 1
    if chunks.bits == 16:
        samples = np.asarray(image)[:, :, None]
        if image.mode == "RGB":
            deep: Any = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
            samples = deep[:, :, ::-1]
    hidden = np.empty(pixels.shape[:2], np.bool_)
    for top, below in _strips(pixels.shape[1], pixels.shape[0]):
        hidden[top:below] = (samples[top:below] == np.array(chunks.transparent) * scale).all(axis=2)
    if not hidden.all():
        pixels[hidden] = 255


def _inverted_cmyk_to_rgb(light: Pixels) -> Pixels:
    """Turn ``(H, W, 4)`` of 255 minus ink into RGB."""
    height, width = light.shape[:2]
    out = np.empty((height, width, 3), np.uint8)
    for top, below in _strips(width, height):
        strip = light[top:below]
        out[top:below] = (strip[:, :, :3].astype(np.uint16) * strip[:, :, 3:] + 127) // 255
    return out


def _strips(width: int, height: int) -> Iterator[tuple[int, int]]:
    """Yield first row and row behind the last of strips of about four million pixels."""
    rows = max(_STRIP_PIXELS // width, 1)
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation (Exif 2.32, section 4.6.4: where row 0 and column 0 are)."""
    turned: Any = pixels
    if orientation in (5, 6, 7, 8):
        turned = cv2.transpose(np.ascontiguousarray(pixels))
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    if flip is not None:
        turned = cv2.flip(np.ascontiguousarray(turned), flip)
    upright: Pixels = turned
    return upright


def _classified(format_: str, error: Exception) -> ImageError:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    low = text.lower()
    if isinstance(error, MemoryError):
        code, text = "too_large", "not enough memory for the pixels"
    elif isinstance(error, Image.DecompressionBombError):  # WebP and TIFF above 178 million pixels
        code = "too_large"
    elif "premature end" in low or "truncated" in low or isinstance(error, EOFError):
        code = "truncated"
    elif "unknown pixel mode" in low or "unsupported" in low or "codec configuration" in low:
        code = "unsupported_mode"
    else:
        code = "corrupt"
    return ImageError(code, f"{format_}: {text}")
