"""Fetch whole objects, several at once, each with its own outcome."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from batchdet import storage
from batchdet.errors import ImageError, MissingExtra
from batchdet.source import http
from batchdet.source.policy import Allowed
from batchdet.source.rows import ImageRow
from batchdet.storage import SizeMismatch, StorageError, StoredObject

LOCAL_THREADS: Final = 4
REMOTE_THREADS: Final = 16


def read_object(obj: StoredObject, max_bytes: int) -> bytes:
    """Read a whole object, with retries, and make sure that it is the one that was listed.

    Args:
        obj: The object; without a size it is looked up first.
        max_bytes: ``source.max_image_bytes``.

    Raises:
        ImageError: With code too_large, size_mismatch or unreadable.
    """
    try:
        if obj.size_bytes < 0:
            uri = obj.uri
            obj = storage.retry(lambda: storage.stat(uri))
        if obj.size_bytes > max_bytes:
            raise ImageError("too_large", f"{obj.uri}: {obj.size_bytes} bytes, source.max_image_bytes is {max_bytes}")
        return storage.retry(lambda: storage.read_object(obj))
    except SizeMismatch as error:
        raise ImageError("size_mismatch", error.message) from error
    except (StorageError, MissingExtra) as error:
        raise ImageError("unreadable", error.message) from error


def read_allowed(allowed: Allowed, max_bytes: int) -> bytes:
    """Read what a list names, once the policy has allowed it.

    Raises:
        ImageError: It cannot be read.
    """
    if storage.scheme(allowed.uri) not in {"http", "https"}:
        return read_object(StoredObject(allowed.uri, -1, ""), max_bytes)
    try:
        return storage.retry(lambda: http.fetch(allowed, max_bytes))
    except StorageError as error:
        raise ImageError("unreadable", error.message) from error


def fill(rows: Sequence[ImageRow], read: Callable[[ImageRow], bytes]) -> None:
    """Read the images of rows that have not failed, several at once.

    Args:
        rows: Get ``data`` and ``size_bytes``, or fail.
        read: Returns one image or raises :class:`ImageError`.
    """

    def one(row: ImageRow) -> None:
        try:
            row.data = read(row)
            row.size_bytes = len(row.data)
        except ImageError as error:
            row.fail(error.code, error.message)
        except Exception as error:  # whatever a client raises about one object, its neighbours go on
            row.fail("unreadable", f"{row.uri}: {type(error).__name__}: {error}")

    todo = [row for row in rows if row.error_code is None]
    if not todo:
        return
    threads = LOCAL_THREADS if storage.scheme(todo[0].uri) == "file" else REMOTE_THREADS
    if len(todo) == 1 or threads == 1:
        for row in todo:
            one(row)
        return
    with ThreadPoolExecutor(min(threads, len(todo)), thread_name_prefix="batchdet-fetch") as pool:
        list(pool.map(one, todo))
