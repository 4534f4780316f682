"""The pipeline on Ray Data: read segments, label them in an actor pool, stage the results."""

import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.exceptions import ExecutionTimeoutError

from batchdet.errors import BatchdetError, ClusterError
from batchdet.pipeline.datasource import SegmentDatasource
from batchdet.pipeline.detector_actor import DetectorActor
from batchdet.pipeline.resources import READER_CPUS, WRITER_CPUS, Workers
from batchdet.records.schema import STATUS_FAILED
from batchdet.records.segment import LabelledSegment
from batchdet.source.shards import ShardPlan
from batchdet.spec import JobSpec
from batchdet.table.staging import staged_folder, write_staged

_MAX_RETRIES: Final = 10
"""How often reading or staging is tried again whose process died. Actors are started again for ever: each segment
bounds its own attempts, see :class:`~batchdet.pipeline.detector_actor.DetectorActor`."""


@dataclass(frozen=True)
class StagedSegment:
    """What reaches the driver of a segment: counts.

    Args:
        shard_id: Its shard.
        segment_index: Its place within the shard.
        images: Images in it.
        failed: Those that failed.
        detections: Objects found.
        size_bytes: Encoded bytes.
    """

    shard_id: str
    segment_index: int
    images: int
    failed: int
    detections: int
    size_bytes: int


def _stage(rows: pa.Table, folder: str) -> pa.Table:
    """Write each labelled segment to its staged file and pass on its counts."""
    counts: list[dict[str, Any]] = []
    for segment in LabelledSegment.from_rows(rows):
        write_staged(folder, segment)
        failed = pc.sum(pc.equal(segment.images["status"], STATUS_FAILED)).as_py() or 0
        size = pc.sum(pc.max_element_wise(segment.images["size_bytes"], 0)).as_py() or 0
        counts.append(
            {
                "shard_id": segment.shard_id,
                "segment_index": segment.segment_index,
                "images": segment.images.num_rows,
                "failed": int(failed),
                "detections": segment.detections.num_rows,
                "size_bytes": int(size),
            }
        )
    return pa.Table.from_pylist(counts)


def label_segments(
    spec: JobSpec,
    out: str,
    run_id: str,
    plan: ShardPlan,
    left: Sequence[int],
    carried: pa.Schema,
    done: Mapping[str, frozenset[int]],
    model_sha256: str,
    workers: Workers,
) -> Iterator[StagedSegment]:
    """Label every segment of the shards that is not done yet, and stage its results.

    Args:
        spec: The job.
        out: The output's URI.
        run_id: Goes into every row.
        plan: The shards of the run.
        left: Places of the shards that still have something to do.
        carried: Columns carried over.
        done: Shard id -> segments that are staged already.
        model_sha256: Digest of the model's bytes.
        workers: The pool.

    Yields:
        The counts of each segment, once its results are stored, in no fixed order.

    Raises:
        ClusterError: Workers or nodes were lost for good.
        BatchdetError: What a step raised.
    """
    # Ray Data warns of its own deprecated settings, and of idle actors where there are few shards
    with warnings.catch_warnings(action="ignore"), DataContext.current(_context()):
        source = SegmentDatasource(plan, left, spec, carried, done)
        rows = ray.data.read_datasource(
            source,
            num_cpus=READER_CPUS,
            concurrency=min(workers.readers, max(1, len(source))),
            override_num_blocks=max(1, len(source)),
            ray_remote_args={"max_retries": _MAX_RETRIES},
        )
        labelled = rows.map_batches(
            DetectorActor,
            fn_constructor_kwargs={
                "spec": spec,
                "model_sha256": model_sha256,
                "run_id": run_id,
                "batch_rows": workers.batch_rows,
                "device": workers.device,
                "threads": workers.threads,
                "driver": uuid.uuid4().hex[:8],
            },
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=workers.actors, max_tasks_in_flight_per_actor=2),
            num_cpus=workers.actor_cpus,
            num_gpus=workers.actor_gpus or None,
            max_restarts=-1,
            max_task_retries=-1,
        )
        staged = labelled.map_batches(
            _stage,
            fn_kwargs={"folder": staged_folder(out, run_id)},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=WRITER_CPUS,
            max_retries=_MAX_RETRIES,
        )
        try:
            for batch in staged.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from (StagedSegment(**row) for row in batch.to_pylist())
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, BatchdetError):
                raise error.cause from None
            raise ClusterError(f"a step of the pipeline failed: {_line(error.cause)}; --verbose shows more") from error
        except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
            raise ClusterError(
                f"the pipeline was lost: {_line(error)}; what was staged is kept, the same command goes on"
            ) from error


def _context() -> DataContext:
    context = DataContext.get_current().copy()
    context.target_max_block_size = 1  # a block per row: a segment moves on as soon as it is read
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # our own errors keep their type
    context.actor_init_retry_on_errors = True  # a store that stumbles while the model is fetched
    context.actor_init_max_retries = 3
    context.max_consecutive_actor_init_deaths = 10
    return context


def _line(error: Any) -> str:
    """Put an error that is none of ours into one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
