"""Settings that change and change back: what is current, what is derived without the model, what is refused."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from batchdet import open_results
from batchdet.cli.application import app
from batchdet.errors import SpecError
from batchdet.job import Run, Watcher, run_job
from batchdet.model.detector import Detector
from batchdet.model.fetch import fetch_asked
from batchdet.pipeline.labeller import SegmentLabeller
from batchdet.plan import plan_job
from batchdet.records.segment import LabelledSegment, Segment
from batchdet.results.garbage import collect_garbage
from batchdet.results.query import query
from batchdet.results.show import show
from batchdet.results.status import status
from batchdet.results.verify import inspect_output
from batchdet.spec import ModelSpec
from batchdet.table.lineage import Lineage
from batchdet.table.manifest import committed_runs, list_runs
from tests import without_ray as without_ray_module
from tests.e2e.conftest import REPOSITORY, clean_environment, pack_tar
from tests.tiny_onnx import constant
from tests.without_ray import broken, job, labelled, without_ray

pytestmark = pytest.mark.acceptance("R36")

RunIt = Callable[..., Run]
LOW, HIGH = {"score_threshold": 0.25}, {"score_threshold": 0.75}
"""The fake labeller finds boxes of score 0.9, 0.8 and 0.7."""


class Told(Watcher):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        self.texts.append(text)

    def start(self, total_images: int | None, total_bytes: int, done_images: int, doing: str = "labelling") -> None:
        self.texts.append(f"{doing} {total_images}")


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def run(tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunIt]:
    """Run a job from ``in`` to ``out``, or to another output."""
    count = iter(range(10_000))
    monkeypatch.setattr("batchdet.job.new_run_id", lambda _: f"20261123-12{next(count):04d}-abcd")
    broken.clear()

    def run_it(model: dict[str, Any], out: str = "out", fresh: bool = False, **parts: Any) -> Run:
        labelled.clear()
        told.texts.clear()
        with without_ray():
            spec = job(parts.pop("source", tmp_path / "in"), tmp_path / out, model_=model, **parts)
            return run_job(spec, fresh=fresh, watcher=told)

    yield run_it
    broken.clear()


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Make runs end, as by a signal, at a failpoint, or at its n-th time (NAME@N)."""

    @contextlib.contextmanager
    def stopped(point: str) -> Iterator[None]:
        name, _, count = point.partition("@")
        passed: list[str] = []

        def stop(place: str, data: object = b"") -> None:
            passed.append(place)
            if passed.count(name) == int(count or 1) and place == name:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("batchdet.job.failpoint", stop)
            patch.setattr("batchdet.table.commit.failpoint", stop)
            yield

    return stopped


def write(folder: Path, count: int, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(first, first + count):
        (folder / f"{n:03d}.jpg").write_text(f"image {n}{' bad' if n % 7 == 6 else ''}")


def write_tars(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(3):
        images = [(f"{n}-{k}.jpg", f"image {n} {k}{' bad' if k == 2 else ''}".encode()) for k in range(5 * (n != 1))]
        (folder / f"{n}.tar").write_bytes(pack_tar(images))


def write_parquet(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(2):
        rows = {"image": [f"image {n} {k}".encode() for k in range(5)], "city": ["Bonn", None, "Oslo", "Bonn", "Rome"]}
        pq.write_table(pa.table(rows | {"floor": pa.array([1, 2, None, 4, 5], pa.int16())}), folder / f"{n}.parquet")


def write_list(folder: Path) -> None:
    write(folder, 8)
    rows = ["url,city", *(f"{n:03d}.jpg,{('Bonn', 'Oslo')[n % 2]}" for n in range(8)), "gone.jpg,Rome"]
    (folder / "list.csv").write_text("\n".join(rows) + "\n")


def rows(out: Path) -> tuple[pa.Table, pa.Table]:
    """Return the rows of both tables of the view, without the columns that say which run made them."""
    results = open_results(str(out))
    images, found = results.images().to_arrow(), results.detections().to_arrow()
    images = images.drop_columns(["run_id"]).sort_by([("shard_uri", "ascending"), ("position", "ascending")])
    order = [("image_id", "ascending"), ("detection_index", "ascending")]
    return images, found.drop_columns(["run_id"]).sort_by(order)


def in_order(out: Path) -> list[pa.Table]:
    """Return the rows of each part file, as they stand, without ``run_id``."""
    manifest = committed_runs(str(out))[-1]
    parts = (*manifest.images, *manifest.detections)
    return [pq.read_table(out / part.path, partitioning=None).drop_columns(["run_id"]) for part in parts]


def assert_same(derived: Path, labelled_: Path) -> None:
    for one, other in zip(rows(derived), rows(labelled_), strict=True):
        assert one.schema == other.schema
        assert one.equals(other)
    for out in (derived, labelled_):
        assert inspect_output(str(out)).problems == []


class TestBackAgain:
    def test_every_reader_shows_the_first_settings(self, run: RunIt, told: Told, tmp_path: Path) -> None:
        """0.25, 0.75, 0.25, one more image: at the command line."""
        write(tmp_path / "in", 8)
        out = tmp_path / "out"
        run(LOW)
        first = rows(out)
        run(HIGH)
        assert rows(out)[1].num_rows < first[1].num_rows
        back = run(LOW)
        assert (back.status, back.images_ok, labelled) == ("made_current", 0, [])
        assert any("makes them current again" in text for text in told.texts)
        assert [one.equals(other) for one, other in zip(rows(out), first, strict=True)] == [True, True]
        assert run(LOW).status == "nothing_new"
        write(tmp_path / "in", 1, first=8)
        assert run(LOW).status == "committed"
        assert len(labelled) == 1

        def cli(*words: object) -> Any:
            found = CliRunner().invoke(app, [str(word) for word in words])
            assert found.exit_code == 0, found.output
            return json.loads(found.stdout)

        assert cli("query", out, "SELECT count(*) AS n, min(score) < 0.75 AS low FROM detections", "--json") == [
            {"n": rows(out)[1].num_rows, "low": True}
        ]
        shown = cli("show", out, "--json")
        assert shown["stats"]["images"]["listed"] == 9
        assert (shown["stats"]["detections"]["total"], shown["images_left_out"]) == (rows(out)[1].num_rows, 0)
        truth = tmp_path / "truth.json"
        categories = [{"id": n, "name": name} for n, name in enumerate(("car", "dog", "person"), 1)]
        images = [{"id": n, "file_name": f"{n:03d}.jpg"} for n in range(9)]
        truth.write_text(json.dumps({"images": images, "categories": categories, "annotations": []}))
        pytest.importorskip("pycocotools")
        judged = cli("evaluate", out, "--truth", truth, "--json")
        assert (judged["score_threshold"], judged["images"], judged["images_of_other_settings"]) == (0.25, 9, 0)
        assert open_results(str(out)).images().to_arrow().num_rows == 9

    def test_a_run_without_rows_is_one_for_every_command(self, run: RunIt, tmp_path: Path) -> None:
        write(tmp_path / "in", 5)
        out = str(tmp_path / "out")
        for settings in (LOW, HIGH, LOW):
            done = run(settings)
        assert inspect_output(out).problems == []
        assert status(out)["runs"][-1]["images_listed"] == 0
        assert [one["current"] for one in status(out)["runs"]] == [True, False, True]
        assert collect_garbage(out).items == []
        assert show(out, run=done.run_id)["stats"]["images"]["listed"] == 0
        assert open_results(out, run=done.run_id).images().to_arrow().num_rows == 0
        assert query(out, "SELECT count(*) AS n FROM runs").to_pylist() == [{"n": 3}]
        assert Path(out, "_SUCCESS").read_text().strip() == done.run_id
        assert CliRunner().invoke(app, ["show", out]).exit_code == 0

    def test_a_source_that_has_emptied(self, run: RunIt, tmp_path: Path) -> None:
        write(tmp_path / "in", 2)
        run(LOW)
        run(HIGH)
        for path in (tmp_path / "in").iterdir():
            path.unlink()
        assert run(HIGH).status == "nothing_new"

    @pytest.mark.parametrize(
        "point", ["run.spec.after", "run.lineage.after", "commit.stats.after", "commit.manifest.after", "run.committed"]
    )
    def test_an_end_on_the_way(self, run: RunIt, stop_at: Callable[[str], Any], tmp_path: Path, point: str) -> None:
        write(tmp_path / "in", 4)
        out = tmp_path / "out"
        run(LOW)
        first = rows(out)
        run(HIGH)
        with stop_at(point), pytest.raises(KeyboardInterrupt):
            run(LOW)
        assert run(LOW).status in {"made_current", "nothing_new"}
        assert run(LOW).status == "nothing_new"
        assert len(committed_runs(str(out))) == 3
        assert [one.equals(other) for one, other in zip(rows(out), first, strict=True)] == [True, True]

    def test_what_an_end_left_is_no_hindrance_and_goes(
        self, run: RunIt, stop_at: Callable[[str], Any], tmp_path: Path
    ) -> None:
        write(tmp_path / "in", 4)
        out = str(tmp_path / "out")
        run(LOW)
        run(HIGH)
        with stop_at("commit.stats.after"), pytest.raises(KeyboardInterrupt):
            run(LOW)
        write(tmp_path / "in", 1, first=4)
        assert run(LOW).status == "committed"
        assert len(labelled) == 1
        assert open_results(out).images().to_arrow().num_rows == 5
        collect_garbage(out)
        assert list_runs(out) == [m.run_id for m in committed_runs(out)]
        assert inspect_output(out).problems == []


def process(folder: Path, model: dict[str, Any], failpoints: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the job in a process that can be killed."""
    path = folder / "job.yaml"
    path.write_text(job(folder / "in", folder / "out").model_dump_json())
    words = [f"model.{key}={json.dumps(value)}" for key, value in model.items()]
    return subprocess.run(
        [sys.executable, "-m", "tests.without_ray", str(path), *words],
        cwd=REPOSITORY,
        env=clean_environment() | {"BATCHDET_FAILPOINT": failpoints},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


SOURCES: dict[str, tuple[Callable[[Path], None], str, dict[str, Any]]] = {
    "folder": (lambda folder: write(folder, 30), "", {}),
    "tars": (write_tars, "", {}),
    "parquet": (write_parquet, "", {"output_": {"partition_by": ["city", "floor"]}}),
    "list": (write_list, "list.csv", {"output_": {"partition_by": ["run_date", "city"]}}),
}


class TestDerived:
    @pytest.mark.parametrize("kind", SOURCES)
    @pytest.mark.parametrize(
        "change",
        [
            {"score_threshold": 0.75},
            {"classes": ["car", 2]},
            {"score_threshold": 0.85, "classes": [1]},
            {"score_threshold": 0.75, "max_detections": 2},
        ],
        ids=["threshold", "classes", "both", "cap"],
    )
    def test_derived_rows_are_those_of_labelling(
        self,
        run: RunIt,
        told: Told,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        kind: str,
        change: dict[str, Any],
    ) -> None:
        monkeypatch.setattr("batchdet.results.derive._CHUNK_IMAGES", 4)  # several chunks of files; slices stay whole
        make, name, parts = SOURCES[kind]
        make(tmp_path / "in")
        source = tmp_path / "in" / name
        cap = {key: change[key] for key in ("max_detections",) if key in change}
        earlier = run(cap, source=source, **parts)
        derived = run(change, source=source, **parts)
        assert (derived.status, labelled) == ("derived", [])
        assert any("without running the model" in text for text in told.texts)
        assert not any(text.startswith("labelling") for text in told.texts)
        lineage = Lineage.read(str(tmp_path / "out"), derived.run_id)
        assert lineage is not None
        assert lineage.derived_from == (earlier.run_id,)
        assert lineage.computed["runtime"] == "onnxruntime"
        relabelled = run(change, out="again", source=source, **parts)
        assert relabelled.status == "committed"
        assert_same(tmp_path / "out", tmp_path / "again")
        if "partition_by" not in parts.get("output_", {}):
            for one, other in zip(in_order(tmp_path / "out"), in_order(tmp_path / "again"), strict=True):
                assert one.equals(other)
        mine, theirs = (show(str(tmp_path / out))["stats"] for out in ("out", "again"))
        assert (mine["images"], mine["detections"]) == (theirs["images"], theirs["detections"])
        assert run(change, source=source, **parts).status == "nothing_new"

    def test_of_several_runs_and_the_rest_is_labelled(self, run: RunIt, tmp_path: Path) -> None:
        write(tmp_path / "in", 4, first=10)
        first = run(LOW)
        write(tmp_path / "in", 4)
        second = run(LOW)
        write(tmp_path / "in", 1, first=21)
        plan = plan_job(job(tmp_path / "in", tmp_path / "out", model_=HIGH))
        assert "8 of 9 source objects can be derived" in plan.why
        assert plan.to_dict()["derived_from"] == [first.run_id, second.run_id]
        done = run(HIGH)
        assert (done.status, [one.status for one in done.earlier]) == ("committed", ["derived"])
        assert len(labelled) == 1
        run(HIGH, out="again")
        for one, other in zip(rows(tmp_path / "out"), rows(tmp_path / "again"), strict=True):
            assert without_position(one).equals(without_position(other))

    def test_images_at_the_limit_are_labelled_again(self, run: RunIt, tmp_path: Path) -> None:
        """Of them it is not known what other classes have displaced."""
        write(tmp_path / "in", 30)
        cap = {"max_detections": 2}
        run(cap)
        full = "SELECT count(*) AS n FROM images WHERE detection_count = 2"
        ((at_limit,),) = open_results(str(tmp_path / "out")).sql(full).fetchall()
        assert 0 < at_limit < 30
        change = cap | {"classes": [1]}
        done = run(change)
        assert len(labelled) == at_limit
        assert [one.status for one in (*done.earlier, done)] == ["derived", "committed"]
        run(change, out="again")
        for one, other in zip(rows(tmp_path / "out"), rows(tmp_path / "again"), strict=True):
            assert without_position(one).equals(without_position(other))

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ({"score_threshold": 0.75}, {"score_threshold": 0.25}),
            ({"classes": ["car"]}, {"classes": ["car", 1]}),
            ({"classes": ["car"]}, {}),
            ({}, {"score_threshold": 0.75, "iou_threshold": 0.5}),
            ({}, {"score_threshold": 0.75, "max_detections": 2}),
        ],
    )
    def test_what_is_no_filter_is_labelled(
        self, run: RunIt, tmp_path: Path, before: dict[str, Any], after: dict[str, Any]
    ) -> None:
        write(tmp_path / "in", 3)
        run(before)
        done = run(after)
        assert (done.status, done.earlier, len(labelled)) == ("committed", (), 3)

    def test_a_misspelt_class_is_refused(self, run: RunIt, tmp_path: Path) -> None:
        write(tmp_path / "in", 3)
        run({})
        with pytest.raises(SpecError):
            run({"classes": ["dgo"]})

    def test_fresh_and_not_incremental_label(self, run: RunIt, tmp_path: Path) -> None:
        write(tmp_path / "in", 3)
        run(LOW)
        assert run(HIGH, fresh=True).status == "committed"
        assert run({"score_threshold": 0.8}, policy={"incremental": False}).status == "committed"

    def test_a_changed_image_is_labelled(self, run: RunIt, tmp_path: Path) -> None:
        write(tmp_path / "in", 3)
        run(LOW)
        (tmp_path / "in/001.jpg").write_text("another image")
        run(HIGH)
        assert [Path(uri).name for uri in labelled] == ["001.jpg"]

    def test_failures_do_not_hinder(self, run: RunIt, tmp_path: Path) -> None:
        for n in range(4):
            write(tmp_path / "in", 1, first=7 * n + 6)
        run(LOW, policy={"max_failed_fraction": 1.0})
        done = run(HIGH, policy={"max_failed_fraction": 0.0})
        assert (done.status, done.images_failed) == ("derived", 4)

    @pytest.mark.parametrize(
        "point",
        [
            "run.spec.after",
            "run.lineage.after",
            "commit.gather.after",
            "commit.move@2",
            "commit.point.before",
            "commit.point.after",
            "commit.manifest.before",
            "commit.manifest.after",
            "run.committed",
        ],
    )
    def test_an_end_on_the_way(self, run: RunIt, stop_at: Callable[[str], Any], tmp_path: Path, point: str) -> None:
        write(tmp_path / "in", 6)
        out = tmp_path / "out"
        run(LOW)
        with stop_at(point), pytest.raises(KeyboardInterrupt):
            run(HIGH)
        again = run(HIGH)
        assert (again.status in {"derived", "nothing_new"}, labelled) == (True, [])
        run(HIGH, out="again")
        assert_same(out, tmp_path / "again")
        found = {path.name for path in (out / "detections").rglob("*.parquet")}
        assert found == {Path(part.path).name for m in committed_runs(str(out)) for part in m.detections}
        assert run(HIGH).status == "nothing_new"

    def test_a_kill_on_the_way(self, tmp_path: Path) -> None:
        """Real processes, killed in the derivation, and then in what makes the first settings current again."""
        write(tmp_path / "in", 4)
        assert process(tmp_path, LOW).returncode == 0
        decoded = tmp_path / "decoded"
        for model, status_ in ((HIGH, "derived"), (LOW, "made_current")):
            killed = process(tmp_path, model, "commit.point.before=kill")
            assert killed.returncode == -signal.SIGKILL
            again = process(tmp_path, model, f"decode=count:{decoded}")
            assert (again.returncode, again.stdout.split()[1]) == (0, status_), again.stderr
        assert not decoded.exists()
        assert list_runs(str(tmp_path / "out")) == [m.run_id for m in committed_runs(str(tmp_path / "out"))]
        assert inspect_output(str(tmp_path / "out")).problems == []


@pytest.fixture
def real_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Label with the job's own model, in this process."""
    loaded: dict[ModelSpec, Detector] = {}

    def detector_of(model: ModelSpec) -> Detector:
        if model not in loaded:
            local = fetch_asked(model)
            loaded[model] = Detector(model, local.path, local.sha256, "cpu", 1)
        return loaded[model]

    def label(segment: Segment, run_id: str, model: ModelSpec) -> LabelledSegment:
        labelled.extend(segment.members["uri"].to_pylist())
        return SegmentLabeller(detector_of(model), run_id, 4, 10**8).label(segment)

    def probed(trial: Any) -> Any:
        detector = detector_of(trial.spec.model)
        found = fake_probed(trial)
        found.model.card, found.model.labels = detector.card.to_dict(), list(detector.labels)
        return found

    fake_probed, fakes = without_ray_module._probed, without_ray_module._FAKES
    monkeypatch.setattr(without_ray_module, "_label", label)
    monkeypatch.setattr(without_ray_module, "_probed", probed)
    trial = {
        "Trial": lambda spec, sha256, *others: SimpleNamespace(spec=spec, sha256=sha256, timeout_s=lambda device: 60)
    }
    monkeypatch.setitem(fakes, "trial", trial)


def dense_model(path: Path) -> str:
    """Write a detector whose outputs are those of 60 cells: many boxes that overlap, equal scores, all classes."""
    rng = np.random.default_rng(4)
    centre, size = rng.uniform(0, 128, (60, 2)), rng.uniform(5, 70, (60, 2))
    scores = np.full((60, 3), 0.01)
    scores[np.arange(60), rng.integers(0, 3, 60)] = rng.integers(1, 20, 60) / 20
    output = np.column_stack([centre, size, scores]).T.astype(np.float32)
    names = "{0: 'car', 1: 'dog', 2: 'person'}"
    constant(path, {"output0": output}, (None, 3, 128, 128), family="yolo_dense", names=names)
    return str(path)


@pytest.mark.usefixtures("real_models")
class TestDerivedOfRealModels:
    @pytest.fixture(autouse=True)
    def photographs(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(1)
        (tmp_path / "in").mkdir()
        for n, (width, height) in enumerate([(128, 64), (64, 128), (128, 128), (300, 200), (90, 40)]):
            cv2.imwrite(str(tmp_path / f"in/{n}.jpg"), rng.integers(0, 255, (height, width, 3), np.uint8))
        (tmp_path / "in/5.jpg").write_bytes(b"no image")

    @pytest.mark.parametrize("limit", [5, 12, 300])
    @pytest.mark.parametrize("change", [{"score_threshold": 0.7}, {"score_threshold": 0.6, "classes": ["dog", "car"]}])
    def test_with_nms_and_a_limit(self, run: RunIt, tmp_path: Path, limit: int, change: dict[str, Any]) -> None:
        common = {"uri": dense_model(tmp_path / "dense.onnx"), "iou_threshold": 0.4, "max_detections": limit}
        run(common | LOW)
        done = run(common | change)
        assert "derived" in {one.status for one in (*done.earlier, done)} or "classes" in change
        assert labelled == [] or "classes" in change
        run(common | change, out="again")
        assert len(labelled) == 6
        for one, other in zip(rows(tmp_path / "out"), rows(tmp_path / "again"), strict=True):
            assert without_position(one).equals(without_position(other))
        assert rows(tmp_path / "again")[1].num_rows > 10

    @pytest.mark.parametrize("features", ["image", "boxes"])
    @pytest.mark.parametrize("type_", ["float32", "float16"])
    def test_with_features(self, run: RunIt, tmp_path: Path, features: str, type_: str) -> None:
        common = {"features": features, "features_type": type_}
        run(common | {"score_threshold": 0.001})
        assert run(common | {"score_threshold": 0.004}).status == "derived"
        run(common | {"score_threshold": 0.004}, out="again")
        for one, other in zip(rows(tmp_path / "out"), rows(tmp_path / "again"), strict=True):
            assert one.num_rows
            assert one.schema == other.schema
            vectors = [
                table["features"].drop_null().combine_chunks().flatten()
                for table in (one, other)
                if "features" in table.schema.names
            ]
            if vectors:
                np.testing.assert_allclose(
                    *(np.asarray(v.to_numpy(), np.float32) for v in vectors), rtol=1e-3, atol=1e-5
                )
                one, other = one.drop_columns(["features"]), other.drop_columns(["features"])
            assert one.equals(other)


def without_position(table: pa.Table) -> pa.Table:
    """Drop the place in the run's own listing, and sort by what images are known by."""
    keys = [name for name in ("image_id", "detection_index") if name in table.schema.names]
    left = [name for name in table.schema.names if name != "position"]
    return table.select(left).sort_by([(name, "ascending") for name in keys])


class TestRefuse:
    def test_what_would_be_labelled_again_is_said(self, run: RunIt, tmp_path: Path) -> None:
        write(tmp_path / "in", 3)
        run(HIGH)
        refuse = {"policy": {"on_settings_change": "refuse"}}
        spec = job(tmp_path / "in", tmp_path / "out", model_=LOW, **refuse)
        for act in (lambda: run(LOW, **refuse), lambda: plan_job(spec)):
            with pytest.raises(SpecError) as caught:
                act()
            assert (caught.value.code, caught.value.key) == ("policy.settings_changed", "policy.on_settings_change")
            assert "3 source objects" in caught.value.message
            assert "model.score_threshold changed from 0.75 to 0.25" in caught.value.message
        assert len(committed_runs(str(tmp_path / "out"))) == 1

    def test_what_needs_no_labelling_is_not_refused(self, run: RunIt, tmp_path: Path) -> None:
        write(tmp_path / "in", 3)
        refuse = {"policy": {"on_settings_change": "refuse"}}
        assert run(LOW, **refuse).status == "committed"
        assert run(HIGH, **refuse).status == "derived"
        assert run(LOW, **refuse).status == "made_current"
        write(tmp_path / "in", 1, first=3)
        assert run(HIGH, **refuse).status == "committed"

    def test_relabel_says_how_much(self, run: RunIt, told: Told, tmp_path: Path) -> None:
        write(tmp_path / "in", 3)
        run(HIGH)
        run(LOW)
        assert any("3 source objects (0.0 MB) of the current settings are labelled again" in t for t in told.texts)


def test_a_resumed_run_of_other_settings_is_made_current(
    run: RunIt, stop_at: Callable[[str], Any], tmp_path: Path
) -> None:
    """An unfinished run keeps its id, which is older than that of a run with other settings over other images."""
    write(tmp_path / "in", 4)
    with stop_at("run.staged"), pytest.raises(KeyboardInterrupt):
        run({"iou_threshold": 0.5})
    write(tmp_path / "other", 2)
    run({}, source=tmp_path / "other")
    done = run({"iou_threshold": 0.5})
    assert [one.status for one in (*done.earlier, done)] == ["committed", "made_current"]
    assert open_results(str(tmp_path / "out")).images().to_arrow().num_rows == 4
