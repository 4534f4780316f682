"""Statistics merge to the same numbers in whatever order and grouping."""

import json

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from batchdet.records.schema import DETECTIONS, IMAGES
from batchdet.stats import RunStats

LABELS = ("car", "dog", "person")
_float32 = st.floats(0, 1, width=32)

_detection = st.tuples(
    st.sampled_from([*LABELS, "unknown"]), _float32, st.floats(0, 2000, width=32), st.floats(0, 2000, width=32)
)
_image = st.tuples(
    st.sampled_from([None, None, "empty", "truncated"]),
    st.integers(-1, 10**9),
    st.integers(1, 65535),
    st.integers(1, 65535),
    st.lists(_detection, max_size=4),
)


def _tables(rows: list[tuple[int, tuple]]) -> tuple[pa.Table, pa.Table]:
    images, detections = [], []
    for n, (code, size_bytes, width, height, found) in rows:
        found = [] if code else found
        image_id = f"{n:032x}"
        images.append(
            {
                "run_id": "r",
                "image_id": image_id,
                "uri": "",
                "shard_uri": "",
                "member": str(n),
                "position": n,
                "size_bytes": size_bytes,
                "width_px": None if code else width,
                "height_px": None if code else height,
                "status": "failed" if code else "ok",
                "error_code": code,
                "detection_count": len(found),
            }
        )
        for k, (label, score, w, h) in enumerate(found):
            row = {"run_id": "r", "image_id": image_id, "detection_index": k, "class_id": 0, "label": label}
            detections.append({**row, "score": score, "x_min": 0, "y_min": 0, "x_max": w, "y_max": h})
    return pa.Table.from_pylist(images, IMAGES), pa.Table.from_pylist(detections, DETECTIONS)


def _stats(rows: list[tuple[int, tuple]], labels: tuple[str, ...] = LABELS, seconds: float = 0.0) -> RunStats:
    stats = RunStats.empty(labels)
    stats.add(*_tables(rows))
    stats.add_times({"decode": seconds, "infer": seconds / 3})
    return stats


def _text(stats: RunStats) -> str:
    return json.dumps(stats.to_dict())


_images = st.lists(_image, max_size=12).map(lambda found: list(enumerate(found)))
_some_labels = st.permutations(LABELS).flatmap(lambda p: st.integers(0, 3).map(lambda n: tuple(p[:n])))
_any_stats = st.builds(_stats, _images, _some_labels, st.floats(0, 1e6))


@settings(max_examples=60, deadline=None)
@given(_any_stats, _any_stats, _any_stats)
def test_merge_is_associative_and_commutative(a: RunStats, b: RunStats, c: RunStats) -> None:
    assert _text(a.merge(b).merge(c)) == _text(a.merge(b.merge(c)))
    assert _text(a.merge(b)) == _text(b.merge(a))


@settings(max_examples=60, deadline=None)
@given(_any_stats)
def test_merging_nothing_changes_nothing(a: RunStats) -> None:
    assert _text(a.merge(RunStats.empty(a.labels))) == _text(a)


@settings(max_examples=60, deadline=None)
@given(_images, st.randoms(use_true_random=False), st.integers(1, 5))
def test_order_and_grouping_of_rows_do_not_matter(rows: list[tuple[int, tuple]], random: object, groups: int) -> None:
    whole = _stats(rows)
    mixed = list(rows)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    by_add, by_merge = RunStats.empty(LABELS), RunStats.empty(LABELS)
    for part in np.array_split(np.arange(len(mixed)), groups):
        tables = _tables([mixed[i] for i in part])
        by_add.add(*tables)
        one = RunStats.empty(LABELS)
        one.add(*tables)
        by_merge = by_merge.merge(one)
    for stats in (by_add, by_merge):
        stats.add_times({"decode": 0.0, "infer": 0.0})
        assert _text(stats) == _text(whole)


@settings(max_examples=60, deadline=None)
@given(_any_stats)
def test_json_and_back_is_the_same(a: RunStats) -> None:
    assert _text(RunStats.from_dict(json.loads(_text(a)))) == _text(a)
