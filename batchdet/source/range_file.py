"""A source object as a seekable file; the check that it is still the listed one; which failures last."""

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


def lasting_shard_code(error: StorageError) -> str:
    """Return the code under which a failure to read a tar or Parquet file becomes a row; see :func:`lasting_code`.

    Raises:
        TransientError: ``error`` itself, when it may pass.
    """
    lasting_code(error)
    return "shard_unreadable"


def check_unchanged(obj: StoredObject) -> StoredObject:
    """Compare an object with its listing.

    Returns:
        The object as it is now, with its size.

    Raises:
        SizeMismatch: Its size is another.
        StorageError: It is gone, unreadable, or its ETag is another.
    """
    try:
        now = storage.persist(lambda: storage.stat(obj.uri))
    except ValueError as error:
        raise StorageError(f"{obj.uri}: cannot read: {error}") from error
    if 0 <= obj.size_bytes != now.size_bytes >= 0:
        raise SizeMismatch(f"{obj.uri}: {now.size_bytes} bytes now, {obj.size_bytes} were listed")
    if obj.etag and now.etag and obj.etag != now.etag:
        raise StorageError(f"{obj.uri}: changed since it was listed (ETag {now.etag}, listed {obj.etag})")
    return StoredObject(obj.uri, max(obj.size_bytes, now.size_bytes), now.etag)


def open_listed(obj: StoredObject) -> storage.RangeFile:
    """Open an object as a seekable file, once it is known to be the listed one; ``check()`` tells whether it stays so.

    Raises:
        SizeMismatch: Its size is another.
        StorageError: It is gone, unreadable, or its ETag is another.
    """
    obj = check_unchanged(obj)
    if storage.scheme(obj.uri) == "file":
        return storage.persist(lambda: storage.LocalFile(obj))
    if obj.size_bytes < 0:
        raise StorageError(f"{obj.uri}: the store does not tell its size")
    return RangeFile(obj)


class RangeFile(storage.RangeFile):
    """A stored object as a seekable file that ends where the store's bodies end."""

    def fetch(self, start: int, end: int) -> bytes:
        """Return a range of bytes; fewer when the store keeps answering with a body cut short.

        Raises:
            StorageError: The store failed after all retries.
        """
        try:
            return super().fetch(start, end)
        except SizeMismatch as error:
            return error.data
