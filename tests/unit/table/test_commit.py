import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import batchdet.table.commit
from batchdet import storage
from batchdet.errors import ConservationError, OutputLocked, TooManyFailures
from batchdet.records.segment import LabelledSegment
from batchdet.results.garbage import collect_garbage
from batchdet.results.verify import inspect_output
from batchdet.spec import JobSpec
from batchdet.specfile import dump_job
from batchdet.table.commit import (
    Before,
    begin_run,
    commit_run,
    complete_commit,
    finish_commit,
    is_finished,
    mark_newest,
)
from batchdet.table.gather import ExpectedShard
from batchdet.table.lease import Lease
from batchdet.table.lineage import Lineage, now
from batchdet.table.manifest import TABLES, BadShard, Manifest, committed_runs, load_manifest, run_folder
from batchdet.table.refusal import read_refusal
from batchdet.table.staging import list_staged, staged_folder, write_staged

from .conftest import CARRIED, RUN_ID, Maker

NOTHING_BEFORE = Before()
SHARDS = [
    ExpectedShard(f"{0:032x}", "/data/0.tar", 0, -1),
    ExpectedShard(f"{1:032x}", "/data/1.tar", 10, 3),
]


def spec_for(out: Path | str, allowed: float = 0.5, **changes: object) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "t",
            "source": {"uri": "/data"},
            "model": {"uri": "m.onnx"},
            "output": {"uri": str(out), **changes},
            "policy": {"max_failed_fraction": allowed},
        }
    )


def stage(out: Path | str, segments: list[LabelledSegment]) -> None:
    for each in segments:
        write_staged(staged_folder(str(out), RUN_ID), each)


def commit(
    out: Path | str,
    shards: list[ExpectedShard] = SHARDS,
    resumed: bool = False,
    lease: Lease | None = None,
    allowed: float = 0.5,
    before: Before = NOTHING_BEFORE,
    max_bad_shard_fraction: float = 0.5,
    **changes: object,
) -> Manifest:
    spec = spec_for(out, allowed, **changes)
    policy = spec.policy.model_copy(update={"max_bad_shard_fraction": max_bad_shard_fraction})
    spec = spec.model_copy(update={"policy": policy})
    storage.write_bytes(storage.join(run_folder(str(out), RUN_ID), "spec.yaml"), dump_job(spec).encode())
    storage.write_bytes(storage.join(run_folder(str(out), RUN_ID), "inventory.parquet"), b"as it was listed")
    lineage = Lineage(RUN_ID, "t", "f" * 64, "i" * 64, now(), model={"sha256": "0" * 64})
    labels = [f"class_{i}" for i in range(5)]
    with contextlib.nullcontext(lease) if lease else Lease(str(out)) as held:
        return commit_run(
            str(out), spec, dump_job(spec), lineage, shards, CARRIED, labels, 2.0, held, resumed=resumed, before=before
        )


def take_over(out: Path) -> Lease:
    """Own the output in place of another owner of this process, who is thought dead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("batchdet.table.lease._is_live", lambda *_: False)
        return Lease(str(out), renew_s=3600).__enter__()


class Stopped(Exception):
    pass


def stop_at(point: str, meanwhile: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Have something done when the commit reaches a failpoint."""
    patch.setattr("batchdet.table.commit.failpoint", lambda name: meanwhile() if name == point else None)


def die() -> None:
    raise Stopped


@pytest.fixture
def segments(segment: Maker) -> list[LabelledSegment]:
    return [
        segment(0, 0, False, 0, ["ok", "ok", "truncated"]),
        segment(0, 1, True, 3, ["ok"]),
        segment(1, 0, True, 10, ["ok", "ok", "ok"], ["Bonn", "Köln/Süd", None]),
    ]


def test_commit_makes_tables_manifest_and_markers(tmp_path: Path, segments: list[LabelledSegment]) -> None:
    stage(tmp_path, segments[::-1])
    manifest = commit(tmp_path)
    assert (manifest.images_listed, manifest.images_ok, manifest.images_failed) == (7, 6, 1)
    assert load_manifest(str(tmp_path), RUN_ID) == manifest == committed_runs(str(tmp_path))[0]
    images = ds.dataset(tmp_path / "images", partitioning="hive").to_table().to_pylist()
    assert [row["position"] for row in images] == [0, 1, 2, 3, 10, 11, 12]
    assert {row["run_date"] for row in images} == {"2026-11-23"}
    detections = pq.read_table(tmp_path / manifest.detections[0].path)
    assert detections["class_id"].to_pylist() == sorted(detections["class_id"].to_pylist())
    assert detections.num_rows == sum(row["detection_count"] for row in images)
    assert detections.schema.metadata[b"batchdet.run_id"] == RUN_ID.encode()
    assert detections.schema.metadata[b"batchdet.schema_version"] == b"1"
    assert is_finished(str(tmp_path), RUN_ID)
    mark_newest(str(tmp_path), RUN_ID)
    assert (tmp_path / "_SUCCESS").read_text() == f"{RUN_ID}\n"
    run = tmp_path / "_batchdet/runs" / RUN_ID
    assert sorted(p.name for p in run.iterdir()) == [
        "_SUCCESS",
        "inventory.parquet",
        "lineage.json",
        "manifest.json",
        "spec.yaml",
        "stats.json",
    ]
    stats = json.loads((run / "stats.json").read_text())
    assert stats["images"]["by_error_code"] == {"truncated": 1}
    assert stats["run"]["images_per_s"] == 3.5


def digests(manifest: Manifest) -> list[str]:
    return [part.sha256 for part in (*manifest.images, *manifest.detections)]


def test_commit_after_a_crash_anywhere_gives_the_same_bytes(
    tmp_path: Path, segments: list[LabelledSegment], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(tmp_path / "undisturbed", segments)
    expected = commit(tmp_path / "undisturbed")
    for step in ("move", "write_bytes", "create"):
        for crash_at in range(10):
            out = tmp_path / f"{step}{crash_at}"
            stage(out, segments)
            real, calls = getattr(storage, step), 0

            def crash(*args: object, real=real, crash_at=crash_at) -> object:  # type: ignore[no-untyped-def]
                nonlocal calls
                calls += 1
                if calls > crash_at:
                    raise KeyboardInterrupt
                return real(*args)

            with monkeypatch.context() as patch:
                patch.setattr(storage, step, crash)
                with contextlib.suppress(KeyboardInterrupt):
                    commit(out)
            owner = take_over(out)
            complete_commit(str(out), owner)
            again = load_manifest(str(out), RUN_ID) or commit(out, resumed=True, lease=owner)
            owner.__exit__(None, None, None)
            assert digests(again) == digests(expected)
            found = {path.relative_to(out).as_posix() for table in TABLES for path in out.glob(f"{table}/**/*.parquet")}
            assert found == {part.path for part in (*again.images, *again.detections)}, "and no others"


def test_a_segment_staged_twice_counts_once(tmp_path: Path, segments: list[LabelledSegment]) -> None:
    stage(tmp_path, [*segments, segments[0], segments[2]])
    assert commit(tmp_path).images_listed == 7


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [(0, "/data/0.tar: 1 segments of shard"), (1, "/data/0.tar: 1 segments"), (2, "/data/1.tar: 0 segments")],
)
def test_a_missing_segment_stops_the_commit(
    tmp_path: Path, segments: list[LabelledSegment], lost: int, sentence: str
) -> None:
    stage(tmp_path, segments[:lost] + segments[lost + 1 :])
    with pytest.raises(ConservationError, match=f"^{sentence}"):
        commit(tmp_path)
    assert committed_runs(str(tmp_path)) == []
    assert not (tmp_path / "images").exists()


def test_a_damaged_staged_file_is_labelled_again(tmp_path: Path, segments: list[LabelledSegment]) -> None:
    stage(tmp_path, segments)
    damaged = Path(list_staged(str(tmp_path), RUN_ID)[SHARDS[0].shard_id].segments[1])
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(ConservationError) as stopped:
        commit(tmp_path)
    assert (stopped.value.code, stopped.value.key) == ("run.staged_damaged", str(damaged))
    stage(tmp_path, segments[1:2])
    assert commit(tmp_path).images_listed == 7


def test_an_image_lost_or_skipped_stops_the_commit(tmp_path: Path, segments: list[LabelledSegment]) -> None:
    short = replace(segments[2], images=segments[2].images.slice(0, 2))
    stage(tmp_path / "lost", [segments[0], segments[1], short])
    with pytest.raises(ConservationError, match=r"3 images were listed in shard .* 2 were recorded"):
        commit(tmp_path / "lost")
    gap = replace(segments[2], images=segments[2].images.take([0, 2]))
    stage(tmp_path / "gap", [segments[0], segments[1], gap])
    with pytest.raises(ConservationError, match="does not begin at image 10 or skips one"):
        commit(tmp_path / "gap")


def test_too_many_failures_commit_nothing_and_keep_what_is_staged(tmp_path: Path, segment: Maker) -> None:
    stage(tmp_path, [segment(0, 0, True, 0, ["ok", "empty", "empty"])])
    with pytest.raises(
        TooManyFailures, match=r"2 of 3 images failed \(empty 2\): .*; policy.max_failed_fraction allows 0.5"
    ):
        commit(tmp_path, SHARDS[:1])
    assert not (tmp_path / "images").exists()
    assert list_staged(str(tmp_path), RUN_ID)[SHARDS[0].shard_id].complete


@pytest.mark.parametrize(("kept", "words"), [(10_000, "listed"), (4, "the first 4 are listed")])
def test_which_images_failed_is_said_and_listed(
    tmp_path: Path, segment: Maker, monkeypatch: pytest.MonkeyPatch, kept: int, words: str
) -> None:
    monkeypatch.setattr("batchdet.table.gather.FAILURES_KEPT", kept)
    both = [segment(0, 0, False, 0, ["ok", *["empty"] * 4]), segment(0, 1, True, 5, ["corrupt", "corrupt"])]
    stage(tmp_path, both)
    with pytest.raises(TooManyFailures) as raised:
        commit(tmp_path, SHARDS[:1])
    failed = pa.concat_tables(s.images for s in both).filter(pc.field("status") == "failed")["uri"].to_pylist()
    listed = tmp_path / "_batchdet/runs" / RUN_ID / "failed.csv"
    assert (
        f": {failed[0]} (because), {', '.join(failed[1:3])} and 3 more, {words} with the reasons in {listed};"
        in str(raised.value)
    )
    rows = pyarrow.csv.read_csv(listed).to_pylist()
    assert [row["uri"] for row in rows] == failed[: min(kept, 6)]
    assert {row["error_code"] for row in rows} <= {"empty", "corrupt"}
    manifest = commit(tmp_path, SHARDS[:1], allowed=1.0)
    assert not listed.exists(), "a committed run's tables say it"
    listed.touch()
    assert not is_finished(str(tmp_path), manifest.run_id)


def test_names_that_fail_are_short_and_on_one_line(tmp_path: Path, segment: Maker) -> None:
    one = segment(0, 0, True, 0, ["empty"] * 2)
    names = ["a.tar#x\nerror: disk full.jpg", f"a.tar#{'y' * 10_000}.jpg"]
    place = one.images.schema.get_field_index("uri")
    images = one.images.set_column(place, one.images.schema.field("uri"), pa.array(names))
    stage(tmp_path, [replace(one, images=images)])
    with pytest.raises(
        TooManyFailures, match=r": a.tar#x error: disk full.jpg \(because\), a.tar#y{191}\.\.\., listed"
    ) as raised:
        commit(tmp_path, SHARDS[:1])
    assert "\n" not in str(raised.value)
    listed = (tmp_path / "_batchdet/runs" / RUN_ID / "failed.csv").read_text()
    assert "y" * 494 in listed
    assert "y" * 495 not in listed


@pytest.mark.acceptance("S16")
def test_the_list_of_failures_holds_no_formula_and_no_escape(tmp_path: Path, segment: Maker) -> None:
    one = segment(0, 0, True, 0, ["empty"] * 3)
    names = ["=cmd|' /C calc'!A0", "@SUM(1)\x1b[2J", "-1+1"]
    place = one.images.schema.get_field_index("uri")
    images = one.images.set_column(place, one.images.schema.field("uri"), pa.array(names))
    stage(tmp_path, [replace(one, images=images)])
    with pytest.raises(TooManyFailures):
        commit(tmp_path, SHARDS[:1])
    rows = pyarrow.csv.read_csv(tmp_path / "_batchdet/runs" / RUN_ID / "failed.csv").to_pylist()
    assert [row["uri"] for row in rows] == ["'=cmd|' /C calc'!A0", "'@SUM(1)\\x1b[2J", "'-1+1"]


def test_empty_shards_give_empty_tables_with_their_columns(tmp_path: Path, segment: Maker) -> None:
    stage(tmp_path, [segment(0, 0, True, 0, [])])
    manifest = commit(tmp_path, SHARDS[:1])
    assert manifest.images_listed == 0
    images = ds.dataset(tmp_path / "images", partitioning="hive").to_table()
    assert images.num_rows == 0
    assert {"image_id", "city", "run_date"} <= set(images.schema.names)


def test_partitions_by_carried_column(tmp_path: Path, segments: list[LabelledSegment]) -> None:
    stage(tmp_path, segments)
    commit(tmp_path, partition_by=("run_date", "city"))
    for table in ("images", "detections"):
        folders = sorted(p.name for p in (tmp_path / table / "run_date=2026-11-23").iterdir())
        assert folders == ["city=Bonn", "city=K%C3%B6ln%2FS%C3%BCd", "city=__HIVE_DEFAULT_PARTITION__"]
    images = ds.dataset(tmp_path / "images", partitioning="hive").to_table().to_pylist()
    assert {row["member"]: row["city"] for row in images}["11.jpg"] == "Köln/Süd"


def test_commit_on_any_store(segments: list[LabelledSegment]) -> None:
    out = "memory://commit-test"
    stage(out, segments)
    manifest = commit(out)
    names = {o.uri for o in storage.find_all(out)}
    assert {storage.join("memory://commit-test", p.path) for p in manifest.images + manifest.detections} <= names
    assert not any("staged" in name or "/parts/" in name for name in names)


def test_a_commit_that_goes_on_removes_what_no_longer_belongs(tmp_path: Path, segments: list[LabelledSegment]) -> None:
    stage(tmp_path, segments)
    stray = tmp_path / f"images/run_date=2026-11-23/part-{RUN_ID}-00007.parquet"
    other = tmp_path / "images/run_date=2026-11-23/part-20250101-000000-aaaa-00000.parquet"
    for path in (stray, other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    commit(tmp_path, resumed=True)
    assert not stray.exists()
    assert other.exists()


def test_failures_that_may_be_mended_are_dropped_so_that_they_are_tried_again(tmp_path: Path, segment: Maker) -> None:
    stage(tmp_path, [segment(0, 0, False, 0, ["ok", "ok"]), segment(0, 1, True, 2, ["unreadable"] * 3)])
    with pytest.raises(TooManyFailures):
        commit(tmp_path, SHARDS[:1])
    assert sorted(list_staged(str(tmp_path), RUN_ID)[SHARDS[0].shard_id].segments) == [0]


def test_a_shard_cut_short_counts_as_a_shard_and_not_as_one_image(tmp_path: Path, segment: Maker) -> None:
    stage(tmp_path, [segment(0, 0, True, 0, ["ok"] * 4 + ["corrupt"] * 3 + ["ok"] * 9 + ["shard_truncated"])])
    with pytest.raises(TooManyFailures) as refused:
        commit(tmp_path, SHARDS[:1], max_bad_shard_fraction=0.05)
    assert (refused.value.code, refused.value.key) == ("run.too_many_bad_shards", "policy.max_bad_shard_fraction")
    assert "1 of 1 shards could not be read to their end: /data/0.tar (because), listed with" in str(refused.value)
    kept = read_refusal(str(tmp_path), RUN_ID)
    assert kept is not None
    assert (kept.code, kept.message) == (refused.value.code, refused.value.message)
    assert kept.counts == {"images": 16, "images_failed": 3, "shards": 1, "shards_bad": 1}
    stage(tmp_path, [segment(0, 0, True, 0, ["ok"] * 4 + ["corrupt"] * 3 + ["ok"] * 9 + ["shard_truncated"])])
    manifest = commit(tmp_path, SHARDS[:1], allowed=3 / 16)
    assert manifest.bad_shards == (BadShard("/data/0.tar", "shard_truncated", "because"),)
    stats = json.loads((tmp_path / "_batchdet/runs" / RUN_ID / "stats.json").read_text())
    assert stats["quarantine"] == {
        "shards": 1,
        "first": [{"uri": "/data/0.tar", "code": "shard_truncated", "message": "because"}],
    }
    assert read_refusal(str(tmp_path), RUN_ID) is None


@pytest.mark.parametrize(
    ("bad", "good", "before", "refused"),
    [
        (1, 0, 0, False),  # a source of one shard, or a night with one new shard
        (5, 0, 0, False),
        (6, 0, 0, True),
        (6, 6, 0, False),
        (7, 5, 0, True),
        (7, 0, 7, False),  # tried again: they were in quarantine before
        (7, 0, 1, True),
    ],
)
def test_a_run_is_refused_when_nearly_all_shards_are_bad(
    tmp_path: Path, segment: Maker, bad: int, good: int, before: int, refused: bool
) -> None:
    shards = [ExpectedShard(f"{n:032x}", f"/data/{n}.tar", 0, -1) for n in range(bad + good)]
    stage(tmp_path, [segment(n, 0, True, 0, ["shard_unreadable" if n < bad else "ok"]) for n in range(bad + good)])
    known = Before(0, {shard.shard_uri for shard in shards[:before]})
    with pytest.raises(TooManyFailures) if refused else contextlib.nullcontext() as error:
        commit(tmp_path, shards, before=known, allowed=0.0)
    assert (load_manifest(str(tmp_path), RUN_ID) is None) == refused
    assert not error or error.value.code == "run.too_many_bad_shards"


def test_rows_of_a_row_group_that_cannot_be_read_are_no_failed_images(tmp_path: Path, segment: Maker) -> None:
    middle = segment(0, 0, False, 0, ["ok", "shard_corrupt", "shard_corrupt"])
    stage(tmp_path, [middle, segment(0, 1, True, 3, ["shard_corrupt", "ok"])])
    manifest = commit(tmp_path, SHARDS[:1], allowed=0.0)
    assert (manifest.images_listed, manifest.images_failed) == (5, 3)
    assert [shard.code for shard in manifest.bad_shards] == ["shard_corrupt"], "once, although two segments say it"


def test_who_has_lost_the_output_lists_no_failures_there(tmp_path: Path, segment: Maker) -> None:
    stage(tmp_path, [segment(0, 0, True, 0, ["unreadable"] * 3)])
    with pytest.raises(OutputLocked):
        commit_after_takeover(tmp_path, SHARDS[:1])
    assert not (tmp_path / "_batchdet/runs" / RUN_ID / "failed.csv").exists()
    assert list_staged(str(tmp_path), RUN_ID)[SHARDS[0].shard_id].complete, "the new owner's"


def test_shards_that_earlier_versions_could_not_open_are_in_quarantine(tmp_path: Path, segment: Maker) -> None:
    stage(tmp_path, [segment(0, 0, True, 0, ["ok"])])
    manifest = replace(commit(tmp_path, SHARDS[:1]), unread_uris=("/data/1.tar",))
    (shard,) = manifest.quarantine
    assert (shard.uri, shard.may_pass) == ("/data/1.tar", True)


def commit_after_takeover(out: Path, shards: list[ExpectedShard] = SHARDS) -> None:
    with Lease(str(out), renew_s=3600) as held:
        take_over(out)
        commit(out, shards, lease=held)


def test_a_lost_lease_stops_the_commit(tmp_path: Path, segments: list[LabelledSegment]) -> None:
    stage(tmp_path, segments)
    with pytest.raises(OutputLocked):
        commit_after_takeover(tmp_path)
    assert not (tmp_path / "images").exists()


@pytest.mark.acceptance("R8", "R41")
@pytest.mark.parametrize("point", ["commit.move", "commit.stats.before", "commit.stats.after", "commit.point.before"])
@pytest.mark.parametrize("committed", [False, True])
def test_a_driver_that_wakes_up_after_a_takeover_commits_nothing(
    tmp_path: Path, segments: list[LabelledSegment], monkeypatch: pytest.MonkeyPatch, point: str, committed: bool
) -> None:
    """It was stopped at some place of its commit, and the new owner may have committed the same run meanwhile."""
    stage(tmp_path, segments)
    theirs: list[Manifest] = []

    def another() -> None:
        monkeypatch.setattr("batchdet.table.commit.failpoint", lambda name: None)
        owner = take_over(tmp_path)
        if committed:
            theirs.append(commit(tmp_path, resumed=True, lease=owner))

    stop_at(point, another, monkeypatch)
    with pytest.raises((OutputLocked, storage.StorageError)), Lease(str(tmp_path), renew_s=3600) as held:
        commit(tmp_path, lease=held)
    assert [m.run_id for m in committed_runs(str(tmp_path))] == [RUN_ID] * committed
    for manifest in theirs:
        assert load_manifest(str(tmp_path), RUN_ID) == manifest
        folder = tmp_path / "_batchdet/runs" / RUN_ID
        assert hashlib.sha256((folder / "stats.json").read_bytes()).hexdigest() == manifest.stats_sha256
        assert hashlib.sha256((folder / "lineage.json").read_bytes()).hexdigest() == manifest.lineage_sha256
        for part in (*manifest.images, *manifest.detections):
            assert hashlib.sha256((tmp_path / part.path).read_bytes()).hexdigest() == part.sha256


@pytest.mark.acceptance("R1", "R41")
@pytest.mark.parametrize("point", ["commit.point.after", "commit.manifest.before", "commit.manifest.after"])
@pytest.mark.parametrize("wakes_up", [False, True])
def test_the_next_owner_completes_a_commit_that_has_its_number(
    tmp_path: Path, segments: list[LabelledSegment], monkeypatch: pytest.MonkeyPatch, point: str, wakes_up: bool
) -> None:
    stage(tmp_path, segments)
    seen: list[Manifest | None] = []

    def another() -> None:
        monkeypatch.setattr("batchdet.table.commit.failpoint", lambda name: None)
        owner = take_over(tmp_path)
        complete_commit(str(tmp_path), owner)
        assert owner.commit is None
        finish_commit(str(tmp_path), RUN_ID)
        seen.append(load_manifest(str(tmp_path), RUN_ID))
        if not wakes_up:
            raise Stopped

    stop_at(point, another, monkeypatch)
    with contextlib.nullcontext() if wakes_up else pytest.raises(Stopped), Lease(str(tmp_path), renew_s=3600) as held:
        commit(tmp_path, lease=held)
    assert seen == [load_manifest(str(tmp_path), RUN_ID)]
    assert seen[0] is not None
    assert seen[0].images_listed == 7
    assert is_finished(str(tmp_path), RUN_ID)


@pytest.mark.acceptance("R41")
def test_a_driver_that_stalls_before_it_tidies_leaves_the_files_of_a_newer_commit(
    tmp_path: Path, segments: list[LabelledSegment], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(tmp_path, segments)
    check, others = batchdet.table.commit._check_failures, []

    def stall(*arguments: Any) -> None:
        check(*arguments)
        monkeypatch.undo()
        others.append(take_over(tmp_path))
        commit(tmp_path, resumed=True, lease=others[0])

    monkeypatch.setattr("batchdet.table.commit._check_failures", stall)
    with pytest.raises(OutputLocked), Lease(str(tmp_path), renew_s=3600) as held:
        commit(tmp_path, resumed=True, lease=held)
    (manifest,) = committed_runs(str(tmp_path))
    for part in (*manifest.images, *manifest.detections):
        assert hashlib.sha256((tmp_path / part.path).read_bytes()).hexdigest() == part.sha256
    others[0].__exit__(None, None, None)


@pytest.mark.acceptance("R41")
def test_a_resumed_run_keeps_its_first_records_until_its_commit(
    tmp_path: Path, segments: list[LabelledSegment]
) -> None:
    stage(tmp_path, segments)
    folder, lineage = tmp_path / "_batchdet/runs" / RUN_ID, Lineage(RUN_ID, "t", "f" * 64, "i" * 64, now())
    with Lease(str(tmp_path)) as held:
        begin_run(str(tmp_path), lineage, "first", b"listed", held)
    with Lease(str(tmp_path)) as held:
        begin_run(str(tmp_path), replace(lineage, cut="other"), "resumed", b"fewer", held)
        found = {name: (folder / name).read_bytes() for name in ("spec.yaml", "inventory.parquet", "lineage.json")}
        assert found == {"spec.yaml": b"first", "inventory.parquet": b"listed", "lineage.json": lineage.to_json()}
        spec = spec_for(tmp_path)
        labels = [f"class_{i}" for i in range(5)]
        commit_run(str(tmp_path), spec, "resumed", lineage, SHARDS, CARRIED, labels, 2.0, held, resumed=True)
    assert (folder / "spec.yaml").read_bytes() == b"resumed"
    assert (folder / "inventory.parquet").read_bytes() == b"fewer"
    assert not inspect_output(str(tmp_path)).problems


@pytest.mark.acceptance("R41")
def test_garbage_collection_without_the_lease_spares_a_run_whose_manifest_is_due(
    tmp_path: Path, segments: list[LabelledSegment], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(tmp_path, segments)
    (tmp_path / "_batchdet/runs" / RUN_ID / "lineage.json").write_bytes(
        Lineage(RUN_ID, "t", "f" * 64, "i" * 64, now()).to_json()
    )
    stop_at("commit.point.after", die, monkeypatch)
    with pytest.raises(Stopped), Lease(str(tmp_path)) as held:
        commit(tmp_path, lease=held)
    monkeypatch.undo()

    def locked(out: str) -> Lease:
        raise OutputLocked("held by a run that ended a moment later")

    monkeypatch.setattr("batchdet.results.garbage.Lease", locked)
    monkeypatch.setattr("batchdet.results.history.Unfinished.ended", "")
    collect_garbage(str(tmp_path), unfinished=True)
    with Lease(str(tmp_path)) as held:
        complete_commit(str(tmp_path), held)
    assert not inspect_output(str(tmp_path)).problems


def test_a_commit_whose_draft_is_gone_leaves_the_run_to_be_resumed(
    tmp_path: Path, segments: list[LabelledSegment], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(tmp_path, segments)
    stop_at("commit.point.after", die, monkeypatch)
    with pytest.raises(Stopped), Lease(str(tmp_path)) as held:
        commit(tmp_path, lease=held)
    storage.delete_folder(storage.join(run_folder(str(tmp_path), RUN_ID), "parts"))
    with Lease(str(tmp_path)) as held:
        assert held.commit is not None, "a released lease still tells of it"
        complete_commit(str(tmp_path), held)
        assert held.commit is None
    assert committed_runs(str(tmp_path)) == []
    monkeypatch.undo()
    assert commit(tmp_path, resumed=True).images_listed == 7


def test_what_an_earlier_commit_of_the_run_left_gives_way(tmp_path: Path, segments: list[LabelledSegment]) -> None:
    stage(tmp_path, segments)
    folder = tmp_path / "_batchdet/runs" / RUN_ID
    (folder / "stats.json").write_text("left over")
    manifest = commit(tmp_path, SHARDS)
    assert hashlib.sha256((folder / "stats.json").read_bytes()).hexdigest() == manifest.stats_sha256


def test_every_name_is_on_disk_before_the_commit_point_and_before_the_manifest(
    tmp_path: Path, segments: list[LabelledSegment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the commit must not take away what it names."""
    unsynced: set[int] = set()
    looked_at = []

    def noting(name: str, target_of: Callable[..., str]) -> None:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            done = real(*args, **kwargs)
            unsynced.add(os.stat(os.path.dirname(target_of(*args))).st_ino)
            return done

        monkeypatch.setattr(os, name, call)

    def synced(handle: int) -> None:
        unsynced.discard(os.fstat(handle).st_ino)

    def look(name: str) -> None:
        if name in {"commit.point.before", "commit.manifest.before", "commit.manifest.after"}:
            looked_at.append(name)
            assert not unsynced, name

    stage(tmp_path, segments)
    noting("replace", lambda source, target: target)
    noting("link", lambda source, target: target)
    noting("mkdir", lambda folder, *_: folder)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr("batchdet.table.commit.failpoint", look)
    commit(tmp_path)
    assert len(looked_at) == 3
