"""The marker segments of a JPEG (ITU-T T.81, annex B), walked as tolerantly as libjpeg does."""

import re
import struct
from dataclasses import dataclass
from typing import Final

from batchdet.decode.tags import exif_orientation
from batchdet.errors import ImageError

_SEGMENT: Final = re.compile(rb"\xff+[^\x00\x01\xd0-\xd8\xff]")
"""The next marker with a segment, or the end marker. Coded data holds no other markers than those left out here."""
_END: Final = 0xD9
_SCAN: Final = 0xDA
_PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_FRAMES: Final = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_BETWEEN_SCANS: Final = frozenset({0xC4, 0xCC, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE})
_METADATA: Final = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
"""APP1 to APP15 and comments; not APP14, in which Adobe's programs say what the colours mean."""
_MAX_SCANS: Final = 100
"""Encoders write up to 20. A scan of a few bytes costs a pass over all pixels, so that 10 MB could cost an hour."""
_MAX_SEGMENTS: Final = 65_536


@dataclass(frozen=True)
class Frame:
    """What a JPEG says before its first scan.

    Args:
        width_px: As stored, before ``orientation`` is applied.
        height_px: Likewise.
        channels: Colour components.
        orientation: EXIF orientation, 1..8.
        segments: First byte and byte behind the end of each segment before the first scan.
        scan: The same of the first scan's header; coded data follows.
        several_scans: The pixels are spread over several scans, as in a progressive JPEG.
    """

    width_px: int
    height_px: int
    channels: int
    orientation: int
    segments: tuple[tuple[int, int], ...]
    scan: tuple[int, int]
    several_scans: bool


def read_frame(data: memoryview) -> Frame:
    """Walk the segments before the first scan.

    Raises:
        ImageError: The file ends before, has no frame header there, or more scans than any encoder writes.
    """
    frame, orientation, stray, behind = (0, 0, 0, 0), 1, False, 2
    segments: list[tuple[int, int]] = []
    while len(segments) < _MAX_SEGMENTS:
        begin, marker, end = _next_segment(data, behind, stray)
        stray = stray or data[behind] != 0xFF
        if marker == _SCAN and frame[1]:
            several = frame[0] in _PROGRESSIVE or data[begin + 4] < frame[3]
            found = Frame(frame[2], frame[1], frame[3], orientation, tuple(segments), (begin, end), several)
            if several:
                _end_of_scans(data, found)
            return found
        if marker in (_SCAN, _END):
            raise ImageError("corrupt", "jpeg: no frame header before the data")
        if marker == 0xE1 and orientation == 1 and bytes(data[begin + 4 : begin + 10]) == b"Exif\0\0":
            orientation = exif_orientation(data[begin + 10 : end])
        elif marker in _FRAMES and not frame[0]:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, begin + 4)
            if bits != 8:
                raise ImageError("unsupported_mode", f"jpeg: {bits} bits a channel; 8 are read")
            if not width or not height:
                raise ImageError("corrupt", f"jpeg: the header says {width} x {height} pixels")
            frame = marker, height, width, channels
        segments.append((begin, end))
        behind = end
    raise ImageError("corrupt", f"jpeg: more than {_MAX_SEGMENTS} segments")


def mended(data: memoryview, frame: Frame) -> bytes:
    """Return a JPEG without metadata, and without stray bytes between the segments of its header.

    Raises:
        ImageError: There is no end marker behind the last scan. Other bytes there may be a trailer, as Samsung's
            panoramas have, or stand where pixels were: a decoder takes them for pixels, and does not notice.
    """
    found = _SEGMENT.search(data, frame.scan[1])
    end, ended = len(data), False
    if frame.several_scans:
        end, ended = _end_of_scans(data, frame)
    elif found is not None:
        end, ended = found.start(), data[found.end() - 1] == _END
    if not ended:
        raise ImageError("truncated", "jpeg: no end marker behind the pixels")
    kept = [_of_version_1(bytes(data[a:b])) for a, b in frame.segments if data[a + 1] not in _METADATA]
    return b"".join([b"\xff\xd8", *kept, data[frame.scan[0] : end], b"\xff\xd9"])


def _next_segment(data: memoryview, at: int, stray: bool) -> tuple[int, int, int]:
    """Return the next segment's first byte, its marker, and the byte behind its end; stray bytes are passed over."""
    found = _SEGMENT.search(data, at)
    if found is not None:
        begin, marker = found.end() - 2, data[found.end() - 1]
        if marker == _END:
            return begin, marker, begin + 2
        end = begin + 2 + max(data[begin + 2] << 8 | data[begin + 3], 2)
        if end <= len(data):
            return begin, marker, end
    if stray or bytes(data[at : at + 1]) != b"\xff":
        raise ImageError("corrupt", "jpeg: bytes between the header's segments that belong to none")
    raise ImageError("truncated", "jpeg: the file ends within its header")


def _end_of_scans(data: memoryview, frame: Frame) -> tuple[int, bool]:
    """Return the byte behind the last scan, and whether an end marker stands there; what follows is no scan."""
    scans, segments, behind = 1, 0, frame.scan[1]
    while (found := _SEGMENT.search(data, behind)) is not None and segments < _MAX_SEGMENTS:
        marker = data[found.end() - 1]
        if marker == _END:
            return found.start(), True
        if (marker not in _BETWEEN_SCANS and marker != _SCAN) or found.end() + 2 > len(data):
            break
        segments += 1
        scans += marker == _SCAN
        if scans > _MAX_SCANS:
            raise ImageError("corrupt", f"jpeg: more than {_MAX_SCANS} scans")
        behind = found.end() + max(data[found.end()] << 8 | data[found.end() + 1], 2)
    return len(data), False


def _of_version_1(segment: bytes) -> bytes:
    """Return a segment as it is, but JFIF's with a version that libjpeg does not warn of."""
    return segment[:9] + b"\1\1" + segment[11:] if segment[1] == 0xE0 and segment[4:9] == b"JFIF\0" else segment
