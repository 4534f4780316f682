"""One job from spec to committed tables: the only place where the packages are wired together."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from batchdet import storage
from batchdet.deadline import Deadline
from batchdet.errors import BatchdetError, ConservationError, TooManyFailures
from batchdet.failpoint import failpoint
from batchdet.forecast import Account, segment_rows, trial_of
from batchdet.machine import gpu_count
from batchdet.model.families.plugin import plugin_to_ship
from batchdet.places import check_apart, check_space, check_writable, in_full
from batchdet.plan import Plan, cut_of, plan_job
from batchdet.results.derive import derived_segments
from batchdet.results.history import Unfinished, unfinished_runs
from batchdet.results.quarantine import Quarantined, find_quarantine, quarantine_warning
from batchdet.results.record import read_record
from batchdet.source.inventory import Inventory
from batchdet.source.listing import in_words
from batchdet.source.shards import ShardPlan
from batchdet.spec import JobSpec
from batchdet.specfile import dump_job
from batchdet.table import commit
from batchdet.table.gather import ExpectedShard
from batchdet.table.lease import Lease
from batchdet.table.lineage import Lineage, machine, new_run_id, now, versions
from batchdet.table.manifest import Manifest, committed_runs, list_runs, run_folder
from batchdet.table.refusal import clear_refusal
from batchdet.table.staging import StagedShard, list_staged
from batchdet.text import counted

if TYPE_CHECKING:
    from batchdet.pipeline.probe import Probe
    from batchdet.pipeline.trial import LoadedModel
    from batchdet.results.open import Results


class Watcher:
    """Is told how a run goes on; one for a terminal or a log says what it wants of it, this one nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def say(self, text: str) -> None:
        """Take one line of news."""

    def start(self, total_images: int | None, total_bytes: int, done_images: int, doing: str = "labelling") -> None:
        """Learn the size of the job, and what is done; ``total_images`` is None when only reading can tell."""

    def expect(self, seconds: float | None) -> None:
        """Learn how long the run is going to take from here on, as predicted; None if nothing is."""

    def advance(self, images: int, failed: int, size_bytes: int) -> None:
        """Learn that a segment is staged."""

    def committing(self, images: int) -> None:
        """Learn how many images the commit has taken so far."""

    def stop(self) -> None:
        """Learn that the run is over, well or not."""


@dataclass(frozen=True)
class Run:
    """A job that was run.

    Args:
        run_id: The committed run.
        output: Folder of the tables.
        status: ``committed``; ``derived``, made from the rows of earlier runs; ``made_current``, a run without rows
            that makes complete settings current again; or ``nothing_new`` when committed runs hold everything already.
        images_ok: Labelled images of the run.
        images_failed: Failed images of the run.
        wall_s: Seconds from start to end.
        manifest: What was committed.
        measured: ``roofline``, ``prediction``, ``passed_over`` and ``members_passed_over``, as in ``stats.json``.
        earlier: Runs that the same command committed before this one, oldest first: unfinished ones come first.
        quarantine: Tar and Parquet files that are in quarantine now, at these settings.
    """

    run_id: str
    output: str
    status: str
    images_ok: int
    images_failed: int
    wall_s: float
    manifest: Manifest = field(repr=False)
    measured: Mapping[str, Any] = field(default_factory=dict, repr=False)
    earlier: "tuple[Run, ...]" = field(default=(), repr=False)
    quarantine: tuple[Quarantined, ...] = field(default=(), repr=False)

    def results(self) -> "Results":
        """Open the run's tables."""
        from batchdet.results.open import open_results

        return open_results(self.output, run=self.run_id)


def run_job(spec: JobSpec, fresh: bool = False, watcher: Watcher | None = None, verbose: bool = False) -> Run:
    """Label everything that is new, and commit it.

    Unfinished runs are resumed first, each with its frozen inventory. A separate run then labels what is new. So one
    command may commit several runs, and a run that is refused again does not stop the others.

    Args:
        spec: The job.
        fresh: Label everything again, whatever earlier runs hold.
        watcher: Is told how it goes on.
        verbose: Let Ray speak.

    Returns:
        The last run, committed.

    Raises:
        TooManyFailures: A run was refused; the message also names the runs that were committed.
        BatchdetError: See :mod:`batchdet.errors`; what was done is kept.
    """
    watcher = watcher or Watcher()
    spec = in_full(spec)
    out = spec.output.uri
    check_apart(spec, out)
    check_space(out)
    check_writable(out)
    try:
        with Lease(out, watcher.say if spec.policy.when_locked == "wait" else None) as lease:
            commit.complete_commit(out, lease)
            with Deadline(spec.compute.no_progress_s) as deadline:
                return _take_steps(spec, _Command(fresh, watcher, verbose, lease, deadline))
    finally:
        watcher.stop()


@dataclass(frozen=True)
class _Command:
    """What all steps of one command share."""

    fresh: bool
    watcher: Watcher
    verbose: bool
    lease: Lease
    deadline: Deadline


_OF_ONE_RUN: Final = (TooManyFailures, storage.StorageError, ConservationError)
"""Errors that may lie in what one run holds, and say nothing of others."""
_SLOWER: Final = 10
"""An image may take this many times what it takes alone."""
_UNKNOWN_IMAGE_S: Final = 0.1
_NAMED: Final = 3
"""Runs that were refused or stopped and that a message names."""


def _take_steps(spec: JobSpec, command: _Command) -> Run:
    """Plan and take one step after another, until nothing is left that this command has not tried."""
    from batchdet.pipeline.probe import Probe

    started = time.monotonic()
    out = spec.output.uri
    done: list[Run] = []
    failed: dict[str, BatchdetError] = {}
    while True:
        step_started = time.monotonic()
        with Probe(spec.compute) as probe:
            failpoint("run.leased")
            # once a fresh run is committed, only what is not in it is new
            plan = plan_job(spec, command.fresh and not done, failed)
            _finish_commits(plan)
            failed |= {i: TooManyFailures(r.message, code=r.code, key=r.key) for i, r in plan.refused.items()}
            if plan.finished_run_id is not None or (failed and not len(plan.shards)):
                break
            run_id = plan.resume_run_id or new_run_id(list_runs(out))
            try:
                if plan.derivation is not None:
                    done.append(_derive(plan, command, step_started))
                else:
                    done.append(_label(plan, run_id, command, probe, step_started))
            except _OF_ONE_RUN as error:
                if plan.resume_run_id is None and not isinstance(error, TooManyFailures):
                    raise
                failed[run_id] = error
        if not plan.later_objects or (plan.resume_run_id is None and plan.derivation is None):
            break
    quarantine = _quarantine(plan, done)
    if quarantine:
        command.watcher.say(f"warning: {quarantine_warning(quarantine)}")
    if failed:
        raise _with_the_others(failed, done)
    newest = max((*plan.committed, *(run.manifest for run in done)), key=lambda manifest: manifest.run_id)
    if newest.fingerprint != plan.fingerprint and (done or plan.makes_current):
        done.append(_make_current(plan, done[-1].run_id if done else str(plan.finished_run_id), command))
    wall_s = time.monotonic() - started
    if done:
        return replace(done[-1], wall_s=wall_s, earlier=tuple(done[:-1]), quarantine=quarantine)
    command.watcher.say(f"nothing new: {plan.why}")
    commit.mark_newest(out, plan.committed[-1].run_id)
    finished = next(m for m in plan.committed if m.run_id == plan.finished_run_id)
    return Run(finished.run_id, out, "nothing_new", 0, 0, wall_s, finished, quarantine=quarantine)


def _quarantine(plan: Plan, done: Sequence[Run]) -> tuple[Quarantined, ...]:
    """Find what is in quarantine after the last step."""
    runs = {m.run_id: m for m in (*plan.committed, *(run.manifest for run in done))}
    same = [runs[run_id] for run_id in sorted(runs) if runs[run_id].fingerprint == plan.fingerprint]
    return tuple(find_quarantine(plan.spec.output.uri, same))


def _finish_commits(plan: Plan) -> None:
    """Do what an earlier command left to do behind the commit point of its runs."""
    out = plan.spec.output.uri
    for manifest in plan.committed:
        if not commit.is_finished(out, manifest.run_id):
            commit.finish_commit(out, manifest.run_id)


def _with_the_others(failed: Mapping[str, BatchdetError], done: Sequence[Run]) -> BatchdetError:
    """Return the last run's error; it says of all runs which were refused, or stopped, and which were committed."""
    *_, last = failed.values()
    if len(failed) > 1 or done:
        words = {run_id: "refused" if isinstance(e, TooManyFailures) else "stopped" for run_id, e in failed.items()}
        named = list(failed.items())[:_NAMED]
        parts = [f"run {run_id} was {words[run_id]}: {error.message}" for run_id, error in named]
        parts += [f"so were {len(failed) - _NAMED} more, which batchdet status lists"] if len(failed) > _NAMED else []
        parts += [
            f"run {run.run_id} was committed: {counted(run.images_ok + run.images_failed, 'image')}" for run in done
        ]
        last.message = ". ".join(parts)
        last.args = (last.message,)
    return last


def _label(plan: Plan, run_id: str, command: _Command, probe: "Probe", started: float) -> Run:
    """Label what a plan holds, and commit it.

    Raises:
        TooManyFailures: It was not committed; the reason is kept in the run's folder.
    """
    from batchdet.pipeline.attempts import AtWork
    from batchdet.pipeline.resources import plan_workers
    from batchdet.pipeline.session import ray_session

    spec, inventory, out = plan.spec, plan.inventory, plan.spec.output.uri
    watcher, lease, deadline = command.watcher, command.lease, command.deadline
    reached = {"plan": time.monotonic()}
    _say_plan(plan, watcher)
    address = spec.compute.address
    trial = trial_of(plan)
    probe.begin(trial)
    trial_s = trial.timeout_s("gpu" if address or gpu_count() else "cpu")
    deadline.expect("the start of Ray" if address is None else f"the connection to the cluster at {address}")
    with ray_session(address, command.verbose, plugin_to_ship(spec.model.family), spec.name) as capacity:
        from batchdet.pipeline.ray_data import get_ready, label_segments

        reached["ray"] = time.monotonic()
        get_ready(address is None)
        deadline.expect("the trial of the model", 2 * trial_s)  # it is tried again without images
        probed = probe.result(capacity)
        reached["probe"] = time.monotonic()
        deadline.expect("the choice of the workers")
        workers = plan_workers(spec.compute, capacity, probed.device, probed.reason, probed.model.alone)
        rows, why = segment_rows(plan, workers, probed.model)
        choices = workers.choices | probed.model.choices | {"segment_rows": f"{rows}: {why}"}
        for key, choice in choices.items():
            watcher.say(f"{key}: {choice}")
        staged = list_staged(out, plan.resume_run_id) if plan.resume_run_id else {}
        segments = {shard_id: len(shard.segments) for shard_id, shard in staged.items()}
        account = Account(plan, probed.model, workers, rows, segments, started, reached)
        watcher.say(f"predicted: {account.outlook}")
        if account.prediction is not None:
            check_space(out, account.prediction.output_bytes.likely)
        lineage = Lineage(
            run_id=run_id,
            name=spec.name,
            fingerprint=plan.fingerprint,
            inventory_digest=inventory.digest,
            started_at=now(),
            model=probed.model.card,
            versions=versions(),
            machine=machine(),
            choices=choices,
            computed=probed.model.computed,
            canary=probed.model.canary,
            prediction=account.prediction.to_dict() if account.prediction else {},
            cut=cut_of(spec),
            segment_rows=rows,
            fresh=plan.fresh,
        )
        lease.name_run(run_id)
        clear_refusal(out, run_id)
        spec_text = _begin(inventory, spec, lineage, lease)
        left = _left(plan.shards, staged)
        done = {shard_id: frozenset(shard.segments) for shard_id, shard in staged.items()}
        images_done = _done_images(plan.shards, left)
        watcher.start(plan.shards.image_count, plan.shards.size_bytes, images_done)
        watcher.expect(account.expected_s)
        lease.tell(images_done, plan.shards.image_count)
        labelling = time.monotonic()
        at_work = AtWork(run_id)
        deadline.expect("the start of the workers", trial_s)
        if left:
            for segment in label_segments(
                spec.as_computed(lineage.computed),
                out,
                run_id,
                plan.shards,
                left,
                inventory.carried,
                done,
                plan.model_sha256,
                workers,
                probed.model,
                rows,
            ):
                if deadline.doing == "labelling":
                    deadline.progress()
                else:
                    deadline.expect("labelling", _more_s(spec, probed.model, rows), at_work.text, at_work.moved)
                account.pace.add(segment.images, segment.times_s)
                images_done += segment.images
                lease.tell(images_done, plan.shards.image_count)
                watcher.advance(segment.images, segment.failed, segment.size_bytes)
                failpoint("run.staged")
                if lease.lost:
                    lease.check()
        wall_s = time.monotonic() - labelling
        deadline.expect("the end of Ray")
    deadline.rest("the commit")
    manifest = commit.commit_run(
        out,
        spec,
        spec_text,
        lineage,
        (ExpectedShard(s.shard_id, s.shard_uri, s.first_position, s.image_count) for s in plan.shards),
        inventory.carried,
        probed.model.labels,
        wall_s,
        lease,
        watcher.committing,
        plan.resume_run_id is not None,
        commit.Before(plan.retried_images, frozenset(shard.uri for shard in plan.quarantine)),
        lambda output_bytes: {"passed_over": dict(plan.passed_over)} | account.close(wall_s, output_bytes),
    )
    run = _closed(manifest, "committed", plan, started)
    return replace(run, measured=account.measured | _say_passed_over(plan, run_id, watcher))


def _more_s(spec: JobSpec, model: "LoadedModel", rows: int) -> float:
    """Return how many seconds without a staged segment are no fault: large segments, slow images.

    On a cluster the notes of what workers have in work lie on other machines, and each image of a segment may hang.
    """
    image_s = model.alone.work_ms.mean / 1e3 if model.alone else _UNKNOWN_IMAGE_S
    return rows * (_SLOWER * image_s + (spec.compute.image_timeout_s if spec.compute.address else 0))


def _derive(plan: Plan, command: _Command, started: float) -> Run:
    """Make the rows of what a plan holds from those of earlier runs, and commit them."""
    spec, out, derivation = plan.spec, plan.spec.output.uri, plan.derivation
    assert derivation is not None
    _say_plan(plan, command.watcher)
    lineage, resumed = _without_model(plan, derivation.run_ids, command)
    spec_text = _begin(plan.inventory, spec, lineage, command.lease)
    command.watcher.start(plan.shards.image_count, plan.shards.size_bytes, 0, "deriving rows for")
    lenient = spec.policy.model_copy(update={"max_failed_fraction": 1.0, "max_bad_shard_fraction": 1.0})
    manifest = commit.commit_run(
        out,
        spec.model_copy(update={"policy": lenient}),  # what failed was committed before
        spec_text,
        lineage,
        (ExpectedShard(s.shard_id, s.shard_uri, s.first_position, s.image_count) for s in plan.shards),
        plan.inventory.carried,
        _labels_of(out, derivation.run_ids[-1]),
        time.monotonic() - started,
        command.lease,
        command.watcher.committing,
        resumed,
        segments=derived_segments(derivation, plan.inventory, plan.shards, lineage, out),
    )
    return _closed(manifest, "derived", plan, started)


def _make_current(plan: Plan, run_id: str, command: _Command) -> Run:
    """Commit a run without rows, so that the settings of a complete run are current again.

    Args:
        plan: A plan of these settings.
        run_id: The newest run of these settings.
        command: What all steps share.
    """
    started = time.monotonic()
    spec, out = plan.spec, plan.spec.output.uri
    nothing = plan.inventory.keep(np.zeros(plan.inventory.objects.num_rows, bool))
    plan = replace(plan, inventory=nothing)
    lineage, _ = _without_model(plan, (run_id,), command)
    command.watcher.say(
        f"nothing is labelled: run {run_id} and those before it hold everything with these settings; "
        f"run {lineage.run_id} makes them current again"
    )
    spec_text = _begin(nothing, spec, lineage, command.lease)
    manifest = commit.make_current(out, spec, spec_text, lineage, _labels_of(out, run_id), command.lease)
    return _closed(manifest, "made_current", plan, started)


def _without_model(plan: Plan, run_ids: tuple[str, ...], command: _Command) -> tuple[Lineage, bool]:
    """Make the lineage of a run that takes what it knows from earlier ones.

    A process that was killed in such a run has left one that no command resumes: its id is taken again.

    Returns:
        The lineage, and whether its run was begun before.
    """
    out = plan.spec.output.uri
    begun = next((run for run in unfinished_runs(out, committed_runs(out)) if _can_be_begun_again(run, plan)), None)
    run_id = begun.run_id if begun else new_run_id(list_runs(out))
    earlier = Lineage.read(out, run_ids[-1])
    lineage = Lineage(
        run_id=run_id,
        name=plan.spec.name,
        fingerprint=plan.fingerprint,
        inventory_digest=plan.inventory.digest,
        started_at=now(),
        model=earlier.model if earlier else {},
        versions=versions(),
        machine=machine(),
        computed=earlier.computed if earlier else {},
        cut=cut_of(plan.spec),
        derived_from=run_ids,
    )
    command.lease.name_run(run_id)
    clear_refusal(out, run_id)
    return lineage, begun is not None


def _can_be_begun_again(run: Unfinished, plan: Plan) -> bool:
    lineage = run.lineage
    return bool(lineage and lineage.derived_from and lineage.fingerprint == plan.fingerprint and not run.newer)


def _begin(inventory: Inventory, spec: JobSpec, lineage: Lineage, lease: Lease) -> str:
    """Write the records that a run has from its beginning, and return the text of its spec."""
    spec_text = dump_job(spec)
    commit.begin_run(spec.output.uri, lineage, spec_text, inventory.to_bytes(), lease)
    return spec_text


def _labels_of(out: str, run_id: str) -> list[str]:
    labels: list[str] = read_record(out, run_id, "stats.json").get("labels", [])
    return labels


def _closed(manifest: Manifest, status: str, plan: Plan, started: float) -> Run:
    """Name the newest run in the output, and return a committed one."""
    out = plan.spec.output.uri
    failpoint("run.committed")
    commit.mark_newest(out, max([manifest.run_id, *(m.run_id for m in plan.committed)]))
    wall_s = time.monotonic() - started
    return Run(manifest.run_id, out, status, manifest.images_ok, manifest.images_failed, wall_s, manifest)


def _say_passed_over(plan: Plan, run_id: str, watcher: Watcher) -> dict[str, Any]:
    """Say which members of tar shards were neither images nor carried over; only reading them tells.

    Returns:
        ``passed_over`` and ``members_passed_over`` as in ``stats.json``.
    """
    members: dict[str, int] = {}
    if plan.inventory.format == "webdataset":
        stats = storage.read_bytes(storage.join(run_folder(plan.spec.output.uri, run_id), "stats.json"))
        members = json.loads(stats)["members_passed_over"]
    if members:
        watcher.say(f"passed over in the tar shards: {in_words(members)}")
    return {"passed_over": dict(plan.passed_over), "members_passed_over": members}


def _say_plan(plan: Plan, watcher: Watcher) -> None:
    inventory = plan.inventory
    objects = counted(inventory.objects.num_rows, _OBJECTS[inventory.format])
    watcher.say(f"source: {objects}, {plan.shards.size_bytes / 1e6:.1f} MB, from {inventory.root}")
    if plan.passed_over:
        watcher.say(f"passed over: {in_words(plan.passed_over)}")
    if plan.note:
        watcher.say(plan.note)
    if plan.why:
        watcher.say(plan.why)
    if plan.warning:
        watcher.say(f"warning: {plan.warning}")
    if plan.later_objects:
        watcher.say(f"{counted(plan.later_objects, 'object', 'other')}: labelled after that run")


_OBJECTS: Final = {
    "webdataset": "tar shard",
    "parquet": "Parquet file",
    "folder": "image",
    "uri_list": "listed image",
}


def _left(shards: ShardPlan, staged: dict[str, StagedShard]) -> Sequence[int]:
    """Say which shards still have something to do, by their place in the plan."""
    if not staged:
        return range(len(shards))
    complete = {shard_id for shard_id, shard in staged.items() if shard.complete}
    return [i for i, shard in enumerate(shards) if shard.shard_id not in complete]


def _done_images(shards: ShardPlan, left: Sequence[int]) -> int:
    """Count the images of the shards that are complete, where the listing tells."""
    return (shards.image_count or 0) - (shards.subset(left).image_count or 0)
