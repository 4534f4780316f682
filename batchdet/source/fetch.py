"""Fetch whole objects, several at once, each with its own outcome.

What lasts (missing, forbidden, changed, too large, refused) fails the image alone. What may pass leaves as
:class:`~batchdet.storage.TransientError` once retries are spent: as a row it would be committed. Only images on web
hosts (http, https) fail alone in either case, because one dead host of a list must not stop a job.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from batchdet import storage
from batchdet.errors import ImageError, MissingExtra
from batchdet.source import http
from batchdet.source.policy import Allowed
from batchdet.source.range_file import lasting_code
from batchdet.source.rows import ImageRow
from batchdet.storage import StorageError, StoredObject, TransientError

LOCAL_THREADS: Final = 4
REMOTE_THREADS: Final = 16
_OF_THE_NAME: Final = (AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
"""What clients raise about a name that they cannot parse, whenever they are asked."""


def read_object(obj: StoredObject, max_bytes: int) -> bytes:
    """Read a whole object, with retries, and make sure that it is the one that was listed.

    Args:
        obj: The object; without a size it is looked up first.
        max_bytes: ``source.max_image_bytes``.

    Raises:
        ImageError: With code too_large, size_mismatch or unreadable.
        TransientError: The store failed in a way that may pass.
    """
    try:
        if obj.size_bytes < 0:
            uri = obj.uri
            obj = storage.persist(lambda: storage.stat(uri))
        if obj.size_bytes > max_bytes:
            raise ImageError("too_large", f"{obj.uri}: {obj.size_bytes} bytes, source.max_image_bytes is {max_bytes}")
        return storage.persist(lambda: storage.read_object(obj))
    except StorageError as error:
        raise ImageError(lasting_code(error), error.message) from error
    except MissingExtra as error:
        raise ImageError("unreadable", error.message) from error
    except ImageError:
        raise
    except _OF_THE_NAME as error:
        raise ImageError("unreadable", f"{obj.uri}: {type(error).__name__}: {error}") from error
    except Exception as error:  # of a client that storage does not know: nobody can say that it lasts
        raise TransientError(f"{obj.uri}: cannot read: {type(error).__name__}: {error}") from error


def read_allowed(allowed: Allowed, max_bytes: int) -> bytes:
    """Read what a list names, once the policy has allowed it.

    Raises:
        ImageError: It cannot be read; on a web host also when that might pass.
        TransientError: An object store failed in a way that may pass.
    """
    if storage.scheme(allowed.uri) not in {"http", "https"}:
        return read_object(StoredObject(allowed.uri, -1, ""), max_bytes)
    try:
        return storage.retry(lambda: http.fetch(allowed, max_bytes), storage.WEB)
    except StorageError as error:
        raise ImageError("unreadable", error.message) from error


def fill(rows: Sequence[ImageRow], read: Callable[[ImageRow], bytes]) -> None:
    """Read the images of rows that have not failed, several at once.

    Args:
        rows: Get ``data`` and ``size_bytes``, or fail.
        read: Returns one image or raises :class:`ImageError`.

    Raises:
        TransientError: ``read`` did; the rows are of no use then.
    """

    def one(row: ImageRow) -> None:
        try:
            row.data = read(row)
            row.size_bytes = len(row.data)
        except ImageError as error:
            row.fail(error.code, error.message)
        except TransientError:
            raise
        except Exception as error:  # whatever a web host brings about in one object, its neighbours go on
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
