"""The one pass over what a run has staged: each segment once, in the plan's order, into part files in its folder."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from batchdet import storage
from batchdet.errors import ConservationError
from batchdet.records.schema import RETRIABLE_CODES, SCHEMA_VERSION, SHARD_CODES, schema_of
from batchdet.records.segment import LabelledSegment
from batchdet.spec import JobSpec
from batchdet.stats import RunStats
from batchdet.table.lineage import Lineage, run_date
from batchdet.table.manifest import TABLES, BadShard, PartFile, draft_folder
from batchdet.table.parts import PartWriter
from batchdet.table.staging import DamagedSegment, StagedShard, list_staged, read_staged

_READ_AHEAD: Final = 8
FAILURES_KEPT: Final = 10_000
"""Failed images that are remembered one by one; what is counted has no such bound."""
_FAILURE: Final = ("uri", "error_code", "error_message")
_TEXT_MAX: Final = 500
"""Of each text that is remembered of them; a member of a tar may have a name of a megabyte."""
_MESSAGES_KEPT: Final = 1000
"""Bad shards whose message is remembered; of the others only URI and code are."""
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


@dataclass
class Failures:
    """What failed: how many in all, and the first of them.

    Args:
        count: In all.
        first: ``uri``, ``error_code`` and ``error_message`` of at most :data:`FAILURES_KEPT`, each cut to 500
            characters.
    """

    count: int = 0
    first: list[dict[str, str]] = field(default_factory=list)

    def add(self, rows: pa.Table) -> None:
        """Count rows of an images table, and remember them while there is room."""
        self.count += rows.num_rows
        room = FAILURES_KEPT - len(self.first)
        for row in rows.select(_FAILURE).slice(0, room).to_pylist():
            self.first.append({name: (text or "")[:_TEXT_MAX] for name, text in row.items()})


@dataclass
class Gathered:
    """What the one pass over the staged segments gave.

    Args:
        stats: Counts of everything.
        images: Part files of the images table, in the run's folder.
        detections: Part files of the detections table.
        retriable: Staged files with failures that another try may mend.
        failures: Failed images; rows that say something of a shard are none.
        shard_rows: How many rows say something of a shard, and nothing of an image in it.
        bad_shards: The shards that were not read to their end; how many images they have is not known.
        shards: Shards in all.
        empty_shards: Tar and Parquet files without an image.
    """

    stats: RunStats
    images: list[PartFile] = field(default_factory=list)
    detections: list[PartFile] = field(default_factory=list)
    retriable: list[str] = field(default_factory=list)
    failures: Failures = field(default_factory=Failures)
    shard_rows: int = 0
    bad_shards: list[BadShard] = field(default_factory=list)
    shards: int = 0
    empty_shards: list[str] = field(default_factory=list)


def gather(
    out: str,
    spec: JobSpec,
    lineage: Lineage,
    shards: Iterable[ExpectedShard],
    carried: pa.Schema,
    labels: list[str],
    progress: Callable[[int], None],
    number: int,
    segments: Iterable[LabelledSegment] | None = None,
) -> Gathered:
    """Take each segment once, in the plan's order, into part files in the folder of a commit's drafts.

    Args:
        out: The output's URI.
        spec: The job.
        lineage: The run's lineage.
        shards: The plan, in order.
        carried: Columns carried over from the source.
        labels: The model's labels, by class number.
        progress: Called with the number of images taken so far.
        number: Of the lease, as the commit is going to take it.
        segments: The segments of the plan, in order; None takes those that are staged.

    Raises:
        ConservationError: Images listed and images recorded differ.
    """
    run_id, by, rows = lineage.run_id, spec.output.partition_by, spec.output.part_rows
    folder, name = draft_folder(out, run_id, number), f"{run_id}-{number:06d}"
    metadata = {
        "batchdet.schema_version": str(SCHEMA_VERSION),
        "batchdet.run_id": run_id,
        "batchdet.model_sha256": str(lineage.model.get("sha256", "")),
    }
    schemas = {table: schema_of(table, lineage.model.get("features", {})) for table in TABLES}
    images = PartWriter(folder, "images", name, pa.schema([*schemas["images"], *carried]), by, rows, metadata=metadata)
    detections = PartWriter(
        folder, "detections", name, schemas["detections"], by, rows, sort_by=("class_id",), metadata=metadata
    )
    gathered = Gathered(RunStats.empty(labels))
    taken = 0
    for shard, uri, segment in (
        _take_once(shards, list_staged(out, run_id)) if segments is None else _checked(shards, segments)
    ):
        image_rows = _with_constant(segment.images, RUN_DATE, run_date(run_id), by)
        images.add(image_rows)
        detections.add(_with_partitions(segment.detections, image_rows, by))
        gathered.stats.add(segment.images, segment.detections)
        gathered.stats.add_times(segment.times_s)
        gathered.stats.add_passed_over(segment.passed_over)
        gathered.shards += segment.segment_index == 0
        if segment.segment_index == 0 and segment.last and not segment.images.num_rows:
            gathered.empty_shards.append(shard.shard_uri)
        _note_failures(gathered, uri, segment)
        taken += segment.images.num_rows
        progress(taken)
    constants = {RUN_DATE: run_date(run_id)}
    gathered.images, gathered.detections = images.close(constants), detections.close(constants)
    return gathered


def _note_failures(gathered: Gathered, uri: str, segment: LabelledSegment) -> None:
    failed = segment.images.filter(pc.is_valid(segment.images["error_code"]))
    if RETRIABLE_CODES.intersection(pc.unique(failed["error_code"]).to_pylist()):
        gathered.retriable.append(uri)
    of_shard = pc.is_in(failed["error_code"], pa.array(sorted(SHARD_CODES)))
    gathered.failures.add(failed.filter(pc.invert(of_shard)))
    rows = failed.filter(of_shard)
    gathered.shard_rows += rows.num_rows
    for row in rows.slice(0, 1).to_pylist():
        known = gathered.bad_shards[-1:]
        if not known or known[0].uri != row["shard_uri"]:
            message = " ".join((row["error_message"] or "").split()).removeprefix(f"{row['shard_uri']}: ")[:_TEXT_MAX]
            message = message if len(gathered.bad_shards) < _MESSAGES_KEPT else ""
            gathered.bad_shards.append(BadShard(row["shard_uri"], row["error_code"], message))


def _take_once(
    shards: Iterable[ExpectedShard], staged: dict[str, StagedShard]
) -> Iterator[tuple[ExpectedShard, str, LabelledSegment]]:
    """Yield each segment of the plan once, in order, with its shard, and check that each shard's images are all there.

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
                yield shard, uri, segment
            if 0 <= shard.image_count != position - shard.first_position:
                storage.delete(uris)
                raise ConservationError(
                    f"{shard.shard_uri}: {shard.image_count} images were listed in shard {shard.shard_id}, "
                    f"{position - shard.first_position} were recorded; the same command labels the shard anew"
                )


def _checked(
    shards: Iterable[ExpectedShard], segments: Iterable[LabelledSegment]
) -> Iterator[tuple[ExpectedShard, str, LabelledSegment]]:
    """Yield segments that were not staged, and check that they are the plan's, with all images of each shard.

    Yields:
        The shard, "" in the place of a staged file, and the segment.
    """
    for shard, (shard_id, own) in itertools.zip_longest(
        shards, itertools.groupby(segments, key=lambda segment: segment.shard_id), fillvalue=(None, ())
    ):
        if not isinstance(shard, ExpectedShard) or shard.shard_id != shard_id:
            raise ConservationError("the segments are not those of the plan; run the same command again")
        position = shard.first_position
        for segment in own:
            positions = segment.images["position"].to_numpy()
            if (positions != range(position, position + len(positions))).any():
                raise ConservationError(
                    f"{shard.shard_uri}: shard {shard_id} does not go on at image {position}, or skips one"
                )
            position += len(positions)
            yield shard, "", segment
        if 0 <= shard.image_count != position - shard.first_position:
            raise ConservationError(
                f"{shard.shard_uri}: {shard.image_count} images were listed in shard {shard_id}, "
                f"{position - shard.first_position} were recorded"
            )


def _read_ahead(pool: ThreadPoolExecutor, uris: list[str]) -> Iterator[LabelledSegment]:
    pending = [pool.submit(_read_patiently, uri) for uri in uris[:_READ_AHEAD]]
    for uri in itertools.chain(uris[_READ_AHEAD:], [None] * len(pending)):
        yield pending.pop(0).result()
        if uri is not None:
            pending.append(pool.submit(_read_patiently, uri))


def _read_patiently(uri: str) -> LabelledSegment:
    try:
        return storage.persist(lambda: read_staged(uri))
    except DamagedSegment as error:  # left there, it would stop every later command
        storage.delete([uri])
        raise ConservationError(
            f"{error.message}; it was deleted, and the same command labels its images again", code=error.code, key=uri
        ) from error


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
