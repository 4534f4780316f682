"""Writing objects: whole or not at all, and safe to repeat when an answer is lost."""

import contextlib
import errno
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from batchdet.failpoint import failpoint
from batchdet.storage.backoff import patient
from batchdet.storage.client import filesystem
from batchdet.storage.errors import NotFound, TransientError
from batchdet.storage.failure import plain_errors
from batchdet.storage.read import read_bytes
from batchdet.storage.uri import scheme


@patient
def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole object; readers see the old one or the new one, never a part."""
    fs, path = filesystem(uri)
    with plain_errors(uri, "write"):
        if scheme(uri) == "file":
            with _written_beside(path, io.BytesIO(data)) as partial:
                os.replace(partial, path)
            _sync(os.path.dirname(path))
        else:
            fs.pipe_file(path, data)


@patient
def write_file(uri: str, file: BinaryIO) -> None:
    """Write a whole object from a local file, open for reading from its start, without holding it in memory."""
    fs, path = filesystem(uri)
    with plain_errors(uri, "write"):
        file.seek(0)
        if scheme(uri) == "file":
            with _written_beside(path, file) as partial:
                os.replace(partial, path)
            _sync(os.path.dirname(path))
        else:
            fs.put_file(f"/dev/fd/{file.fileno()}", path)  # it may have no name any more


@patient
def create(uri: str, data: bytes) -> bool:
    """Write an object only if there is none of that name; one of several writers succeeds.

    Returns:
        Whether this call wrote it.
    """
    fs, path = filesystem(uri)
    with plain_errors(uri, "write"):
        if scheme(uri) == "file":
            with _written_beside(path, io.BytesIO(data)) as partial:
                try:
                    os.link(partial, path)
                except FileExistsError:
                    return False
            _sync(os.path.dirname(path))
            return True
        try:
            fs.pipe_file(path, data, mode="create")
        except OSError as error:
            if not isinstance(error, FileExistsError) and "condition" not in str(error).lower():
                raise
            return _holds(uri, data)
        return True


def _holds(uri: str, data: bytes) -> bool:
    """Tell whether an object that stands in the way is this very one: written before, and the answer lost."""
    try:
        return read_bytes(uri) == data
    except NotFound as error:
        raise TransientError(f"{uri}: cannot write: another object was there, and went away meanwhile") from error


@contextlib.contextmanager
def _written_beside(path: str, data: BinaryIO) -> Iterator[str]:
    """Copy data to a new file in the folder of ``path``, for as long as the block lasts."""
    folder = os.path.dirname(path)
    _make_folders(folder)
    handle, partial = tempfile.mkstemp(prefix=".partial-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            failpoint("storage.write")
            shutil.copyfileobj(data, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o666 & ~_umask())
        yield partial
    finally:
        with contextlib.suppress(FileNotFoundError):  # the block may have renamed it
            os.unlink(partial)


def _make_folders(folder: str) -> None:
    """Make a folder and those above it that are missing, each noted on disk in the one above."""
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for each in reversed(missing):
        os.makedirs(each, exist_ok=True)
        _sync(os.path.dirname(each))


def _sync(folder: str) -> None:
    """Bring the names in a folder to disk; without that a power cut may undo a rename whose file was synced."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # what some network file systems say of folders
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def move(source: str, target: str) -> None:
    """Move an object within one store, replacing what is there."""
    if scheme(source) == "file":
        (_, path), (_, target_path) = filesystem(source), filesystem(target)
        with plain_errors(target, "write"):
            _make_folders(os.path.dirname(target_path))
            os.replace(path, target_path)
            _sync(os.path.dirname(target_path))
    else:
        _copy(source, target)
        _delete(source)


@patient
def _copy(source: str, target: str) -> None:
    fs, path = filesystem(source)
    _, target_path = filesystem(target)
    with plain_errors(target, "write"):
        fs.cp_file(path, target_path)


def delete(uris: Iterable[str]) -> None:
    """Delete objects; one that is already gone is no error."""
    for uri in uris:
        _delete(uri)


@patient
def _delete(uri: str) -> None:
    fs, path = filesystem(uri)
    with plain_errors(uri, "delete"), contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


@patient
def delete_folder(uri: str) -> None:
    """Delete everything below a folder and the folder itself; one that is already gone is no error."""
    fs, path = filesystem(uri)
    with plain_errors(uri, "delete"), contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)
