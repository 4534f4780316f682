"""Local folders, listed so that nothing is passed over."""

import os
from collections.abc import Callable, Iterator
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from batchdet.storage.failure import plain_errors


def _raise_unless_gone(error: OSError) -> None:
    """Raise an error of listing a folder, unless the folder has gone meanwhile.

    Raises:
        StorageError: Names the folder.
    """
    if not isinstance(error, FileNotFoundError):
        with plain_errors(str(error.filename), "list"):
            raise error


class Listed(LocalFileSystem):  # type: ignore[misc]
    """The local file system as a source; fsspec's own passes over links, and over folders that it may not read.

    A link is what it leads to. One that leads nowhere is a file, which whoever reads it finds missing. One that leads
    to a folder above itself is passed over: what it holds is listed without it.
    """

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: Callable[[OSError], None] = _raise_unless_gone,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """List a folder and those below it."""
        yield from super().walk(path, maxdepth, topdown, on_error, **kwargs)

    def info(self, path: Any, **kwargs: Any) -> dict[str, Any]:
        """Describe a path, or an entry of a folder that is listed."""
        if not isinstance(path, os.DirEntry) or not path.is_symlink():
            return dict(super().info(path, **kwargs))
        try:
            info = dict(super().info(path.path, **kwargs))
        except OSError:
            return dict(super().info(path, **kwargs)) | {"type": "file", "size": None}
        if info["type"] == "directory" and os.path.realpath(path.path) in _folders_above(path.path):
            info["type"] = "other"
        return info


def _folders_above(path: str) -> set[str]:
    """Resolve each folder on the way to a path, as it is spelt."""
    above = set()
    while (parent := os.path.dirname(path)) != path:
        above.add(os.path.realpath(parent))
        path = parent
    return above
