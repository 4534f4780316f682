"""Reading objects, with what arrives compared with what was listed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

from batchdet.storage.client import S3, filesystem, plain_errors
from batchdet.storage.errors import SizeMismatch, StorageError
from batchdet.storage.listing import StoredObject, stat
from batchdet.storage.uri import scheme


@contextmanager
def open_read(uri: str, block_bytes: int | None = None) -> Iterator[IO[bytes]]:
    """Open an object for reading (seekable where the store can)."""
    fs, path = filesystem(uri)
    with plain_errors(uri, "read"):
        options = {} if block_bytes is None else {"block_size": block_bytes}
        with fs.open(path, "rb", **options) as file:
            yield file


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
        if scheme(obj.uri) in S3 and obj.etag and not obj.etag.startswith("mtime:"):
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


def read_object(obj: StoredObject) -> bytes:
    """Read a whole listed object and make sure that it is the one that was listed.

    Raises:
        SizeMismatch: Another number of bytes arrived.
        StorageError: It cannot be read, or has changed.
    """
    if obj.size_bytes < 0 or not obj.etag or scheme(obj.uri) not in S3:
        data = read_bytes(obj.uri, obj.size_bytes)
    else:
        data = read_range(obj, 0, obj.size_bytes)
    if scheme(obj.uri) == "file" and obj.etag and obj.etag != (now := stat(obj.uri)).etag:
        raise StorageError(f"{obj.uri}: it has changed since it was listed ({now.etag}, listed {obj.etag})")
    return data
