"""What there is: listings of folders, prefixes and globs, and facts about one object."""

import posixpath
from dataclasses import dataclass
from typing import Any

from batchdet.storage.backoff import patient
from batchdet.storage.client import filesystem
from batchdet.storage.errors import NotFound
from batchdet.storage.failure import plain_errors
from batchdet.storage.uri import is_glob, normalize, scheme


@dataclass(frozen=True, order=True)
class StoredObject:
    """One object of a listing.

    Args:
        uri: Its full URI.
        size_bytes: Its size; -1 when the listing does not say.
        etag: What changes when its content does: the store's ETag, else ``mtime:<seconds>``, else "".
    """

    uri: str
    size_bytes: int
    etag: str


@patient
def list_objects(uri: str) -> list[StoredObject]:
    """List the files that a URI names: one object, everything below a folder (hidden too), or what a glob matches.

    Symbolic links of local folders are followed.

    Args:
        uri: What to list. Wildcard characters are taken literally where an object of that name exists.

    Returns:
        Sorted by URI.

    Raises:
        NotFound: A folder or object does not exist (a glob that matches nothing gives an empty list).
        StorageError: The store refused or failed; of a local folder also one below it.
    """
    uri = normalize(uri)
    fs, path = filesystem(uri)
    if scheme(uri) == "file":
        from batchdet.storage.local import Listed

        fs = Listed()
    with plain_errors(uri, "list"):
        found = fs.glob(path, detail=True) if is_glob(uri) else {}
        if not found and (not is_glob(uri) or fs.exists(path)):
            info = fs.info(path)
            if info["type"] == "file":
                return [stored_object(uri, info)]
            found = fs.find(path, detail=True)
    return sorted(stored_object(uri, info) for info in found.values() if info["type"] == "file")


@patient
def list_names(uri: str) -> list[str]:
    """List the names directly below a folder, hidden ones too; empty when it does not exist."""
    fs, path = filesystem(uri)
    try:
        with plain_errors(uri, "list"):
            return sorted(
                posixpath.basename(p.rstrip("/"))
                for p in fs.ls(path, detail=False)
                if p.rstrip("/") != path.rstrip("/")
            )
    except NotFound:
        return []


@patient
def find_all(uri: str) -> list[StoredObject]:
    """List every file below a folder, hidden ones too, sorted; empty when it does not exist."""
    fs, path = filesystem(uri)
    try:
        with plain_errors(uri, "list"):
            return sorted(stored_object(uri, info) for info in fs.find(path, detail=True).values())
    except NotFound:
        return []


@patient
def stat(uri: str) -> StoredObject:
    """Describe one object.

    Raises:
        NotFound: There is none.
    """
    fs, path = filesystem(uri)
    with plain_errors(uri, "find"):
        return stored_object(uri, fs.info(path))


def exists(uri: str) -> bool:
    """Tell whether an object or folder exists."""
    try:
        stat(uri)
    except NotFound:
        return False
    return True


@patient
def is_folder(uri: str) -> bool:
    """Tell whether a URI names an existing folder (or prefix)."""
    fs, path = filesystem(uri)
    with plain_errors(uri, "look at"):
        return bool(fs.isdir(path))


def _uri_of(base: str, path: str) -> str:
    """Put the scheme of ``base`` back before a path that its file system listed."""
    name = scheme(base)
    return path if name == "file" or "://" in path else f"{name}://{path.lstrip('/')}"


def stored_object(base: str, info: dict[str, Any]) -> StoredObject:
    """Put what a file system says of a path into the words of a listing."""
    etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    if not etag and info.get("mtime") is not None:
        etag = f"mtime:{info['mtime']}"
    elif not etag and info.get("LastModified") is not None:
        etag = f"mtime:{info['LastModified']}"
    size = info.get("size")
    return StoredObject(_uri_of(base, info["name"]), -1 if size is None else int(size), etag)
