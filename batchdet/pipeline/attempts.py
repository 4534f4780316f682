"""Attempts: notes on this node of which segments a worker has begun, so that the next worker knows what ended the last.

A file per segment in work, a byte per attempt; it goes when the segment is done, however that ends in Python. What
remains was written by a process that died in the middle. The notes are this node's alone: a segment that goes on
elsewhere is counted there anew, which costs one more worker and nothing else.
"""

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from batchdet import storage
from batchdet.errors import ClusterError

_KEEP_S: Final = 7 * 86_400.0
_NAMED: Final = 3


class Attempts:
    """The notes of one run.

    Args:
        run_id: The run.
        folder: Where they are kept; None takes a private folder below the system's temporary one.

    Raises:
        ClusterError: The folder belongs to another user, or others may write there.
    """

    def __init__(self, run_id: str, folder: Path | None = None) -> None:
        self._folder = folder or _own_folder()
        self._run_id = run_id
        with storage.temporary_errors():
            with contextlib.suppress(FileExistsError):
                self._folder.mkdir(mode=0o700)
            found = self._folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise ClusterError(f"{self._folder}: is not a private folder of this user; remove it, or set TMPDIR")
        self._forget_old_ones()

    @contextlib.contextmanager
    def of(self, segment_name: str) -> Iterator[int]:
        """Note that a segment is in work while the block runs.

        Yields:
            How many workers have died with it, here.
        """
        path = self._path(segment_name)
        with storage.temporary_errors():
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                earlier = os.fstat(handle).st_size
                os.write(handle, b".")
            finally:
                os.close(handle)
        try:
            yield earlier
        finally:
            path.unlink(missing_ok=True)

    def touch(self, segment_name: str) -> None:
        """Note that the work on a segment has made progress."""
        with contextlib.suppress(OSError):
            os.utime(self._path(segment_name))

    def _path(self, segment_name: str) -> Path:
        return self._folder / f"{self._run_id}-{segment_name.replace('/', '-')}"

    def _forget_old_ones(self) -> None:
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):  # another worker may be quicker
                if time.time() - path.stat().st_mtime > _KEEP_S:
                    path.unlink()


class AtWork:
    """The segments that workers on this machine have in work, as their notes show.

    Args:
        run_id: The run.
        folder: Where the notes are kept; None takes a private folder below the system's temporary one.
    """

    def __init__(self, run_id: str, folder: Path | None = None) -> None:
        self._folder = folder or _own_folder()
        self._run_id = run_id
        self._since_s = time.time()
        self._newest_s = 0.0

    def moved(self) -> bool:
        """Tell whether a segment was begun, or got further, since the last call."""
        before, self._newest_s = self._newest_s, max(self._notes().values(), default=0.0)
        return self._newest_s > before

    def text(self) -> str:
        """Say which segments are in work, as ", of segments ..."."""
        names = sorted(self._notes())
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return f" of {'segment' if len(names) == 1 else 'segments'} {', '.join(names[:_NAMED])}{more}" if names else ""

    def _notes(self) -> dict[str, float]:
        """Map the segments in work to when each was begun or got further, as a Unix time."""
        found = {}
        with contextlib.suppress(OSError):
            for path in self._folder.glob(f"{self._run_id}-*"):
                changed_s = path.stat().st_mtime
                if changed_s >= self._since_s:  # older ones are of a process that was killed
                    found[path.name.removeprefix(f"{self._run_id}-")] = changed_s
        return found


def _own_folder() -> Path:
    return Path(storage.temporary_folder()) / f"batchdet-{os.geteuid()}"
