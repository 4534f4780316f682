"""Reading objects, with what arrives compared with what was listed."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final, cast

from batchdet.storage.backoff import patient, persist
from batchdet.storage.client import filesystem
from batchdet.storage.errors import SizeMismatch
from batchdet.storage.failure import plain_errors
from batchdet.storage.listing import StoredObject, stored_object
from batchdet.storage.uri import is_s3, scheme

_BUFFER_BYTES: Final = 8 * 1024 * 1024


@contextmanager
def open_read(uri: str) -> Iterator[IO[bytes]]:
    """Open an object for reading (seekable where the store can).

    On S3 every read is checked against the size and ETag that the object had when it was opened.
    """
    if is_s3(uri):
        with io.BufferedReader(RangeFile(_find_file(uri)), _BUFFER_BYTES) as reader:
            yield cast(IO[bytes], reader)
        return
    fs, path = filesystem(uri)
    with plain_errors(uri, "read"), fs.open(path, "rb") as file:
        yield file


@patient
def _find_file(uri: str) -> StoredObject:
    fs, path = filesystem(uri)
    with plain_errors(uri, "read"):
        info = fs.info(path)
        if info["type"] != "file":
            raise FileNotFoundError(uri)
        return stored_object(uri, info)


@patient
def read_bytes(uri: str, expected_bytes: int = -1) -> bytes:
    """Read a whole object.

    Args:
        uri: The object.
        expected_bytes: Its listed size, or -1. A body cut short passes silently through s3fs and pyarrow when
            its Content-Length agrees, so the count is compared here.

    Raises:
        SizeMismatch: Its length is not the listed one.
        StorageError: It cannot be read.
    """
    fs, path = filesystem(uri)
    with plain_errors(uri, "read"):
        if expected_bytes < 0:
            expected_bytes = int(fs.info(path)["size"] or -1)
        if expected_bytes <= 0:
            data = cast(bytes, fs.cat_file(path))
        else:
            # a range, because s3fs reads large objects whole into a buffer that hides missing parts as zeros;
            # one byte more than listed, so that an object that grew is found out
            data = cast(bytes, fs.cat_file(path, start=0, end=expected_bytes + 1))
    if 0 <= expected_bytes != len(data):
        raise SizeMismatch(f"{uri}: {len(data)} bytes arrived, {expected_bytes} were listed")
    return data


@patient
def read_range(obj: StoredObject, start: int, end: int) -> bytes:
    """Read a range of bytes of a listed object.

    Args:
        obj: The object. On S3 the store's answer must carry its ETag.
        start: First byte.
        end: Behind the last byte, at most the listed size.

    Raises:
        SizeMismatch: Fewer bytes arrived than were asked for.
        StorageError: It cannot be read, or has changed.
    """
    if start >= end:
        return b""
    fs, path = filesystem(obj.uri)
    with plain_errors(obj.uri, "read"):
        if is_s3(obj.uri) and obj.etag and not obj.etag.startswith("mtime:"):
            with fs.open(path, "rb", cache_type="none", size=obj.size_bytes) as file:
                # the listing's facts, so that s3fs asks for none and compares the ETag of what it gets
                file.details = {"name": path, "size": obj.size_bytes, "ETag": f'"{obj.etag}"', "type": "file"}
                file.seek(start)
                data = cast(bytes, file.read(end - start))
        else:
            data = cast(bytes, fs.cat_file(path, start=start, end=end))
    if len(data) != end - start:
        raise SizeMismatch(f"{obj.uri}: {len(data)} bytes arrived, {end - start} were asked for at {start}", data)
    return data


@patient
def read_object(obj: StoredObject) -> bytes:
    """Read a whole listed object and make sure that it is the one that was listed.

    Raises:
        SizeMismatch: Another number of bytes arrived.
        StorageError: It cannot be read, or has changed.
    """
    if scheme(obj.uri) == "file":
        from batchdet.storage.local_file import LocalFile  # which is a RangeFile

        with LocalFile(obj) as file:
            data = file.read()
            file.check()
            return data
    if obj.size_bytes < 0 or not obj.etag or not is_s3(obj.uri):
        return read_bytes(obj.uri, obj.size_bytes)
    return read_range(obj, 0, obj.size_bytes)


class RangeFile(io.RawIOBase):
    """A listed object as a seekable file. Each read is one ranged request, retried, and checked for length.

    Args:
        obj: The object; its listed size is where the file ends.
    """

    def __init__(self, obj: StoredObject) -> None:
        super().__init__()
        self.size_bytes = obj.size_bytes
        self._obj = obj
        self._at = 0

    def fetch(self, start: int, end: int) -> bytes:
        """Return a range of bytes.

        Raises:
            SizeMismatch: The store keeps answering with a body cut short.
            StorageError: It failed after all retries.
        """
        end = min(end, self.size_bytes)
        return persist(lambda: read_range(self._obj, start, end))

    def check(self) -> None:
        """Make sure that what was read is the listed object; here each request has."""

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

    def readall(self) -> bytes:
        """Return the rest, in one request."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
