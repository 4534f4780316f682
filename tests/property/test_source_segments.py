"""Segments partition what a shard holds, whatever the limits and whatever is done already."""

import atexit
import gzip
import shutil
import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchdet.source.inventory import list_inventory, plan_shards
from batchdet.source.reader import read_segments
from batchdet.source.rows import cut
from batchdet.spec import SourceSpec
from tests.unit.source.corpus import check_segments, tar_bytes

SIZES = [0, 1, 100, 5_000, 10, 0, 700, 30_000, 2, 2, 900, 10_000, 1, 64, 512, 511, 513]


def _data(i: int) -> bytes:
    return bytes([i]) * SIZES[i]


@cache
def _sources() -> dict[str, SourceSpec]:
    folder = Path(tempfile.mkdtemp(prefix="batchdet-segments-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    names = [f"{i:02d}.jpg" for i in range(len(SIZES))]
    members: list[tuple[Any, bytes]] = []
    (folder / "img").mkdir()
    for i, name in enumerate(names):
        (folder / "img" / name).write_bytes(_data(i))
        members += [(name, _data(i)), (f"{i:02d}.json", b"{}" * i)]
    members.insert(9, ("03.jpg", b"again"))
    (folder / "a.tar").write_bytes(tar_bytes(members))
    (folder / "b.tar.gz").write_bytes(gzip.compress(tar_bytes(members)))
    (folder / "cut.tar").write_bytes(tar_bytes(members)[:60_000])
    pq.write_table(pa.table({"image": [_data(i) for i in range(len(SIZES))]}), folder / "p.parquet", row_group_size=4)
    (folder / "l.csv").write_text("url,n\n" + "".join(f"img/{n},{i}\n" for i, n in enumerate(names)))
    uris = {
        "folder": "img",
        "tar": "a.tar",
        "gz": "b.tar.gz",
        "cut": "cut.tar",
        "parquet": "p.parquet",
        "list": "l.csv",
    }
    return {name: SourceSpec(uri=str(folder / uri), max_image_bytes=20_000) for name, uri in uris.items()}


@pytest.mark.parametrize("kind", ["folder", "tar", "gz", "cut", "parquet", "list"])
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 25), size=st.integers(1, 60_000), slice_rows=st.integers(1, 20), data=st.data())
def test_segments_partition_the_inventory(
    kind: str, rows: int, size: int, slice_rows: int, data: st.DataObject
) -> None:
    source = _sources()[kind]
    inventory = list_inventory(source)
    seen: list[dict[str, Any]] = []
    everything = [
        row
        for shard in plan_shards(inventory)
        for s in read_segments(shard, source, inventory.carried, 10_000, 1 << 40)
        for row in s.members.to_pylist()
    ]
    for shard in plan_shards(inventory, slice_rows):
        whole = list(read_segments(shard, source, inventory.carried, rows, size))
        check_segments(whole)
        indices = [s.segment_index for s in whole]
        done = frozenset(data.draw(st.sets(st.sampled_from(indices))))
        rest = list(read_segments(shard, source, inventory.carried, rows, size, done))
        kept = [s for s in whole if s.segment_index not in done]
        assert [(s.segment_index, s.last) for s in rest] == [(s.segment_index, s.last) for s in kept]
        for left, right in zip(rest, kept, strict=True):
            assert left.members.equals(right.members)
            assert [d and bytes(d) for d in left.data] == [d and bytes(d) for d in right.data]
        for segment in whole:
            assert segment.members.num_rows <= rows
            sizes = [len(d) for d in segment.data if d is not None]
            if kind in {"folder", "tar", "gz"}:
                assert sum(sizes) <= size or len(sizes) <= 1
        seen += [row for s in whole for row in s.members.to_pylist()]
    assert seen == everything


@given(st.lists(st.integers(0, 100)), st.integers(1, 20), st.integers(1, 200))
def test_cut_partitions_and_is_greedy(weights: list[int], rows: int, size: int) -> None:
    ranges = cut(weights, rows, size)
    assert [i for r in ranges for i in r] == list(range(len(weights)))
    assert all(len(r) > 0 for r in ranges) or len(weights) == 0
    for r, following in pairwise(ranges):
        total = sum(weights[i] for i in r)
        assert len(r) <= rows
        assert total <= size or len(r) == 1
        assert len(r) == rows or total + weights[following.start] > size
