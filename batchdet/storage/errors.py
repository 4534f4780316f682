"""What a store did, in plain words: the storage branch of the error tree."""

from batchdet.errors import BatchdetError


class StorageError(BatchdetError):
    """An object could not be listed, read or written; the message names it and says why."""

    exit_status = 2
    code = "storage.failed"


class NotFound(StorageError):
    """There is no such object, folder or bucket."""

    code = "storage.not_found"


class TransientError(StorageError):
    """The store failed in a way that may pass: time-outs, lost connections, 5xx, throttling."""

    code = "storage.unavailable"


class DiskFull(TransientError):
    """A disk, or what of it one may use, is full. It is not tried again: waiting makes no room."""

    code = "storage.disk_full"


class SizeMismatch(TransientError):
    """Another number of bytes arrived than was listed.

    Args:
        message: What arrived and what was listed.
        data: What did arrive.
    """

    def __init__(self, message: str, data: bytes = b"") -> None:
        super().__init__(message)
        self.data = data
