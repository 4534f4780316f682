"""Statistics of a run: each equals a recount of the rows by DuckDB, which shares no code with them."""

import json

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from batchdet.records.schema import DETECTIONS, IMAGES
from batchdet.stats import RunStats

LABELS = ("car", "dog", "person", "kite")


def make_tables(seed: int, images_rows: int, first: int = 0) -> tuple[pa.Table, pa.Table]:
    """Make random rows of both tables, with values at the edges of bins."""
    rng = np.random.default_rng(seed)
    images, detections = [], []
    for n in range(first, first + images_rows):
        image_id = f"{n:032x}"
        failed = rng.random() < 0.2
        width, height = (int(rng.choice([1, 250, 500, 1000, 4000, 8000])) for _ in range(2))
        count = 0 if failed else int(rng.choice([0, 0, 1, 2, 3, 4, 15, 16]))
        for k in range(count):
            score = np.float32(rng.choice([0.0, 0.05, 0.3, 0.35, 0.7, 0.95, 1.0, rng.random()]))
            w, h = (np.float32(rng.choice([0, 0.5, 1, 2, 32, 64, 96, rng.random() * 900])) for _ in range(2))
            x, y = np.float32(rng.random() * 100), np.float32(rng.integers(100))
            label = int(rng.integers(3))
            box = {"x_min": x, "y_min": y, "x_max": x + w, "y_max": y + h}
            row = {"run_id": "r", "image_id": image_id, "detection_index": k, "class_id": label, "score": score}
            detections.append({**row, "label": LABELS[label], **box})
        images.append(
            {
                "run_id": "r",
                "image_id": image_id,
                "uri": f"s3://b/{n}.jpg",
                "shard_uri": "s3://b",
                "member": f"{n}.jpg",
                "position": n,
                "size_bytes": int(rng.choice([-1, 0, 1000, 2_000_000])),
                "width_px": None if failed else width,
                "height_px": None if failed else height,
                "status": "failed" if failed else "ok",
                "error_code": str(rng.choice(["empty", "truncated"])) if failed else None,
                "detection_count": count,
            }
        )
    return pa.Table.from_pylist(images, IMAGES), pa.Table.from_pylist(detections, DETECTIONS)


@pytest.mark.acceptance("R34")
@pytest.mark.parametrize("images_rows", [0, 1, 700])
def test_every_statistic_equals_a_recount(images_rows: int) -> None:
    images, detections = make_tables(5, images_rows)
    stats = RunStats.empty(LABELS)
    for start in range(0, images_rows, 100):  # in several calls, as a commit does
        part = images.slice(start, 100)
        ids = set(part["image_id"].to_pylist())
        stats.add(part, detections.filter(pa.array([i in ids for i in detections["image_id"].to_pylist()], pa.bool_())))
    got = stats.to_dict()

    con = duckdb.connect()
    con.register("i", images)
    con.register("d", detections)

    def one(sql: str) -> tuple[object, ...]:
        row = con.sql(sql).fetchall()
        return tuple(row[0])

    def counts(table: str, bin_sql: str, bins: int) -> list[int]:
        found = dict(con.sql(f"select ({bin_sql})::int, count(*) from {table} group by all").fetchall())
        return [found.get(k, 0) for k in range(bins)]

    listed, ok, failed, found, size = one(
        "select count(*), count(*) filter (status = 'ok'), count(*) filter (status = 'failed'),"
        " count(*) filter (detection_count > 0), coalesce(sum(size_bytes) filter (size_bytes >= 0), 0)::bigint from i"
    )
    head = {k: got["images"][k] for k in ("listed", "ok", "failed", "with_detections", "size_bytes")}
    assert head == {"listed": listed, "ok": ok, "failed": failed, "with_detections": found, "size_bytes": size}
    codes = con.sql("select error_code, count(*) from i where status = 'failed' group by all order by 1").fetchall()
    assert list(got["images"]["by_error_code"].items()) == codes
    for side in ("width_px", "height_px"):
        low, high, mean = one(f"select min({side}), max({side}), avg({side}) from i where status = 'ok'")
        extent = got["images"][side]
        assert (extent["min"], extent["max"]) == (low, high)
        assert extent["mean"] == (None if mean is None else pytest.approx(mean, abs=1e-3))
    ok_rows = "(from i where status = 'ok')"
    pixels = "(width_px::bigint * height_px)"
    bounds = [125_000, 250_000, 500_000, *(2**k * 1_000_000 for k in range(7))]
    megapixels = " + ".join(f"({pixels} >= {b})::int" for b in bounds)
    assert got["images"]["megapixels"]["counts"] == counts(ok_rows, megapixels, 11)
    per_image = "case when detection_count = 0 then 0 else floor(log2(detection_count)) + 1 end"
    assert got["images"]["detections_per_image"]["counts"] == counts(ok_rows, per_image, 15)

    assert got["detections"]["total"] == one("select count(*) from d")[0]
    by_class = con.sql(
        "select label, count(*), count(distinct image_id), avg(score::double), max(score) from d group by 1"
    ).fetchall()
    assert {k for k, v in got["detections"]["by_class"].items() if v["count"]} == {row[0] for row in by_class}
    for label, total, with_label, mean_score, max_score in by_class:
        entry = got["detections"]["by_class"][label]
        assert (entry["count"], entry["images"], entry["max_score"]) == (total, with_label, max_score)
        assert entry["mean_score"] == pytest.approx(mean_score, abs=1e-8)
    assert got["detections"]["score"]["counts"] == counts("d", "least(floor(score::double * 20), 19)", 20)
    area = "((x_max::double - x_min) * (y_max::double - y_min))"
    size_bin = " + ".join(f"(sqrt({area}) >= {2**k})::int" for k in range(16))
    assert got["detections"]["box_size_px"]["counts"] == counts("d", size_bin, 17)
    coco = counts("d", f"({area} >= 1024)::int + ({area} >= 9216)::int", 3)
    assert list(got["detections"]["box_size_coco"].values()) == coco


def test_classes_keep_the_order_of_the_model_and_unknown_ones_follow() -> None:
    images, detections = make_tables(1, 40)
    stats = RunStats.empty(["person", "car"])
    stats.add(images, detections)
    classes = stats.to_dict()["detections"]["by_class"]
    assert list(classes) == ["person", "car", "dog"]
    assert classes["dog"]["count"] > 0


def test_a_class_never_seen_is_listed_with_zero() -> None:
    assert RunStats.empty(LABELS).to_dict()["detections"]["by_class"]["kite"] == {
        "count": 0,
        "images": 0,
        "mean_score": None,
        "max_score": None,
        "score_sum_q32": 0,
    }


def test_times_are_summed_and_shown_in_the_order_of_the_work() -> None:
    stats = RunStats.empty([])
    stats.add_times({"write": 0.5, "warm_up": 1.0, "decode": 1.25})
    stats.add_times({"decode": 0.25, "read": 2})
    steps = stats.to_dict()["time_by_step_s"]
    assert steps == {"read": 2.0, "decode": 1.5, "write": 0.5, "warm_up": 1.0}
    assert list(steps) == ["read", "decode", "write", "warm_up"]


def test_run_level_figures_are_the_callers() -> None:
    stats = RunStats.empty(LABELS)
    stats.wall_s, stats.images_per_s = 12.5, 80.0
    raw = json.loads(json.dumps(stats.to_dict()))
    assert (raw["wall_s"], raw["images_per_s"]) == (12.5, 80.0)
    assert RunStats.from_dict(raw).wall_s == 12.5
    assert stats.merge(RunStats.empty(LABELS)).wall_s is None


def test_merge_changes_neither_side() -> None:
    a, b = RunStats.empty(LABELS), RunStats.empty(LABELS)
    a.add(*make_tables(1, 30))
    b.add(*make_tables(2, 30))
    before = (a.to_dict(), b.to_dict())
    a.merge(b)
    assert (a.to_dict(), b.to_dict()) == before


def test_carried_over_and_dictionary_columns_are_no_hindrance() -> None:
    images, detections = make_tables(3, 60)
    plain, other = RunStats.empty(LABELS), RunStats.empty(LABELS)
    plain.add(images, detections)
    coded = detections.set_column(4, "label", detections["label"].dictionary_encode())
    other.add(images.append_column("camera", pa.array(["a"] * images.num_rows)), coded)
    assert plain.to_dict() == other.to_dict()
