"""One job from spec to committed tables: the only place where the packages are wired together."""

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from batchdet import storage
from batchdet.errors import OutputError, SpecError
from batchdet.model.cache import fetch_model
from batchdet.source.inventory import Inventory, list_inventory, plan_shards
from batchdet.source.shards import ShardPlan
from batchdet.spec import JobSpec
from batchdet.specfile import dump_job
from batchdet.table import commit
from batchdet.table.lease import Lease
from batchdet.table.lineage import Lineage, fingerprint, machine, new_run_id, now, versions
from batchdet.table.manifest import TABLES, Manifest, committed_runs, list_runs, load_manifest, run_folder
from batchdet.table.staging import StagedShard, list_staged

if TYPE_CHECKING:
    from batchdet.results.open import Results

SLICE_ROWS: Final = 1024
"""Images per shard where the source is a list of single images."""


class Watcher(Protocol):
    """Is told how a run goes on; what a terminal or a log shows."""

    def say(self, text: str) -> None:
        """Take one line of news."""

    def start(self, total_images: int | None, total_bytes: int, done_images: int) -> None:
        """Learn the size of the job; ``total_images`` is None when only reading can tell."""

    def advance(self, images: int, failed: int, size_bytes: int) -> None:
        """Learn that a segment is staged."""

    def committing(self, images: int) -> None:
        """Learn how many images the commit has taken so far."""

    def stop(self) -> None:
        """Learn that the run is over, well or not."""


class Silent:
    """A watcher that says nothing."""

    def say(self, text: str) -> None:
        """Ignore."""

    def start(self, total_images: int | None, total_bytes: int, done_images: int) -> None:
        """Ignore."""

    def advance(self, images: int, failed: int, size_bytes: int) -> None:
        """Ignore."""

    def committing(self, images: int) -> None:
        """Ignore."""

    def stop(self) -> None:
        """Ignore."""


@dataclass(frozen=True)
class Plan:
    """What a job would do.

    Args:
        spec: The job, with places written out in full.
        inventory: What is to be labelled now.
        shards: Units of planning, in order; made when they are asked for.
        known_objects: Source objects that committed runs hold already.
        later_objects: Source objects that are new but left for the next run, because an unfinished one goes on.
        model_sha256: Digest of the model's bytes.
        fingerprint: Everything that changes results, as one digest.
        resume_run_id: The unfinished run that goes on, or None.
        finished_run_id: The committed run that has done all this already, or None.
        why: Why this is a new run, or why it goes on; "" for the first run of an output.
    """

    spec: JobSpec
    inventory: Inventory
    shards: ShardPlan = field(repr=False)
    known_objects: int
    later_objects: int
    model_sha256: str
    fingerprint: str
    resume_run_id: str | None
    finished_run_id: str | None
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``plan --json``."""
        return {
            "name": self.spec.name,
            "format": self.inventory.format,
            "source": self.inventory.root,
            "objects": self.inventory.objects.num_rows,
            "known_objects": self.known_objects,
            "later_objects": self.later_objects,
            "shards": len(self.shards),
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
        }


@dataclass(frozen=True)
class Run:
    """A job that was run.

    Args:
        run_id: The committed run.
        output: Folder of the tables.
        status: ``committed``, or ``nothing_new`` when a committed run holds everything already.
        images_ok: Labelled images of the run.
        images_failed: Failed images of the run.
        wall_s: Seconds from start to end.
        manifest: What was committed.
    """

    run_id: str
    output: str
    status: str
    images_ok: int
    images_failed: int
    wall_s: float
    manifest: Manifest = field(repr=False)

    def results(self) -> "Results":
        """Open the run's tables."""
        from batchdet.results.open import open_results

        return open_results(self.output, run=self.run_id)


def plan_job(spec: JobSpec, fresh: bool = False) -> Plan:
    """List the source, fetch the model's digest and say what a run would do, without doing it.

    Args:
        spec: The job.
        fresh: Label everything again, whatever committed runs hold.

    Raises:
        SourceError: The source cannot be listed or holds nothing.
        OutputError: The output lies in the source, or cannot be read.
        ModelError: The model cannot be fetched or has another digest.
    """
    spec = _in_full(spec)
    out = spec.output.uri
    _check_apart(spec, out)
    listed = list_inventory(spec.source)
    _check_not_own_tables(listed, out)
    _check_partitions(spec, listed)
    model = fetch_model(spec.model.uri, spec.model.sha256)
    digest = fingerprint(spec, listed.format, model.sha256, _labels_sha256(spec))
    committed = committed_runs(out)
    finished = [m for m in committed if m.fingerprint == digest]
    inventory = listed if fresh else _without_known(spec, out, listed, finished)
    known = listed.objects.num_rows - inventory.objects.num_rows
    nothing = inventory.objects.num_rows == 0
    unfinished = None if nothing else _unfinished(spec, out, digest, inventory, fresh, finished)
    later = 0
    if unfinished:
        later = inventory.objects.num_rows - unfinished[1].objects.num_rows
        inventory = unfinished[1]
    return Plan(
        spec=spec,
        inventory=inventory,
        shards=plan_shards(inventory, SLICE_ROWS),
        known_objects=known,
        later_objects=later,
        model_sha256=model.sha256,
        fingerprint=digest,
        resume_run_id=unfinished[0] if unfinished else None,
        finished_run_id=finished[-1].run_id if nothing else None,
        why=_why(committed, finished, fresh, unfinished, known),
    )


def run_job(spec: JobSpec, fresh: bool = False, watcher: Watcher | None = None, verbose: bool = False) -> Run:
    """Label everything that is new, and commit it.

    Args:
        spec: The job.
        fresh: Label everything again, whatever earlier runs hold.
        watcher: Is told how it goes on.
        verbose: Let Ray speak.

    Returns:
        The run, committed.

    Raises:
        BatchdetError: See :mod:`batchdet.errors`; nothing was committed then, and what was done is kept.
    """
    watcher = watcher or Silent()
    started = time.monotonic()
    spec = _in_full(spec)
    out = spec.output.uri
    _check_apart(spec, out)
    _check_writable(out)
    try:
        with Lease(out) as lease:
            plan = plan_job(spec, fresh)
            committed = committed_runs(out)
            for manifest in committed:
                if not commit.is_finished(out, manifest.run_id):
                    commit.finish_commit(out, manifest.run_id)
            if plan.finished_run_id is None:
                return _run(plan, started, watcher, verbose, fresh, lease)
            commit.mark_newest(out, committed[-1].run_id)
            finished = next(m for m in committed if m.run_id == plan.finished_run_id)
            watcher.say(
                f"nothing new: {plan.known_objects} source objects are labelled already, the last of them by run "
                f"{finished.run_id}; --fresh labels them again"
            )
            return Run(finished.run_id, out, "nothing_new", 0, 0, time.monotonic() - started, finished)
    finally:
        watcher.stop()


def _run(plan: Plan, started: float, watcher: Watcher, verbose: bool, fresh: bool, lease: Lease) -> Run:
    from batchdet.pipeline.probe import probe_model
    from batchdet.pipeline.ray_data import label_segments
    from batchdet.pipeline.resources import plan_workers
    from batchdet.pipeline.session import ray_session

    spec, inventory, out = plan.spec, plan.inventory, plan.spec.output.uri
    _say_plan(plan, watcher)
    with ray_session(spec.compute.address, verbose) as capacity:
        probed = probe_model(spec, plan.model_sha256, capacity)
        workers = plan_workers(spec.compute, capacity, probed.device, probed.reason)
        for key, choice in workers.choices.items():
            watcher.say(f"{key}: {choice}")
        lineage = Lineage(
            run_id=plan.resume_run_id or new_run_id(),
            name=spec.name,
            fingerprint=plan.fingerprint,
            inventory_digest=inventory.digest,
            started_at=now(),
            model=probed.card,
            versions=versions(),
            machine=machine(),
            choices=workers.choices,
            cut=_cut(spec),
            fresh=fresh,
        )
        run_id, spec_text = lineage.run_id, dump_job(spec)
        storage.write_bytes(storage.join(run_folder(out, run_id), "spec.yaml"), spec_text.encode())
        inventory.write(storage.join(run_folder(out, run_id), "inventory.parquet"))
        lineage.write(out)
        staged = list_staged(out, run_id) if plan.resume_run_id else {}
        left = _left(plan.shards, staged)
        done = {shard_id: frozenset(shard.segments) for shard_id, shard in staged.items()}
        watcher.start(plan.shards.image_count, plan.shards.size_bytes, _done_images(plan.shards, left))
        labelling = time.monotonic()
        if left:
            for segment in label_segments(
                spec, out, run_id, plan.shards, left, inventory.carried, done, plan.model_sha256, workers
            ):
                watcher.advance(segment.images, segment.failed, segment.size_bytes)
        wall_s = time.monotonic() - labelling
    manifest = commit.commit_run(
        out,
        spec,
        spec_text,
        lineage,
        (commit.ExpectedShard(s.shard_id, s.shard_uri, s.first_position, s.image_count) for s in plan.shards),
        inventory.carried,
        probed.labels,
        wall_s,
        watcher.committing,
        lease.check,
        plan.resume_run_id is not None,
    )
    commit.mark_newest(out, run_id)
    return Run(
        run_id,
        out,
        "committed",
        manifest.images_ok,
        manifest.images_failed,
        time.monotonic() - started,
        manifest,
    )


def _say_plan(plan: Plan, watcher: Watcher) -> None:
    inventory = plan.inventory
    objects = f"{inventory.objects.num_rows} {_OBJECTS[inventory.format]}"
    watcher.say(f"source: {objects}, {plan.shards.size_bytes / 1e6:.1f} MB, from {inventory.root}")
    if plan.why:
        watcher.say(plan.why)
    if plan.later_objects:
        watcher.say(f"{plan.later_objects} objects are new since that run began; the next run takes them")


_OBJECTS: Final = {
    "webdataset": "tar shards",
    "parquet": "Parquet files",
    "folder": "images",
    "uri_list": "listed images",
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


def _without_known(spec: JobSpec, out: str, listed: Inventory, finished: Sequence[Manifest]) -> Inventory:
    """Drop the objects that committed runs of the same fingerprint hold."""
    if not spec.policy.incremental:
        done = any(m.inventory_digest == listed.digest for m in finished)
        return listed.without(listed.objects) if done else listed
    left = listed
    for manifest in finished:
        known = Inventory.read(storage.join(run_folder(out, manifest.run_id), "inventory.parquet")).objects
        if manifest.unread_uris:
            unread = pc.is_in(known["uri"], pa.array(manifest.unread_uris, pa.string()))
            known = known.filter(pc.invert(unread))
        left = left.without(known)
    return left


def _unfinished(
    spec: JobSpec, out: str, digest: str, inventory: Inventory, fresh: bool, finished: Sequence[Manifest]
) -> tuple[str, Inventory] | None:
    """Find the newest unfinished run that this one can go on with, and what it was to label.

    It must have the same fingerprint and cut, and every object that it was to label must still be there unchanged;
    objects that are new since it began are the next run's.
    """
    last = finished[-1].run_id if finished else ""
    for run_id in reversed(list_runs(out)):
        if fresh and run_id <= last:
            return None
        lineage = Lineage.read(out, run_id)
        if lineage is None or lineage.fingerprint != digest or lineage.cut != _cut(spec) or lineage.fresh != fresh:
            continue
        if load_manifest(out, run_id) is not None:
            continue
        try:
            begun = Inventory.read(storage.join(run_folder(out, run_id), "inventory.parquet"))
        except storage.NotFound:
            continue
        gone = begun.without(inventory.objects).objects.num_rows
        if begun.digest == lineage.inventory_digest and gone == 0:
            return run_id, begun
    return None


def _why(
    committed: Sequence[Manifest],
    finished: Sequence[Manifest],
    fresh: bool,
    unfinished: tuple[str, Inventory] | None,
    known: int,
) -> str:
    """Say in a sentence why this is a new run, or goes on."""
    if unfinished:
        return f"run {unfinished[0]} goes on where it stopped"
    if fresh and committed:
        return "a new run, because of --fresh"
    if known:
        return f"{known} source objects are labelled already"
    if committed and not finished:
        return f"a new run: the model or a setting that changes results is not that of run {committed[-1].run_id}"
    return ""


def _cut(spec: JobSpec) -> str:
    return f"{spec.compute.segment_rows} rows, {spec.compute.segment_bytes} bytes, slices of {SLICE_ROWS}"


def _in_full(spec: JobSpec) -> JobSpec:
    """Write places out in full, so that they mean the same in every process of a cluster."""
    model = {"uri": spec.model.uri if spec.model.uri.startswith("builtin:") else storage.normalize(spec.model.uri)}
    if spec.model.labels is not None:
        model["labels"] = storage.normalize(spec.model.labels)
    if storage.scheme(spec.output.uri) == "memory" or storage.scheme(spec.source.uri) == "memory":
        raise SpecError("memory:// is another place in each process of a cluster; give a folder or an object store")
    return spec.model_copy(
        update={
            "source": spec.source.model_copy(update={"uri": storage.normalize(spec.source.uri)}),
            "model": spec.model.model_copy(update=model),
            "output": spec.output.model_copy(update={"uri": storage.normalize(spec.output.uri)}),
        }
    )


def _labels_sha256(spec: JobSpec) -> str:
    if spec.model.labels is None:
        return ""
    return hashlib.sha256(storage.read_bytes(spec.model.labels)).hexdigest()


def _check_apart(spec: JobSpec, out: str) -> None:
    """Refuse an output that is the source or lies in it, and a source that lies among the output's tables."""
    uri = spec.source.uri
    parts = uri.split("/")
    fixed = _real("/".join(parts[: next((i for i, p in enumerate(parts) if storage.is_glob(p)), len(parts))]))
    real = _real(out)
    if not storage.is_glob(uri) and (real == fixed or real.startswith(fixed.rstrip("/") + "/")):
        raise OutputError(f"output.uri: {out} lies in source.uri {uri}; give the tables a folder of their own")
    if any((fixed + "/").startswith(f"{real.rstrip('/')}/{table}/") for table in TABLES):
        raise OutputError(f"source.uri: {uri} lies among the tables of output.uri {out}; give those their own folder")


def _check_not_own_tables(inventory: Inventory, out: str) -> None:
    """Refuse a glob that reaches into the output: the next run would read this one's tables."""
    prefix = _real(out).rstrip("/") + "/"
    if pc.any(pc.starts_with(inventory.objects["uri"], prefix)).as_py():
        raise OutputError(
            f"output.uri: {out} lies in what source.uri {inventory.root} names; give the tables a folder of their own"
        )


def _real(uri: str) -> str:
    return os.path.realpath(uri) if storage.scheme(uri) == "file" else uri


def _check_partitions(spec: JobSpec, inventory: Inventory) -> None:
    known = [commit.RUN_DATE, *inventory.carried.names]
    for i, name in enumerate(spec.output.partition_by):
        if name not in known:
            raise SpecError(
                f"output.partition_by[{i}]: found {name!r}; known here are {', '.join(known)} "
                "(columns carried over from the source)"
            )
        if name == commit.RUN_DATE:
            continue
        type_ = inventory.carried.field(name).type
        if not any(is_kind(type_) for is_kind in _PARTITION_KINDS):
            raise SpecError(
                f"output.partition_by[{i}]: column {name!r} is {type_}; partition by text, integers, booleans or dates"
            )
    if len(set(spec.output.partition_by)) < len(spec.output.partition_by):
        raise SpecError("output.partition_by: a column stands twice; keep one")


_PARTITION_KINDS: Final = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_integer,
    pa.types.is_boolean,
    pa.types.is_date,
)


def _check_writable(out: str) -> None:
    """Write and delete a small object, so that an output that cannot be written is known before any work is done."""
    probe = storage.join(out, "_batchdet", ".writable")
    try:
        storage.write_bytes(probe, b"")
        storage.delete([probe])
    except storage.StorageError as error:
        raise OutputError(f"output.uri: {error.message}; name a folder or bucket that can be written") from error


__all__ = ["Plan", "Run", "Silent", "Watcher", "plan_job", "run_job"]
