"""Plans: what a job would do, found out without doing it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchdet import storage
from batchdet.errors import SourceEmpty, SpecError
from batchdet.model.fetch import fetch_asked
from batchdet.model.licence import licences_of
from batchdet.model.stated import check_classes
from batchdet.places import check_apart, check_not_own_tables, in_full
from batchdet.records.hive import is_too_long, why_not
from batchdet.results.changes import name_changes, name_cut_change, name_source_change
from batchdet.results.derive import Derivation, find_derivation
from batchdet.results.history import Unfinished, compare, unfinished_runs
from batchdet.results.quarantine import Quarantined, find_quarantine, quarantine_to_dict
from batchdet.results.settings import fingerprint_of
from batchdet.source.inventory import Inventory, list_inventory, plan_shards
from batchdet.source.shards import SLICED, ShardPlan
from batchdet.spec import JobSpec, unknown_way
from batchdet.table.gather import RUN_DATE
from batchdet.table.lineage import Lineage
from batchdet.table.manifest import Manifest, committed_runs, run_folder
from batchdet.table.parts import MAX_PARTITIONS
from batchdet.table.refusal import Refusal, limits_of, read_refusal
from batchdet.text import counted

SLICE_ROWS: Final = 1024
"""Images per shard where the source is a list of single images."""


@dataclass(frozen=True)
class Plan:
    """What a job would do.

    Args:
        spec: The job, with places written out in full.
        inventory: What is to be labelled now.
        shards: Units of planning, in order; made when they are asked for.
        known_objects: Source objects that committed runs hold already and that are left alone.
        retried_objects: Source objects of ``inventory`` that hold images which failed in committed runs.
        retried_images: Those images.
        later_objects: Source objects that come after this run, because an unfinished one is resumed first, or because
            others are derived first.
        passed_over: What else the listing holds: kind -> how many.
        note: What to know of how the source was read (no header line, renamed columns); "" for nothing.
        model_sha256: Digest of the model's bytes.
        fingerprint: Everything that changes results, as one digest.
        resume_run_id: The unfinished run that goes on, or None.
        begun: How that run was begun.
        finished_run_id: The committed run that has done all this already, or None.
        why: Why this is a new run, why it goes on, or why there is nothing to do; "" for the first run of an output.
        warning: What to know before using the model: a licence with duties; "" for nothing.
        committed: Every committed run of the output, oldest first.
        quarantine: Shards that runs of this fingerprint could not read to their end.
        refused: Unfinished runs that the same limits would refuse again; they and what they hold are left alone.
        fresh: Whether everything is labelled again.
        derivation: How the rows of ``inventory`` are made from committed ones, without the model; None labels them.
        makes_current: Whether there is nothing to label, and a run without rows makes these settings current again.
        relabelled_objects: Source objects that the current settings hold and these do not, so that they are labelled
            again.
        relabelled_bytes: Their listed bytes.
        settings_change: What differs from the current settings; "" when nothing.
    """

    spec: JobSpec
    inventory: Inventory
    shards: ShardPlan = field(repr=False)
    known_objects: int
    retried_objects: int
    retried_images: int
    later_objects: int
    passed_over: Mapping[str, int]
    note: str
    model_sha256: str
    fingerprint: str
    resume_run_id: str | None
    begun: Lineage | None = field(repr=False)
    finished_run_id: str | None
    why: str
    warning: str = ""
    committed: Sequence[Manifest] = field(default=(), repr=False)
    quarantine: Sequence[Quarantined] = field(default=(), repr=False)
    refused: Mapping[str, Refusal] = field(default_factory=dict, repr=False)
    fresh: bool = False
    derivation: Derivation | None = field(default=None, repr=False)
    makes_current: bool = False
    relabelled_objects: int = 0
    relabelled_bytes: int = 0
    settings_change: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``plan --json``."""
        return {
            "name": self.spec.name,
            "format": self.inventory.format,
            "source": self.inventory.root,
            "objects": self.inventory.objects.num_rows,
            "known_objects": self.known_objects,
            "retried_objects": self.retried_objects,
            "retried_images": self.retried_images,
            "later_objects": self.later_objects,
            "passed_over": dict(self.passed_over),
            "note": self.note,
            "shards": len(self.shards),
            "warning": self.warning,
            "images": self.shards.image_count,
            "size_bytes": self.shards.size_bytes,
            "carried_columns": {f.name: str(f.type) for f in self.inventory.carried},
            "model_sha256": self.model_sha256,
            "fingerprint": self.fingerprint,
            "output": self.spec.output.uri,
            "partition_by": list(self.spec.output.partition_by),
            "resume_run_id": self.resume_run_id,
            "finished_run_id": self.finished_run_id,
            "why": self.why,
            "derived_from": list(self.derivation.run_ids) if self.derivation else [],
            "makes_current": self.makes_current,
            "relabelled_objects": self.relabelled_objects,
            "relabelled_bytes": self.relabelled_bytes,
            "settings_change": self.settings_change,
            "quarantine": quarantine_to_dict(self.quarantine),
            "refused_runs": {run_id: refusal.message for run_id, refusal in self.refused.items()},
        }


def plan_job(spec: JobSpec, fresh: bool = False, refused: Collection[str] = ()) -> Plan:
    """List the source, fetch the model's digest and say what a run would do, without doing it.

    Args:
        spec: The job.
        fresh: Label everything again, whatever committed runs hold.
        refused: Unfinished runs that this command has tried to commit: they and what they hold are left alone.

    Raises:
        SourceError: The source cannot be listed or holds nothing.
        OutputError: The output lies in the source, or cannot be read.
        ModelError: The model cannot be fetched or has another digest.
        SpecError: ``policy.on_settings_change`` is ``refuse``, and objects would be labelled again.
    """
    spec = in_full(spec)
    out = spec.output.uri
    check_apart(spec, out)
    committed = committed_runs(out)
    listed, emptied = _list(spec, committed)
    check_not_own_tables(listed, out)
    check_partitions(spec, listed)
    model = fetch_asked(spec.model)
    check_classes(spec.model, model)
    job = _Job(
        spec,
        fresh,
        listed.format,
        model.sha256,
        fingerprint_of(spec, listed.format, model.sha256),
    )
    finished = [m for m in committed if m.fingerprint == job.fingerprint] or emptied
    unfinished = unfinished_runs(out, committed)
    todo, retried_images = _to_do(job, listed, finished)
    known = int(np.count_nonzero(~todo))
    standing = {run.run_id: found for run in unfinished if (found := _standing(job, run, listed.keep(todo)))}
    aside = {*refused, *standing}
    for run in unfinished:
        if run.run_id in aside and run.inventory is not None:
            todo &= ~listed.held_by(run.inventory.objects)
    inventory = listed.keep(todo)
    nothing = inventory.objects.num_rows == 0 and bool(finished)
    candidates = [] if nothing else [run for run in unfinished if run.run_id not in aside]
    going_on, obstacle = _look_for_unfinished(job, inventory, candidates)
    if going_on is not None and going_on.inventory is not None:
        inventory = going_on.inventory.keep(going_on.inventory.held_by(inventory.objects))
        retried_images = np.where(listed.held_by(inventory.objects), retried_images, 0)
    derivation = None
    if going_on is None and spec.policy.incremental and not fresh:
        new = listed.keep(todo & (retried_images == 0))
        derivation = find_derivation(spec, new, committed, model.sha256, job.fingerprint)
        if derivation is not None:
            inventory = new.keep(derivation.exact)
    rest = listed.keep(todo).without(inventory.objects) if derivation else listed.keep(todo)
    current = committed[-1].fingerprint if committed else job.fingerprint
    relabelled = rest if current != job.fingerprint and not fresh else rest.keep(np.zeros(rest.objects.num_rows, bool))
    if relabelled.objects.num_rows:
        held = compare(out, relabelled, [m for m in committed if m.fingerprint == current], False).known
        relabelled = relabelled.keep(held)
    plan = Plan(
        spec=spec,
        inventory=inventory,
        shards=plan_shards(inventory, SLICE_ROWS),
        known_objects=known,
        retried_objects=int(np.count_nonzero(retried_images)),
        retried_images=int(retried_images.sum()),
        later_objects=int(np.count_nonzero(todo)) - inventory.objects.num_rows,
        passed_over=listed.passed_over,
        note=listed.note,
        model_sha256=model.sha256,
        fingerprint=job.fingerprint,
        resume_run_id=going_on.run_id if going_on else None,
        begun=going_on.lineage if going_on else None,
        finished_run_id=finished[-1].run_id if nothing else None,
        why="",
        warning=licences_of(model).warning,
        committed=committed,
        quarantine=find_quarantine(out, [m for m in committed if m.fingerprint == job.fingerprint]),
        refused=standing,
        fresh=fresh,
        derivation=derivation,
        makes_current=nothing and current != job.fingerprint and finished[-1].fingerprint == job.fingerprint,
        relabelled_objects=relabelled.objects.num_rows,
        relabelled_bytes=plan_shards(relabelled, SLICE_ROWS).size_bytes,
        settings_change=""
        if current == job.fingerprint
        else name_changes(out, committed[-1].run_id, spec, job.source_format, job.model_sha256),
    )
    if plan.relabelled_objects and spec.policy.on_settings_change == "refuse":
        raise SpecError(
            f"policy.on_settings_change: refuse, and since run {committed[-1].run_id} {plan.settings_change}; "
            f"{_amount(plan)} would be labelled again",
            code="policy.settings_changed",
            key="policy.on_settings_change",
            hint="--set policy.on_settings_change=relabel labels them again",
        )
    return replace(plan, why=_why(plan, job, finished, emptied, obstacle))


def _amount(plan: Plan) -> str:
    """Say how much of what the current settings hold is to be labelled again."""
    size = f" ({plan.relabelled_bytes / 1e6:,.1f} MB)" if plan.relabelled_bytes else ""
    return f"{counted(plan.relabelled_objects, 'source object')}{size} of the current settings"


@dataclass(frozen=True)
class _Job:
    """What decides whether a run is the one that is asked for."""

    spec: JobSpec
    fresh: bool
    source_format: str
    model_sha256: str
    fingerprint: str

    @property
    def out(self) -> str:
        return self.spec.output.uri


def _list(spec: JobSpec, committed: Sequence[Manifest]) -> tuple[Inventory, list[Manifest]]:
    """List the source. One that holds nothing any more is no mistake if a run of this output has labelled it.

    Returns:
        The inventory; and the newest run over a source that is empty now.
    """
    try:
        return list_inventory(spec.source), []
    except SourceEmpty:
        out = spec.output.uri
        for manifest in reversed(committed):
            if not name_source_change(out, manifest.run_id, spec):
                before = Inventory.read(storage.join(run_folder(out, manifest.run_id), "inventory.parquet"))
                return before.keep(np.zeros(before.objects.num_rows, bool)), [manifest]
        raise


def _to_do(
    job: _Job, listed: Inventory, finished: Sequence[Manifest]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Say which objects are to be labelled, and how many images of each failed in committed runs.

    Args:
        job: With the policy.
        listed: What the source holds.
        finished: Committed runs of the same fingerprint, oldest first.
    """
    count, policy = listed.objects.num_rows, job.spec.policy
    everything = job.fresh or not (policy.incremental or any(m.inventory_digest == listed.digest for m in finished))
    if everything:
        return np.ones(count, bool), np.zeros(count, np.int64)
    standing = compare(job.out, listed, finished, policy.retry == "failed")
    return ~standing.known | (standing.failed_images > 0), standing.failed_images


def _standing(job: _Job, run: Unfinished, todo: Inventory) -> Refusal | None:
    """Return why a run was refused if a resumed one would be, too: same limits, same objects, nothing to try again."""
    refusal = read_refusal(job.out, run.run_id)
    if refusal is None or not refusal.lasting or refusal.limits != limits_of(job.spec.policy):
        return None
    whole = run.inventory is not None and bool(run.inventory.held_by(todo.objects).all())
    return refusal if whole and not _obstacle(job, run, todo, False) else None


def _look_for_unfinished(
    job: _Job, inventory: Inventory, unfinished: Sequence[Unfinished]
) -> tuple[Unfinished | None, str]:
    """Find the newest unfinished run that this one can go on with.

    Args:
        job: With the settings.
        inventory: What is to be labelled.
        unfinished: The runs that may be resumed, newest first.

    Returns:
        The run, or None; and why the newest run of all, if it is unfinished, is not the one.
    """
    obstacle = ""
    for run in unfinished:
        newest = not obstacle and not run.newer
        found = _obstacle(job, run, inventory, newest)
        if not found:
            return run, obstacle
        if newest:
            obstacle = f"the unfinished run {run.run_id} cannot be resumed: {found}"
    return None, obstacle


def _obstacle(job: _Job, run: Unfinished, inventory: Inventory, in_detail: bool) -> str:
    """Say why this job cannot go on with an unfinished run, as half a sentence; "" when it can.

    It must have the same fingerprint and cut, and what it was to label must still be there unchanged and to be
    labelled: some of its tar or Parquet files, as each is a shard of its own, or every image of its slices. Objects
    that are new since it began are the next run's.
    """
    if run.lineage is None:
        return run.ended
    if run.lineage.fresh != job.fresh:
        return f"it was begun {'with' if run.lineage.fresh else 'without'} --fresh"
    if run.lineage.derived_from:
        return "it labels nothing, and what it was to derive is derived again"
    if run.lineage.fingerprint != job.fingerprint and not in_detail:
        return "it has other settings"
    if run.lineage.fingerprint != job.fingerprint:
        return name_changes(job.out, run.run_id, job.spec, job.source_format, job.model_sha256)
    if run.lineage.cut != cut_of(job.spec):
        return name_cut_change(job.out, run.run_id, job.spec)
    if unknown := unknown_way(run.lineage.computed):
        return unknown
    if run.ended or run.inventory is None:
        return run.ended
    left = run.inventory.held_by(inventory.objects)
    if left.all() or (left.any() and run.inventory.format not in SLICED):  # what is staged of other objects stands
        return ""
    moved = name_source_change(job.out, run.run_id, job.spec)
    gone = f"{np.count_nonzero(~left)} of its {len(left)} source objects are gone, changed or labelled by now"
    return moved or gone


def _why(plan: Plan, job: _Job, finished: Sequence[Manifest], emptied: Sequence[Manifest], obstacle: str) -> str:
    """Say in a sentence why this is a new run, goes on, or has nothing to do."""
    if plan.resume_run_id:
        gone = (plan.begun.inventory_digest != plan.inventory.digest) if plan.begun else False
        without = "; its source objects that are gone or changed since are left out" if gone else ""
        return f"run {plan.resume_run_id} resumes where it stopped{without}"
    if plan.finished_run_id and emptied:
        return f"{job.spec.source.uri} holds nothing any more; the last run over it is {plan.finished_run_id}"
    known = f"{counted(plan.known_objects, 'source object')} labelled already"
    if plan.makes_current:
        return f"{known} with these settings, the last of them by run {plan.finished_run_id}; they become current again"
    if plan.finished_run_id:
        return f"{known}, the last of them by run {plan.finished_run_id}; --fresh labels them again"
    reasons = []
    if job.fresh and plan.committed:
        reasons.append("a new run, because of --fresh")
    elif obstacle:
        reasons.append(f"a new run, because {obstacle}")
    elif plan.committed and not finished:
        reasons.append(f"a new run, because since run {plan.committed[-1].run_id} {plan.settings_change}")
    elif finished and not plan.known_objects and not plan.retried_objects:
        moved = name_source_change(job.out, finished[-1].run_id, job.spec)
        reasons.append(f"a new run, because {moved or 'no source object is as a run has labelled it'}")
    if plan.known_objects:
        reasons.append(known)
    if plan.derivation:
        count = plan.inventory.objects.num_rows
        newest = plan.derivation.run_ids[-1]
        reasons.append(
            f"{count:,} of {count + plan.later_objects:,} source objects can be derived from run {newest} "
            f"({plan.derivation.changes}), without running the model"
        )
    if plan.relabelled_objects:
        reasons.append(f"{_amount(plan)} {'is' if plan.relabelled_objects == 1 else 'are'} labelled again")
    if plan.retried_images:
        where = (
            "" if job.source_format in SLICED else f" with the {counted(plan.retried_objects, 'file')} that they are in"
        )
        reasons.append(f"{counted(plan.retried_images, 'image', 'failed')} tried again{where} (policy.retry)")
    return "; ".join(reasons)


def cut_of(spec: JobSpec) -> str:
    """Say where the spec wants shards cut into segments; a run goes on only with the same cut."""
    return f"{spec.compute.segment_rows} rows, {spec.compute.segment_bytes} bytes, slices of {SLICE_ROWS}"


def as_begun(plan: Plan) -> JobSpec:
    """Compute as the run did that goes on, so that one run never mixes two ways."""
    return plan.spec.as_computed(plan.begun.computed) if plan.begun else plan.spec


def check_partitions(spec: JobSpec, inventory: Inventory) -> None:
    """Refuse partitions that could not be committed, or not be read back, as far as the listing tells.

    Raises:
        SpecError: A column is unknown, or unfit by its name, type or values.
    """
    known = [RUN_DATE, *inventory.carried.names]
    for i, name in enumerate(spec.output.partition_by):
        key = f"output.partition_by[{i}]"
        if name not in known:
            raise SpecError(
                f"{key}: found {name!r}; known here are {', '.join(known)} (columns carried over from the source)",
                code="output.partition",
                key=key,
            )
        if name == RUN_DATE:
            continue
        if why := why_not(name):
            raise SpecError(
                f"{key}: {name!r} cannot name folders: {why}; rename it in the source, or partition by another column",
                code="output.partition_name",
                key=key,
            )
        type_ = inventory.carried.field(name).type
        if not any(is_kind(type_) for is_kind in _PARTITION_KINDS):
            raise SpecError(
                f"{key}: column {name!r} is {type_}; partition by text, integers, booleans or dates",
                code="output.partition",
                key=key,
            )
    if len(set(spec.output.partition_by)) < len(spec.output.partition_by):
        raise SpecError("output.partition_by: a column stands twice; keep one", code="output.partition")
    _check_partition_values([n for n in spec.output.partition_by if n in inventory.objects.schema.names], inventory)


def _check_partition_values(names: Sequence[str], inventory: Inventory) -> None:
    """Refuse values of a list that no folder can be called by, and too many of them."""
    if not names:
        return
    columns = pa.table([inventory.objects[name].cast(pa.string()) for name in names], names=list(map(str, names)))
    values = columns.group_by(names).aggregate([])
    for name in names:
        for value in values[name].to_pylist():
            if value is not None and is_too_long(name, value):
                raise SpecError(
                    f"output.partition_by: column {name!r} has a value of {len(value)} characters, too long for the "
                    f"name of a folder ({value[:40]!r}...); partition by another column",
                    code="output.partition_value",
                    key="output.partition_by",
                )
    if values.num_rows > MAX_PARTITIONS:
        raise SpecError(
            f"output.partition_by: {', '.join(names)} makes {values.num_rows} partitions of at most {MAX_PARTITIONS}; "
            "partition by a column with few values",
            code="output.partition_value",
            key="output.partition_by",
        )


_PARTITION_KINDS: Final = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_integer,
    pa.types.is_boolean,
    pa.types.is_date,
)
