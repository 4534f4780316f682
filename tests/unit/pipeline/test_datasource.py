from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from batchdet.pipeline.datasource import SegmentDatasource
from batchdet.records.segment import Segment
from batchdet.source.inventory import Inventory, list_inventory, plan_shards
from batchdet.source.shards import ShardPlan
from batchdet.spec import JobSpec
from tests.unit.source.corpus import image, write_tar

MIB = 1 << 20
SPEC = JobSpec.model_validate(
    {"name": "x", "source": {"uri": "/x"}, "model": {"uri": "builtin:sample"}, "output": {"uri": "/out"}}
)


def inventory(sizes: Sequence[int], format_: str = "webdataset") -> Inventory:
    columns = {
        "uri": [f"/x/{i:06d}" for i in range(len(sizes))],
        "size_bytes": pa.array(sizes, pa.int64()),
        "etag": [""] * len(sizes),
    }
    if format_ == "uri_list":
        columns |= {
            "list_uri": ["/x/list.csv"] * len(sizes),
            "member": columns["uri"],
            "error_code": [None] * len(sizes),
        }
    return Inventory(format_, "/x", pa.table(columns), pa.schema([]))


def tasks(plan: ShardPlan, left: Sequence[int], readers: int) -> list[list[int]]:
    """Return the places of the shards of each task."""
    source = SegmentDatasource(plan, left, SPEC, pa.schema([]), {}, 64, readers)
    assert len(source) == len(source.get_read_tasks(1))
    return [list(group) for group in source._groups]


@pytest.mark.parametrize(
    ("sizes", "readers", "want"),
    [
        ([100 * MIB] * 1000, 2, 10),  # a GiB
        ([100 * MIB] * 80, 2, 5),  # eight tasks a reader
        ([100 * MIB] * 7, 1, 1),
        ([3000 * MIB] * 1000, 1, 1),
        ([0] * 100_000, 1, 12_500),
        ([0] * 100_000, 10_000, 10),  # ten thousand tasks
    ],
)
def test_shards_of_a_task(sizes: list[int], readers: int, want: int) -> None:
    groups = tasks(plan_shards(inventory(sizes)), range(len(sizes)), readers)
    assert [place for group in groups for place in group] == list(range(len(sizes)))
    assert {len(group) for group in groups[:-1]} <= {want}
    assert len(groups[-1]) <= want


def test_lists_that_do_not_say_how_large_their_images_are() -> None:
    plan = plan_shards(inventory([-1] * 200_000, "uri_list"), slice_rows=1000)
    assert [len(group) for group in tasks(plan, range(len(plan)), 1)[:2]] == [10, 10]


def test_only_what_is_left_is_read() -> None:
    plan = plan_shards(inventory([MIB] * 100))
    left = [i for i in range(100) if i % 3]
    groups = tasks(plan, left, 2)
    assert [place for group in groups for place in group] == left
    assert len(groups) > 16
    assert tasks(plan, [], 2) == []


def test_tasks_yield_each_segment_once(tmp_path: Path) -> None:
    for i in range(20):
        write_tar(tmp_path / f"{i:02d}.tar", [(f"{j}.jpg", image(100 * i + j)) for j in range(5)])
    spec = SPEC.model_copy(update={"source": SPEC.source.model_copy(update={"uri": str(tmp_path)})})
    listed = list_inventory(spec.source)
    plan = plan_shards(listed)
    whole = {plan[3].shard_id: frozenset({0, 1})}
    source = SegmentDatasource(plan, range(20), spec, listed.carried, whole, 3, 1)
    assert [len(group) for group in source._groups] == [2] * 10
    segments = [s for task in source.get_read_tasks(1) for rows in task() for s in Segment.from_rows(rows)]
    places = [(segment.shard_index, segment.segment_index) for segment in segments]
    assert places == [(i, j) for i in range(20) for j in (0, 1) if i != 3]
    assert all(one < other for one, other in pairwise(places))
    assert [data for s in segments if s.shard_index == 7 for data in s.data] == [image(700 + j) for j in range(5)]
