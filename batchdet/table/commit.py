"""The commit: staged segments become part files, once each, and then a manifest makes them a run.

Order of writing: part files in the run's folder, the counts checked, part files moved to their place, ``stats.json``,
``manifest.json`` (the commit point), ``_SUCCESS``; then staged files go. Every name is deterministic, so that the
same command repairs a crash at any step.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from batchdet import storage
from batchdet.errors import ConservationError, OutputLocked, TooManyFailures
from batchdet.failpoint import failpoint
from batchdet.records.schema import RETRIABLE_CODES, SCHEMA_VERSION, SHARD_CODES, schema_of
from batchdet.records.segment import LabelledSegment
from batchdet.spec import JobSpec
from batchdet.stats import RunStats
from batchdet.table.lineage import Lineage, now, run_date
from batchdet.table.manifest import TABLES, Manifest, PartFile, run_folder
from batchdet.table.parts import PartWriter
from batchdet.table.staging import StagedShard, list_staged, read_staged, staged_folder

_READ_AHEAD: Final = 8
RUN_DATE: Final = "run_date"


@dataclass(frozen=True)
class ExpectedShard:
    """What the plan says of a shard.

    Args:
        shard_id: Its name.
        shard_uri: Where it is, for messages.
        first_position: Position of its first image.
        image_count: Images that the listing counted; -1 when only reading it could tell.
    """

    shard_id: str
    shard_uri: str
    first_position: int
    image_count: int


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
    gathered = _gather(out, spec, lineage, shards, carried, labels, progress)
    failpoint("commit.gather.after")
    counts = gathered.stats.to_dict()["images"]
    _check_failures(spec, counts, gathered, retried)
    check_lease()
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


def is_finished(out: str, run_id: str) -> bool:
    """Tell whether nothing of a committed run's commit is left to do."""
    folder = run_folder(out, run_id)
    names = storage.list_names(folder)
    return "_SUCCESS" in names and not {"staged", "parts"} & set(names)


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


@dataclass
class _Gathered:
    """What the one pass over the staged segments gave.

    Args:
        stats: Counts of everything.
        images: Part files of the images table, in the run's folder.
        detections: Part files of the detections table.
        unread_uris: Shards that could not be opened at all.
        retriable: Staged files with failures that another try may mend.
        broken_shards: Shards whose end could not be read, so that the number of their images is not known.
        shards: Shards in all.
    """

    stats: RunStats
    images: list[PartFile] = field(default_factory=list)
    detections: list[PartFile] = field(default_factory=list)
    unread_uris: list[str] = field(default_factory=list)
    retriable: list[str] = field(default_factory=list)
    broken_shards: int = 0
    shards: int = 0


def _gather(
    out: str,
    spec: JobSpec,
    lineage: Lineage,
    shards: Iterable[ExpectedShard],
    carried: pa.Schema,
    labels: list[str],
    progress: Callable[[int], None],
) -> _Gathered:
    """Take each staged segment once, in the plan's order, into part files in the run's folder."""
    run_id, by, rows = lineage.run_id, spec.output.partition_by, spec.output.part_rows
    folder = storage.join(run_folder(out, run_id), "parts")
    metadata = {
        "batchdet.schema_version": str(SCHEMA_VERSION),
        "batchdet.run_id": run_id,
        "batchdet.model_sha256": str(lineage.model.get("sha256", "")),
    }
    schemas = {table: schema_of(table, lineage.model.get("features", {})) for table in TABLES}
    images = PartWriter(
        folder, "images", run_id, pa.schema([*schemas["images"], *carried]), by, rows, metadata=metadata
    )
    detections = PartWriter(
        folder, "detections", run_id, schemas["detections"], by, rows, sort_by=("class_id",), metadata=metadata
    )
    gathered = _Gathered(RunStats.empty(labels))
    taken = 0
    for uri, segment in _take_once(shards, list_staged(out, run_id)):
        image_rows = _with_constant(segment.images, RUN_DATE, run_date(run_id), by)
        images.add(image_rows)
        detections.add(_with_partitions(segment.detections, image_rows, by))
        gathered.stats.add(segment.images, segment.detections)
        gathered.stats.add_times(segment.times_s)
        gathered.shards += segment.segment_index == 0
        _note_failures(gathered, uri, segment)
        taken += segment.images.num_rows
        progress(taken)
    constants = {RUN_DATE: run_date(run_id)}
    gathered.images, gathered.detections = images.close(constants), detections.close(constants)
    return gathered


def _note_failures(gathered: _Gathered, uri: str, segment: LabelledSegment) -> None:
    codes = pc.unique(segment.images["error_code"]).to_pylist()
    if RETRIABLE_CODES.intersection(codes):
        gathered.retriable.append(uri)
    if segment.last and segment.images.num_rows:
        end = segment.images.slice(segment.images.num_rows - 1).to_pylist()[0]
        whole_shard_lost = end["error_code"] == "unreadable" and end["member"] == ""
        if whole_shard_lost:
            gathered.unread_uris.append(end["shard_uri"])
        gathered.broken_shards += whole_shard_lost or end["error_code"] in SHARD_CODES


def _remove_strays(out: str, run_id: str, gathered: _Gathered) -> None:
    """Remove part files of this run that an earlier, interrupted commit moved and this one does not have."""
    keep = {storage.join(out, part.path) for part in (*gathered.images, *gathered.detections)}
    for table in TABLES:
        for found in storage.find_all(storage.join(out, table)):
            if storage.basename(found.uri).startswith(f"part-{run_id}-") and found.uri not in keep:
                storage.delete([found.uri])


def _rate(images: int, wall_s: float) -> float:
    return round(images / wall_s, 3) if wall_s > 0 else 0.0


def _take_once(
    shards: Iterable[ExpectedShard], staged: dict[str, StagedShard]
) -> Iterator[tuple[str, LabelledSegment]]:
    """Yield each segment of the plan once, in order, and check that each shard's images are all there.

    What does not add up is dropped from the staged files, so that the same command labels that shard anew.
    """
    with ThreadPoolExecutor(_READ_AHEAD, thread_name_prefix="staged") as pool:
        for shard in shards:
            found = staged.get(shard.shard_id, StagedShard())
            if not found.complete:
                raise ConservationError(
                    f"{shard.shard_uri}: {len(found.segments)} segments of shard {shard.shard_id} are staged, "
                    f"{'more' if found.last_index is None else found.last_index + 1} are needed; "
                    "run the same command again"
                )
            uris = [found.segments[i] for i in sorted(found.segments)]
            position = shard.first_position
            for uri, segment in zip(uris, _read_ahead(pool, uris), strict=True):
                positions = segment.images["position"].to_numpy()
                if (positions != range(position, position + len(positions))).any():
                    storage.delete(uris)
                    raise ConservationError(
                        f"{shard.shard_uri}: segment {segment.segment_index} of shard {shard.shard_id} does not "
                        f"begin at image {position} or skips one; the same command labels the shard anew"
                    )
                position += len(positions)
                yield uri, segment
            if 0 <= shard.image_count != position - shard.first_position:
                storage.delete(uris)
                raise ConservationError(
                    f"{shard.shard_uri}: {shard.image_count} images were listed in shard {shard.shard_id}, "
                    f"{position - shard.first_position} were recorded; the same command labels the shard anew"
                )


def _read_ahead(pool: ThreadPoolExecutor, uris: list[str]) -> Iterator[LabelledSegment]:
    pending = [pool.submit(_read_patiently, uri) for uri in uris[:_READ_AHEAD]]
    for uri in itertools.chain(uris[_READ_AHEAD:], [None] * len(pending)):
        yield pending.pop(0).result()
        if uri is not None:
            pending.append(pool.submit(_read_patiently, uri))


def _read_patiently(uri: str) -> LabelledSegment:
    return storage.persist(lambda: read_staged(uri))


def _check_failures(spec: JobSpec, counts: dict[str, Any], gathered: _Gathered, retried: tuple[int, int]) -> None:
    """Stop the commit when too much failed; a shard whose end could not be read counts as a shard, not as one image.

    As many images and shards as are tried again may fail again: their failure was committed before.
    Staged files with failures that may be mended are dropped, so that the same command tries those images again.
    """
    allowed = spec.policy.max_failed_fraction
    listed, failed = counts["listed"], counts["failed"]
    images, shards = retried
    what = ""
    if listed and (failed - images) / listed > allowed:
        codes = ", ".join(f"{code} {n}" for code, n in counts["by_error_code"].items())
        what = f"{failed} of {listed} images failed ({codes})"
    elif gathered.shards and (gathered.broken_shards - shards) / gathered.shards > allowed:
        what = f"{gathered.broken_shards} of {gathered.shards} shards could not be read to their end"
    if what:
        storage.delete(gathered.retriable)
        raise TooManyFailures(
            f"{what}; policy.max_failed_fraction allows {allowed:g}: nothing was committed. Mend them, or raise it, "
            "and run the same command again: what succeeded is kept"
        )


def _with_constant(rows: pa.Table, name: str, value: str, by: tuple[str, ...]) -> pa.Table:
    return rows.append_column(name, pa.repeat(value, rows.num_rows)) if name in by else rows


def _with_partitions(detections: pa.Table, images: pa.Table, by: tuple[str, ...]) -> pa.Table:
    """Give each detection the partition values of its image."""
    if not by:
        return detections
    where = pc.index_in(detections["image_id"].combine_chunks(), images["image_id"].combine_chunks())
    for name in by:
        detections = detections.append_column(name, images[name].take(where))
    return detections
