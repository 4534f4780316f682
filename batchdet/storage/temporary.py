"""The folder for temporary files, which may be full, or not there."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from batchdet.storage.errors import StorageError
from batchdet.storage.failure import plain_errors


def temporary_folder() -> str:
    """Return the folder for temporary files.

    Raises:
        StorageError: None of those that are tried can be written.
    """
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:  # it writes a few bytes into each
        raise StorageError(
            f"no folder for temporary files can be written: {str(error.strerror).rpartition(' in ')[2]}; "
            "make room in one of them, or name another in TMPDIR",
            code="storage.no_temporary_folder",
            key="TMPDIR",
        ) from error


@contextmanager
def temporary_errors() -> Iterator[None]:
    """Turn what writing a temporary file raises into a :class:`StorageError` that names the folder.

    Raises:
        StorageError: The folder is full, or cannot be written.
    """
    folder = temporary_folder()
    try:
        with plain_errors(folder, "write"):
            yield
    except StorageError as error:
        error.hint = error.hint or "TMPDIR names the folder for temporary files"
        raise
