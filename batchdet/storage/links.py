"""Symbolic links in local folders."""

import os
from typing import Any

from fsspec.implementations.local import LocalFileSystem


class FollowedLinks(LocalFileSystem):  # type: ignore[misc]
    """The local file system, listed with each link as what it leads to; fsspec's own passes over links.

    A link that leads nowhere is a file, which whoever reads it finds missing. One that leads to a folder above itself
    is passed over: what it holds is listed without it.
    """

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
