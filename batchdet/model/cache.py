"""The cache of model files, one per node and user: found by content, private, checked on every use.

::

    $BATCHDET_CACHE, else $XDG_CACHE_HOME/batchdet, else ~/.cache/batchdet      0700, owned by the user
    ├── models/<sha256>.<format>   a file or a folder; written under another name, then renamed; hashed again before use
    ├── objects/<key>              sha256 of the objects that a URI, sizes and ETags named last time
    ├── engines/<key>/             what was made of a model: engines, compiled graphs, the ONNX export of a checkpoint
    └── locks/<key>                held while one process fetches, so that a node fetches once
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat as stat_bits
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from batchdet.errors import ModelError
from batchdet.model.format import Format


class CacheError(ModelError):
    """The cache cannot be written."""

    code = "model.cache"


@contextmanager
def writing(root: str) -> Iterator[None]:
    """Turn what writing into the cache raises into an error that names it.

    Args:
        root: The cache's folder.

    Raises:
        CacheError: The disk is full, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        room = "make room there, or " if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        raise CacheError(
            f"the model cache {root} cannot be written ({error.strerror}); {room}name another folder in BATCHDET_CACHE",
            key="BATCHDET_CACHE",
        ) from error


@dataclass(frozen=True)
class LocalModel:
    """A checked model on this node.

    Args:
        path: Where it is: a file, or a folder of files.
        sha256: Digest of its bytes; of a folder see :func:`digest_of`.
        size_bytes: Its size.
        format: What it is.
    """

    path: str
    sha256: str
    size_bytes: int
    format: Format = Format.ONNX


def default_cache_dir() -> str:
    """Return the cache's folder."""
    named = os.environ.get("BATCHDET_CACHE")
    if named:
        return os.path.abspath(os.path.expanduser(named))
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(os.path.abspath(base), "batchdet")


def digest_of(path: str) -> str:
    """Return the SHA-256 of a file, or of a folder: of lines "name, two spaces, SHA-256", sorted."""
    if not os.path.isdir(path):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return digest_of_parts({name: digest_of(os.path.join(path, name)) for name in os.listdir(path)})


def digest_of_parts(digests: Mapping[str, str]) -> str:
    """Return the digest of a folder of whose files the digests are known."""
    lines = "".join(f"{name}  {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def cached(root: str, sha256: str) -> LocalModel | None:
    """Return a cached model whose bytes still have its digest; one that was changed is removed."""
    for kind in Format:
        path = os.path.join(root, "models", f"{sha256}.{kind}")
        if not os.path.lexists(path):
            continue
        files = _plain_files(path)
        if files and digest_of(path) == sha256:
            return LocalModel(path, sha256, sum(map(os.path.getsize, files)), kind)
        _remove(path)
    return None


def keep(root: str, partial: str, sha256: str, kind: Format) -> str:
    """Give a whole model its name in the cache and return its path."""
    path = os.path.join(root, "models", f"{sha256}.{kind}")
    try:
        os.replace(partial, path)
    except OSError:  # a folder is not replaced by a folder: another process was faster
        if cached(root, sha256) is None:
            raise
        _remove(partial)
    return path


def _plain_files(path: str) -> list[str]:
    """Return the files of a cached model; none when something is no plain file."""
    if stat_bits.S_ISDIR(os.lstat(path).st_mode):
        files = [os.path.join(path, name) for name in os.listdir(path)]
    else:
        files = [path]
    return files if all(stat_bits.S_ISREG(os.lstat(file).st_mode) for file in files) else []


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


@contextmanager
def engine_folder(key: str, cache_dir: str | None = None) -> Iterator[str]:
    """Give the folder of what is made of a model, to one process of the node at a time.

    Args:
        key: Names all that it depends on.
        cache_dir: The cache's folder; None takes :func:`default_cache_dir`.

    Raises:
        ModelError: The cache cannot be trusted, or written.
    """
    root = private_folder(cache_dir or default_cache_dir())
    folder = os.path.join(root, "engines", key)
    with contextlib.ExitStack() as stack:
        with writing(root):
            stack.enter_context(locked(os.path.join(root, "locks", f"engine-{key}")))
            os.makedirs(folder, mode=0o700, exist_ok=True)
        yield folder


def read_engine(key: str, name: str, cache_dir: str | None = None) -> bytes | None:
    """Read what :func:`write_engine` has kept, without waiting for whoever holds the folder.

    Returns:
        The bytes; None when there are none, or others than were written.

    Raises:
        ModelError: The cache cannot be trusted.
    """
    root = private_folder(cache_dir or default_cache_dir())
    try:
        with open(os.path.join(root, "engines", key, name), "rb") as file:
            digest, data = file.read(hashlib.sha256().digest_size), file.read()
    except FileNotFoundError:
        return None
    return data if hashlib.sha256(data).digest() == digest else None


def write_engine(folder: str, name: str, data: bytes) -> None:
    """Keep bytes in a folder of :func:`engine_folder`, behind their SHA-256, whole or not at all.

    Raises:
        CacheError: The disk is full.
    """
    with writing(os.path.dirname(os.path.dirname(folder))):
        write_note(os.path.join(folder, name), hashlib.sha256(data).digest() + data)


def private_folder(root: str) -> str:
    """Make the cache's folders, or refuse one that others could have filled."""
    with writing(root):
        os.makedirs(os.path.dirname(root), exist_ok=True)
        for folder in (root, *(os.path.join(root, name) for name in ("models", "objects", "engines", "locks"))):
            try:
                os.mkdir(folder, 0o700)
            except FileExistsError:
                _refuse_shared(folder)
    return root


def _refuse_shared(folder: str) -> None:
    info = os.lstat(folder)
    if not stat_bits.S_ISDIR(info.st_mode):
        raise ModelError(f"the model cache {folder} is not a folder; name another one in BATCHDET_CACHE")
    if info.st_uid != os.geteuid():
        raise ModelError(f"the model cache {folder} belongs to another user; name your own in BATCHDET_CACHE")
    if info.st_mode & 0o077:
        mode = stat_bits.S_IMODE(info.st_mode)
        raise ModelError(f"the model cache {folder} is open to other users (mode {mode:04o}); run: chmod 700 {folder}")


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold a lock file, which one process of the node can."""
    with open(path, "a", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_note(path: str, data: bytes) -> None:
    """Write a small file, whole or not at all."""
    handle, partial = tempfile.mkstemp(prefix=".partial-", dir=os.path.dirname(path))
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
