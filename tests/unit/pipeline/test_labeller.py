import io
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from batchdet.decode.canvas import painted
from batchdet.decode.image import decode_image
from batchdet.geometry.letterbox import Letterbox
from batchdet.model.detector import Detector
from batchdet.model.placement import Placement
from batchdet.model.preprocess import Preprocess
from batchdet.pipeline.labeller import SegmentLabeller
from batchdet.records.detections import Detections
from batchdet.records.schema import DETECTIONS, IMAGES, MEMBERS, image_id
from batchdet.records.segment import Segment
from tests.broken_images import encoded, picture


class BrightSpot:
    """Finds one box per image whose class is its brightness; a black image makes it fail, as a model would."""

    features: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def letterbox(self, width_px: int, height_px: int) -> Letterbox:
        side = 64 if width_px >= height_px else 96
        return Letterbox.centred((width_px, height_px), (64, side))

    def label(self, class_id: int) -> str:
        return f"bright_{class_id}"

    def detect(self, canvases: Any, letterboxes: Sequence[Letterbox]) -> list[Detections]:
        self.batches.append(canvases.shape)
        found = []
        for canvas, box in zip(canvases, letterboxes, strict=True):
            value = int(canvas[canvas.shape[0] // 2, canvas.shape[1] // 2].mean())
            if value == 0:
                raise RuntimeError("black\nis not\x1b[31m supported")
            if value > 200:
                found.append(Detections.empty())
                continue
            corners = np.array([[0, 0, *box.source]] * 2, np.float32)
            found.append(Detections(corners, np.array([0.75, 0.5], np.float32), np.array([value, 1], np.int32)))
        return found


def png(value: int, size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def segment(data: Sequence[bytes | None], carried: dict[str, list[Any]] | None = None) -> Segment:
    rows = [
        {
            "uri": f"/s.tar#{i}.png",
            "shard_uri": "/s.tar",
            "member": f"{i}.png",
            "position": i,
            "size_bytes": -1 if d is None else len(d),
            "error_code": "unreadable" if d is None else None,
            "error_message": "gone" if d is None else None,
        }
        for i, d in enumerate(data)
    ]
    members = pa.Table.from_pylist(rows, schema=MEMBERS)
    for name, values in (carried or {}).items():
        members = members.append_column(name, pa.array(values))
    return Segment(4, "a" * 32, 2, True, members, data)


def labeller(detector: BrightSpot, batch_rows: int = 4, threads: int = 1) -> SegmentLabeller:
    return SegmentLabeller(cast(Detector, detector), "run", batch_rows, 10**6, threads)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_every_image_is_one_row_whatever_happens_to_its_neighbours(batch_rows: int, threads: int) -> None:
    data = [png(50), b"", png(0), None, png(250), b"<html>", png(60, (30, 40)), png(70)]
    labelled = labeller(BrightSpot(), batch_rows, threads).label(segment(data))
    rows = labelled.images.to_pylist()
    assert [row["error_code"] for row in rows] == [
        None,
        "empty",
        "inference",
        "unreadable",
        None,
        "not_an_image",
        None,
        None,
    ]
    assert [row["status"] for row in rows] == ["ok", "failed", "failed", "failed", "ok", "failed", "ok", "ok"]
    assert [row["detection_count"] for row in rows] == [2, 0, 0, 0, 0, 0, 2, 2]
    assert [(row["width_px"], row["height_px"]) for row in rows][5:7] == [(None, None), (30, 40)]
    assert [row["max_score"] for row in rows][:5] == [0.75, None, None, None, None]
    found = labelled.detections.to_pylist()
    assert [row["class_id"] for row in found] == [50, 1, 60, 1, 70, 1]
    assert [row["detection_index"] for row in found] == [0, 1] * 3
    assert found[2]["label"] == "bright_60"
    assert found[2]["image_id"] == rows[6]["image_id"] == image_id("/s.tar", "6.png")
    assert (found[2]["x_max"], found[2]["y_max"]) == (30.0, 40.0)
    assert labelled.images.schema.equals(IMAGES)
    assert labelled.detections.schema.equals(DETECTIONS)
    assert (labelled.shard_index, labelled.segment_index, labelled.last) == (4, 2, True)


def test_batches_hold_one_canvas_shape() -> None:
    detector = BrightSpot()
    labeller(detector, 2).label(segment([png(50), png(60, (30, 40)), png(50), png(50)]))
    assert sorted(detector.batches) == [(1, 64, 64, 3), (1, 96, 64, 3), (2, 64, 64, 3)]


class Looking(BrightSpot):
    """Keeps what it is shown."""

    placement = Placement(Preprocess(), (64, 64), None)
    letterbox = placement.letterbox  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def detect(self, canvases: Any, letterboxes: Sequence[Letterbox]) -> list[Detections]:
        self.seen += [canvas.copy() for canvas in canvases]
        return super().detect(canvases, letterboxes)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("reduce", [False, True])
def test_rows_are_the_originals_however_it_was_decoded(threads: int, reduce: bool) -> None:
    detector = Looking()
    exif = Image.Exif()
    exif[0x0112] = 8
    gray = Image.blend(picture(523, 391), Image.new("RGB", (523, 391), (90, 90, 90)), 0.9)
    data = [encoded(gray, "JPEG"), encoded(gray, "JPEG", exif=exif), encoded(gray, "JPEG")[:-9], encoded(gray, "PNG")]
    ours = SegmentLabeller(cast(Detector, detector), "run", 4, 10**6, threads, reduce=reduce)
    labelled = ours.label(segment(data))
    rows = labelled.images.to_pylist()
    assert [row["error_code"] for row in rows] == [None, None, "truncated", None]
    assert [(r["width_px"], r["height_px"]) for r in rows] == [(523, 391), (391, 523), (None, None), (523, 391)]
    assert [(d["x_max"], d["y_max"]) for d in labelled.detections.to_pylist()[::2]] == [
        (523, 391),
        (391, 523),
        (523, 391),
    ]
    wanted = [
        painted(decode_image(data[i], 10**6, 8 if reduce and i < 3 else 1), detector.letterbox(*size))
        for i, size in ((0, (523, 391)), (1, (391, 523)), (3, (523, 391)))
    ]
    np.testing.assert_array_equal(detector.seen, wanted)


def test_columns_carried_over_follow() -> None:
    labelled = labeller(BrightSpot()).label(segment([png(50), None], {"city": ["Bonn", None], "n": [1, 2]}))
    assert labelled.images.schema.names == [*IMAGES.names, "city", "n"]
    assert labelled.images["city"].to_pylist() == ["Bonn", None]


def test_an_empty_segment_gives_empty_tables() -> None:
    labelled = labeller(BrightSpot()).label(segment([]))
    assert (labelled.images.num_rows, labelled.detections.num_rows) == (0, 0)
    assert labelled.images.schema.equals(IMAGES)


def test_segments_travel_as_one_row_each() -> None:
    original = segment([png(50), None, b"x"], {"city": ["a", "b", "c"]})
    row = original.to_row()
    assert row.num_rows == 1
    (again,) = Segment.from_rows(pa.concat_tables([row]))
    assert again.members.equals(original.members)
    assert [None if d is None else bytes(d) for d in again.data] == list(original.data)
    assert (again.name, again.last, again.size_bytes) == (original.name, True, original.size_bytes)


def test_a_segment_that_does_not_add_up_is_refused() -> None:
    good = segment([b"x"])
    with pytest.raises(ValueError, match="1 members but 2 images"):
        Segment(0, "a", 0, True, good.members, [b"x", b"y"])
    with pytest.raises(ValueError, match="members begin with"):
        Segment(0, "a", 0, True, good.members.select(["uri"]), [b"x"])


def test_the_detector_stub_is_used_like_a_detector() -> None:
    public = SimpleNamespace(**{name: getattr(Detector, name) for name in ("letterbox", "label", "detect")})
    assert set(vars(public)) <= set(dir(BrightSpot))
