"""A corpus with every kind of broken file: one failed row each, with its code, and all others unchanged."""

import json
from pathlib import Path

import duckdb
import pytest

from batchdet import open_results
from batchdet.errors import TooManyFailures, VerificationError
from batchdet.results.verify import verify
from batchdet.table.manifest import committed_runs
from tests.broken_images import broken_images

from .conftest import RunJob, sample_images, write_shards

pytestmark = pytest.mark.slow


def broken_name(name: str) -> str:
    return f"broken-{name}" if "." in name else f"broken-{name}.jpg"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes]]:
    """24 generated images."""
    return sample_images(tmp_path_factory.mktemp("good"), 24, 5)


@pytest.fixture(scope="module")
def mixture(good: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Good and broken files in turn."""
    broken = [(broken_name(name), data) for name, (data, _) in broken_images().items()]
    assert len(broken) >= 20
    files = []
    for i in range(max(len(good), len(broken))):
        files += good[i : i + 1] + broken[i : i + 1]
    return files


@pytest.mark.acceptance("R22")
def test_each_broken_file_is_one_failed_row_and_all_others_are_unchanged(
    run: RunJob, good: list[tuple[str, bytes]], mixture: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    run(write_shards(str(tmp_path / "good"), good, 1), tmp_path / "clean")
    done = run(write_shards(str(tmp_path / "mixed"), mixture, 2), tmp_path / "out", policy={"max_failed_fraction": 0.7})
    assert done.images_failed == len(broken_images())
    assert done.images_ok == len(good)
    rows = open_results(str(tmp_path / "out")).images().to_pandas()
    codes = dict(zip(rows["member"], rows["error_code"], strict=True))
    expected = {broken_name(name): code for name, (_, code) in broken_images().items()}
    assert {name: code for name, code in codes.items() if name.startswith("broken-")} == expected
    assert rows[rows["status"] == "failed"]["error_message"].str.len().min() > 0
    boxes = """
        SELECT i.member, d.detection_index, d.class_id, round(d.score, 3) AS score, round(d.x_min, 1) AS x_min
        FROM detections d JOIN images i USING (image_id) ORDER BY ALL
    """
    from batchdet.results.query import query

    assert query(str(tmp_path / "out"), boxes).equals(query(str(tmp_path / "clean"), boxes))
    assert verify(str(tmp_path / "out")).problems == []


def test_too_many_failures_commit_nothing_until_the_policy_allows(
    run: RunJob, mixture: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    glob = write_shards(str(tmp_path / "mixed"), mixture, 1)
    with pytest.raises(TooManyFailures, match="images failed"):
        run(glob, tmp_path / "out")
    assert committed_runs(str(tmp_path / "out")) == []
    assert not (tmp_path / "out/images").exists()
    done = run(glob, tmp_path / "out", policy={"max_failed_fraction": 1.0})
    assert done.images_failed == len(broken_images())


@pytest.mark.acceptance("R30")
def test_all_images_bad_and_no_images_at_all(run: RunJob, tmp_path: Path) -> None:
    bad = write_shards(str(tmp_path / "bad"), [(f"{i}.jpg", b"<html>") for i in range(5)], 1)
    run(bad, tmp_path / "out-bad", policy={"max_failed_fraction": 1.0})
    empty = write_shards(str(tmp_path / "empty"), [("readme.md", b"no images here")], 1)
    run(empty, tmp_path / "out-empty")
    for out, listed in (("out-bad", 5), ("out-empty", 0)):
        results = open_results(str(tmp_path / out))
        assert (results.images().to_arrow().num_rows, results.detections().to_arrow().num_rows) == (listed, 0)
        assert {"image_id", "status", "error_code"} <= set(results.images().to_arrow().schema.names)
        assert {"label", "score", "x_min"} <= set(results.detections().to_arrow().schema.names)
        assert verify(str(tmp_path / out)).problems == []


@pytest.fixture(scope="module")
def labelled(one_ray: None, good: list[tuple[str, bytes]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed run over the good images, in small part files."""
    from batchdet.job import run_job

    from .conftest import job

    folder = tmp_path_factory.mktemp("labelled")
    run_job(job(write_shards(str(folder / "good"), good, 2), folder / "out"))
    return folder / "out"


def test_plain_globs_read_the_tables(labelled: Path) -> None:
    import pandas as pd
    import pyarrow.dataset as ds

    manifest = committed_runs(str(labelled))[0]
    for table, parts in (("images", manifest.images), ("detections", manifest.detections)):
        count = sum(part.rows for part in parts)
        assert count > 0
        found = duckdb.sql(f"SELECT count(*) FROM '{labelled}/{table}/**/*.parquet'").fetchall()
        assert found == [(count,)]
        assert len(pd.read_parquet(labelled / table)) == count
        assert ds.dataset(labelled / table, partitioning="hive").count_rows() == count
        dates = duckdb.sql(f"SELECT DISTINCT run_date::VARCHAR FROM '{labelled}/{table}/**/*.parquet'").fetchall()
        assert dates == [(f"{manifest.run_id[:4]}-{manifest.run_id[4:6]}-{manifest.run_id[6:8]}",)]


def test_statistics_equal_a_recount(labelled: Path) -> None:
    run_id = (labelled / "_SUCCESS").read_text().strip()
    stats = json.loads((labelled / "_batchdet/runs" / run_id / "stats.json").read_text())
    counted = duckdb.sql(f"SELECT label, count(*) FROM '{labelled}/detections/**/*.parquet' GROUP BY ALL").fetchall()
    by_class = {label: entry["count"] for label, entry in stats["detections"]["by_class"].items() if entry["count"]}
    assert by_class == dict(counted)
    assert stats["images"]["listed"] == 24


@pytest.mark.acceptance("R33")
def test_a_flipped_bit_is_named(labelled: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(labelled, copy)
    (part,) = (copy / "detections").rglob("*.parquet")
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(VerificationError, match=part.name):
        verify(str(copy))


@pytest.mark.acceptance("R2")
def test_a_finished_job_is_not_done_again_and_an_interrupted_one_goes_on(
    run: RunJob, good: list[tuple[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    glob = write_shards(str(tmp_path / "good"), good, 2)
    calls = []
    from batchdet.pipeline import ray_data

    real = ray_data.label_segments

    def stop_early(*arguments: object) -> object:
        for n, segment in enumerate(real(*arguments)):  # type: ignore[arg-type]
            calls.append(segment.segment_index)
            if n == 2 and len(calls) == 3:
                raise KeyboardInterrupt
            yield segment

    monkeypatch.setattr(ray_data, "label_segments", stop_early)
    with pytest.raises(KeyboardInterrupt):
        run(glob, tmp_path / "out", compute={"segment_rows": 3})
    assert committed_runs(str(tmp_path / "out")) == []
    first = run(glob, tmp_path / "out", compute={"segment_rows": 3})
    assert first.images_ok == 24
    assert len(calls) <= 8 + 3, "what was staged is not labelled again"
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.parquet")}
    again = run(glob, tmp_path / "out", compute={"segment_rows": 3})
    assert (again.status, again.run_id) == ("nothing_new", first.run_id)
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.parquet")} == before
