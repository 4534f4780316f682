"""A scheduled job over tar shards of which some are bad: what a night labels, what it says, and what a reader sees."""

import contextlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from batchdet import open_results
from batchdet.cli import application
from batchdet.errors import ConservationError, TooManyFailures
from batchdet.job import Run, Watcher, run_job
from batchdet.results.quarantine import current_quarantine
from batchdet.results.show import show
from batchdet.results.status import status
from batchdet.results.verify import inspect_output
from batchdet.table.manifest import committed_runs, list_runs
from batchdet.table.refusal import read_refusal
from tests.e2e.conftest import pack_tar
from tests.without_ray import broken, job, labelled, without_ray

Change = Callable[[], object]


class Source:
    """A folder of shards, and what happens to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.tar"

    def put(self, name: str, images: int = 4, text: str = "") -> None:
        """Write a good shard; another text makes other images of it."""
        members = [(f"{n}.jpg", f"{name} {n} {text}".encode()) for n in range(images)]
        self.path(name).write_bytes(pack_tar(members))

    def truncate(self, name: str, members: int = 2) -> None:
        """Cut a shard in the header behind so many members."""
        data = self.path(name).read_bytes()
        self.path(name).write_bytes(data[: members * 1024 + 100])

    def remove(self, name: str) -> None:
        self.path(name).unlink()


class Nights:
    """One output, a night after the other."""

    def __init__(self, source: Source, out: Path) -> None:
        self.source, self.out = source, out
        self.told: list[str] = []
        self.read: list[str] = []
        """Shards of which images were labelled in the last night."""

    def night(self, after_listing: Change = lambda: None, killed_after: int | None = None, **parts: Any) -> Run:
        """Run the job.

        Args:
            after_listing: Happens between listing and reading, once.
            killed_after: The night ends when so many segments are staged.
            parts: Of the spec.
        """
        left = [after_listing]

        class Watching(Watcher):
            def say(_, text: str) -> None:
                self.told.append(text)
                if text.startswith("source: ") and left:
                    left.pop()()

            def advance(_, images: int, failed: int, size_bytes: int) -> None:
                nonlocal killed_after
                if killed_after is not None:
                    killed_after -= 1
                    if killed_after == 0:
                        raise KeyboardInterrupt

        self.told.clear()
        labelled.clear()
        try:
            with without_ray():
                return run_job(job(self.source.folder, self.out, **parts), watcher=Watching())
        finally:
            self.read = sorted({uri.partition(".tar")[0].rpartition("/")[2] for uri in labelled})

    @property
    def warnings(self) -> list[str]:
        return [text for text in self.told if text.startswith("warning: ")]

    def quarantine(self) -> dict[str, str]:
        """Return name and code of each shard that is in quarantine, by every way to ask."""
        found = current_quarantine(str(self.out), committed_runs(str(self.out)))
        for asked in (status(str(self.out)), show(str(self.out))):
            told = asked["quarantine"]
            assert {shard["uri"]: shard["code"] for shard in told["first"]} == {s.uri: s.code for s in found}
            assert bool(told["warning"]) == bool(found)
            assert all(shard.uri in told["warning"] for shard in found[:3])
        return {Path(shard.uri).stem: shard.code for shard in found}

    def check(self, tmp_path: Path, replaced: str = "", **parts: Any) -> None:
        """Compare what a reader sees with a fresh run over the same listing.

        A truncated shard has its rows before the break and one that says where reading ended, in both. One that is in
        quarantine because it was gone or replaced is left out: a fresh run finds it whole, or not at all. So is one
        that was replaced behind the night's listing, and is the next night's.
        """
        fresh = tmp_path / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        with without_ray():
            run_job(job(self.source.folder, fresh, **parts))
        passing = [name for name, code in self.quarantine().items() if code == "shard_unreadable"]
        good = [str(p) for p in self.source.folder.glob("*.tar") if p.stem not in {*passing, replaced}]
        assert rows(self.out, good) == rows(fresh, good)
        assert inspect_output(str(self.out)).problems == []


def rows(out: Path, shards: list[str]) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of some shards in both tables, but for the run that made them."""
    results = open_results(str(out))
    images = results.images().to_arrow(["image_id", "uri", "shard_uri", "position", "error_code", "detection_count"])
    images = images.filter(pc.is_in(images["shard_uri"], pc.cast(shards, "string") if shards else images["uri"][:0]))
    boxes = results.detections().to_arrow(["image_id", "detection_index", "label", "score", "x_min"])
    boxes = boxes.filter(pc.is_in(boxes["image_id"], images["image_id"].combine_chunks()))
    return {
        name: sorted((tuple(row.values()) for row in table.to_pylist()), key=str)
        for name, table in (("images", images), ("detections", boxes))
    }


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "in")


@pytest.fixture
def nights(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nights:
    count = iter(range(10_000))
    broken.clear()
    monkeypatch.setattr("batchdet.job.new_run_id", lambda _: f"20261123-12{next(count):04d}-abcd")
    return Nights(source, tmp_path / "out")


@pytest.mark.acceptance("R16", "R17", "R37")
def test_seven_nights(nights: Nights, source: Source, tmp_path: Path) -> None:
    strict = {"policy": {"max_failed_fraction": 0.0}}
    higher = strict | {"model_": {"score_threshold": 0.4}}

    source.put("a")
    source.put("b")
    source.truncate("b")
    first = nights.night(**strict)
    assert (first.status, first.images_ok, first.images_failed) == ("committed", 6, 1)
    assert nights.quarantine() == {"b": "shard_truncated"}
    assert [shard.uri for shard in first.quarantine] == [str(source.path("b"))]
    assert len(nights.warnings) == 1
    assert str(source.path("b")) in nights.warnings[0]
    nights.check(tmp_path, **strict)

    source.put("c")
    source.put("d")
    nights.night(after_listing=lambda: source.remove("c"), **strict)
    assert nights.read == ["c", "d"], "b has not changed and is left alone"
    assert nights.quarantine() == {"b": "shard_truncated", "c": "shard_unreadable"}
    nights.check(tmp_path, **strict)

    source.put("e")
    source.put("f")
    nights.night(after_listing=lambda: source.put("e", 6, "new"), **strict)
    assert nights.quarantine() == {"b": "shard_truncated", "c": "shard_unreadable", "e": "shard_unreadable"}
    nights.check(tmp_path, **strict)

    source.path("g").touch()
    source.put("h", images=0)
    done = nights.night(**strict)
    assert (nights.read, done.images_ok) == (["e", "g"], 6), "e is another one than was listed, and now labelled"
    assert nights.quarantine() == {"b": "shard_truncated", "c": "shard_unreadable", "g": "shard_corrupt"}
    nights.check(tmp_path, **strict)

    source.put("i", images=9)
    with pytest.raises(KeyboardInterrupt):
        nights.night(killed_after=2, **strict)
    assert nights.read == ["i"]
    source.put("j")
    source.put("b", text="mended")
    done = nights.night(**strict)
    assert [each.images_ok for each in (*done.earlier, done)] == [9, 8], "the killed run, then what is new since"
    assert len([uri for uri in labelled if "/i.tar" in uri]) == 3, "two of three segments had been staged"
    assert nights.quarantine() == {"c": "shard_unreadable", "g": "shard_corrupt"}
    nights.check(tmp_path, **strict)

    nights.night(**higher)
    assert nights.quarantine() == {"g": "shard_corrupt"}, "c is no shard of these settings"
    nights.check(tmp_path, **higher)

    source.put("g", text="mended")
    done = nights.night(**strict)
    assert nights.read == ["g"]
    nights.check(tmp_path, **strict)
    assert nights.quarantine() == {"c": "shard_unreadable"}
    assert nights.night(**strict).status == "nothing_new"
    assert nights.read == []
    assert len(nights.warnings) == 1, "repeated when there is nothing new, too"


@pytest.mark.acceptance("R37")
@pytest.mark.parametrize("seed", range(3))
def test_nights_in_any_order(nights: Nights, source: Source, tmp_path: Path, seed: int) -> None:
    """What happens in which night is drawn; after each the view equals a fresh run, and nothing good is missing."""
    draw = random.Random(seed)
    policy = {"policy": {"max_failed_fraction": 0.0, "retry": draw.choice(["none", "failed"])}}
    source.put("kept")
    for night in range(7):
        for n in range(draw.randint(1, 3)):
            source.put(f"s{night}{n}", images=draw.randint(0, 7))
        names = sorted(p.stem for p in source.folder.glob("s*.tar"))
        happens = draw.sample(["truncate", "vanish", "replace", "empty", "mend", "kill"], 2)
        victims = dict(zip(happens, draw.choices(names, k=2), strict=True))
        if "truncate" in happens:
            source.truncate(victims["truncate"], draw.randint(0, 2))
        if "empty" in happens:
            source.path(victims["empty"]).write_bytes(b"")
        if "mend" in happens:
            source.put(victims["mend"], text=f"mended {night}")

        def after_listing(victims: dict[str, str] = victims, night: int = night) -> None:
            if "vanish" in victims:
                source.path(victims["vanish"]).unlink()
            if "replace" in victims:
                source.put(victims["replace"], images=5, text=f"replaced {night}")

        killed = pytest.raises(KeyboardInterrupt) if "kill" in happens else contextlib.nullcontext()
        with killed:
            nights.night(after_listing, killed_after=1 if "kill" in happens else None, **policy)
        if "kill" in happens:
            nights.night(**policy)
        nights.check(tmp_path, "" if "kill" in happens else victims.get("replace", ""), **policy)
    nights.night(**policy)
    assert set(nights.quarantine().values()) <= {"shard_truncated", "shard_corrupt", "shard_unreadable"}
    nights.check(tmp_path, **policy)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_shard_that_has_lost_all_its_images_leaves_no_row(
    nights: Nights, source: Source, tmp_path: Path, kind: str
) -> None:
    def put(name: str, *images: str) -> None:
        if kind == "tar":
            source.path(name).write_bytes(pack_tar([(f"{n}.jpg", text.encode()) for n, text in enumerate(images)]))
        else:
            table = pa.table({"image": pa.array([text.encode() for text in images], pa.binary())})
            pq.write_table(table, source.folder / f"{name}.parquet")

    def members() -> list[str]:
        return sorted(open_results(str(nights.out)).sql("SELECT uri FROM images").to_arrow_table()["uri"].to_pylist())

    put("a", "1", "2")
    put("b", "3")
    nights.night()
    put("a")
    assert nights.night().manifest.images_listed == 0
    assert [uri.rpartition("/")[2][0] for uri in members()] == ["b"]
    nights.check(tmp_path)
    assert show(str(nights.out))["stats"]["images"]["listed"] == 1
    nights.night(model_={"score_threshold": 0.75})
    assert open_results(str(nights.out)).left_out == 0
    assert len(members()) == 1
    put("a", "4", "5", "6")
    nights.night()
    assert len(members()) == 4
    nights.check(tmp_path)


class TestQuarantine:
    def test_one_bad_shard_is_all_there_is(self, nights: Nights, source: Source) -> None:
        source.put("a")
        source.truncate("a", 0)
        assert nights.night().status == "committed"
        again = nights.night()
        assert (again.status, nights.read) == ("nothing_new", [])
        assert len(nights.warnings) == 1
        source.put("a")
        assert nights.night().images_ok == 4
        assert (nights.quarantine(), nights.warnings) == ({}, [])

    def test_what_may_pass_is_tried_by_each_run_and_never_blocks(
        self, nights: Nights, source: Source, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from batchdet import storage
        from batchdet.source import webdataset

        real = webdataset.open_stream

        def forbidden(obj: storage.StoredObject) -> Any:
            if "/shut" in obj.uri:
                raise storage.StorageError(f"{obj.uri}: permission denied")
            return real(obj)

        for n in range(7):
            source.put(f"shut{n}")
        for n in range(3):
            source.put(f"good{n}")
        with monkeypatch.context() as patch:
            patch.setattr(webdataset, "open_stream", forbidden)
            with pytest.raises(TooManyFailures) as refused:
                nights.night()
            assert refused.value.code == "run.too_many_bad_shards"
            nights.night(policy={"max_bad_shard_fraction": 0.7})
            assert len(nights.quarantine()) == 7
            assert nights.night().images_failed == 7, "tried again, and as bad as before: no reason to refuse"
            assert nights.read == [f"shut{n}" for n in range(7)]
        assert nights.night().images_ok == 28
        assert nights.quarantine() == {}
        assert nights.night().status == "nothing_new"

    def test_a_parquet_file_that_is_cut(self, nights: Nights, source: Source) -> None:
        for name in ("a", "b"):
            pq.write_table(
                pa.table({"image": [f"{name}{n}".encode() for n in range(4)]}), source.folder / f"{name}.parquet"
            )
        good = (source.folder / "b.parquet").read_bytes()
        (source.folder / "b.parquet").write_bytes(good[:-40])
        done = nights.night(policy={"max_failed_fraction": 0.0})
        assert (done.images_ok, nights.quarantine()) == (4, {"b": "shard_corrupt"})
        assert nights.night().status == "nothing_new"
        (source.folder / "b.parquet").write_bytes(good)
        assert nights.night().images_ok == 4
        assert nights.quarantine() == {}
        assert open_results(str(nights.out)).images().to_arrow()["error_code"].null_count == 8

    def test_retry_failed_reads_a_bad_shard_again(self, nights: Nights, source: Source) -> None:
        source.put("a")
        source.put("b")
        source.truncate("b")
        nights.night()
        nights.night(policy={"retry": "failed", "max_failed_fraction": 0.0})
        assert nights.read == ["b"]
        assert nights.quarantine() == {"b": "shard_truncated"}

    def test_the_command_line_says_it(
        self, nights: Nights, source: Source, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        source.put("a")
        source.put("b")
        source.truncate("b")
        file = tmp_path / "job.yaml"
        file.write_text(
            f"name: night\nsource: {{uri: '{source.folder}'}}\nmodel: {{uri: 'builtin:sample'}}\n"
            f"output: {{uri: '{nights.out}'}}\ncompute: {{segment_rows: 3}}\n"
        )
        for told in ("committed", "nothing_new"):
            with without_ray():
                done = CliRunner().invoke(application.app, ["run", str(file), "--json"])
            assert done.exit_code == 0, done.output
            found = json.loads(done.stdout)
            assert found["status"] == told
            assert [shard["uri"] for shard in found["quarantine"]["first"]] == [str(source.path("b"))]
        for command in ("show", "status"):
            printed = CliRunner().invoke(application.app, [command, str(nights.out)]).stdout
            assert str(source.path("b")) in "".join(printed.split("\n"))


class TestRefused:
    """A refused or interrupted run never blocks what is new."""

    LIMIT: dict[str, Any] = {"policy": {"max_failed_fraction": 0.1}}  # noqa: RUF012

    @pytest.fixture(params=["folder", "tar"])
    def refused(self, request: pytest.FixtureRequest, nights: Nights, source: Source) -> Callable[..., None]:
        """Put images under a name; and a run that was refused, because one of three images is bad."""

        def put(name: str, *texts: str) -> None:
            if request.param == "tar":
                path = source.path(name)
                path.write_bytes(pack_tar([(f"{n}.jpg", text.encode()) for n, text in enumerate(texts)]))
            else:
                for n, text in enumerate(texts):
                    (source.folder / f"{name}{n}.jpg").write_text(text)

        put("a", "1", "2", "bad")
        with pytest.raises(TooManyFailures) as error:
            nights.night(**self.LIMIT)
        (run_id,) = list_runs(str(nights.out))
        kept = read_refusal(str(nights.out), run_id)
        assert kept is not None
        assert (kept.code, kept.message) == (error.value.code, error.value.message)
        assert "(it is bad)" in kept.message, "the reason of the first failure"
        return put

    def test_what_is_new_is_committed_although_it_is_refused_again(
        self, refused: Callable[..., None], nights: Nights
    ) -> None:
        first = list_runs(str(nights.out))
        for night in range(3):
            refused(f"new{night}", "3", "4")
            with pytest.raises(TooManyFailures) as error:
                nights.night(**self.LIMIT)
            assert len(labelled) == 2, "what is staged is not labelled again"
            newest = committed_runs(str(nights.out))[-1]
            assert first[0] in error.value.message
            assert newest.run_id in error.value.message
            assert (newest.images_listed, len(committed_runs(str(nights.out)))) == (2, night + 1)
            assert (nights.out / "_SUCCESS").read_text().strip() == newest.run_id
        done = nights.night(policy={"max_failed_fraction": 0.5})
        assert (done.run_id, done.images_failed, labelled) == (first[0], 1, [])
        assert (nights.out / "_SUCCESS").read_text().strip() == newest.run_id
        assert open_results(str(nights.out)).images().to_arrow().num_rows == 9
        assert read_refusal(str(nights.out), first[0]) is None
        assert nights.night(**self.LIMIT).status == "nothing_new"

    def test_nothing_new_and_refused_again(self, refused: Callable[..., None], nights: Nights) -> None:
        with pytest.raises(TooManyFailures):
            nights.night(**self.LIMIT)
        assert labelled == []
        assert len(list_runs(str(nights.out))) == 1
        assert nights.told == [], "the same limits refuse it at once; nothing is started for it"

    def test_what_may_be_mended_is_tried_again(self, nights: Nights, source: Source) -> None:
        broken.add(b"x")
        source.put("x")
        with pytest.raises(TooManyFailures):
            nights.night(**self.LIMIT)
        broken.clear()
        source.put("y")
        done = nights.night(**self.LIMIT)
        assert nights.read == ["x", "y"]
        assert [each.images_ok for each in (*done.earlier, done)] == [4, 4]

    def test_two_refused_runs(self, refused: Callable[..., None], nights: Nights) -> None:
        refused("b", "bad")
        with pytest.raises(TooManyFailures) as error:
            nights.night(**self.LIMIT)
        assert all(run_id in error.value.message for run_id in list_runs(str(nights.out)))
        assert len(list_runs(str(nights.out))) == 2
        refused("c", "5")
        with pytest.raises(TooManyFailures):
            nights.night(**self.LIMIT)
        assert [m.images_listed for m in committed_runs(str(nights.out))] == [1]
        nights.night(policy={"max_failed_fraction": 1.0})
        assert sorted(m.images_listed for m in committed_runs(str(nights.out))) == [1, 1, 3]


@pytest.mark.parametrize("fault", ["a store that fails for one shard", "a damaged staged file"])
def test_a_run_that_cannot_be_resumed_does_not_block_what_is_new(
    nights: Nights, source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    from batchdet import storage
    from batchdet.source import webdataset

    real = webdataset.open_stream

    def failing(obj: storage.StoredObject) -> Any:
        if "/b.tar" in obj.uri:
            raise storage.TransientError(f"{obj.uri}: 503")
        return real(obj)

    source.put("a")
    source.put("b")
    with monkeypatch.context() as patch:
        patch.setattr(webdataset, "open_stream", failing)
        with pytest.raises(storage.TransientError):
            nights.night()
        source.put("c")
        if fault != "a store that fails for one shard":
            patch.setattr(webdataset, "open_stream", real)
            staged = next((nights.out / "_batchdet").rglob("*.arrow"))
            staged.write_bytes(staged.read_bytes()[:50])
        with pytest.raises((storage.TransientError, ConservationError)) as error:
            nights.night()
    (manifest,) = committed_runs(str(nights.out))
    assert manifest.images_listed == 4
    assert f"run {manifest.run_id} was committed" in error.value.message
    assert nights.night().images_ok == 8, "the first run is resumed, and now it can be committed"
    nights.check(tmp_path)


def test_a_killed_run_is_resumed_without_a_shard_that_has_changed(
    nights: Nights, source: Source, tmp_path: Path
) -> None:
    for name in ("a", "b", "c", "d"):
        source.put(name, images=3)
    with pytest.raises(KeyboardInterrupt):
        nights.night(killed_after=3)
    source.put("a", images=2, text="changed")
    source.remove("b")
    done = nights.night()
    assert [each.images_ok for each in (*done.earlier, done)] == [6, 2]
    assert nights.read == ["a", "d"], "c is staged"
    assert "left out" in " ".join(nights.told)
    nights.check(tmp_path)
    assert nights.night().status == "nothing_new"


def test_fresh_resumes_and_takes_only_what_is_new_since(nights: Nights, source: Source) -> None:
    def fresh(killed_after: int | None = None) -> Run:
        real = run_job
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{__name__}.run_job", lambda spec, watcher: real(spec, fresh=True, watcher=watcher))
            return nights.night(killed_after=killed_after)

    source.put("a", images=3)
    source.put("b", images=3)
    nights.night()
    with pytest.raises(KeyboardInterrupt):
        fresh(killed_after=1)
    source.put("c", images=3)
    done = fresh()
    assert nights.read == ["b", "c"]
    assert [each.images_ok for each in (*done.earlier, done)] == [6, 3]
    assert fresh().images_ok == 9
