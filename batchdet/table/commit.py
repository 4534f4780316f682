"""The commit: staged segments become part files, once each, and then a manifest makes them a run.

Order of writing: part files in the run's folder, the counts checked, part files moved to their place, ``stats.json``,
``manifest.json`` (the commit point), ``_SUCCESS``; then staged files go. Every name is deterministic, so that the
same command repairs a crash at any step.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv

from batchdet import storage
from batchdet.errors import OutputLocked, TooManyFailures
from batchdet.failpoint import failpoint
from batchdet.records.schema import SCHEMA_VERSION
from batchdet.spec import JobSpec
from batchdet.table.gather import ExpectedShard, Failures, Gathered, gather
from batchdet.table.lineage import Lineage, now
from batchdet.table.manifest import FAILED_LIST, TABLES, Manifest, run_folder
from batchdet.table.staging import staged_folder

_NAMED: Final = 3
"""Failed images that the message itself names."""
_NAME_MAX: Final = 200
"""Characters of each of them there."""


def commit_run(
    out: str,
    spec: JobSpec,
    spec_text: str,
    lineage: Lineage,
    shards: Iterable[ExpectedShard],
    carried: pa.Schema,
    labels: list[str],
    wall_s: float,
    progress: Callable[[int], None] = lambda images: None,
    check_lease: Callable[[], None] = lambda: None,
    resumed: bool = False,
    retried: tuple[int, int] = (0, 0),
    measured: Callable[[int], dict[str, Any]] = lambda output_bytes: {},
) -> Manifest:
    """Commit a run whose segments are all staged.

    Args:
        out: The output's URI.
        spec: The job.
        spec_text: What ``spec.yaml`` holds.
        lineage: The run's lineage; written again with its end.
        shards: The plan, in order.
        carried: Columns carried over from the source.
        labels: The model's labels, by class number.
        wall_s: Seconds that labelling took, for the rate.
        progress: Called with the number of images taken so far.
        check_lease: Raises when the output is no longer this run's; called before anything is visible.
        resumed: An earlier process may have stopped in this run's commit; what it moved and no longer belongs goes.
        retried: Images that failed in committed runs and are tried again here, and the source objects they are in.
        measured: Called with the size of the part files; gives further keys of ``stats.json``.

    Returns:
        The manifest.

    Raises:
        ConservationError: Images listed and images recorded differ; nothing was committed.
        TooManyFailures: More images failed than the policy allows; nothing was committed.
        OutputLocked: Another run took the output over; nothing was committed.
    """
    run_id, folder = lineage.run_id, run_folder(out, lineage.run_id)
    failpoint("commit.gather.before")
    gathered = gather(out, spec, lineage, shards, carried, labels, progress)
    failpoint("commit.gather.after")
    counts = gathered.stats.to_dict()["images"]
    check_lease()
    _check_failures(spec, folder, counts, gathered, retried)
    if resumed:
        _remove_strays(out, run_id, gathered)
    for part in (*gathered.images, *gathered.detections):
        source, target = storage.join(folder, "parts", part.path), storage.join(out, part.path)
        failpoint("commit.move")
        storage.persist(lambda source=source, target=target: storage.move(source, target))  # type: ignore[misc]
    summary = gathered.stats.to_dict()
    summary["run"] = {"run_id": run_id, "wall_s": round(wall_s, 3), "images_per_s": _rate(counts["listed"], wall_s)}
    further = measured(sum(part.size_bytes for part in (*gathered.images, *gathered.detections)))
    summary |= further | {"run": summary["run"] | further.get("run", {})}
    stats_text = (json.dumps(summary, indent=1) + "\n").encode()
    failpoint("commit.stats.before")
    _put_own(storage.join(folder, "stats.json"), stats_text, check_lease)
    failpoint("commit.stats.after")
    replace(lineage, finished_at=now()).write(out)
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
        unread_uris=tuple(gathered.unread_uris),
    )
    check_lease()
    failpoint("commit.manifest.before")
    _put_own(storage.join(folder, "manifest.json"), manifest.to_json(), check_lease)
    failpoint("commit.manifest.after")
    _withdraw_what_was_cleared_up(out, manifest, check_lease)
    finish_commit(out, run_id)
    return manifest


def _withdraw_what_was_cleared_up(out: str, manifest: Manifest, check_lease: Callable[[], None]) -> None:
    """Take a manifest back whose part files ``gc`` has removed, while this process was stopped just before it.

    Raises:
        OutputLocked: It was taken back; the same command makes the part files again.
    """
    try:
        check_lease()
    except OutputLocked:
        parts = (storage.join(out, part.path) for part in (*manifest.images, *manifest.detections))
        if all(map(storage.exists, parts)):
            return
        storage.delete([storage.join(run_folder(out, manifest.run_id), "manifest.json")])
        raise


def finish_commit(out: str, run_id: str) -> None:
    """Do what follows the commit point: the run's ``_SUCCESS``, then the clean-up. Safe to repeat."""
    folder = run_folder(out, run_id)
    _put(storage.join(folder, "_SUCCESS"), b"")
    failpoint("commit.success.after")
    for left_over in (staged_folder(out, run_id), storage.join(folder, "parts")):
        storage.persist(lambda left_over=left_over: storage.delete_folder(left_over))  # type: ignore[misc]
        failpoint("commit.clean_up")
    if FAILED_LIST in storage.persist(lambda: storage.list_names(folder)):
        storage.persist(lambda: storage.delete([storage.join(folder, FAILED_LIST)]))


def is_finished(out: str, run_id: str) -> bool:
    """Tell whether nothing of a committed run's commit is left to do."""
    folder = run_folder(out, run_id)
    names = storage.list_names(folder)
    return "_SUCCESS" in names and not {"staged", "parts", FAILED_LIST} & set(names)


def mark_newest(out: str, run_id: str) -> None:
    """Name the newest committed run in ``OUT/_SUCCESS``."""
    _put(storage.join(out, "_SUCCESS"), f"{run_id}\n".encode())


def _put(uri: str, data: bytes) -> None:
    storage.persist(lambda: storage.write_bytes(uri, data))


def _put_own(uri: str, data: bytes, check_lease: Callable[[], None]) -> None:
    """Write what only the lease's owner may write.

    Between the look at the lease and the write this process may have been stopped for minutes. So nothing is replaced
    unless the lease is looked at once more: what is there is either left over from an earlier commit of this run, or
    the new owner's.
    """
    if not storage.persist(lambda: storage.create(uri, data)):
        check_lease()
        _put(uri, data)


def _remove_strays(out: str, run_id: str, gathered: Gathered) -> None:
    """Remove part files of this run that an earlier, interrupted commit moved and this one does not have."""
    keep = {storage.join(out, part.path) for part in (*gathered.images, *gathered.detections)}
    for table in TABLES:
        for found in storage.find_all(storage.join(out, table)):
            if storage.basename(found.uri).startswith(f"part-{run_id}-") and found.uri not in keep:
                storage.delete([found.uri])


def _rate(images: int, wall_s: float) -> float:
    return round(images / wall_s, 3) if wall_s > 0 else 0.0


def _check_failures(
    spec: JobSpec, folder: str, counts: dict[str, Any], gathered: Gathered, retried: tuple[int, int]
) -> None:
    """Stop the commit when too much failed; a shard whose end could not be read counts as a shard, not as one image.

    As many images and shards as are tried again may fail again: their failure was committed before.
    Staged files with failures that may be mended are dropped, so that the same command tries those images again.
    """
    allowed = spec.policy.max_failed_fraction
    listed, failed = counts["listed"], counts["failed"]
    images, shards = retried
    what, which = "", gathered.failures
    if listed and (failed - images) / listed > allowed:
        codes = ", ".join(f"{code} {n}" for code, n in counts["by_error_code"].items())
        what = f"{failed} of {listed} images failed ({codes})"
    elif gathered.shards and (gathered.broken_shards.count - shards) / gathered.shards > allowed:
        which = gathered.broken_shards
        what = f"{which.count} of {gathered.shards} shards could not be read to their end"
    if what:
        storage.delete(gathered.retriable)
        named = _list_failures(storage.join(folder, FAILED_LIST), which)
        raise TooManyFailures(
            f"{what}: {named}; policy.max_failed_fraction allows {allowed:g}: nothing was committed. Mend them, or "
            "raise it, and run the same command again: what succeeded is kept"
        )


def _list_failures(uri: str, which: Failures) -> str:
    """Write what failed to a file, and name the first of it, as a part of a sentence."""
    text = io.BytesIO()
    pyarrow.csv.write_csv(pa.Table.from_pylist(which.first), text)
    _put(uri, text.getvalue())
    first = ", ".join(_short(row["uri"]) for row in which.first[:_NAMED])
    more = f" and {which.count - _NAMED} more" if which.count > _NAMED else ""
    listed = f"the first {len(which.first)} are listed" if len(which.first) < which.count else "listed"
    return f"{first}{more}, {listed} with the reasons in {uri}"


def _short(name: str) -> str:
    """Put a name on one line."""
    name = " ".join(name.split())
    return name if len(name) <= _NAME_MAX else f"{name[: _NAME_MAX - 3]}..."
