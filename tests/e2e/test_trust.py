"""Two drivers, growing sources, clusters of every size: nothing is lost, doubled or left hanging."""

import os
import random
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchdet import open_results
from batchdet.errors import OutputError, SpecError
from batchdet.results.evaluate import evaluate
from batchdet.results.query import query
from batchdet.results.verify import inspect_output
from batchdet.sample.dataset import write_sample
from batchdet.table.lease import Lease
from tests.ray_head import RayHead

from .conftest import REPOSITORY, Cli, RunJob, clean_environment, job, sample_images, write_shards, yaml_of

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("BATCHDET_SEED", "1"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes]]:
    return sample_images(tmp_path_factory.mktemp("trust"), 18, 9)


def stop_after(monkeypatch: pytest.MonkeyPatch, segments: int) -> None:
    """Make the next run end, as by a signal, when so many segments are staged."""
    from batchdet.pipeline import ray_data

    real, left = ray_data.label_segments, [segments]

    def stopping(*arguments: object) -> object:
        for segment in real(*arguments):  # type: ignore[arg-type]
            yield segment
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

    monkeypatch.setattr(ray_data, "label_segments", stopping)


def test_an_unfinished_run_goes_on_although_the_source_has_grown(
    run: RunJob, images: list[tuple[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    glob = write_shards(str(tmp_path / "in"), images[:12], 2)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run(glob, tmp_path / "out", compute={"segment_rows": 3})
    write_shards(str(tmp_path / "more"), images[12:], 1)
    (tmp_path / "more/shard-000.tar").rename(tmp_path / "in/shard-900.tar")
    second = run(glob, tmp_path / "out", compute={"segment_rows": 3})
    assert [each.images_ok for each in (*second.earlier, second)] == [12, 6], "one command, two runs"
    assert open_results(str(tmp_path / "out")).images().to_arrow().num_rows == 18
    assert inspect_output(str(tmp_path / "out")).problems == []
    assert (tmp_path / "out/_SUCCESS").read_text().strip() == second.run_id


SCORE_TOLERANCE, PIXEL_TOLERANCE = 1e-3, 0.5
"""What results may differ by when images are computed in other company."""


@pytest.mark.acceptance("R24")
def test_batch_size_actors_and_order_change_no_result(
    run: RunJob, images: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    tables = []
    for n, (shards, compute) in enumerate(
        [
            (1, {"actors": 1, "batch_rows": 1, "segment_rows": 18}),
            (3, {"actors": 2, "batch_rows": 5, "segment_rows": 4}),
            (2, {"actors": 1, "batch_rows": 18, "segment_rows": 7}),
        ]
    ):
        files = images if n == 0 else chance.sample(images, len(images))
        glob = write_shards(str(tmp_path / f"in-{n}"), files, shards)
        out = tmp_path / f"out-{n}"
        assert run(glob, out, compute=compute).images_ok == len(images)
        rows = query(
            str(out),
            "SELECT member, label, score, x_min, y_min, x_max, y_max FROM images LEFT JOIN detections USING (image_id) "
            "ORDER BY member, label, round(x_min / 4), round(y_min / 4), score",
        )
        tables.append(rows)
    first = tables[0]
    assert first.num_rows > len(images)
    for other in tables[1:]:
        assert other.select(["member", "label"]).equals(first.select(["member", "label"]))
        for column in ("score", "x_min", "y_min", "x_max", "y_max"):
            tolerance = SCORE_TOLERANCE if column == "score" else PIXEL_TOLERANCE
            np.testing.assert_allclose(other[column].to_numpy(), first[column].to_numpy(), rtol=0, atol=tolerance)


@pytest.mark.acceptance("S20")
def test_places_that_would_feed_on_themselves_are_refused(
    run: RunJob, images: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    write_shards(str(tmp_path / "in"), images[:3], 1)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "in")
    for source, out in [
        (tmp_path / "in", tmp_path / "in/labels"),
        (tmp_path / "in", tmp_path / "in"),
        (tmp_path / "in", link / "labels"),
    ]:
        with pytest.raises(OutputError, match="lies in"):
            run(source, out)
        assert not (tmp_path / "in/_batchdet").exists()
    glob = tmp_path / "all/**/*.parquet"
    (tmp_path / "all/labels/images").mkdir(parents=True)
    pq.write_table(pa.table({"image": [images[0][1]]}), tmp_path / "all/labels/images/part-1.parquet")
    with pytest.raises(OutputError, match=r"lies in what source\.uri"):
        run(glob, tmp_path / "all/labels")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/tables").symlink_to(tmp_path / "all/labels/images")
    with pytest.raises(OutputError, match=r"lies in what source\.uri"):
        run(tmp_path / "linked", tmp_path / "all/labels")
    with pytest.raises(SpecError, match="memory:// is another place in each process"):
        run(tmp_path / "in", "memory://out")


def test_partitions_that_cannot_be_are_refused_before_any_work(
    run: RunJob, images: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    table = pa.table(
        {"image": [d for _, d in images[:4]], "tags": [["a"], ["b"], [], None], "city": ["x", "y", "x", None]}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(SpecError, match=r"output.partition_by\[0\]: column 'tags' is list"):
        run(tmp_path / "t.parquet", tmp_path / "out", output_={"partition_by": ["tags"]})
    with pytest.raises(SpecError, match=r"output.partition_by\[1\]: found 'town'; known here are run_date, tags, city"):
        run(tmp_path / "t.parquet", tmp_path / "out", output_={"partition_by": ["city", "town"]})
    run(tmp_path / "t.parquet", tmp_path / "out", output_={"partition_by": ["city"]})
    assert sorted(p.name for p in (tmp_path / "out/images").iterdir()) == [
        "city=__HIVE_DEFAULT_PARTITION__",
        "city=x",
        "city=y",
    ]


def test_a_second_driver_exits_with_4(images: list[tuple[str, bytes]], cli: Cli, tmp_path: Path) -> None:
    glob = write_shards(str(tmp_path / "in"), images[:3], 1)
    path = yaml_of(job(glob, tmp_path / "out", compute={"segment_rows": 3}), tmp_path)
    with Lease(str(tmp_path / "out")):
        done = cli("run", path)
    assert done.returncode == 4, done.stderr
    assert f"is held by another run (process {os.getpid()}" in done.stderr
    assert not (tmp_path / "out/images").exists()


@pytest.mark.fault
def test_one_core_is_enough(images: list[tuple[str, bytes]], tmp_path: Path) -> None:
    """A Ray of one CPU has room for an actor, a reader and a writer; a hang would run into the time-out."""
    import subprocess

    glob = write_shards(str(tmp_path / "in"), images, 3)
    path = yaml_of(job(glob, tmp_path / "out", compute={"segment_rows": 3}), tmp_path)
    core = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-m", "batchdet", "run", str(path)],
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "actors: 1: one per CPU core" in done.stderr
    assert "18 images (0 failed)" in done.stdout


def test_a_running_cluster_is_joined(
    ray_head: RayHead, images: list[tuple[str, bytes]], cli: Cli, tmp_path: Path
) -> None:
    glob = write_shards(str(tmp_path / "in"), images, 2)
    path = yaml_of(job(glob, tmp_path / "out", compute={"segment_rows": 3}), tmp_path)
    done = cli("run", path, "--set", f"compute.address={ray_head.address}", env=ray_head.driver_env)
    assert done.returncode == 0, done.stderr
    assert "18 images (0 failed)" in done.stdout


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:10001"])
def test_a_cluster_that_is_not_there_is_said(
    address: str, images: list[tuple[str, bytes]], cli: Cli, tmp_path: Path
) -> None:
    glob = write_shards(str(tmp_path / "in"), images[:3], 1)
    path = yaml_of(job(glob, tmp_path / "out", compute={"segment_rows": 3}), tmp_path)
    done = cli("run", path, "--set", f"compute.address='{address}'")
    assert done.returncode == 5, done.stderr
    assert "compute.address" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_quick_start_reaches_its_ap(one_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from batchdet import load_job, run_job

    monkeypatch.chdir(tmp_path)
    write_sample("quickstart/images", 120, "webdataset", 2026)
    done = run_job(load_job(str(REPOSITORY / "jobs/quickstart.yaml")))
    assert done.images_ok == 120
    assert evaluate("quickstart/labels", "quickstart/images/instances.json").ap50 >= 0.95


def test_the_parquet_job_runs(
    one_ray: None, images: list[tuple[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchdet import load_job, run_job

    monkeypatch.chdir(tmp_path)
    table = pa.table(
        {
            "photo_id": [name for name, _ in images],
            "country": ["de", "fr", "no"] * 6,
            "image": [{"bytes": data, "path": name} for name, data in images],
        }
    )
    pq.write_table(table, "photos.parquet")
    settings = ["source.uri=photos.parquet", "output.uri=labels", "model.uri='builtin:sample'"]
    monkeypatch.setenv("BATCHDET_BUCKET", "unused")
    done = run_job(load_job(str(REPOSITORY / "jobs/parquet.yaml"), settings))
    assert done.images_ok == 18
    found = open_results("labels").images().to_pandas()
    assert sorted(found["member"]) == sorted(found["photo_id"]) == [name for name, _ in images]
    assert found["country"].value_counts().to_dict() == {"de": 6, "fr": 6, "no": 6}
    assert Path(
        f"labels/detections/run_date={done.run_id[:4]}-{done.run_id[4:6]}-{done.run_id[6:8]}/country=no"
    ).is_dir()
