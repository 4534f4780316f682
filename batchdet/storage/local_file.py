"""Reading a listed file of this machine, so that no read sees what was written after the listing."""

import errno
import os
import stat
import time
import zlib
from typing import Final, NamedTuple

from batchdet.storage.backoff import persist
from batchdet.storage.errors import SizeMismatch, StorageError
from batchdet.storage.failure import plain_errors
from batchdet.storage.listing import StoredObject
from batchdet.storage.read import RangeFile

_TICK_NS: Final = 20_000_000
"""Two writes within a tick of the kernel's clock (10 ms at most) may leave the same times behind."""
_WHOLE_SECONDS_NS: Final = 2_000_000_000
"""The same where a file system keeps whole seconds, or every other one."""
_SECOND_NS: Final = 1_000_000_000


class _State(NamedTuple):
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    others: tuple[int, ...]
    """Rights, owner and links: what changes ``ctime_ns`` and nothing else."""

    @staticmethod
    def of(found: os.stat_result) -> "_State":
        others = (found.st_mode, found.st_uid, found.st_gid, found.st_nlink)
        return _State(found.st_size, found.st_mtime_ns, found.st_ctime_ns, others)

    @property
    def young_ns(self) -> int:
        """For so much longer a write may leave the same times behind."""
        whole = self.mtime_ns % _SECOND_NS == 0 and self.ctime_ns % _SECOND_NS == 0
        age = time.time_ns() - max(self.mtime_ns, self.ctime_ns)
        return (_WHOLE_SECONDS_NS if whole else _TICK_NS) - age if age >= 0 else 0


class LocalFile(RangeFile):
    """A listed file of this machine as a seekable file; each read is retried while it fails in a way that may pass.

    :meth:`check` tells whether the file was overwritten meanwhile. A write after the opening changes the time of the
    last change, because the file is opened only once that time has passed. Whoever sets that time back changes the time
    of the inode's change. If a change of rights, owner or links explains the latter, what was read is read again and
    compared by checksums. Writes through a memory map may reach the times late.

    Args:
        obj: The file; a size below 0 and an ETag of "" are not compared.

    Raises:
        SizeMismatch: Its size is not the listed one.
        StorageError: It cannot be read, or its time is not the listed one.
    """

    def __init__(self, obj: StoredObject) -> None:
        self._handle = -1
        with plain_errors(obj.uri, "read"):
            self._handle = os.open(obj.uri, os.O_RDONLY | os.O_CLOEXEC)
            found = os.fstat(self._handle)
            if stat.S_ISDIR(found.st_mode):
                self.close()
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if (wait_ns := _State.of(found).young_ns) > 0:
                time.sleep(wait_ns / _SECOND_NS)
                found = os.fstat(self._handle)
        if 0 <= obj.size_bytes != found.st_size:
            self.close()
            raise SizeMismatch(f"{obj.uri}: {found.st_size} bytes now, {obj.size_bytes} were listed")
        if obj.etag and obj.etag != (etag := f"mtime:{found.st_mtime}"):
            self.close()
            raise StorageError(f"{obj.uri}: it has changed since it was listed ({etag}, listed {obj.etag})")
        self._state = _State.of(found)
        self._read: list[tuple[int, int, int]] = []
        """Start, end and checksum of what was read since the last check."""
        super().__init__(StoredObject(obj.uri, found.st_size, obj.etag))

    def fetch(self, start: int, end: int) -> bytes:
        """Return a range of bytes; fewer where the file was cut meanwhile.

        Raises:
            StorageError: The file system failed after all retries.
        """
        data = self._fetch(start, min(end, self.size_bytes))
        self._read.append((start, start + len(data), zlib.crc32(data)))
        return data

    def _fetch(self, start: int, end: int) -> bytes:
        def read() -> bytes:
            parts, at = [], start
            with plain_errors(self._obj.uri, "read"):
                while at < end and (part := os.pread(self._handle, end - at, at)):
                    parts.append(part)
                    at += len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)

        return persist(read)

    def check(self) -> None:
        """Make sure that all that was read since the last check is the file that was opened.

        Raises:
            StorageError: The file was overwritten.
        """
        now = persist(self._look)
        same = now == self._state or (
            now[:2] == self._state[:2]
            and now.others != self._state.others
            and all(zlib.crc32(self._fetch(start, end)) == checksum for start, end, checksum in self._read)
        )
        self._state, self._read = now, []
        if not same:
            raise StorageError(f"{self._obj.uri}: it was changed while it was read")

    def _look(self) -> _State:
        """Look at the file anew: a network file system asks its server when a file is opened, not before."""
        mine = os.fstat(self._handle)
        with plain_errors(self._obj.uri, "read"):
            try:
                handle = os.open(self._obj.uri, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # deleted; what is open is what it was
                return _State.of(mine)
            try:
                there = os.fstat(handle)
            finally:
                os.close(handle)
        # of another file that has taken its name nothing was read
        return _State.of(there if os.path.samestat(mine, there) else os.fstat(self._handle))

    def close(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        super().close()
