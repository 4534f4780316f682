"""The cache of model files, one per node and user: found by content, private, checked on every use.

::

    $BATCHDET_CACHE, else $XDG_CACHE_HOME/batchdet, else ~/.cache/batchdet      0700, owned by the user
    ├── models/<sha256>.onnx       written under another name, then renamed; hashed again before each use
    ├── objects/<key>              sha256 of the object that a URI, size and ETag named last time
    ├── engines/<key>/             what TensorRT built for a model, a GPU, a precision and versions
    └── locks/<key>                held while one process fetches, so that a node fetches once
"""

import fcntl
import hashlib
import os
import stat as stat_bits
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from batchdet import storage
from batchdet.errors import ModelError, SpecError
from batchdet.model.onnx_file import MAX_BYTES, read_onnx

BUILTIN_SAMPLE: Final = "builtin:sample"
_EMBEDDED: Final = Path(__file__).parent / "embedded" / "sample.onnx"
_BLOCK: Final = 4 * 1024 * 1024
_EXPORT: Final = {
    ".pt": "yolo export model=FILE.pt format=onnx dynamic=True (Ultralytics), or torch.onnx.export",
    ".pth": "torch.onnx.export, or the export script of the model's repository",
    ".safetensors": "optimum-cli export onnx (Hugging Face Optimum)",
    ".engine": "the ONNX file that the engine was built from",
    ".tflite": "the export to ONNX of the training framework",
}


@dataclass(frozen=True)
class LocalModel:
    """A checked model file on this node.

    Args:
        path: Where it is.
        sha256: Digest of its bytes.
        size_bytes: Its size.
    """

    path: str
    sha256: str
    size_bytes: int


def default_cache_dir() -> str:
    """Return the cache's folder."""
    named = os.environ.get("BATCHDET_CACHE")
    if named:
        return os.path.abspath(os.path.expanduser(named))
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(os.path.abspath(base), "batchdet")


def fetch_model(uri: str, sha256: str | None = None, cache_dir: str | None = None) -> LocalModel:
    """Bring a model file to this node and check it. Nothing is loaded here.

    A file that is in the cache under the wanted ``sha256`` is not fetched again, nor is an object of a store
    whose ETag and size are those of the last time. Safe for concurrent processes.

    Args:
        uri: ``builtin:sample`` or any fsspec URI of an ONNX file.
        sha256: The digest that its bytes must have, or None.
        cache_dir: The cache's folder; None takes :func:`default_cache_dir`.

    Raises:
        SpecError: There is no such file; the message names ``model.uri``.
        ModelError: It is no ONNX file, is not safe, has another digest, or the cache cannot be trusted.
    """
    if uri == BUILTIN_SAMPLE:
        if not _EMBEDDED.is_file():
            raise ModelError(f"model.uri: {uri} is not part of this installation ({_EMBEDDED} is missing)")
        return _checked(LocalModel(str(_EMBEDDED), _digest(str(_EMBEDDED)), _EMBEDDED.stat().st_size), uri, sha256)
    if uri.startswith("builtin:"):
        raise SpecError(f"model.uri: there is no {uri}; the embedded model is {BUILTIN_SAMPLE}")
    uri = storage.normalize(uri)
    _refuse_other_formats(uri)
    root = _private_folder(cache_dir or default_cache_dir())
    if sha256 is not None:
        known = _cached(root, sha256)
        if known is not None:
            return known
    return _checked(_fetch(uri, root, sha256), uri, sha256)


@contextmanager
def engine_folder(key: str) -> Iterator[str]:
    """Give the folder of the engines that a key names, to one process of the node at a time.

    Args:
        key: Names all that an engine depends on.

    Raises:
        ModelError: The cache cannot be trusted, or written.
    """
    root = _private_folder(default_cache_dir())
    folder = os.path.join(root, "engines", key)
    with _locked(os.path.join(root, "locks", f"engine-{key}")):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        yield folder


def _refuse_other_formats(uri: str) -> None:
    way = _EXPORT.get(os.path.splitext(storage.basename(uri))[1].lower())
    if way:
        raise ModelError(f"model.uri: {uri} is not ONNX, which is what this version reads; export it with: {way}")


def _checked(model: LocalModel, uri: str, sha256: str | None) -> LocalModel:
    if sha256 is not None and model.sha256 != sha256:
        raise ModelError(f"model.sha256: {uri} has the digest {model.sha256}, the spec wants {sha256}")
    try:
        read_onnx(model.path)
    except ModelError as error:
        text = str(error).removeprefix(os.path.basename(model.path)).strip()
        raise ModelError(f"model.uri: {uri} {text}") from error
    return model


def _fetch(uri: str, root: str, sha256: str | None) -> LocalModel:
    try:
        found = storage.stat(uri)
        if storage.is_folder(uri):
            raise ModelError(f"model.uri: {uri} is a folder; name the ONNX file in it")
    except storage.NotFound as error:
        raise SpecError(f"model.uri: {uri} does not exist") from error
    except storage.StorageError as error:
        raise SpecError(f"model.uri: {error}") from error
    if found.size_bytes > MAX_BYTES:
        raise ModelError(f"model.uri: {uri} has {found.size_bytes} bytes; at most {MAX_BYTES} are loaded")
    key = hashlib.blake2b(f"{uri}\0{found.size_bytes}\0{found.etag}".encode(), digest_size=16).hexdigest()
    note = os.path.join(root, "objects", key)
    # the time stamp of a local file can be kept while its content changes, an ETag cannot
    trusted = bool(found.etag) and not found.etag.startswith("mtime:")
    with _locked(os.path.join(root, "locks", key)):
        if trusted and os.path.exists(note):
            with open(note, encoding="ascii", errors="replace") as file:
                known = _cached(root, file.read(64))
            if known is not None:
                return known
        model = _download(uri, root, found.size_bytes, sha256)
        if trusted:
            _write(note, model.sha256.encode())
        return model


def _download(uri: str, root: str, expected_bytes: int, sha256: str | None) -> LocalModel:
    folder = os.path.join(root, "models")
    handle, partial = tempfile.mkstemp(prefix=".partial-", dir=folder)
    try:
        digest, size_bytes = hashlib.sha256(), 0
        with os.fdopen(handle, "wb") as target, _opened(uri) as source:
            while block := source.read(_BLOCK):
                size_bytes += len(block)
                if size_bytes > MAX_BYTES:
                    raise ModelError(f"model.uri: {uri} has more than {MAX_BYTES} bytes")
                digest.update(block)
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
        if 0 <= expected_bytes != size_bytes:
            raise ModelError(f"model.uri: {uri}: {size_bytes} bytes arrived, {expected_bytes} were listed; try again")
        name = digest.hexdigest()
        if sha256 is not None and name != sha256:  # not kept: whoever wants this digest gets the right bytes
            raise ModelError(f"model.sha256: {uri} has the digest {name}, the spec wants {sha256}")
        path = os.path.join(folder, f"{name}.onnx")
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
    return LocalModel(path, name, size_bytes)


@contextmanager
def _opened(uri: str) -> Iterator[IO[bytes]]:
    try:
        with storage.open_read(uri) as file:
            yield file
    except storage.StorageError as error:
        raise SpecError(f"model.uri: {error}") from error


def _cached(root: str, sha256: str) -> LocalModel | None:
    """Return a cached file whose bytes still have its digest; one that was changed is removed."""
    path = os.path.join(root, "models", f"{sha256}.onnx")
    try:
        info = os.lstat(path)
        if stat_bits.S_ISREG(info.st_mode) and _digest(path) == sha256:
            return LocalModel(path, sha256, info.st_size)
        os.unlink(path)
    except FileNotFoundError:
        pass
    return None


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _private_folder(root: str) -> str:
    """Make the cache's folders, or refuse one that others could have filled."""
    try:
        os.makedirs(os.path.dirname(root), exist_ok=True)
        for folder in (root, *(os.path.join(root, name) for name in ("models", "objects", "engines", "locks"))):
            try:
                os.mkdir(folder, 0o700)
            except FileExistsError:
                _refuse_shared(folder)
    except OSError as error:
        raise ModelError(
            f"the model cache {root} cannot be written ({error.strerror}); name another folder in BATCHDET_CACHE"
        ) from error
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
def _locked(path: str) -> Iterator[None]:
    with open(path, "a", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: str, data: bytes) -> None:
    handle, partial = tempfile.mkstemp(prefix=".partial-", dir=os.path.dirname(path))
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.replace(partial, path)
