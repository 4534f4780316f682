"""What a URI is made of, and its one spelling.

A local path is written absolute and without ``file://``; everything else keeps its scheme. So a URI is the same
text wherever it is seen, and ``image_id`` with it.
"""

import os
import posixpath
import re
from urllib.parse import unquote

from batchdet.storage.errors import StorageError

_HALF_A_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(/(?!/)|/*$)")
_GLOB = frozenset("*?[")


def normalize(uri: str) -> str:
    """Return the one spelling of a URI: local paths absolute without ``file://``, no trailing slash.

    What stands behind ``file://`` is percent-encoded, as ``Path.as_uri()`` writes it; its host may be ``localhost``.

    Raises:
        StorageError: A scheme stands there without its two slashes, or without anything behind them; as a path it
            would be a folder of that name.
    """
    if _HALF_A_URI.match(uri):
        raise StorageError(f"{uri}: names no place; write scheme://bucket/path, or a path (is a variable empty?)")
    if "://" in uri:
        name, rest = uri.split("://", 1)
        local = unquote(rest.removeprefix("localhost") if rest.startswith("localhost/") else rest)
        uri = local if name.lower() == "file" else f"{name.lower()}://{rest}"
    if "://" not in uri:
        uri = os.path.abspath(os.path.expanduser(uri))
    return uri.rstrip("/") or "/"


def scheme(uri: str) -> str:
    """Return the scheme of a URI, ``file`` for local paths."""
    return uri.split("://", 1)[0].lower() if "://" in uri else "file"


def is_s3(uri: str) -> bool:
    """Tell whether a URI names something on S3."""
    return scheme(uri) in {"s3", "s3a"}


def is_glob(uri: str) -> bool:
    """Tell whether a URI holds a wildcard."""
    return any(c in _GLOB for c in uri)


def join(base: str, *parts: str) -> str:
    """Append path components to a URI."""
    return posixpath.join(base.rstrip("/") or "/", *parts)


def basename(uri: str) -> str:
    """Return the last component of a URI."""
    return posixpath.basename(uri.rstrip("/"))
