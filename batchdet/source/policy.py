"""Which URIs a list may name. What is not allowed is refused before any connection is made."""

import os
import posixpath
import re
import stat
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from batchdet import storage
from batchdet.credentials import find_secret, masked
from batchdet.errors import ImageError

_DEFAULT_SCHEMES: Final = frozenset({"s3", "gs", "az", "abfs", "hf"})
_WEB: Final = frozenset({"http", "https"})
MASK: Final = "***"
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True)
class Allowed:
    """A URI that may be fetched.

    Args:
        uri: Its one spelling.
        public_only: Its host must resolve to a public address: the list chose the host, not the spec.
    """

    uri: str
    public_only: bool


class UriPolicy:
    """The allow-list of one list.

    Args:
        list_uri: The list, normalised. Relative entries resolve against its folder.
        allow: ``source.allow``. A prefix ends at a path component: ``s3://b/a`` allows ``s3://b/a/x.jpg`` and not
            ``s3://b/ab.jpg``. Empty allows object stores and, for a local list, files below its folder.
    """

    def __init__(self, list_uri: str, allow: tuple[str, ...]) -> None:
        self.folder = posixpath.dirname(list_uri)
        self._prefixes = [_split(storage.normalize(p) if storage.scheme(p) == "file" else p) for p in allow]
        self._schemes = frozenset() if allow else _DEFAULT_SCHEMES
        if not allow and storage.scheme(list_uri) == "file":
            self._prefixes = [_split(self.folder)]

    def resolve(self, listed: str) -> str:
        """Return the full URI of an entry; nothing is decided yet. One that climbs out of its bucket keeps its dots."""
        if "://" in listed:
            scheme, rest = listed.split("://", 1)
            local = scheme.lower() == "file" and rest.strip("/") != ""
            return storage.normalize(listed) if local else f"{scheme.lower()}://{rest}"
        if listed.startswith(("/", "~")) or _SCHEME.match(listed):
            return listed
        uri = storage.join(self.folder, listed)
        if "://" not in uri:
            return storage.normalize(uri)
        scheme, rest = uri.split("://", 1)
        root, _, path = rest.partition("/")
        resolved = posixpath.normpath(path)
        return uri if resolved.startswith("..") else f"{scheme}://{root}/{resolved}"

    def check(self, listed: str) -> Allowed:
        """Resolve an entry and decide.

        Raises:
            ImageError: It is refused, with code ``refused_uri``.
        """
        if any(c in listed for c in "\0\r\n"):
            raise _refused(listed, "it holds control characters")
        if secret := find_secret(listed):
            raise _refused(listed, f"it holds {secret}; the tables would show it to every reader")
        if MASK in listed:
            raise _refused(listed, "it held a secret, which is not kept; name it without, as s3:// and the like")
        if "::" in listed:
            raise _refused(listed, "chained URIs (::) are not followed")
        if "://" not in listed and _SCHEME.match(listed):
            raise _refused(listed, f"{listed.split(':', 1)[0]}: is not allowed")
        uri = self.resolve(listed)
        if uri.startswith("file://"):
            raise _refused(listed, "it names no file")
        if storage.scheme(uri) == "file":
            return Allowed(self._check_local(listed, uri), False)
        part = _split(uri)
        if ".." in unquote(part.path).replace("\\", "/").split("/"):
            raise _refused(listed, "its path holds '..'")
        if part.scheme in _WEB and ("@" in part.host or "\\" in part.host):
            raise _refused(listed, "it holds a user name")
        if part.scheme in self._schemes:
            return Allowed(uri, False)
        return self._by_prefix(listed, part)

    def _by_prefix(self, listed: str, part: "_Parts") -> Allowed:
        matching = [p for p in self._prefixes if p.scheme == part.scheme and _covers(p, part)]
        if not matching:
            raise _refused(listed, f"no prefix in source.allow covers it{self._default_text()}")
        return Allowed(part.uri, part.scheme in _WEB and not any(p.host for p in matching))

    def _check_local(self, listed: str, uri: str) -> str:
        path = storage.normalize(uri)
        real = _Parts("file", "", os.path.realpath(path), path)
        for prefix in self._prefixes:
            if prefix.scheme == "file" and _covers(_Parts("file", "", os.path.realpath(prefix.path), ""), real):
                if _would_block(real.path):
                    raise _refused(listed, "it is no plain file")
                return path
        raise _refused(listed, f"it is outside the folders that are allowed{self._default_text()}")

    def _default_text(self) -> str:
        if not self._schemes:
            return ""
        return f" (allowed are {', '.join(sorted(_DEFAULT_SCHEMES))} and, for a local list, files below its folder)"


@dataclass(frozen=True)
class _Parts:
    scheme: str
    host: str
    path: str
    uri: str


def _split(uri: str) -> _Parts:
    if "://" not in uri:
        return _Parts("file", "", uri, uri)
    scheme, rest = uri.split("://", 1)
    for i, c in enumerate(rest):
        if c in "/?#\\":
            return _Parts(scheme.lower(), rest[:i].lower(), rest[i:], uri)
    return _Parts(scheme.lower(), rest.lower(), "", uri)


def _covers(prefix: _Parts, part: _Parts) -> bool:
    if prefix.host and prefix.host != part.host:
        return False
    path = prefix.path
    if path in {"", "/"}:
        return True
    return part.path == path or part.path.startswith(path if path.endswith("/") else path + "/")


def _would_block(path: str) -> bool:
    """Tell whether a path is a FIFO, a device or the like, whose reading may never end."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False  # the reader says why
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _refused(listed: str, why: str) -> ImageError:
    listed = masked(listed)
    shown = listed if len(listed) <= 200 else listed[:200] + "..."
    return ImageError("refused_uri", f"{shown!r}: {why}")
