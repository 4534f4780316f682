"""Bringing a model to this node: found by its URI, fetched once, checked before anything loads it."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from batchdet import storage
from batchdet.errors import BatchdetError, ModelError, SpecError
from batchdet.model import huggingface
from batchdet.model.cache import (
    LocalModel,
    cached,
    default_cache_dir,
    digest_of,
    digest_of_parts,
    keep,
    locked,
    private_folder,
    write_note,
    writing,
)
from batchdet.model.format import Format, format_of
from batchdet.model.onnx_file import MAX_BYTES, read_onnx
from batchdet.model.ultralytics import exported
from batchdet.spec import ModelSpec

BUILTIN_SAMPLE: Final = "builtin:sample"
_EMBEDDED: Final = Path(__file__).parent / "embedded" / "sample.onnx"
_BLOCK: Final = 4 * 1024 * 1024
_OTHERS: Final = {".engine": "the ONNX file that the engine was built from", ".tflite": "its export to ONNX"}
_PICKLES: Final = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_FILE: Final = ""
"""The name of the only part of a model that is one file."""


def fetch_model(
    uri: str, sha256: str | None = None, cache_dir: str | None = None, *, trusted: bool = False, head: str = "auto"
) -> LocalModel:
    """Bring a model to this node and check it. Nothing is loaded here.

    A model that is in the cache under the wanted ``sha256`` is not fetched again, nor are objects of a store
    whose ETags and sizes are those of the last time. Safe for concurrent processes.

    Args:
        uri: ``builtin:sample``, or any fsspec URI of a model file or a Hugging Face folder.
        sha256: The digest that its bytes must have, or None.
        cache_dir: The cache's folder; None takes :func:`batchdet.model.cache.default_cache_dir`.
        trusted: Whether formats are welcome that can run code while they are loaded.
        head: ``model.head`` of the spec, for Ultralytics checkpoints, which are exported to ONNX here.

    Returns:
        The model; for an Ultralytics checkpoint its ONNX export under the checkpoint's digest.

    Raises:
        SpecError: There is no such file; the message names ``model.uri``.
        ModelError: It is no model, is not safe, has another digest, or the cache cannot be trusted.
    """
    if uri == BUILTIN_SAMPLE:
        if not _EMBEDDED.is_file():
            raise ModelError(f"model.uri: {uri} is not part of this installation ({_EMBEDDED} is missing)")
        found = LocalModel(str(_EMBEDDED), digest_of(str(_EMBEDDED)), _EMBEDDED.stat().st_size)
    elif uri.startswith("builtin:"):
        raise SpecError(f"model.uri: there is no {uri}; the embedded model is {BUILTIN_SAMPLE}")
    else:
        uri = storage.normalize(uri)
        _refuse_by_name(uri, trusted)
        root = private_folder(cache_dir or default_cache_dir())
        known = cached(root, sha256) if sha256 is not None else None
        if known is None:
            with writing(root):
                found = _fetch(uri, root, sha256)
        else:
            found = known
    if sha256 is not None and found.sha256 != sha256:
        raise ModelError(f"model.sha256: {uri} has the digest {found.sha256}, the spec wants {sha256}")
    if found.format.runs_code and not trusted:
        raise _untrusted(uri, found.format.words)
    if found.format is not Format.PICKLE:
        if head != "auto":
            raise SpecError(f"model.head: {head}, but {uri} is {found.format.words}, which has but one; take auto")
        return found
    try:
        return exported(found, head, cache_dir)
    except ModelError as error:
        raise ModelError(f"model.uri: {uri}: {error.message}") from error


def fetch_asked(spec: ModelSpec, sha256: str | None = None) -> LocalModel:
    """Bring the model of a spec to this node; see :func:`fetch_model`.

    Args:
        spec: The model part of a job.
        sha256: The digest that its bytes must have; None takes what the spec says.
    """
    return fetch_model(spec.uri, sha256 or spec.sha256, trusted=spec.trusted, head=spec.head)


def _untrusted(uri: str, words: str) -> ModelError:
    return ModelError(
        f"model.uri: {uri} is {words}, which can run code of its own while it is loaded; "
        "set model.trusted: true if you trust whoever made it, or take its ONNX export",
        code="model.untrusted",
        key="model.trusted",
    )


def _refuse_by_name(uri: str, trusted: bool) -> None:
    """Refuse what need not be fetched to be refused."""
    ending = os.path.splitext(storage.basename(uri))[1].lower()
    if ending in _OTHERS:
        raise ModelError(f"model.uri: {uri} is of a format that batchdet does not read; take {_OTHERS[ending]}")
    if ending in _PICKLES and not trusted:
        raise _untrusted(uri, Format.PICKLE.words)


def _fetch(uri: str, root: str, sha256: str | None) -> LocalModel:
    folder, parts = _parts(uri)
    size_bytes = sum(part.size_bytes for part in parts.values())
    if size_bytes > MAX_BYTES:
        raise ModelError(f"model.uri: {uri} has {size_bytes} bytes; at most {MAX_BYTES} are loaded")
    listed = "".join(f"\0{name}\0{parts[name].size_bytes}\0{parts[name].etag}" for name in sorted(parts))
    key = hashlib.blake2b(f"{folder}{listed}".encode(), digest_size=16).hexdigest()
    note = os.path.join(root, "objects", key)
    # the time stamp of a local file can be kept while its content changes, an ETag cannot
    steady = all(part.etag and not part.etag.startswith("mtime:") for part in parts.values())
    with locked(os.path.join(root, "locks", key)):
        if steady and os.path.exists(note):
            with open(note, encoding="ascii", errors="replace") as file:
                known = cached(root, file.read(64))
            if known is not None:
                return known
        model = _download(uri, folder, parts, root, sha256)
        if steady:
            write_note(note, model.sha256.encode())
        return model


def _parts(uri: str) -> tuple[str, dict[str, storage.StoredObject]]:
    """Return the URI of a model, of its folder where it is one, and what it consists of, by name."""
    try:
        if storage.basename(uri).endswith(".safetensors") and _stat(_sibling(uri)) is not None:
            uri = uri.rpartition("/")[0]
        elif not storage.is_folder(uri):
            return uri, {_FILE: storage.stat(uri)}
        found = {name: _stat(f"{uri}/{name}") for name in huggingface.NAMES}
        parts = {name: stat for name, stat in found.items() if stat is not None}
        if huggingface.CONFIG not in parts:
            raise SpecError(
                f"model.uri: {uri} is a folder without {huggingface.CONFIG}; name a model file in it, or a "
                "Hugging Face folder",
                code="model.not_a_model",
                key="model.uri",
            )
        if huggingface.WEIGHTS not in parts:
            if huggingface.INDEX not in parts:
                raise ModelError(f"model.uri: {uri} {huggingface.NO_WEIGHTS}")
            for name in _shards(f"{uri}/{huggingface.INDEX}"):
                stat = _stat(f"{uri}/{name}")
                if stat is None:
                    raise SpecError(f"model.uri: {uri}/{name}, which {huggingface.INDEX} names, does not exist")
                parts[name] = stat
        return uri, parts
    except storage.NotFound as error:
        raise SpecError(
            f"model.uri: {uri} does not exist; {storage.what_exists(uri)}", code="model.not_found", key="model.uri"
        ) from error
    except storage.StorageError as error:
        raise SpecError(f"model.uri: {error}") from error


def _sibling(uri: str) -> str:
    return f"{uri.rpartition('/')[0]}/{huggingface.CONFIG}"


def _stat(uri: str) -> storage.StoredObject | None:
    try:
        return storage.stat(uri)
    except storage.NotFound:
        return None


def _shards(index_uri: str) -> list[str]:
    try:
        return huggingface.shards(json.loads(storage.read_bytes(index_uri)))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"model.uri: {index_uri}: {error}") from error


def _download(
    uri: str, folder: str, parts: Mapping[str, storage.StoredObject], root: str, sha256: str | None
) -> LocalModel:
    whole = os.path.join(root, "models")
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=whole, ignore_cleanup_errors=True) as partial:
        if set(parts) == {_FILE}:
            path = os.path.join(partial, "model")
            digest = _copy(uri, path, parts[_FILE], root)
        else:
            path = os.path.join(partial, "folder")
            os.mkdir(path, 0o700)
            digest = digest_of_parts(
                {name: _copy(f"{folder}/{name}", os.path.join(path, name), part, root) for name, part in parts.items()}
            )
        if sha256 is not None and digest != sha256:  # not kept: whoever wants this digest gets the right bytes
            raise ModelError(f"model.sha256: {uri} has the digest {digest}, the spec wants {sha256}")
        kind = _checked(path, uri)
        return LocalModel(keep(root, path, digest, kind), digest, sum(p.size_bytes for p in parts.values()), kind)


def _checked(path: str, uri: str) -> Format:
    """Return what was fetched; refuse what is not safe, or nothing that is known."""
    try:
        kind = format_of(path)
        if kind is Format.ONNX:
            read_onnx(path)
        elif kind is Format.HUGGINGFACE:
            huggingface.read_folder(path)
        return kind
    except BatchdetError as error:
        text = error.message.removeprefix(os.path.basename(path)).removeprefix(path).strip(" :")
        kind_of_error = SpecError if isinstance(error, SpecError) else ModelError
        raise kind_of_error(f"model.uri: {uri} {text}", code=error.code, key="model.uri") from error


def _copy(uri: str, path: str, listed: storage.StoredObject, root: str) -> str:
    """Fetch one object and return its SHA-256."""
    digest, size_bytes = hashlib.sha256(), 0
    with open(path, "wb", opener=_private) as target, _opened(uri) as source:
        while block := source.read(_BLOCK):
            size_bytes += len(block)
            if size_bytes > MAX_BYTES:
                raise ModelError(f"model.uri: {uri} has more than {MAX_BYTES} bytes")
            digest.update(block)
            with writing(root):  # else what is read from would be blamed
                target.write(block)
        with writing(root):
            target.flush()
            os.fsync(target.fileno())
    if 0 <= listed.size_bytes != size_bytes:
        raise ModelError(f"model.uri: {uri}: {size_bytes} bytes arrived, {listed.size_bytes} were listed; try again")
    return digest.hexdigest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextmanager
def _opened(uri: str) -> Iterator[IO[bytes]]:
    try:
        with storage.open_read(uri) as file:
            yield file
    except storage.StorageError as error:
        raise SpecError(f"model.uri: {error}") from error
