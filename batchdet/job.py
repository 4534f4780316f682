"""One job from spec to committed tables: the only place where the packages are wired together."""

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from batchdet import storage
from batchdet.errors import OutputError, SpecError
from batchdet.model.cache import fetch_model
from batchdet.source.inventory import Inventory, Shard, list_inventory, plan_shards
from batchdet.spec import JobSpec
from batchdet.specfile import dump_job
from batchdet.table import commit
from batchdet.table.lineage import Lineage, fingerprint, machine, new_run_id, now, versions
from batchdet.table.manifest import TABLES, Manifest, committed_runs, list_runs, load_manifest, run_folder
from batchdet.table.staging import list_staged

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
        spec: The job.
        inventory: What is to be labelled now.
        shards: Units of planning, in order.
        known_objects: Source objects that committed runs hold already.
        model_sha256: Digest of the model's bytes.
        fingerprint: Everything that changes results, as one digest.
        resume_run_id: The unfinished run that goes on, or None.
        finished_run_id: The committed run that has done all this already, or None.
    """

    spec: JobSpec
    inventory: Inventory
    shards: Sequence[Shard] = field(repr=False)
    known_objects: int
    model_sha256: str
    fingerprint: str
    resume_run_id: str | None
    finished_run_id: str | None

    @property
    def images(self) -> int | None:
        """Images to label, or None when only reading can tell (tar)."""
        counts = [shard.image_count for shard in self.shards]
        return None if any(count < 0 for count in counts) else sum(counts)

    @property
    def size_bytes(self) -> int:
        """Listed bytes."""
        return sum(max(o.size_bytes, 0) for shard in self.shards for o in shard.objects)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``plan --json``."""
        return {
            "name": self.spec.name,
            "format": self.inventory.format,
            "source": self.inventory.root,
            "objects": self.inventory.objects.num_rows,
            "known_objects": self.known_objects,
            "shards": len(self.shards),
            "images": self.images,
            "size_bytes": self.size_bytes,
            "carried_columns": {f.name: str(f.type) for f in self.inventory.carried},
            "model_sha256": self.model_sha256,
            "fingerprint": self.fingerprint,
            "output": storage.normalize(self.spec.output.uri),
            "partition_by": list(self.spec.output.partition_by),
            "resume_run_id": self.resume_run_id,
            "finished_run_id": self.finished_run_id,
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
        fresh: Ignore what earlier runs hold.

    Raises:
        SourceError: The source cannot be listed or holds nothing.
        OutputError: The output lies in the source.
        ModelError: The model cannot be fetched or has another digest.
    """
    out = storage.normalize(spec.output.uri)
    _check_apart(spec, out)
    inventory = list_inventory(spec.source)
    _check_partitions(spec, inventory)
    model = fetch_model(spec.model.uri, spec.model.sha256)
    digest = fingerprint(spec, model.sha256, _labels_sha256(spec))
    finished = [] if fresh else [m for m in committed_runs(out) if m.fingerprint == digest]
    last = finished[-1].run_id if finished else None
    known = 0
    if spec.policy.incremental:
        for manifest in finished:
            done = Inventory.read(storage.join(run_folder(out, manifest.run_id), "inventory.parquet"))
            left = inventory.without(done.objects)
            known += inventory.objects.num_rows - left.objects.num_rows
            inventory = left
    elif any(m.inventory_digest == inventory.digest for m in finished):
        known, inventory = inventory.objects.num_rows, inventory.without(inventory.objects)
    nothing = inventory.objects.num_rows == 0
    resume = None if fresh or nothing else _unfinished(out, digest, inventory.digest)
    return Plan(
        spec=spec,
        inventory=inventory,
        shards=list(plan_shards(inventory, SLICE_ROWS)),
        known_objects=known,
        model_sha256=model.sha256,
        fingerprint=digest,
        resume_run_id=resume,
        finished_run_id=last if nothing else None,
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
    out = storage.normalize(spec.output.uri)
    _check_writable(out)
    plan = plan_job(spec, fresh)
    if plan.finished_run_id is not None:
        manifest = load_manifest(out, plan.finished_run_id)
        assert manifest is not None
        commit.finish_commit(out, manifest.run_id)
        watcher.say(
            f"nothing new: {plan.known_objects} source objects are labelled already, the last of them by run "
            f"{manifest.run_id}; --fresh labels them again"
        )
        return Run(manifest.run_id, out, "nothing_new", 0, 0, time.monotonic() - started, manifest)
    try:
        return _run(plan, out, started, watcher, verbose)
    finally:
        watcher.stop()


def _run(plan: Plan, out: str, started: float, watcher: Watcher, verbose: bool) -> Run:
    from batchdet.pipeline.probe import probe_model
    from batchdet.pipeline.ray_data import label_segments
    from batchdet.pipeline.resources import plan_workers
    from batchdet.pipeline.session import ray_session

    spec, inventory = plan.spec, plan.inventory
    if plan.known_objects:
        watcher.say(f"{plan.known_objects} source objects are labelled already; {inventory.objects.num_rows} are new")
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
        )
        run_id, spec_text = lineage.run_id, dump_job(spec)
        storage.write_bytes(storage.join(run_folder(out, run_id), "spec.yaml"), spec_text.encode())
        inventory.write(storage.join(run_folder(out, run_id), "inventory.parquet"))
        lineage.write(out)
        staged = list_staged(out, run_id) if plan.resume_run_id else {}
        if plan.resume_run_id:
            segments = sum(len(shard.segments) for shard in staged.values())
            watcher.say(f"run {run_id} goes on: {segments} segments are staged already")
        left = [s for s in plan.shards if s.shard_id not in staged or not staged[s.shard_id].complete]
        watcher.start(plan.images, plan.size_bytes, _images_of(plan.shards) - _images_of(left))
        labelling = time.monotonic()
        done = {shard_id: frozenset(shard.segments) for shard_id, shard in staged.items()}
        if left:
            for segment in label_segments(spec, out, run_id, left, inventory.carried, done, plan.model_sha256, workers):
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
    )
    return Run(
        run_id,
        out,
        "committed",
        manifest.images_ok,
        manifest.images_failed,
        time.monotonic() - started,
        manifest,
    )


def _images_of(shards: Iterable[Shard]) -> int:
    return sum(max(shard.image_count, 0) for shard in shards)


def _unfinished(out: str, digest: str, inventory_digest: str) -> str | None:
    """Find the newest run that was begun with the same fingerprint and inventory, and not committed."""
    for run_id in reversed(list_runs(out)):
        if load_manifest(out, run_id) is None:
            lineage = Lineage.read(out, run_id)
            if lineage and lineage.fingerprint == digest and lineage.inventory_digest == inventory_digest:
                return run_id
    return None


def _labels_sha256(spec: JobSpec) -> str:
    if spec.model.labels is None:
        return ""
    return hashlib.sha256(storage.read_bytes(storage.normalize(spec.model.labels))).hexdigest()


def _check_apart(spec: JobSpec, out: str) -> None:
    """Refuse an output that is the source, lies in it, or holds it: the next run would read its own tables."""
    uri = storage.normalize(spec.source.uri)
    parts = uri.split("/")
    fixed = "/".join(parts[: next((i for i, p in enumerate(parts) if storage.is_glob(p)), len(parts))])
    if out == fixed or (out.startswith(fixed.rstrip("/") + "/") and not storage.is_glob(uri)):
        raise OutputError(f"output.uri: {out} lies in source.uri {uri}; give the tables a folder of their own")
    if any((fixed + "/").startswith(f"{out.rstrip('/')}/{table}/") for table in TABLES):
        raise OutputError(f"source.uri: {uri} lies among the tables of output.uri {out}; give those their own folder")


def _check_partitions(spec: JobSpec, inventory: Inventory) -> None:
    known = [commit.RUN_DATE, *inventory.carried.names]
    for i, name in enumerate(spec.output.partition_by):
        if name not in known:
            raise SpecError(
                f"output.partition_by[{i}]: found {name!r}; known here are {', '.join(known)} "
                "(columns carried over from the source)"
            )
    if len(set(spec.output.partition_by)) < len(spec.output.partition_by):
        raise SpecError("output.partition_by: a column stands twice; keep one")


def _check_writable(out: str) -> None:
    """Write and delete a small object, so that an output that cannot be written is known before any work is done."""
    probe = storage.join(out, "_batchdet", ".writable")
    try:
        storage.write_bytes(probe, b"")
        storage.delete([probe])
    except storage.StorageError as error:
        raise OutputError(f"output.uri: {error.message}; name a folder or bucket that can be written") from error


__all__ = ["Plan", "Run", "Silent", "Watcher", "plan_job", "run_job"]
