import os
import time
from pathlib import Path

from batchdet.pipeline.attempts import Attempts, AtWork


def test_segments_in_work_are_named_and_their_progress_is_seen(tmp_path: Path) -> None:
    earlier, notes, other = (Attempts(run_id, tmp_path) for run_id in ("R-old", "R-new", "S-new"))
    with earlier.of("killed"):
        killed = tmp_path / "R-old-killed"
        os.utime(killed, (time.time() - 60,) * 2)
        at_work = AtWork("R", tmp_path)
        assert (at_work.text(), at_work.moved()) == ("", False)
        with notes.of("shard-1"), other.of("theirs"):
            assert at_work.moved()
            assert not at_work.moved()
            assert at_work.text() == " of segment new-shard-1"
            os.utime(tmp_path / "R-new-shard-1", (time.time() + 5,) * 2)
            assert at_work.moved()
            with notes.of("shard-2"):
                assert at_work.text() == " of segments new-shard-1, new-shard-2"
        assert at_work.text() == ""


def test_isolation_touches_the_note_of_its_segment(tmp_path: Path) -> None:
    notes = Attempts("R", tmp_path)
    with notes.of("s/1"):
        os.utime(tmp_path / "R-s-1", (1, 1))
        notes.touch("s/1")
        assert (tmp_path / "R-s-1").stat().st_mtime > time.time() - 60
    notes.touch("s/1")  # gone already
