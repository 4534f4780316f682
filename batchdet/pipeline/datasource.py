"""The source as Ray Data sees it: read tasks of some shards each, a row per segment."""

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from batchdet.source.reader import read_segments
from batchdet.source.shards import ShardPlan
from batchdet.spec import JobSpec

_TASK_BYTES: Final = 1 << 30
"""Ray keeps idle workers only where a node has free CPUs, which actors take. So each task may begin with a process, of
some 2 CPU seconds, unless the cluster was told otherwise; a task whose process dies reads all of its shards again."""
_IMAGE_BYTES: Final = 100_000
"""Where a list does not say how large its images are."""
_TASKS_PER_READER: Final = 8
"""So that readers end at about the same time."""
_MAX_TASKS: Final = 10_000
"""Ray Data keeps an object for each of them."""


def _shards_per_task(plan: ShardPlan, shards: int, readers: int) -> int:
    """Say how many of the shards that are to be read one task takes."""
    size_bytes = max(plan.size_bytes, _IMAGE_BYTES * (plan.image_count or 0), 1)
    enough = _TASK_BYTES * len(plan) // size_bytes
    return max(1, min(enough, shards // (readers * _TASKS_PER_READER)), -(-shards // _MAX_TASKS))


def _read_shards(
    shards: ShardPlan, spec: JobSpec, carried: pa.Schema, segment_rows: int, done: Mapping[str, frozenset[int]]
) -> Iterator[pa.Table]:
    for shard in shards:
        segments = read_segments(
            shard,
            spec.source,
            carried,
            segment_rows,
            spec.compute.segment_bytes,
            done.get(shard.shard_id, frozenset()),
        )
        started = time.perf_counter()
        for segment in segments:
            yield replace(segment, read_s=time.perf_counter() - started).to_row()
            started = time.perf_counter()  # while it waits to be asked for more, it does not read


class SegmentDatasource(Datasource):
    """Yields the segments of shards; one row is one segment, so that Ray never splits or merges it.

    Args:
        plan: The shards of the run.
        left: Places of the shards to read.
        spec: How to read it.
        carried: Columns carried over.
        done: Shard id -> segments that are staged already and need not be read.
        segment_rows: At most this many images per segment.
        readers: Read tasks at the same time.
    """

    def __init__(
        self,
        plan: ShardPlan,
        left: Sequence[int],
        spec: JobSpec,
        carried: pa.Schema,
        done: Mapping[str, frozenset[int]],
        segment_rows: int,
        readers: int,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        per_task = _shards_per_task(plan, len(left), readers)
        self._plan = plan
        self._groups = [left[i : i + per_task] for i in range(0, len(left), per_task)]
        self._spec = spec
        self._carried = carried
        self._done = done
        self._segment_rows = segment_rows

    def __len__(self) -> int:
        """Count the read tasks."""
        return len(self._groups)

    def get_name(self) -> str:
        """Name the read operator in Ray's views."""
        return "ReadSegments"

    def estimate_inmemory_data_size(self) -> int | None:
        """Say nothing: blocks are cut by row, so that Ray has no use for it."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return the tasks, whatever parallelism Ray asks for."""
        tasks = []
        for group in self._groups:
            part = self._plan.subset(group)
            done = {s.shard_id: self._done[s.shard_id] for s in part if s.shard_id in self._done} if self._done else {}
            read = functools.partial(_read_shards, part, self._spec, self._carried, self._segment_rows, done)
            tasks.append(ReadTask(read, BlockMetadata(None, part.size_bytes, exec_stats=None, input_files=None)))
        return tasks
