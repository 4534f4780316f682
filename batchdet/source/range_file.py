"""A stored object as a seekable file; the check that it is still the listed one; which failures last."""

import io
from typing import Any

from batchdet import storage
from batchdet.storage import SizeMismatch, StorageError, StoredObject, TransientError


def lasting_code(error: StorageError) -> str:
    """Return the error code under which a failure may become a row: the next run would find the same.

    Args:
        error: What storage said, after its retries.

    Raises:
        TransientError: ``error`` itself, when it may pass (5xx, throttling, time-outs, lost connections). As a row
            it would be committed, and the image lost for good; as an exception nothing is staged, and the same
            command goes on from there.
    """
    if isinstance(error, SizeMismatch):
        return "size_mismatch"
    if isinstance(error, TransientError):
        raise error
    return "unreadable"


def check_unchanged(obj: StoredObject) -> StoredObject:
    """Compare an object with its listing.

    Returns:
        The object as it is now, with its size.

    Raises:
        SizeMismatch: Its size is another.
        StorageError: It is gone, unreadable, or its ETag is another.
    """
    try:
        now = storage.retry(lambda: storage.stat(obj.uri))
    except ValueError as error:
        raise StorageError(f"{obj.uri}: cannot read: {error}") from error
    if 0 <= obj.size_bytes != now.size_bytes >= 0:
        raise SizeMismatch(f"{obj.uri}: {now.size_bytes} bytes now, {obj.size_bytes} were listed")
    if obj.etag and now.etag and obj.etag != now.etag:
        raise StorageError(f"{obj.uri}: changed since it was listed (ETag {now.etag}, listed {obj.etag})")
    return StoredObject(obj.uri, max(obj.size_bytes, now.size_bytes), now.etag)


class RangeFile(io.RawIOBase):
    """A stored object as a seekable file. Each read is one ranged request, retried, and checked for length.

    Args:
        obj: The object; its listed size is where the file ends.
    """

    def __init__(self, obj: StoredObject) -> None:
        super().__init__()
        self.size_bytes = obj.size_bytes
        self._obj = obj
        self._at = 0

    def fetch(self, start: int, end: int) -> bytes:
        """Return a range of bytes; fewer when the store keeps answering with a body cut short.

        Raises:
            StorageError: The store failed after all retries.
        """
        end = min(end, self.size_bytes)
        try:
            return storage.retry(lambda: storage.read_range(self._obj, start, end))
        except SizeMismatch as error:
            return error.data

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; nothing is requested."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size_bytes}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, count: int | None = -1) -> bytes:
        """Return the next bytes; -1 reads to the end."""
        end = self.size_bytes if count is None or count < 0 else self._at + count
        data = self.fetch(self._at, end)
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
