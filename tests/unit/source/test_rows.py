from collections import Counter

import pyarrow as pa
import pytest

from batchdet.source.rows import Cutter, ImageRow, assemble, cut, failed_shard
from batchdet.source.shards import Shard

SHARD = Shard(3, "ab" * 12, "s3://b/x.tar", "webdataset", ())


@pytest.mark.parametrize(
    ("weights", "want"),
    [
        ([], [range(0, 0)]),
        ([1], [range(0, 1)]),
        ([1, 1, 1, 1, 1], [range(0, 3), range(3, 5)]),
        ([100], [range(0, 1)]),
        ([1, 100, 1], [range(0, 1), range(1, 2), range(2, 3)]),
        ([5, 5, 1], [range(0, 2), range(2, 3)]),
        ([0, 0, 0, 0], [range(0, 3), range(3, 4)]),
    ],
)
def test_cut_by_rows_and_bytes(weights: list[int], want: list[range]) -> None:
    assert cut(weights, 3, 10) == want


def test_cutter_and_cut_agree() -> None:
    weights = [(i * 7919) % 23 for i in range(200)]
    cutter = Cutter(5, 40)
    places = [cutter.place(w) for w in weights]
    assert [places.count(i) for i in range(max(places) + 1)] == [len(r) for r in cut(weights, 5, 40)]


def _rows(count: int) -> list[tuple[ImageRow, int]]:
    return [(ImageRow("u", "s", str(i), i, 1, b"x", carried={"n": i}), 1) for i in range(count)]


def test_assemble_names_the_last_segment() -> None:
    carried = pa.schema([("n", pa.int64()), ("m", pa.string())])
    segments = list(assemble(SHARD, carried, _rows(5), 2, 100, frozenset(), Counter()))
    assert [(s.segment_index, s.last, s.members["n"].to_pylist()) for s in segments] == [
        (0, False, [0, 1]),
        (1, False, [2, 3]),
        (2, True, [4]),
    ]
    assert segments[0].members["m"].to_pylist() == [None, None]
    assert segments[0].shard_index == 3


def test_assemble_without_rows_is_one_empty_segment() -> None:
    (segment,) = assemble(SHARD, pa.schema([]), [], 2, 100, frozenset(), Counter())
    assert (segment.segment_index, segment.last, segment.members.num_rows) == (0, True, 0)
    assert list(assemble(SHARD, pa.schema([]), [], 2, 100, frozenset({0}), Counter())) == []


def test_failed_shard_is_one_row_without_a_name() -> None:
    segment = failed_shard(SHARD, pa.schema([("n", pa.int64())]), "unreadable", "gone")
    assert segment.last
    assert segment.members.to_pylist() == [
        {
            "uri": "s3://b/x.tar", "shard_uri": "s3://b/x.tar", "member": "", "position": 0, "size_bytes": -1,
            "error_code": "unreadable", "error_message": "gone", "n": None,
        }
    ]  # fmt: skip
