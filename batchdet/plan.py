"""Plans: what a job would do, found out without doing it."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from batchdet import storage
from batchdet.errors import OutputError, SpecError
from batchdet.model.cache import fetch_model
from batchdet.source.inventory import Inventory, list_inventory, plan_shards
from batchdet.source.shards import ShardPlan
from batchdet.spec import JobSpec
from batchdet.table import commit
from batchdet.table.lineage import Lineage, fingerprint
from batchdet.table.manifest import TABLES, Manifest, committed_runs, list_runs, run_folder

SLICE_ROWS: Final = 1024
"""Images per shard where the source is a list of single images."""


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
        committed: Every committed run of the output, oldest first.
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
    committed: Sequence[Manifest] = field(default=(), repr=False)

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
    spec = in_full(spec)
    out = spec.output.uri
    check_apart(spec, out)
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
    unfinished = None if nothing else _unfinished(spec, out, digest, inventory, fresh, committed)
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
        committed=committed,
    )


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
    spec: JobSpec, out: str, digest: str, inventory: Inventory, fresh: bool, committed: Sequence[Manifest]
) -> tuple[str, Inventory] | None:
    """Find the newest unfinished run that this one can go on with, and what it was to label.

    It must have the same fingerprint and cut, and every object that it was to label must still be there unchanged;
    objects that are new since it began are the next run's.
    """
    done = {m.run_id for m in committed}
    last = max((m.run_id for m in committed if m.fingerprint == digest), default="")
    for run_id in reversed(list_runs(out)):
        if fresh and run_id <= last:
            return None
        if run_id in done:
            continue
        lineage = Lineage.read(out, run_id)
        if lineage is None or lineage.fingerprint != digest or lineage.cut != cut_of(spec) or lineage.fresh != fresh:
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


def cut_of(spec: JobSpec) -> str:
    """Say where shards are cut into segments; a run goes on only with the same cut."""
    return f"{spec.compute.segment_rows} rows, {spec.compute.segment_bytes} bytes, slices of {SLICE_ROWS}"


def in_full(spec: JobSpec) -> JobSpec:
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


def check_apart(spec: JobSpec, out: str) -> None:
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
