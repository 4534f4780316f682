import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchdet.source.inventory import Inventory, Shard, list_inventory, plan_shards
from batchdet.source.shards import ShardPlan, folder_root, member_of
from batchdet.spec import SourceSpec


def _inventory(format_: str, count: int, lists: int = 1, etag: str = "e") -> Inventory:
    columns = {
        "uri": [f"s3://b/in/{i:04d}.jpg" for i in range(count)],
        "size_bytes": pa.array(range(count), pa.int64()),
        "etag": [f"{etag}{i}" for i in range(count)],
    }
    carried = pa.schema([])
    if format_ == "uri_list":
        columns["list_uri"] = [f"s3://b/{i * lists // count}.csv" for i in range(count)]
        columns["member"] = [f"{i:04d}.jpg" for i in range(count)]
        columns["error_code"] = pa.nulls(count, pa.string())
        columns["n"] = pa.array(range(count), pa.int64())
        carried = pa.schema([("n", pa.int64())])
    return Inventory(format_, "s3://b/in", pa.table(columns), carried)


@pytest.mark.parametrize("format_", ["webdataset", "parquet"])
def test_one_object_is_one_shard(format_: str) -> None:
    plan = plan_shards(_inventory(format_, 3), slice_rows=2)
    assert [s.shard_uri for s in plan] == [f"s3://b/in/{i:04d}.jpg" for i in range(3)]
    assert [s.shard_index for s in plan] == [0, 1, 2]
    assert {s.image_count for s in plan} == {-1}
    assert {s.first_position for s in plan} == {0}


def test_slices_of_a_folder() -> None:
    plan = plan_shards(_inventory("folder", 25), slice_rows=10)
    assert [(s.first_position, s.image_count) for s in plan] == [(0, 10), (10, 10), (20, 5)]
    assert {s.shard_uri for s in plan} == {"s3://b/in"}
    assert plan[2].members == [f"{i:04d}.jpg" for i in range(20, 25)]


def test_slices_of_lists_end_with_their_list() -> None:
    plan = plan_shards(_inventory("uri_list", 24, lists=3), slice_rows=5)
    assert [(s.shard_uri, s.first_position, s.image_count) for s in plan] == [
        ("s3://b/0.csv", 0, 5), ("s3://b/0.csv", 5, 3),
        ("s3://b/1.csv", 8, 5), ("s3://b/1.csv", 13, 3),
        ("s3://b/2.csv", 16, 5), ("s3://b/2.csv", 21, 3),
    ]  # fmt: skip
    assert plan[1].listed is not None
    assert plan[1].listed["n"].to_pylist() == [5, 6, 7]


@pytest.mark.parametrize("format_", ["webdataset", "folder", "parquet", "uri_list"])
def test_ids_are_those_of_the_content(format_: str) -> None:
    first = [s.shard_id for s in plan_shards(_inventory(format_, 20), 5)]
    assert first == [s.shard_id for s in plan_shards(_inventory(format_, 20), 5)]
    assert len(set(first)) == len(first)
    assert all(len(bytes.fromhex(i)) == 12 for i in first)
    assert set(first).isdisjoint(s.shard_id for s in plan_shards(_inventory(format_, 20, etag="f"), 5))
    inventory = _inventory(format_, 20)
    later = Inventory(inventory.format, inventory.root, inventory.objects.slice(5), inventory.carried)
    assert [s.shard_id for s in plan_shards(later, 5)] == (
        first[1:] if format_ in {"folder", "uri_list"} else first[5:]
    )


def test_plan_is_a_sequence() -> None:
    plan = plan_shards(_inventory("folder", 25), slice_rows=10)
    assert plan[-1].shard_index == 2
    assert [s.shard_index for s in plan[1:]] == [1, 2]
    assert [s.shard_index for s in reversed(plan)] == [2, 1, 0]
    with pytest.raises(IndexError, match="shard 3 of 3"):
        plan[3]
    assert len(plan_shards(_inventory("folder", 0))) == 0
    assert len(plan_shards(_inventory("uri_list", 0))) == 0


def _facts(shards: Iterable[Shard]) -> list[tuple[Any, ...]]:
    return [
        (s.shard_index, s.shard_id, s.shard_uri, s.objects, s.first_position, s.listed and s.listed.to_pylist())
        for s in shards
    ]


FORMATS = ["webdataset", "folder", "parquet", "uri_list"]


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("pickled", [False, True])
def test_parts_of_a_plan_hold_the_shards_of_the_plan(format_: str, pickled: bool) -> None:
    plan = plan_shards(_inventory(format_, 24, lists=3), 5)
    whole = _facts(plan)

    def check(part: ShardPlan, want: list[tuple[Any, ...]]) -> None:
        part = pickle.loads(pickle.dumps(part)) if pickled else part
        assert isinstance(part, ShardPlan)
        assert len(part) == len(want)
        assert _facts(part) == want
        objects = [o for facts in want for o in facts[3]]
        assert part.size_bytes == sum(o.size_bytes for o in objects)
        assert part.image_count == (len(objects) if format_ in {"folder", "uri_list"} else None)

    check(plan, whole)
    for which in [slice(1, 3), slice(None, None, 2), slice(None, None, -1), slice(3, 3), slice(-2, None)]:
        check(plan[which], whole[which])
    for places in [[], [0], [4, 1, 2], [-1, 0], range(5)]:
        check(plan.subset(places), [whole[i] for i in places])
    check(plan[1:].subset([2, 0])[1:], [whole[1]])
    with pytest.raises(IndexError, match=rf"shard {len(plan)} of {len(plan)}"):
        plan.subset([0, len(plan)])


@pytest.mark.parametrize("format_", FORMATS)
def test_a_pickled_part_carries_its_rows_alone(format_: str) -> None:
    plan = plan_shards(_inventory(format_, 50_000, lists=2), slice_rows=100)
    assert len(pickle.dumps(plan[3:4])) < 10_000
    assert len(pickle.dumps(plan.subset([3, len(plan) - 1]))) < 20_000
    again = pickle.loads(pickle.dumps(plan[3:4]))
    assert len(pickle.dumps(again)) < 10_000
    assert _facts(again) == _facts([plan[3]])


def test_parts_and_totals_make_no_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_shards(_inventory("folder", 1000), slice_rows=10)
    monkeypatch.setattr(ShardPlan, "_make", None)
    part = pickle.loads(pickle.dumps(plan[10:20].subset(range(5))))
    assert (part.image_count, part.size_bytes) == (50, sum(range(100, 150)))


def test_sizes_that_are_not_listed_count_as_none() -> None:
    inventory = _inventory("uri_list", 10)
    sizes = pa.array([-1, 5] * 5, pa.int64())
    objects = inventory.objects.set_column(1, "size_bytes", sizes)
    assert plan_shards(Inventory("uri_list", "", objects, inventory.carried)).size_bytes == 25


def test_a_list_may_lie_in_several_chunks() -> None:
    objects = _inventory("uri_list", 24, lists=3).objects
    chunks = pa.concat_tables([objects.slice(0, 3), objects.slice(3, 0), objects.slice(3, 10), objects.slice(13)])
    want, got = (plan_shards(Inventory("uri_list", "", o, pa.schema([])), 5) for o in (objects, chunks))
    assert _facts(got) == _facts(want)


def test_shards_pickle_small() -> None:
    plan = plan_shards(_inventory("uri_list", 50_000), slice_rows=100)
    data = pickle.dumps(plan[3])
    assert len(data) < 20_000
    again: Shard = pickle.loads(data)
    assert again.shard_id == plan[3].shard_id
    assert again.objects == plan[3].objects
    assert again.listed is not None
    assert again.listed.equals(plan[3].listed)


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("/a/b/*.jpg", "/a/b"), ("/a/*/c/*.jpg", "/a"), ("/*.jpg", "/"), ("s3://b/x/**/*.jpg", "s3://b/x"),
        ("s3://b/*.jpg", "s3://b"), ("/a/b.jpg", "/a"), ("/a/b?/c", "/a"),
    ],
)  # fmt: skip
def test_root_is_what_comes_before_a_wildcard(uri: str, root: str) -> None:
    assert folder_root(uri) == root


def test_member_is_relative_to_the_root() -> None:
    assert member_of("/a/b", "/a/b/c/d.jpg") == "c/d.jpg"
    assert member_of("/", "/d.jpg") == "d.jpg"
    assert member_of("s3://b", "s3://b/c.jpg") == "c.jpg"


def test_a_folder_listed_twice_has_the_same_shards(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(b"x")
    source = SourceSpec(uri=str(tmp_path))
    one, two = (plan_shards(list_inventory(source), 2) for _ in range(2))
    assert [s.shard_id for s in one] == [s.shard_id for s in two]
