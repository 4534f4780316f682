"""The pipeline on Ray Data: read segments, label and stage them in an actor pool."""

import contextlib
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.exceptions import ExecutionTimeoutError

from batchdet.errors import BatchdetError, ClusterError
from batchdet.pipeline.datasource import SegmentDatasource
from batchdet.pipeline.decode_actor import DecodeActor
from batchdet.pipeline.detector_actor import DetectorActor, StagedSegment
from batchdet.pipeline.own_ray import set_a_reader_apart
from batchdet.pipeline.resources import READER_CPUS, Workers
from batchdet.pipeline.trial import LoadedModel
from batchdet.source.shards import ShardPlan
from batchdet.spec import JobSpec

_MAX_RETRIES: Final = 10
"""How often reading is tried again whose process died. Actors are started again for ever: each segment
bounds its own attempts, see :class:`~batchdet.pipeline.guard.Guard`."""

_PER_SEGMENT: Final[dict[str, Any]] = {
    "batch_size": 1,  # a row is a segment; Ray wants a number where GPUs are asked for
    "batch_format": "pyarrow",
    "max_restarts": -1,
    "max_task_retries": -1,
}


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
    model: LoadedModel,
    segment_rows: int,
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
        workers: The pools.
        model: What the probe found.
        segment_rows: At most this many images per segment.

    Yields:
        The counts of each segment, once its results are stored, in no fixed order.

    Raises:
        ClusterError: Workers or nodes were lost for good.
        BatchdetError: What a step raised.
    """
    # Ray Data warns of its own deprecated settings, and of idle actors where there are few shards
    with warnings.catch_warnings(action="ignore"), DataContext.current(_context()):
        source = SegmentDatasource(plan, left, spec, carried, done, segment_rows, workers.readers)
        rows = ray.data.read_datasource(
            source,
            num_cpus=READER_CPUS,
            concurrency=min(workers.readers, max(1, len(source))),
            override_num_blocks=max(1, len(source)),
            ray_remote_args={"max_retries": _MAX_RETRIES},
        )
        driver = uuid.uuid4().hex[:8]
        if workers.decoders:
            rows = rows.map_batches(
                DecodeActor,
                fn_constructor_kwargs={
                    "spec": spec,
                    "placement": model.placement,
                    "run_id": run_id,
                    "segment_rows": segment_rows,
                    "driver": driver,
                },
                compute=ActorPoolStrategy(size=workers.decoders, max_tasks_in_flight_per_actor=2),
                num_cpus=workers.decoder_cpus,
                **_PER_SEGMENT,
            )
        staged = rows.map_batches(
            DetectorActor,
            fn_constructor_kwargs={
                "spec": spec,
                "model_sha256": model_sha256,
                "out": out,
                "run_id": run_id,
                "batch_rows": workers.batch_rows,
                "device": workers.device,
                "threads": workers.threads,
                "driver": driver,
                "rehearsed": model.rehearsed if workers.device == "cpu" else None,
            },
            compute=ActorPoolStrategy(size=workers.actors, max_tasks_in_flight_per_actor=2),
            num_cpus=workers.actor_cpus,
            num_gpus=workers.actor_gpus or None,
            **_PER_SEGMENT,
        )
        try:
            for batch in staged.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from StagedSegment.from_rows(batch)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, BatchdetError):
                raise error.cause from None
            raise ClusterError(f"a step of the pipeline failed: {_line(error.cause)}; --verbose shows more") from error
        except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
            raise ClusterError(
                f"the pipeline was lost: {_line(error)}; what was staged is kept, and the same command resumes the run"
            ) from error


def get_ready(own: bool) -> None:
    """Start processes that a pipeline needs, while something else is waited for.

    On a Ray of our own that is one to read with. Elsewhere they are the actors that Ray Data has beside each pipeline:
    each imports it for more than a second, and started with the pipeline they would hold its own workers up.

    Args:
        own: It is a Ray of our own.
    """
    if own:
        set_a_reader_apart()
        return
    with contextlib.suppress(Exception):  # other versions have others; who needs one starts it, and says what is wrong
        from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator
        from ray.data._internal.execution.node_trackers import get_or_create_actor_location_tracker
        from ray.data._internal.stats import get_or_create_stats_actor

        for start in (
            get_or_create_actor_location_tracker,
            get_or_create_stats_actor,
            get_or_create_autoscaling_coordinator,
        ):
            start()


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
