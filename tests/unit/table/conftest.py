"""A small run: two shards whose segments can be staged, lost or bent."""

from collections.abc import Callable, Sequence

import pyarrow as pa
import pytest

from batchdet.records.schema import DETECTIONS, IMAGES, image_id
from batchdet.records.segment import LabelledSegment

RUN_ID = "20261123-120000-abcd"
CARRIED = pa.schema([("city", pa.string())])
Maker = Callable[..., LabelledSegment]


def make_segment(
    shard_index: int,
    segment_index: int,
    last: bool,
    first_position: int,
    statuses: Sequence[str],
    cities: Sequence[str | None] | None = None,
) -> LabelledSegment:
    """Label a segment by hand: image k of status ok has k + 1 detections of falling class number."""
    shard_uri = f"/data/{shard_index}.tar"
    images, detections = [], []
    for k, status in enumerate(statuses):
        member = f"{first_position + k}.jpg"
        name = image_id(shard_uri, member)
        ok = status == "ok"
        images.append(
            {
                "run_id": RUN_ID,
                "image_id": name,
                "uri": f"{shard_uri}#{member}",
                "shard_uri": shard_uri,
                "member": member,
                "position": first_position + k,
                "size_bytes": 100 + k,
                "width_px": 640 if ok else None,
                "height_px": 480 if ok else None,
                "status": "ok" if ok else "failed",
                "error_code": None if ok else status,
                "error_message": None if ok else "because",
                "detection_count": k + 1 if ok else 0,
                "max_score": 0.9 if ok else None,
                "city": cities[k] if cities else "Bonn",
            }
        )
        for i in range(k + 1 if ok else 0):
            detections.append(
                {
                    "run_id": RUN_ID,
                    "image_id": name,
                    "detection_index": i,
                    "class_id": k - i,
                    "label": f"class_{k - i}",
                    "score": 0.9 - i / 10,
                    "x_min": 1.0,
                    "y_min": 2.0,
                    "x_max": 30.0,
                    "y_max": 40.0,
                }
            )
    return LabelledSegment(
        shard_index,
        f"{shard_index:032x}",
        segment_index,
        last,
        pa.Table.from_pylist(images, schema=pa.schema([*IMAGES, *CARRIED])),
        pa.Table.from_pylist(detections, schema=DETECTIONS),
        {"decode": 0.5, "infer": 1.0},
    )


@pytest.fixture
def segment() -> Maker:
    """Return the maker of labelled segments."""
    return make_segment
