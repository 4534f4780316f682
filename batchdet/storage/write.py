"""Writing objects: whole or not at all."""

import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

from batchdet.failpoint import failpoint
from batchdet.storage.client import filesystem, plain_errors
from batchdet.storage.uri import scheme


@contextmanager
def open_write(uri: str) -> Iterator[IO[bytes]]:
    """Open an object for writing; it appears whole when the block ends, or not at all when it raises."""
    fs, path = filesystem(uri)
    with plain_errors(uri, "write"):
        if scheme(uri) == "memory":  # fsspec's memory files appear as soon as they are opened
            buffer = io.BytesIO()
            yield buffer
            fs.pipe_file(path, buffer.getvalue())
            return
        if scheme(uri) != "file":
            file = fs.open(path, "wb")
            try:
                yield file
            except BaseException:
                file.discard() if hasattr(file, "discard") else None
                file.closed = True  # keeps fsspec from completing the upload when the object is collected
                raise
            file.close()
            return
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=".partial-", dir=folder)
        try:
            with os.fdopen(handle, "wb") as local:
                failpoint("storage.write")
                yield local
                local.flush()
                os.fsync(local.fileno())
            os.chmod(partial, 0o666 & ~_umask())
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole object; readers see the old one or the new one, never a part."""
    if scheme(uri) == "file":
        with open_write(uri) as file:
            file.write(data)
        return
    fs, path = filesystem(uri)
    with plain_errors(uri, "write"):
        fs.pipe_file(path, data)


def create(uri: str, data: bytes) -> bool:
    """Write an object only if there is none of that name; one of several writers succeeds.

    Returns:
        Whether this call wrote it.
    """
    fs, path = filesystem(uri)
    with plain_errors(uri, "write"):
        if scheme(uri) != "file":
            try:
                fs.pipe_file(path, data, mode="create")
            except OSError as error:
                if not isinstance(error, FileExistsError) and "condition" not in str(error).lower():
                    raise
                # a client that repeats a request whose answer was lost finds its own object
                return bool(fs.cat_file(path) == data)
            return True
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=".partial-", dir=os.path.dirname(path))
        try:
            with os.fdopen(handle, "wb") as local:
                local.write(data)
            os.link(partial, path)
        except FileExistsError:
            return False
        finally:
            os.unlink(partial)
    return True


def move(source: str, target: str) -> None:
    """Move an object within one store, replacing what is there."""
    fs, path = filesystem(source)
    _, target_path = filesystem(target)
    with plain_errors(target, "write"):
        if scheme(source) == "file":
            os.makedirs(os.path.dirname(target_path), exist_ok=True)
            os.replace(path, target_path)
        else:
            fs.cp_file(path, target_path)
            fs.rm_file(path)


def delete(uris: Iterable[str]) -> None:
    """Delete objects; one that is already gone is no error."""
    for uri in uris:
        fs, path = filesystem(uri)
        with plain_errors(uri, "delete"):
            try:
                fs.rm_file(path)
            except FileNotFoundError:
                continue


def delete_folder(uri: str) -> None:
    """Delete everything below a folder and the folder itself; one that is already gone is no error."""
    fs, path = filesystem(uri)
    with plain_errors(uri, "delete"):
        try:
            fs.rm(path, recursive=True)
        except FileNotFoundError:
            return
