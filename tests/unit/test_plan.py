"""What a later run labels, and what it says about it: the real plan, staging and commit, with a labeller of no cost."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchdet import open_results, storage
from batchdet.errors import SourceError, TooManyFailures
from batchdet.job import Run, Watcher, run_job
from batchdet.model.cache import LocalModel
from batchdet.plan import plan_job
from batchdet.results.query import query
from batchdet.results.status import status
from batchdet.results.verify import inspect_output
from batchdet.table.manifest import committed_runs, list_runs, run_folder
from tests import tiny_onnx
from tests.e2e.conftest import pack_tar
from tests.without_ray import broken, job, labelled, without_ray

RunIt = Callable[..., Run]


class Told(Watcher):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        if not text.startswith(("segment_rows: ", "predicted: ")):  # said of every run
            self.texts.append(text)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def run(tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunIt]:
    """Run a job from ``in`` to ``out``; ids are given by a clock of our own, for several runs fall into a second."""
    count = iter(range(10_000))
    monkeypatch.setattr("batchdet.job.new_run_id", lambda _: f"20261123-12{next(count):04d}-abcd")
    monkeypatch.setattr("batchdet.results.changes._MAX_TEXT", 500)  # the folders of tests may have long names
    broken.clear()

    def run_it(source: Path | str | None = None, fresh: bool = False, **parts: Any) -> Run:
        labelled.clear()
        told.texts.clear()
        with without_ray():
            return run_job(job(source or tmp_path / "in", tmp_path / "out", **parts), fresh=fresh, watcher=told)

    yield run_it
    broken.clear()


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
    """Make runs end, as by a signal, when so many segments are staged."""

    def stop_after(segments: int) -> Any:
        passed = []

        def stop(name: str, data: object = b"") -> None:
            passed.append(name)
            if passed.count("run.staged") == segments:
                raise KeyboardInterrupt

        context = pytest.MonkeyPatch.context()
        patch = context.__enter__()
        patch.setattr("batchdet.job.failpoint", stop)
        return context

    return stop_after


def write(folder: Path, **contents: str) -> None:
    """Write images; the name a becomes a.jpg."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (folder / f"{name}.jpg").write_text(text)


def tar(path: Path, **contents: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack_tar([(f"{name}.jpg", text.encode()) for name, text in contents.items()]))


def names() -> list[str]:
    """Return what the last run labelled."""
    return sorted(storage.basename(uri).removesuffix(".jpg") for uri in labelled)


def members(out: Path) -> dict[str, str]:
    """Return member and run of each newest row, by every reader."""
    rows = open_results(str(out)).images().to_arrow(["member", "run_id"]).to_pylist()
    asked = query(str(out), "SELECT member, run_id FROM images").to_pylist()
    assert sorted(rows, key=str) == sorted(asked, key=str)
    return {row["member"].removesuffix(".jpg"): row["run_id"] for row in rows}


class TestIncremental:
    def test_of_a_folder_only_new_and_changed_images_are_labelled(self, run: RunIt, told: Told, tmp_path: Path) -> None:
        write(tmp_path / "in", a="1", b="2", c="3")
        first = run()
        assert names() == ["a", "b", "c"]
        write(tmp_path / "in", b="two", d="4")
        (tmp_path / "in/c.jpg").unlink()
        second = run()
        assert names() == ["b", "d"]
        assert told.texts[1:] == ["1 source object labelled already"]
        assert members(tmp_path / "out") == {
            "a": first.run_id,
            "b": second.run_id,
            "c": first.run_id,
            "d": second.run_id,
        }
        found = query(str(tmp_path / "out"), "SELECT run_id FROM images SEMI JOIN detections USING (run_id, image_id)")
        assert len(found) == 4
        assert inspect_output(str(tmp_path / "out")).problems == []

    def test_changed_bytes_of_the_same_size_and_name_are_seen(self, run: RunIt, tmp_path: Path) -> None:
        write(tmp_path / "in", a="1", b="2")
        run()
        before = (tmp_path / "in/a.jpg").stat()
        write(tmp_path / "in", a="9")
        os.utime(tmp_path / "in/a.jpg", (before.st_atime, before.st_mtime + 1))
        run()
        assert names() == ["a"]

    def test_of_shards_changed_and_new_ones_are_labelled_whole(self, run: RunIt, tmp_path: Path) -> None:
        tar(tmp_path / "in/0.tar", a="1", b="2")
        tar(tmp_path / "in/1.tar", c="3")
        tar(tmp_path / "in/2.tar", gone="4")
        first = run()
        tar(tmp_path / "in/0.tar", a="1", e="2")
        tar(tmp_path / "in/3.tar", f="5")
        (tmp_path / "in/2.tar").unlink()
        second = run()
        assert [Path(uri).name for uri in labelled] == ["0.tar#a.jpg", "0.tar#e.jpg", "3.tar#f.jpg"]
        assert members(tmp_path / "out") == {
            "a": second.run_id,
            "c": first.run_id,
            "e": second.run_id,
            "f": second.run_id,
            "gone": first.run_id,
        }

    def test_nothing_new_is_said(self, run: RunIt, told: Told, tmp_path: Path) -> None:
        write(tmp_path / "in", a="1", b="2")
        first = run()
        again = run()
        assert (again.status, again.run_id, names()) == ("nothing_new", first.run_id, [])
        assert told.texts == [
            f"nothing new: 2 source objects labelled already, the last of them by run {first.run_id}; "
            "--fresh labels them again"
        ]

    def test_a_shard_that_a_fresh_run_could_not_open_is_tried_again(self, run: RunIt, tmp_path: Path) -> None:
        tar(tmp_path / "in/0.tar", a="1")
        tar(tmp_path / "in/1.tar", b="1")
        run()
        manifest = run(fresh=True).manifest
        changed = {**manifest.__dict__, "unread_uris": (str(tmp_path / "in/1.tar"),)}
        storage.write_bytes(
            storage.join(run_folder(str(tmp_path / "out"), manifest.run_id), "manifest.json"),
            type(manifest)(**changed).to_json(),
        )
        run()
        assert names() == ["1.tar#b"]


class TestRetry:
    def test_of_a_folder_the_failed_images_only(self, run: RunIt, told: Told, tmp_path: Path) -> None:
        broken.add(b"x")
        write(tmp_path / "in", a="x1", b="2", c="x3", d="bad", e="5", f="6", g="7", h="8")
        first = run()
        assert first.images_failed == 3
        assert run().status == "nothing_new"
        broken.clear()
        second = run(policy={"retry": "failed", "max_failed_fraction": 0.0})
        assert names() == ["a", "c", "d"]
        assert (second.images_ok, second.images_failed) == (2, 1)
        assert told.texts[1] == ("5 source objects labelled already; 3 failed images tried again (policy.retry)")
        latest = members(tmp_path / "out")
        assert {name for name, run_id in latest.items() if run_id == second.run_id} == {"a", "c", "d"}
        failed = query(str(tmp_path / "out"), "SELECT member FROM images WHERE status = 'failed'").to_pylist()
        assert failed == [{"member": "d.jpg"}]

    def test_what_is_ok_in_the_newest_run_is_left_alone(self, run: RunIt, tmp_path: Path) -> None:
        broken.add(b"x")
        write(tmp_path / "in", a="x1", b="2")
        run()
        broken.clear()
        run(policy={"retry": "failed"})
        assert names() == ["a"]
        assert run(policy={"retry": "failed"}).status == "nothing_new"
        assert names() == []

    def test_what_fails_in_the_newest_run_is_tried_although_it_was_ok_before(self, run: RunIt, tmp_path: Path) -> None:
        write(tmp_path / "in", a="x1", b="2")
        run()
        broken.add(b"x")
        run(fresh=True)
        broken.clear()
        run(policy={"retry": "failed"})
        assert names() == ["a"]

    def test_of_a_tar_the_whole_file(self, run: RunIt, told: Told, tmp_path: Path) -> None:
        broken.add(b"x")
        tar(tmp_path / "in/0.tar", a="1", b="x2", c="x3")
        tar(tmp_path / "in/1.tar", d="4", e="5")
        run()
        broken.clear()
        tar(tmp_path / "in/2.tar", new="6")
        second = run(policy={"retry": "failed"})
        assert [Path(uri).name for uri in labelled] == ["0.tar#a.jpg", "0.tar#b.jpg", "0.tar#c.jpg", "2.tar#new.jpg"]
        assert told.texts[1] == (
            "1 source object labelled already; "
            "2 failed images tried again with the 1 file that they are in (policy.retry)"
        )
        latest = members(tmp_path / "out")
        assert {name for name, run_id in latest.items() if run_id == second.run_id} == {"a", "b", "c", "new"}

    def test_of_a_parquet_file_the_whole_file(self, run: RunIt, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        broken.add(b"x")
        for name, images in [("0", [b"1", b"x"]), ("1", [b"2", b"3"])]:
            pq.write_table(pa.table({"image": images}), tmp_path / f"in/{name}.parquet")
        run()
        broken.clear()
        run(policy={"retry": "failed"})
        assert [Path(uri).name for uri in labelled] == ["0.parquet#0", "0.parquet#1"]

    def test_of_a_list_the_failed_entries_only(self, run: RunIt, tmp_path: Path) -> None:
        broken.add(b"x")
        write(tmp_path / "in", a="x1", b="2", c="3")
        (tmp_path / "in/list.csv").write_text("url,key\na.jpg,first\nb.jpg,second\nb.jpg,third\nc.jpg,fourth\n")
        source = tmp_path / "in/list.csv"
        run(source, source_={"id_column": "key"})
        broken.clear()
        run(source, source_={"id_column": "key"}, policy={"retry": "failed"})
        assert names() == ["a"]
        assert set(members(tmp_path / "out")) == {"first", "second", "third", "fourth"}

    def test_without_incremental(self, run: RunIt, tmp_path: Path) -> None:
        broken.add(b"x")
        write(tmp_path / "in", a="x1", b="2")
        whole = {"incremental": False}
        run(policy=whole)
        broken.clear()
        assert run(policy=whole).status == "nothing_new"
        run(policy={**whole, "retry": "failed"})
        assert names() == ["a"]
        assert run(policy={**whole, "retry": "failed"}).status == "nothing_new"
        write(tmp_path / "in", c="3")
        run(policy={**whole, "retry": "failed"})
        assert names() == ["a", "b", "c"]

    def test_fresh_takes_everything(self, run: RunIt, told: Told, tmp_path: Path) -> None:
        broken.add(b"x")
        write(tmp_path / "in", a="x1", b="2")
        run()
        run(fresh=True, policy={"retry": "failed"})
        assert names() == ["a", "b"]
        assert told.texts[1:] == ["a new run, because of --fresh"]

    def test_an_unfinished_retry_goes_on(self, run: RunIt, stopped: Any, told: Told, tmp_path: Path) -> None:
        broken.add(b"x")
        write(tmp_path / "in", **{f"i{n}": "x" for n in range(5)}, **{f"k{n}": "ok" for n in range(5)})
        run()
        broken.clear()
        context = stopped(1)
        with pytest.raises(KeyboardInterrupt):
            run(policy={"retry": "failed"})
        context.__exit__(None, None, None)
        assert names() == ["i0", "i1", "i2"]
        done = run(policy={"retry": "failed"})
        assert names() == ["i3", "i4"]
        assert told.texts[1] == f"run {done.run_id} resumes where it stopped"
        assert done.images_ok == 5
        assert run(policy={"retry": "failed"}).status == "nothing_new"

    def test_without_retry_an_unfinished_retry_stays_where_it_is(
        self, run: RunIt, stopped: Any, told: Told, tmp_path: Path
    ) -> None:
        broken.add(b"x")
        write(tmp_path / "in", **{f"i{n}": "x" for n in range(5)}, **{f"k{n}": "ok" for n in range(5)})
        run()
        context = stopped(1)
        with pytest.raises(KeyboardInterrupt):
            run(policy={"retry": "failed"})
        context.__exit__(None, None, None)
        write(tmp_path / "in", new="1")
        run()
        assert names() == ["new"]
        assert "cannot be resumed: 5 of its 5 source objects are gone, changed or labelled by now" in told.texts[1]

    def test_a_retry_may_fail_again_and_new_failures_count(self, run: RunIt, tmp_path: Path) -> None:
        write(tmp_path / "in", a="bad", b="2", c="3")
        run()
        strict = {"retry": "failed", "max_failed_fraction": 0.0}
        assert run(policy=strict).images_failed == 1
        write(tmp_path / "in", d="bad")
        with pytest.raises(TooManyFailures):
            run(policy=strict)


class TestWhy:
    """R25: a new run, never a mixture, and the reason by name."""

    pytestmark = pytest.mark.acceptance("R25")

    @pytest.fixture
    def unfinished(self, run: RunIt, stopped: Any, tmp_path: Path) -> str:
        """The id of a run that was stopped after its first segment."""
        write(tmp_path / "in", **{f"i{n}": str(n) for n in range(7)})
        context = stopped(1)
        with pytest.raises(KeyboardInterrupt):
            run()
        context.__exit__(None, None, None)
        assert len(labelled) == 3
        (run_id,) = (p.name for p in (tmp_path / "out/_batchdet/runs").iterdir())
        return run_id

    @pytest.mark.parametrize(
        ("parts", "reason"),
        [
            ({"model_": {"score_threshold": 0.4}}, "model.score_threshold changed from 0.25 to 0.4"),
            (
                {"model_": {"classes": ["car"], "canvas": {"size_px": 320}}},
                'model.canvas.size_px changed from null to 320, model.classes changed from null to ["car"]',
            ),
            ({"source_": {"max_pixels": 10}}, "source.max_pixels changed from 100000000 to 10"),
            ({"compute": {"segment_rows": 2}}, "compute.segment_rows changed from 3 to 2"),
        ],
    )
    def test_a_setting(
        self, run: RunIt, told: Told, tmp_path: Path, unfinished: str, parts: dict[str, Any], reason: str
    ) -> None:
        done = run(**parts)
        assert told.texts[1] == f"a new run, because the unfinished run {unfinished} cannot be resumed: {reason}"
        assert done.run_id != unfinished
        assert len(labelled) == 7
        assert set(members(tmp_path / "out").values()) == {done.run_id}

    def test_the_models_bytes(
        self, run: RunIt, told: Told, unfinished: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        changed = LocalModel(str(tiny_onnx.end2end(tmp_path / "other.onnx")), "ab" * 32, 1)
        monkeypatch.setattr("batchdet.plan.fetch_asked", lambda spec: changed)
        done = run()
        assert done.run_id != unfinished
        assert "cannot be resumed: the model's bytes changed (sha256 " in told.texts[1]
        assert told.texts[1].endswith(" to abababababab)")

    def test_another_source(self, run: RunIt, told: Told, unfinished: str, tmp_path: Path) -> None:
        write(tmp_path / "other", a="1")
        done = run(tmp_path / "other")
        assert told.texts[1].endswith(
            f"{unfinished} cannot be resumed: source.uri changed from {tmp_path}/in to {tmp_path}/other"
        )
        assert set(members(tmp_path / "out")) == {"a"}
        assert run(tmp_path / "in").run_id == unfinished < done.run_id, "another source's run does not hide it"

    def test_a_changed_source(self, run: RunIt, told: Told, unfinished: str, tmp_path: Path) -> None:
        write(tmp_path / "in", i0="other", i9="new")
        assert run().run_id != unfinished
        assert told.texts[1].endswith(
            "cannot be resumed: 1 of its 7 source objects are gone, changed or labelled by now"
        )
        assert len(labelled) == 8

    def test_another_format(self, run: RunIt, told: Told, tmp_path: Path) -> None:
        write(tmp_path / "in", a="1")
        first = run()
        tar(tmp_path / "tars/0.tar", a="1")
        run(tmp_path / "tars")
        assert told.texts[1] == (
            f"a new run, because since run {first.run_id} source.format changed from folder to webdataset"
        )

    def test_labels(self, run: RunIt, told: Told, tmp_path: Path) -> None:
        write(tmp_path / "in", a="1")
        (tmp_path / "labels.txt").write_text("a\n")
        run(model_={"labels": str(tmp_path / "labels.txt")})
        (tmp_path / "labels.txt").write_text("b\n")
        run(model_={"labels": str(tmp_path / "labels.txt")})
        assert "the labels of model.labels changed (" in told.texts[1]

    def test_a_committed_run(self, run: RunIt, told: Told, tmp_path: Path) -> None:
        write(tmp_path / "in", a="1")
        first = run()
        second = run(model_={"iou_threshold": 0.5})
        assert told.texts[1] == (
            f"a new run, because since run {first.run_id} model.iou_threshold changed from 0.7 to 0.5; "
            "1 source object (0.0 MB) of the current settings is labelled again"
        )
        assert set(members(tmp_path / "out").values()) == {second.run_id}
        write(tmp_path / "other", b="1")
        run(tmp_path / "other", model_={"iou_threshold": 0.5})
        assert told.texts[1] == (f"a new run, because source.uri changed from {tmp_path}/in to {tmp_path}/other")

    def test_fresh_and_not(self, run: RunIt, told: Told, unfinished: str, tmp_path: Path) -> None:
        plan = plan_job(job(tmp_path / "in", tmp_path / "out"), fresh=True)
        assert (
            plan.why
            == f"a new run, because the unfinished run {unfinished} cannot be resumed: it was begun without --fresh"
        )

    def test_what_another_version_computed_in_its_own_way_does_not_go_on(
        self, run: RunIt, told: Told, unfinished: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "out/_batchdet/runs" / unfinished / "lineage.json"
        lineage = json.loads(file.read_text())
        same = lineage["computed"]
        for computed, why in (
            (
                same | {"silu": "polynomial"},
                "its model was computed with silu: polynomial, which this version does not know",
            ),
            (
                same | {"precision": "int8"},
                "its model was computed with precision: int8, which this version does not know",
            ),
            (same | {"sparse": "yes"}, "its model was computed with sparse: yes, which this version does not know"),
            ({}, "its lineage.json does not tell the runtime of its model"),
        ):
            file.write_text(json.dumps(lineage | {"computed": computed}))
            plan = plan_job(job(tmp_path / "in", tmp_path / "out"))
            assert plan.resume_run_id is None
            assert plan.why.endswith(f"cannot be resumed: {why}")
        file.write_text(json.dumps(lineage | {"computed": {k: same[k] for k in ("runtime", "precision")}}))
        assert plan_job(job(tmp_path / "in", tmp_path / "out")).resume_run_id == unfinished, "no choice yet: exact"

    def test_fresh_goes_on_where_a_fresh_run_stopped(
        self, run: RunIt, stopped: Any, told: Told, tmp_path: Path
    ) -> None:
        write(tmp_path / "in", **{f"i{n}": str(n) for n in range(9)})
        first = run()
        context = stopped(1)
        with pytest.raises(KeyboardInterrupt):
            run(fresh=True)
        context.__exit__(None, None, None)
        assert len(labelled) == 3
        begun = list_runs(str(tmp_path / "out"))
        second = run(fresh=True)
        assert len(labelled) == 6
        assert told.texts[1] == f"run {second.run_id} resumes where it stopped"
        assert begun == [first.run_id, second.run_id]
        assert len(committed_runs(str(tmp_path / "out"))) == 2
        assert set(members(tmp_path / "out").values()) == {second.run_id}

    def test_a_run_whose_images_a_newer_one_labelled_does_not_go_on(
        self, run: RunIt, told: Told, unfinished: str, tmp_path: Path
    ) -> None:
        """Its rows would be older than the others', and hidden."""

        def go_on() -> str:
            (one,) = (r for r in status(str(tmp_path / "out"))["runs"] if r["state"] == "interrupted")
            return str(one["next"])

        assert go_on() == "the same command resumes it"
        newer = run(model_={"score_threshold": 0.4})
        assert f"run {newer.run_id}, which is newer, has labelled its images" in go_on()
        again = run()
        assert unfinished < newer.run_id < again.run_id
        assert len(labelled) == 7
        assert set(members(tmp_path / "out").values()) == {again.run_id}

    @pytest.mark.parametrize("record", ["lineage.json", "inventory.parquet"])
    def test_damaged_records(self, run: RunIt, told: Told, unfinished: str, tmp_path: Path, record: str) -> None:
        (tmp_path / "out/_batchdet/runs" / unfinished / record).write_bytes(b"no")
        assert run().run_id != unfinished
        assert "its lineage.json or inventory.parquet is missing or damaged" in told.texts[1]


@pytest.mark.acceptance("R30")
class TestEmpty:
    def empty_tables(self, out: Path) -> None:
        import duckdb
        import pandas as pd

        for table, column in (("images", "status"), ("detections", "x_min")):
            found = duckdb.sql(f"SELECT * FROM '{out}/{table}/**/*.parquet'")
            assert found.fetchall() == []
            assert {"run_id", "image_id", "run_date", column} <= set(found.columns)
            frame = pd.read_parquet(out / table)
            assert (len(frame), column in frame) == (0, True)
        assert open_results(str(out)).images().to_arrow().num_rows == 0
        assert inspect_output(str(out)).problems == []

    @pytest.mark.parametrize("kind", ["tar", "parquet", "csv", "txt", "jsonl", "list of Parquet"])
    def test_a_source_without_an_image_gives_empty_tables(self, run: RunIt, tmp_path: Path, kind: str) -> None:
        source = tmp_path / "in"
        source.mkdir()
        if kind == "tar":
            tar(source / "0.tar")
        elif kind == "parquet":
            pq.write_table(pa.table({"image": pa.array([], pa.binary())}), source / "0.parquet")
        elif kind == "list of Parquet":
            source /= "0.parquet"
            pq.write_table(pa.table({"url": pa.array([], pa.string())}), source)
        else:
            source /= f"list.{kind}"
            source.write_text("url,key\n" if kind == "csv" else "")
        first = run(source)
        assert (first.status, first.images_ok, first.images_failed) == ("committed", 0, 0)
        self.empty_tables(tmp_path / "out")
        assert run(source).status == "nothing_new"

    @pytest.mark.parametrize("source", ["in", "in/*.jpg"])
    def test_a_folder_without_a_file_is_a_mistake_at_first_and_nothing_new_later(
        self, run: RunIt, told: Told, tmp_path: Path, source: str
    ) -> None:
        (tmp_path / "in").mkdir()
        with pytest.raises(SourceError, match=r"is an empty folder|matches no file"):
            run(tmp_path / source)
        write(tmp_path / "in", a="1")
        first = run(tmp_path / source)
        (tmp_path / "in/a.jpg").unlink()
        again = run(tmp_path / source)
        assert (again.status, again.run_id) == ("nothing_new", first.run_id)
        assert told.texts == [
            f"nothing new: {tmp_path / source} holds nothing any more; the last run over it is {first.run_id}"
        ]
        with pytest.raises(SourceError):
            run(tmp_path / "elsewhere*")

    def test_all_images_bad(self, run: RunIt, tmp_path: Path) -> None:
        write(tmp_path / "in", a="bad", b="bad")
        with pytest.raises(TooManyFailures):
            run()
        done = run(policy={"max_failed_fraction": 1.0})
        assert done.images_failed == 2
        found = query(str(tmp_path / "out"), "SELECT count(*) AS n FROM detections").to_pylist()
        assert found == [{"n": 0}]


def test_files_that_are_no_images_are_named(run: RunIt, tmp_path: Path, told: Told) -> None:
    write(tmp_path / "in", a="1")
    for name in ("b.psd", "c.txt"):
        (tmp_path / "in" / name).write_bytes(b"")
    assert plan_job(job(tmp_path / "in", tmp_path / "out")).to_dict()["passed_over"] == {".psd": 1, ".txt": 1}
    run()
    assert "passed over: 1 .psd, 1 .txt" in told.texts


def test_only_as_much_history_is_read_as_is_needed(run: RunIt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from batchdet.source.inventory import Inventory

    write(tmp_path / "in", a="1", b="2")
    runs = [run(fresh=True).run_id for _ in range(3)]
    read = []
    real = Inventory.read_keys
    monkeypatch.setattr(Inventory, "read_keys", staticmethod(lambda uri: read.append(uri) or real(uri)))
    assert run().status == "nothing_new"
    assert [Path(uri).parent.name for uri in read] == [runs[-1]]


def test_many_runs_are_looked_through(run: RunIt, tmp_path: Path) -> None:
    broken.add(b"x")
    for n in range(9):
        write(tmp_path / "in", **{f"i{n}": "x" if n == 3 else str(n), "changing": f"c{n}" * (n + 1)})
        run()
        assert names() == sorted(["changing", f"i{n}"])
    assert run().status == "nothing_new"
    broken.clear()
    run(policy={"retry": "failed"})
    assert names() == ["i3"]
