"""What the decode stage ships gives the same rows as decoding in the actor."""

from typing import cast

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from batchdet.decode.canvas import painted as painted_canvas
from batchdet.decode.image import decode_image
from batchdet.errors import ImageError
from batchdet.geometry.letterbox import Reduction
from batchdet.model.detector import Detector, open_detector
from batchdet.model.fetch import fetch_model
from batchdet.model.placement import Placement
from batchdet.model.preprocess import Preprocess
from batchdet.pipeline.isolation import Replay
from batchdet.pipeline.labeller import SegmentLabeller
from batchdet.pipeline.painter import SegmentPainter
from batchdet.records.painted import painted_again, segments_of
from batchdet.records.segment import table_from_ipc, table_to_ipc
from batchdet.spec import ModelSpec
from tests.broken_images import encoded, picture

from .test_isolation import GOOD, POISON, replay
from .test_labeller import BrightSpot, png, segment

PLACEMENT = Placement(Preprocess(), (64, 64), 32)
DATA = [png(50), b"", png(60, (30, 40)), None, png(250), b"<html>", png(70, (90, 20)), png(0)]


class Strips(BrightSpot):
    letterbox = PLACEMENT.letterbox  # type: ignore[assignment]


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_are_the_same_with_and_without_the_stage(threads: int) -> None:
    ours = SegmentLabeller(cast(Detector, Strips()), "run", 2, 10**6, threads)
    original = segment(DATA, {"city": list("abcdefgh")})
    fatal = {4: ImageError("crashed", "it did")}
    wanted = ours.label(original, fatal)
    row = SegmentPainter(PLACEMENT, 10**6).paint(original, fatal)
    (painted,) = segments_of(table_from_ipc(table_to_ipc(row)))
    found = ours.label(painted)
    assert found.images.equals(wanted.images)
    assert found.detections.equals(wanted.detections)
    assert [code for code in wanted.images["error_code"].to_pylist() if code] == [
        "empty", "unreadable", "crashed", "not_an_image", "inference",
    ]  # fmt: skip


def test_canvases_are_shipped_as_they_are() -> None:
    row = SegmentPainter(PLACEMENT, 10**6).paint(segment([png(50), None, png(60, (30, 40))]))
    (painted,) = segments_of(row)
    assert row.num_rows == 1
    assert [None if c is None else (c.width_px, c.height_px, c.pixels.size) for c in painted.data] == [
        (40, 30, 64 * 64 * 3),
        None,
        (30, 40, 64 * 64 * 3),
    ]
    assert painted_again(painted).equals(row)
    (empty,) = segments_of(SegmentPainter(PLACEMENT, 10**6).paint(segment([])))
    assert empty.data == []


def test_images_may_stand_on_canvases_of_other_images() -> None:
    loose = Placement(Preprocess(), (96, 96), 32, ((96, 96), (128, 96)))
    (painted,) = segments_of(SegmentPainter(loose, 10**6).paint(segment([png(50, (90, 60)), png(60, (90, 20))])))
    assert [canvas.pixels.size for canvas in painted.data] == [96 * 96 * 3, 96 * 32 * 3]


def photographs() -> list[bytes | None]:
    """Return JPEGs much larger than the canvas, one lying on its side, one cut short, and a PNG as large."""
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(picture(523, 391), "JPEG")
    return [whole, encoded(picture(300, 205), "JPEG", exif=exif), whole[:-9], None, encoded(picture(523, 391), "PNG")]


def test_large_jpegs_are_decoded_smaller_where_that_is_asked_for() -> None:
    data = photographs()
    reductions_of: dict[bool, tuple[Reduction, ...]] = {False: (1, 1, 1), True: (8, 4, 1)}
    for reduce, reductions in reductions_of.items():
        (painted,) = segments_of(SegmentPainter(PLACEMENT, 10**6, reduce=reduce).paint(segment(data)))
        assert painted.members["error_code"].to_pylist() == [None, None, "truncated", "unreadable", None]
        sizes = [(523, 391), (205, 300), (523, 391)]
        for index, size, reduction in zip((0, 1, 4), sizes, reductions, strict=True):
            canvas, letterbox = painted.data[index], PLACEMENT.letterbox(*size)
            assert (canvas.width_px, canvas.height_px) == size
            wanted = painted_canvas(decode_image(cast(bytes, data[index]), 10**6, reduction), letterbox)
            found = np.empty_like(wanted)
            canvas.copy_to(found)
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_are_the_same_with_and_without_the_stage_when_decoding_smaller(threads: int) -> None:
    class Placed(Strips):
        placement = PLACEMENT

    ours = SegmentLabeller(cast(Detector, Placed()), "run", 2, 10**6, threads, reduce=True)
    (painted,) = segments_of(SegmentPainter(PLACEMENT, 10**6, reduce=True).paint(segment(photographs())))
    wanted, found = ours.label(segment(photographs())), ours.label(painted)
    assert found.images.equals(wanted.images)
    assert found.detections.equals(wanted.detections)


def test_segments_that_are_not_painted_pass() -> None:
    original = segment([png(50), None])
    (again,) = segments_of(pa.concat_tables([original.to_row()]))
    assert bytes(again.data[0]) == original.data[0]


def test_a_detector_says_how_it_wants_images_placed() -> None:
    detector = open_detector(ModelSpec(uri="builtin:sample"))
    for size in ((640, 480), (100, 1000)):
        assert detector.placement.letterbox(*size) == detector.letterbox(*size)


@pytest.mark.acceptance("R20")
def test_poison_is_found_without_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHDET_FAILPOINT", "decode?POISON=abort")
    spec = replay().spec
    fatal = Replay(spec, "no digest of any model", "gpu", PLACEMENT).find_fatal(segment([GOOD, POISON, None, GOOD]))
    assert [(i, error.code) for i, error in fatal.items()] == [(1, "crashed")]


def test_canvases_are_replayed_with_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHDET_FAILPOINT", "infer@2=abort")
    detector = open_detector(ModelSpec(uri="builtin:sample"))
    (painted,) = segments_of(SegmentPainter(detector.placement, 10**6).paint(segment([GOOD, GOOD, None, GOOD])))
    spec = replay().spec
    fatal = Replay(spec, fetch_model("builtin:sample").sha256, "cpu").find_fatal(painted)
    assert sorted(fatal) == [1]
