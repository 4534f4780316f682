"""Images that users of other programs have reported: decoded as the plain version of the photograph, or refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchdet.decode.image import decode_image
from batchdet.errors import ImageError

MAX_PIXELS = 100_000_000


@pytest.fixture(scope="module")
def images(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of images that the shared script makes."""
    folder = tmp_path_factory.mktemp("inputs")
    script = shared / "bugs" / "make_inputs.py"
    subprocess.run([sys.executable, str(script), str(shared), str(folder)], check=True, capture_output=True)
    return folder / "images"


def distance(a: Any, b: Any) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("i1_planar16.tif", 0),
        ("i2_alpha0_v5.bmp", 0),
        ("i3_long_ztxt.png", 0),
        ("i4_progressive_motion_photo.jpg", 3),
        ("i6_exif_behind_frame.jpg", 3),
    ],
)
def test_the_photograph_is_read(images: Path, name: str, mean: float) -> None:
    plain = decode_image((images / "plain.png").read_bytes(), MAX_PIXELS)
    assert distance(decode_image((images / name).read_bytes(), MAX_PIXELS), plain) <= mean


def test_transparent_pixels_of_four_bits_are_white(images: Path) -> None:
    plain = decode_image((images / "plain.png").read_bytes(), MAX_PIXELS)
    found = decode_image((images / "i7_gray4_transparent1.png").read_bytes(), MAX_PIXELS)
    assert not (found == 17).any()
    assert (found == 255).all(axis=2).sum() > 1000
    opaque = found[:, :, 0] < 255
    gray = plain[opaque] @ [0.299, 0.587, 0.114]
    assert np.abs(found[opaque][:, 0] - gray).mean() < 10


@pytest.mark.parametrize(
    ("name", "code", "word"),
    [
        ("i5_no_end_but_trailer.jpg", "truncated", "end marker"),
        ("i8_cgbi.png", "unsupported_format", "CgBI"),
        ("i9_tiff_jpeg2000.tif", "unsupported_format", "JPEG 2000"),
    ],
)
def test_the_refusal_says_why(images: Path, name: str, code: str, word: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image((images / name).read_bytes(), MAX_PIXELS)
    assert caught.value.code == code
    assert word in caught.value.message
