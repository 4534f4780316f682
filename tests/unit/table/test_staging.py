from pathlib import Path

import pytest

from batchdet.storage import StorageError
from batchdet.table.staging import list_staged, read_staged, staged_folder, write_staged

from .conftest import RUN_ID, Maker


def test_names_say_what_is_done(tmp_path: Path, segment: Maker) -> None:
    folder = staged_folder(str(tmp_path), RUN_ID)
    assert list_staged(str(tmp_path), RUN_ID) == {}
    write_staged(folder, segment(0, 0, False, 0, ["ok"]))
    write_staged(folder, segment(1, 1, True, 0, ["ok"]))
    write_staged(folder, segment(2, 0, True, 0, []))
    (Path(folder) / ".partial-x").write_text("left by a crash")
    staged = list_staged(str(tmp_path), RUN_ID)
    assert [shard.complete for shard in staged.values()] == [False, False, True]
    assert staged[f"{1:032x}"].last_index == 1


def test_what_is_written_is_read_back(tmp_path: Path, segment: Maker) -> None:
    original = segment(3, 7, True, 5, ["ok", "empty", "ok"])
    again = read_staged(write_staged(str(tmp_path), original))
    assert again.images.equals(original.images)
    assert again.detections.equals(original.detections)
    assert (again.shard_id, again.segment_index, again.last) == (original.shard_id, 7, True)
    assert again.times_s == original.times_s


def test_a_staged_file_cut_short_is_named(tmp_path: Path, segment: Maker) -> None:
    uri = write_staged(str(tmp_path), segment(0, 0, True, 0, ["ok"]))
    data = Path(uri).read_bytes()
    for keep in (0, 10, len(data) // 2):
        Path(uri).write_bytes(data[:keep])
        with pytest.raises(StorageError, match="not a whole staged file"):
            read_staged(uri)
