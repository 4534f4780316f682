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
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from batchdet import storage
from batchdet.errors import ConservationError, TooManyFailures
from batchdet.records.schema import DETECTIONS, IMAGES, SCHEMA_VERSION
from batchdet.records.segment import LabelledSegment
from batchdet.spec import JobSpec
from batchdet.stats import RunStats
from batchdet.table.lineage import Lineage, now, run_date
from batchdet.table.manifest import Manifest, run_folder
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

    Returns:
        The manifest.

    Raises:
        ConservationError: Images listed and images recorded differ; nothing was committed.
        TooManyFailures: More images failed than the policy allows; nothing was committed.
    """
    run_id, folder = lineage.run_id, run_folder(out, lineage.run_id)
    gathered = storage.join(folder, "parts")
    by = spec.output.partition_by
    metadata = {
        "batchdet.schema_version": str(SCHEMA_VERSION),
        "batchdet.run_id": run_id,
        "batchdet.model_sha256": str(lineage.model.get("sha256", "")),
    }
    rows = spec.output.part_rows
    images = PartWriter(gathered, "images", run_id, pa.schema([*IMAGES, *carried]), by, rows, metadata=metadata)
    detections = PartWriter(
        gathered, "detections", run_id, DETECTIONS, by, rows, sort_by=("class_id",), metadata=metadata
    )
    stats = RunStats.empty(labels)
    taken = 0
    for segment in _take_once(shards, list_staged(out, run_id)):
        image_rows = _with_constant(segment.images, RUN_DATE, run_date(run_id), by)
        images.add(image_rows)
        detections.add(_with_partitions(segment.detections, image_rows, by))
        stats.add(segment.images, segment.detections)
        stats.add_times(segment.times_s)
        taken += segment.images.num_rows
        progress(taken)
    counts = stats.to_dict()["images"]
    _check_failures(spec, counts)
    constants = {RUN_DATE: run_date(run_id)}
    image_parts, detection_parts = images.close(constants), detections.close(constants)
    for part in (*image_parts, *detection_parts):
        storage.move(storage.join(gathered, part.path), storage.join(out, part.path))
    summary = stats.to_dict()
    summary["run"] = {"run_id": run_id, "wall_s": round(wall_s, 3), "images_per_s": _rate(counts["listed"], wall_s)}
    stats_text = (json.dumps(summary, indent=1) + "\n").encode()
    storage.write_bytes(storage.join(folder, "stats.json"), stats_text)
    replace(lineage, finished_at=now()).write(out)
    manifest = Manifest(
        run_id=run_id,
        name=spec.name,
        created_at=now(),
        schema_version=SCHEMA_VERSION,
        fingerprint=lineage.fingerprint,
        inventory_digest=lineage.inventory_digest,
        partition_by=tuple(by),
        images_listed=counts["listed"],
        images_ok=counts["ok"],
        images_failed=counts["failed"],
        images=tuple(image_parts),
        detections=tuple(detection_parts),
        spec_sha256=hashlib.sha256(spec_text.encode()).hexdigest(),
        stats_sha256=hashlib.sha256(stats_text).hexdigest(),
    )
    storage.write_bytes(storage.join(folder, "manifest.json"), manifest.to_json())
    finish_commit(out, run_id)
    return manifest


def finish_commit(out: str, run_id: str) -> None:
    """Do what follows the commit point: the ``_SUCCESS`` markers, then the clean-up. Safe to repeat."""
    folder = run_folder(out, run_id)
    storage.write_bytes(storage.join(folder, "_SUCCESS"), b"")
    storage.write_bytes(storage.join(out, "_SUCCESS"), f"{run_id}\n".encode())
    storage.delete_folder(staged_folder(out, run_id))
    storage.delete_folder(storage.join(folder, "parts"))


def _rate(images: int, wall_s: float) -> float:
    return round(images / wall_s, 3) if wall_s > 0 else 0.0


def _take_once(shards: Iterable[ExpectedShard], staged: dict[str, StagedShard]) -> Iterator[LabelledSegment]:
    """Yield each segment of the plan once, in order, and check that each shard's images are all there."""
    with ThreadPoolExecutor(_READ_AHEAD, thread_name_prefix="staged") as pool:
        for shard in shards:
            found = staged.get(shard.shard_id, StagedShard())
            if not found.complete:
                raise ConservationError(
                    f"{shard.shard_uri}: {len(found.segments)} segments of shard {shard.shard_id} are staged, "
                    f"{'more' if found.last_index is None else found.last_index + 1} are needed; "
                    "run the same command again"
                )
            position = shard.first_position
            for segment in _read_ahead(pool, [found.segments[i] for i in sorted(found.segments)]):
                positions = segment.images["position"].to_numpy()
                if (positions != range(position, position + len(positions))).any():
                    raise ConservationError(
                        f"{shard.shard_uri}: segment {segment.segment_index} of shard {shard.shard_id} does not "
                        f"begin at image {position} or skips one"
                    )
                position += len(positions)
                yield segment
            if 0 <= shard.image_count != position - shard.first_position:
                raise ConservationError(
                    f"{shard.shard_uri}: {shard.image_count} images were listed in shard {shard.shard_id}, "
                    f"{position - shard.first_position} were recorded"
                )


def _read_ahead(pool: ThreadPoolExecutor, uris: list[str]) -> Iterator[LabelledSegment]:
    pending = [pool.submit(read_staged, uri) for uri in uris[:_READ_AHEAD]]
    for uri in itertools.chain(uris[_READ_AHEAD:], [None] * len(pending)):
        yield pending.pop(0).result()
        if uri is not None:
            pending.append(pool.submit(read_staged, uri))


def _check_failures(spec: JobSpec, counts: dict[str, Any]) -> None:
    listed, failed = counts["listed"], counts["failed"]
    if listed and failed / listed > spec.policy.max_failed_fraction:
        codes = ", ".join(f"{code} {n}" for code, n in counts["by_error_code"].items())
        raise TooManyFailures(
            f"{failed} of {listed} images failed ({codes}); policy.max_failed_fraction allows "
            f"{spec.policy.max_failed_fraction:g}: nothing was committed. Mend the images, or raise it and run the "
            "same command again: what is done is kept"
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
