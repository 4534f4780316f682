"""The commit: staged segments become part files, once each, and then a manifest makes them a run.

Order of writing: part files in the run's folder, the counts checked, part files moved to their place, drafts of
``lineage.json``, ``stats.json`` and ``manifest.json``; then the lease's next number is taken for the run. That is the
commit point. The drafts become the records, the manifest last, so that readers see the run; then ``_SUCCESS``, and
staged files go. What is written before the commit point has the lease's number in its path: a driver that was stopped
and wakes up when another one owns the output overwrites nothing of that one's, and its commit fails.

On a local disk each file, and each folder that got a new name, is synced before the commit point.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import pyarrow as pa

from batchdet import storage
from batchdet.errors import TooManyFailures
from batchdet.failpoint import failpoint
from batchdet.records.schema import SCHEMA_VERSION, SHARD_CODES
from batchdet.records.segment import LabelledSegment
from batchdet.spec import JobSpec
from batchdet.stats import RunStats
from batchdet.table.gather import FAILURES_KEPT, ExpectedShard, Gathered, gather
from batchdet.table.lease import Lease
from batchdet.table.lineage import Lineage, now
from batchdet.table.manifest import PART_NAME, TABLES, Manifest, draft_folder, run_folder
from batchdet.table.refusal import FAILED_LIST, LEFT_BY_REFUSAL, Refusal, clear_refusal, limits_of
from batchdet.table.staging import staged_folder
from batchdet.text import csv_cell

_NAMED: Final = 3
"""Failed images or bad shards that the message itself names."""
_NAME_MAX: Final = 200
"""Characters of each of them there."""
_LEAST_SHARDS: Final = 10
"""A run of fewer shards counts as so many: one bad shard on a quiet night is no reason to commit nothing."""
_SHARDS_IN_STATS: Final = 20
"""Bad shards that ``stats.json`` names; the manifest names all."""
_RECORDS: Final = ("stats.json", "lineage.json", "manifest.json")
_BEGUN: Final = ("spec.yaml", "inventory.parquet")
"""Records that a run has from its beginning. There is a draft of one only where a resumed run changes it."""
_BLOCK_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True)
class Before:
    """What failed in committed runs and is tried again; that it fails again is no reason to refuse a run.

    Args:
        images: Images that failed.
        shards: URIs of shards that are in quarantine.
    """

    images: int = 0
    shards: Collection[str] = frozenset()


def begin_run(out: str, lineage: Lineage, spec_text: str, inventory: bytes, lease: Lease) -> None:
    """Write the records that a run has from its beginning.

    Each is created and never replaced, so that a driver that stalls here and resumes later cannot change the records
    of a run that another owner has committed. If a resumed run has other records, they are drafts until its commit.

    Args:
        out: The output's URI.
        lineage: The run's lineage.
        spec_text: Content of ``spec.yaml``.
        inventory: Content of ``inventory.parquet``.
        lease: On the output.
    """
    folder, draft = run_folder(out, lineage.run_id), draft_folder(out, lineage.run_id, lease.next_number)
    for name, data in zip(_BEGUN, (spec_text.encode(), inventory), strict=True):
        if not _create(storage.join(folder, name), data):
            _put(storage.join(draft, name), data)
        failpoint(f"run.{name.split('.')[0]}.after")
    _create(storage.join(folder, "lineage.json"), lineage.to_json())  # its draft is written by the commit
    failpoint("run.lineage.after")


def commit_run(
    out: str,
    spec: JobSpec,
    spec_text: str,
    lineage: Lineage,
    shards: Iterable[ExpectedShard],
    carried: pa.Schema,
    labels: list[str],
    wall_s: float,
    lease: Lease,
    progress: Callable[[int], None] = lambda images: None,
    resumed: bool = False,
    before: Before = Before(),
    measured: Callable[[int], dict[str, Any]] = lambda output_bytes: {},
    segments: Iterable[LabelledSegment] | None = None,
) -> Manifest:
    """Commit a run whose segments are all there.

    Args:
        out: The output's URI.
        spec: The job.
        spec_text: What ``spec.yaml`` holds.
        lineage: The run's lineage; written again with its end.
        shards: The plan, in order.
        carried: Columns carried over from the source.
        labels: The model's labels, by class number.
        wall_s: Seconds that labelling took, for the rate.
        lease: On the output; the commit takes its next number.
        progress: Called with the number of images taken so far.
        resumed: An earlier process may have stopped in this run's commit; what it moved and no longer belongs goes.
        before: What failed in committed runs and is tried again here.
        measured: Called with the size of the part files; gives further keys of ``stats.json``.
        segments: The segments, in the plan's order; None takes those that are staged.

    Returns:
        The manifest.

    Raises:
        ConservationError: Images listed and images recorded differ; nothing was committed.
        TooManyFailures: More images or shards failed than the policy allows; nothing was committed.
        OutputLocked: Another run took the output over; nothing was committed.
    """
    run_id = lineage.run_id
    failpoint("commit.gather.before")
    gathered = gather(out, spec, lineage, shards, carried, labels, progress, lease.next_number, segments)
    failpoint("commit.gather.after")
    lease.check()
    _check_failures(spec, out, run_id, gathered, before)
    return _commit_gathered(out, spec, spec_text, lineage, gathered, wall_s, lease, resumed, measured)


def make_current(
    out: str,
    spec: JobSpec,
    spec_text: str,
    lineage: Lineage,
    labels: list[str],
    lease: Lease,
) -> Manifest:
    """Commit a run without rows, so that its settings are those of the newest run.

    Args:
        out: The output's URI.
        spec: The job.
        spec_text: What ``spec.yaml`` holds.
        lineage: The run's lineage; written again with its end.
        labels: The model's labels, by class number.
        lease: On the output; the commit takes its next number.

    Returns:
        The manifest, without part files.

    Raises:
        OutputLocked: Another run took the output over; nothing was committed.
    """
    gathered = Gathered(RunStats.empty(labels))
    return _commit_gathered(out, spec, spec_text, lineage, gathered, 0.0, lease, False, lambda output_bytes: {})


def _commit_gathered(
    out: str,
    spec: JobSpec,
    spec_text: str,
    lineage: Lineage,
    gathered: Gathered,
    wall_s: float,
    lease: Lease,
    resumed: bool,
    measured: Callable[[int], dict[str, Any]],
) -> Manifest:
    """Move part files to their place and write the records, the manifest last; see :func:`commit_run`."""
    run_id, draft = lineage.run_id, draft_folder(out, lineage.run_id, lease.next_number)
    counts = gathered.stats.to_dict()["images"]
    if resumed:
        _remove_strays(out, run_id, gathered, lease.next_number)
    for part in (*gathered.images, *gathered.detections):
        source, target = storage.join(draft, part.path), storage.join(out, part.path)
        failpoint("commit.move")
        storage.persist(lambda source=source, target=target: storage.move(source, target))  # type: ignore[misc]
    summary = gathered.stats.to_dict()
    summary["run"] = {"run_id": run_id, "wall_s": round(wall_s, 3), "images_per_s": _rate(counts["listed"], wall_s)}
    summary["quarantine"] = {
        "shards": len(gathered.bad_shards),
        "first": [asdict(shard) for shard in gathered.bad_shards[:_SHARDS_IN_STATS]],
    }
    further = measured(sum(part.size_bytes for part in (*gathered.images, *gathered.detections)))
    summary |= further | {"run": summary["run"] | further.get("run", {})}
    stats_text = (json.dumps(summary, indent=1) + "\n").encode()
    failpoint("commit.stats.before")
    _put(storage.join(draft, "stats.json"), stats_text)
    failpoint("commit.stats.after")
    lineage_text = replace(lineage, finished_at=now()).to_json()
    _put(storage.join(draft, "lineage.json"), lineage_text)
    manifest = Manifest(
        run_id=run_id,
        name=spec.name,
        created_at=now(),
        schema_version=SCHEMA_VERSION,
        fingerprint=lineage.fingerprint,
        inventory_digest=lineage.inventory_digest,
        partition_by=spec.output.partition_by,
        images_listed=counts["listed"],
        images_ok=counts["ok"],
        images_failed=counts["failed"],
        images=tuple(gathered.images),
        detections=tuple(gathered.detections),
        spec_sha256=hashlib.sha256(spec_text.encode()).hexdigest(),
        stats_sha256=hashlib.sha256(stats_text).hexdigest(),
        lineage_sha256=hashlib.sha256(lineage_text).hexdigest(),
        inventory_sha256=_inventory_digest(out, run_id, draft),
        bad_shards=tuple(gathered.bad_shards),
        empty_shards=tuple(gathered.empty_shards),
        lease_number=lease.next_number,
    )
    publish(out, manifest, lease)
    return manifest


def publish(out: str, manifest: Manifest, lease: Lease) -> None:
    """Commit a run whose part files are in their place, and whose other drafts are written.

    Raises:
        OutputLocked: Another run took the output over; nothing was committed.
    """
    data = manifest.to_json()
    _put(storage.join(draft_folder(out, manifest.run_id, lease.next_number), "manifest.json"), data)
    failpoint("commit.point.before")
    lease.take_for_commit(manifest.run_id, hashlib.sha256(data).hexdigest())
    failpoint("commit.point.after")
    complete_commit(out, lease)
    finish_commit(out, manifest.run_id)


def complete_commit(out: str, lease: Lease) -> None:
    """Make the drafts of the last commit the run's records, whether this process or one before it made the commit.

    Safe to repeat. Drafts that are gone, or not what the commit says, leave the run uncommitted.
    """
    commit = lease.commit
    if commit is None:
        return
    folder, draft = run_folder(out, commit.run_id), draft_folder(out, commit.run_id, commit.number)
    try:
        stats, lineage, manifest = (_read(storage.join(draft, name)) for name in _RECORDS)
    except storage.NotFound:
        return lease.settle()
    if hashlib.sha256(manifest).hexdigest() == commit.sha256:
        present = storage.list_names(draft)
        for name in (name for name in _BEGUN if name in present):
            _put(storage.join(folder, name), _read(storage.join(draft, name)))
        _put(storage.join(folder, "stats.json"), stats)
        _put(storage.join(folder, "lineage.json"), lineage)
        failpoint("commit.manifest.before")
        _create(storage.join(folder, "manifest.json"), manifest)
        failpoint("commit.manifest.after")
    lease.settle()


def finish_commit(out: str, run_id: str) -> None:
    """Do what follows the commit point: the run's ``_SUCCESS``, then the clean-up. Safe to repeat."""
    folder = run_folder(out, run_id)
    _put(storage.join(folder, "_SUCCESS"), b"")
    failpoint("commit.success.after")
    for left_over in (staged_folder(out, run_id), storage.join(folder, "parts")):
        storage.persist(lambda left_over=left_over: storage.delete_folder(left_over))  # type: ignore[misc]
        failpoint("commit.clean_up")
    clear_refusal(out, run_id)


def is_finished(out: str, run_id: str) -> bool:
    """Tell whether nothing of a committed run's commit is left to do."""
    folder = run_folder(out, run_id)
    names = storage.list_names(folder)
    return "_SUCCESS" in names and not ({"staged", "parts"} | LEFT_BY_REFUSAL) & set(names)


def mark_newest(out: str, run_id: str) -> None:
    """Name the newest committed run in ``OUT/_SUCCESS``."""
    _put(storage.join(out, "_SUCCESS"), f"{run_id}\n".encode())


def _digest(uri: str) -> str:
    def read() -> str:
        digest = hashlib.sha256()
        with storage.open_read(uri) as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    return storage.persist(read)


def _inventory_digest(out: str, run_id: str, draft: str) -> str:
    """Return the digest of the inventory as it is going to be: its draft, or what the run was begun with."""
    folder = draft if "inventory.parquet" in storage.list_names(draft) else run_folder(out, run_id)
    return _digest(storage.join(folder, "inventory.parquet"))


def _read(uri: str) -> bytes:
    return storage.persist(lambda: storage.read_bytes(uri))


def _create(uri: str, data: bytes) -> bool:
    return storage.persist(lambda: storage.create(uri, data))


def _put(uri: str, data: bytes) -> None:
    storage.persist(lambda: storage.write_bytes(uri, data))


def _remove_strays(out: str, run_id: str, gathered: Gathered, number: int) -> None:
    """Remove part files of this run that an earlier, interrupted commit moved and this one does not have.

    Files of a higher number are left: if this driver stalled, a newer owner may have committed the run with them.
    """
    keep = {storage.join(out, part.path) for part in (*gathered.images, *gathered.detections)}
    for table in TABLES:
        for found in storage.find_all(storage.join(out, table)):
            match = PART_NAME.fullmatch(storage.basename(found.uri))
            if match and match["run"] == run_id and int(match["lease"] or 0) <= number and found.uri not in keep:
                storage.delete([found.uri])


def _rate(images: int, wall_s: float) -> float:
    return round(images / wall_s, 3) if wall_s > 0 else 0.0


def _check_failures(spec: JobSpec, out: str, run_id: str, gathered: Gathered, before: Before) -> None:
    """Refuse the commit when too much failed, and keep the reason in the run's folder.

    A shard that was not read to its end counts as a shard, never as one image of thousands.
    Staged files with failures that may be mended are dropped, so that the same command tries those images again.
    """
    policy, summary = spec.policy, gathered.stats.to_dict()["images"]
    images, failed = summary["listed"] - gathered.shard_rows, gathered.failures.count
    bad = gathered.bad_shards
    new = sum(shard.uri not in before.shards for shard in bad)
    if images and (failed - before.images) / images > policy.max_failed_fraction:
        counted = {code: n for code, n in summary["by_error_code"].items() if code not in SHARD_CODES}
        codes = ", ".join(f"{code} {n}" for code, n in counted.items())
        what, code, key = f"{failed} of {images} images failed ({codes})", None, "max_failed_fraction"
        count, first = failed, gathered.failures.first
    elif new / max(gathered.shards, _LEAST_SHARDS) > policy.max_bad_shard_fraction:
        what = f"{len(bad)} of {gathered.shards} shards could not be read to their end"
        code, key, count = "run.too_many_bad_shards", "max_bad_shard_fraction", len(bad)
        first = [
            {"uri": shard.uri, "error_code": shard.code, "error_message": shard.message}
            for shard in bad[:FAILURES_KEPT]
        ]
    else:
        return
    storage.delete(gathered.retriable)
    named = _list_failures(storage.join(run_folder(out, run_id), FAILED_LIST), count, first)
    refusal = TooManyFailures(
        f"{what}: {named}; policy.{key} allows {getattr(policy, key):g}: nothing was committed. Mend them, or "
        "raise it, and run the same command again: what succeeded is kept",
        code=code,
        key=f"policy.{key}",
    )
    counts = {"images": images, "images_failed": failed, "shards": gathered.shards, "shards_bad": len(bad)}
    Refusal(
        code=refusal.code,
        message=refusal.message,
        counts=counts,
        key=f"policy.{key}",
        limits=limits_of(policy),
        lasting=not gathered.retriable,
    ).write(out, run_id)
    raise refusal


def _list_failures(uri: str, count: int, first: list[dict[str, str]]) -> str:
    """Write what failed to a file, and name the first of it, as a part of a sentence."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(first[0])
    writer.writerows(map(csv_cell, row.values()) for row in first)
    _put(uri, text.getvalue().encode())
    names = [_short(row["uri"]) for row in first[:_NAMED]]
    if reason := first[0]["error_message"].removeprefix(f"{first[0]['uri']}: "):
        names[0] += f" ({_short(reason)})"
    more = f" and {count - _NAMED} more" if count > _NAMED else ""
    listed = f"the first {len(first)} are listed" if len(first) < count else "listed"
    return f"{', '.join(names)}{more}, {listed} with the reasons in {uri}"


def _short(name: str) -> str:
    """Put a name on one line."""
    name = " ".join(name.split())
    return name if len(name) <= _NAME_MAX else f"{name[: _NAME_MAX - 3]}..."
