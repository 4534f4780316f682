"""Objects anywhere fsspec reaches: one face for local folders and object stores, with errors in plain words.

A local path is written absolute and without ``file://``; everything else keeps its scheme. So a URI is the same
text wherever it is seen, and ``image_id`` with it.
"""

import errno
import io
import os
import posixpath
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, TypeVar, cast

from batchdet.errors import BatchdetError, MissingExtra
from batchdet.failpoint import failpoint

_PACKAGE_OF_SCHEME = {
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
}
_S3 = frozenset({"s3", "s3a"})
_HALF_A_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(/(?!/)|/*$)")
_GLOB = frozenset("*?[")
T = TypeVar("T")


class StorageError(BatchdetError):
    """An object could not be listed, read or written; the message names it and says why."""

    exit_status = 2


class NotFound(StorageError):
    """There is no such object, folder or bucket."""


class TransientError(StorageError):
    """The store failed in a way that may pass: time-outs, lost connections, 5xx, throttling."""


class SizeMismatch(TransientError):
    """Another number of bytes arrived than was listed.

    Args:
        message: What arrived and what was listed.
        data: What did arrive.
    """

    def __init__(self, message: str, data: bytes = b"") -> None:
        super().__init__(message)
        self.data = data


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


def normalize(uri: str) -> str:
    """Return the one spelling of a URI: local paths absolute without ``file://``, no trailing slash.

    Raises:
        StorageError: A scheme stands there without its two slashes, or without anything behind them; as a path it
            would be a folder of that name.
    """
    if _HALF_A_URI.match(uri):
        raise StorageError(f"{uri}: names no place; write scheme://bucket/path, or a path (is a variable empty?)")
    if "://" in uri:
        name, rest = uri.split("://", 1)
        uri = rest if name.lower() == "file" else f"{name.lower()}://{rest}"
    if "://" not in uri:
        uri = os.path.abspath(os.path.expanduser(uri))
    return uri.rstrip("/") or "/"


def scheme(uri: str) -> str:
    """Return the scheme of a URI, ``file`` for local paths."""
    return uri.split("://", 1)[0].lower() if "://" in uri else "file"


def is_glob(uri: str) -> bool:
    """Tell whether a URI holds a wildcard."""
    return any(c in _GLOB for c in uri)


def join(base: str, *parts: str) -> str:
    """Append path components to a URI."""
    return posixpath.join(base.rstrip("/") or "/", *parts)


def basename(uri: str) -> str:
    """Return the last component of a URI."""
    return posixpath.basename(uri.rstrip("/"))


def filesystem(uri: str) -> tuple[Any, str]:
    """Open the fsspec file system of a URI.

    Returns:
        The file system and the path within it.

    Raises:
        MissingExtra: The scheme needs a package that is not installed.
        StorageError: The scheme is unknown.
    """
    import fsspec

    name = scheme(uri)
    options: dict[str, Any] = {}
    if name in _S3:
        options = {"use_listings_cache": False, "local_expiry_check": True}
    try:
        # not url_to_fs: it would follow a chain (a::b://c), which a hostile object name may spell
        kind = fsspec.get_filesystem_class(name)
        fs = kind(**{**kind._get_kwargs_from_urls(uri), **options})
        path = kind._strip_protocol(uri)
    except ImportError as error:
        package = _PACKAGE_OF_SCHEME.get(name, "the file system's package")
        raise MissingExtra(f"{uri}: the scheme {name!r} needs a package: pip install {package}") from error
    except ValueError as error:
        raise StorageError(
            f"{uri}: {name!r} is no known scheme; use a path, s3://, gs://, az://, https:// or hf://"
        ) from error
    except OSError as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise StorageError(f"{uri}: cannot connect: {text}") from error
    return fs, cast(str, path)


@contextmanager
def plain_errors(uri: str, action: str) -> Iterator[None]:
    """Turn what file systems raise into a :class:`StorageError` that names the URI.

    Args:
        uri: What was touched.
        action: A verb for the message, such as ``"read"``.
    """
    try:
        yield
    except BatchdetError:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"{uri}: cannot {action}: no such object, folder or bucket") from error
    except PermissionError as error:
        why = error.strerror or " ".join(str(error).split()) or "refused"
        raise StorageError(f"{uri}: cannot {action}: permission denied ({why}); check {_who(uri)}") from error
    except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise StorageError(f"{uri}: cannot {action}: {error.strerror or error}") from error
    except Exception as error:
        kind = type(error).__name__
        if isinstance(error, OSError) or type(error).__module__.split(".")[0] in _CLIENTS:
            text = " ".join(str(error).split()) or kind
            if kind == "FileExpired":
                raise StorageError(f"{uri}: cannot {action}: it has changed since it was listed") from error
            if kind in {"NoCredentialsError", "PartialCredentialsError"}:
                raise StorageError(f"{uri}: cannot {action}: no credentials for {scheme(uri)}:// were found") from error
            refused = getattr(error, "errno", None) == errno.EINVAL  # the store understood, and said no
            failure = StorageError if refused or scheme(uri) in {"file", "memory"} else TransientError
            raise failure(f"{uri}: cannot {action}{_at(uri)}: {kind}: {text}") from error
        raise


def endpoint(uri: str) -> str:
    """Return the address of an S3 URI's server where the environment names one, else ""."""
    if scheme(uri) not in _S3:
        return ""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _at(uri: str) -> str:
    return f" at {endpoint(uri)}" if endpoint(uri) else ""


def _who(uri: str) -> str:
    return "the file's permissions" if scheme(uri) == "file" else "the credentials and what they may do"


def retry(call: Callable[[], T], tries: int = 4, first_delay_s: float = 0.2) -> T:
    """Call again after a :class:`TransientError`, with exponential, jittered pauses.

    Args:
        call: What to do; safe to repeat.
        tries: Calls in all.
        first_delay_s: Mean of the first pause; each later one is twice as long.
    """
    for attempt in range(tries - 1):
        try:
            return call()
        except TransientError:
            time.sleep(first_delay_s * 2**attempt * random.uniform(0.5, 1.5))
    return call()


def persist(call: Callable[[], T]) -> T:
    """Call again for about a minute: for small, repeatable steps whose failure would end a long run."""
    return retry(call, tries=8, first_delay_s=0.4)


_CLIENTS = frozenset({"aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "gcsfs", "s3fs", "urllib3"})


def _uri_of(base: str, path: str) -> str:
    """Put the scheme of ``base`` back before a path that its file system listed."""
    name = scheme(base)
    return path if name == "file" or "://" in path else f"{name}://{path.lstrip('/')}"


def _stored(base: str, info: dict[str, Any]) -> StoredObject:
    etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    if not etag and info.get("mtime") is not None:
        etag = f"mtime:{info['mtime']}"
    elif not etag and info.get("LastModified") is not None:
        etag = f"mtime:{info['LastModified']}"
    size = info.get("size")
    return StoredObject(_uri_of(base, info["name"]), -1 if size is None else int(size), etag)


def list_objects(uri: str, keep_underscore: Callable[[str], bool] | None = None) -> list[StoredObject]:
    """List the files that a URI names: one object, everything below a folder, or what a glob matches.

    Names that begin with a dot or an underscore are passed over below folders, as by Spark and Arrow.

    Args:
        uri: What to list. Wildcard characters are taken literally where an object of that name exists.
        keep_underscore: Says of a file's name whether it counts although it begins with an underscore.

    Returns:
        Sorted by URI.

    Raises:
        NotFound: A folder or object does not exist (a glob that matches nothing gives an empty list).
        StorageError: The store refused or failed.
    """
    uri = normalize(uri)
    fs, path = filesystem(uri)
    with plain_errors(uri, "list"):
        found = fs.glob(path, detail=True) if is_glob(uri) else {}
        root = ""
        if not found and (not is_glob(uri) or fs.exists(path)):
            info = fs.info(path)
            if info["type"] == "file":
                return [_stored(uri, info)]
            found = fs.find(path, detail=True)
            root = path.rstrip("/") + "/"
    objects = []
    for name, info in found.items():
        *folders, last = (name.removeprefix(root) if root else posixpath.basename(name)).split("/")
        hidden = last.startswith(".") or (last.startswith("_") and not (keep_underscore and keep_underscore(last)))
        if info["type"] == "file" and not hidden and not any(f.startswith((".", "_")) for f in folders):
            objects.append(_stored(uri, info))
    return sorted(objects)


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


def find_all(uri: str) -> list[StoredObject]:
    """List every file below a folder, hidden ones too, sorted; empty when it does not exist."""
    fs, path = filesystem(uri)
    try:
        with plain_errors(uri, "list"):
            return sorted(_stored(uri, info) for info in fs.find(path, detail=True).values())
    except NotFound:
        return []


def stat(uri: str) -> StoredObject:
    """Describe one object.

    Raises:
        NotFound: There is none.
    """
    fs, path = filesystem(uri)
    with plain_errors(uri, "find"):
        return _stored(uri, fs.info(path))


def exists(uri: str) -> bool:
    """Tell whether an object or folder exists."""
    try:
        stat(uri)
    except NotFound:
        return False
    return True


def is_folder(uri: str) -> bool:
    """Tell whether a URI names an existing folder (or prefix)."""
    fs, path = filesystem(uri)
    with plain_errors(uri, "look at"):
        return bool(fs.isdir(path))


@contextmanager
def open_read(uri: str, block_bytes: int | None = None) -> Iterator[IO[bytes]]:
    """Open an object for reading (seekable where the store can)."""
    fs, path = filesystem(uri)
    with plain_errors(uri, "read"):
        options = {} if block_bytes is None else {"block_size": block_bytes}
        with fs.open(path, "rb", **options) as file:
            yield file


def read_bytes(uri: str, expected_bytes: int = -1) -> bytes:
    """Read a whole object.

    Args:
        uri: The object.
        expected_bytes: Its listed size, or -1. A body cut short passes silently through s3fs and pyarrow when
            its Content-Length agrees, so the count is compared here.

    Raises:
        SizeMismatch: Its length is not the listed one.
        StorageError: It cannot be read.
    """
    fs, path = filesystem(uri)
    with plain_errors(uri, "read"):
        if expected_bytes < 0:
            expected_bytes = int(fs.info(path)["size"] or -1)
        if expected_bytes <= 0:
            data = cast(bytes, fs.cat_file(path))
        else:
            # a range, because s3fs reads large objects whole into a buffer that hides missing parts as zeros;
            # one byte more than listed, so that an object that grew is found out
            data = cast(bytes, fs.cat_file(path, start=0, end=expected_bytes + 1))
    if 0 <= expected_bytes != len(data):
        raise SizeMismatch(f"{uri}: {len(data)} bytes arrived, {expected_bytes} were listed")
    return data


def read_range(obj: StoredObject, start: int, end: int) -> bytes:
    """Read a range of bytes of a listed object.

    Args:
        obj: The object. On S3 the store's answer must carry its ETag.
        start: First byte.
        end: Behind the last byte, at most the listed size.

    Raises:
        SizeMismatch: Fewer bytes arrived than were asked for.
        StorageError: It cannot be read, or has changed.
    """
    if start >= end:
        return b""
    fs, path = filesystem(obj.uri)
    with plain_errors(obj.uri, "read"):
        if scheme(obj.uri) in _S3 and obj.etag and not obj.etag.startswith("mtime:"):
            with fs.open(path, "rb", cache_type="none", size=obj.size_bytes) as file:
                # the listing's facts, so that s3fs asks for none and compares the ETag of what it gets
                file.details = {"name": path, "size": obj.size_bytes, "ETag": f'"{obj.etag}"', "type": "file"}
                file.seek(start)
                data = cast(bytes, file.read(end - start))
        else:
            data = cast(bytes, fs.cat_file(path, start=start, end=end))
    if len(data) != end - start:
        raise SizeMismatch(f"{obj.uri}: {len(data)} bytes arrived, {end - start} were asked for at {start}", data)
    return data


def read_object(obj: StoredObject) -> bytes:
    """Read a whole listed object and make sure that it is the one that was listed.

    Raises:
        SizeMismatch: Another number of bytes arrived.
        StorageError: It cannot be read, or has changed.
    """
    if obj.size_bytes < 0 or not obj.etag or scheme(obj.uri) not in _S3:
        data = read_bytes(obj.uri, obj.size_bytes)
    else:
        data = read_range(obj, 0, obj.size_bytes)
    if scheme(obj.uri) == "file" and obj.etag and obj.etag != (now := stat(obj.uri)).etag:
        raise StorageError(f"{obj.uri}: it has changed since it was listed ({now.etag}, listed {obj.etag})")
    return data


@contextmanager
def open_write(uri: str) -> Iterator[IO[bytes]]:
    """Open an object for writing; it appears whole when the block ends, or not at all when it raises."""
    fs, path = filesystem(uri)
    with plain_errors(uri, "write"):
        if scheme(uri) == "memory":  # fsspec's memory files appear as soon as they are opened
            buffer = io.BytesIO()
            yield buffer
            fs.pipe_file(path, buffer.getvalue())
            return
        if scheme(uri) != "file":
            file = fs.open(path, "wb")
            try:
                yield file
            except BaseException:
                file.discard() if hasattr(file, "discard") else None
                file.closed = True  # keeps fsspec from completing the upload when the object is collected
                raise
            file.close()
            return
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=".partial-", dir=folder)
        try:
            with os.fdopen(handle, "wb") as local:
                failpoint("storage.write")
                yield local
                local.flush()
                os.fsync(local.fileno())
            os.chmod(partial, 0o666 & ~_umask())
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole object; readers see the old one or the new one, never a part."""
    if scheme(uri) == "file":
        with open_write(uri) as file:
            file.write(data)
        return
    fs, path = filesystem(uri)
    with plain_errors(uri, "write"):
        fs.pipe_file(path, data)


def create(uri: str, data: bytes) -> bool:
    """Write an object only if there is none of that name; one of several writers succeeds.

    Returns:
        Whether this call wrote it.
    """
    fs, path = filesystem(uri)
    with plain_errors(uri, "write"):
        if scheme(uri) != "file":
            try:
                fs.pipe_file(path, data, mode="create")
            except OSError as error:
                if not isinstance(error, FileExistsError) and "condition" not in str(error).lower():
                    raise
                # a client that repeats a request whose answer was lost finds its own object
                return bool(fs.cat_file(path) == data)
            return True
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=".partial-", dir=os.path.dirname(path))
        try:
            with os.fdopen(handle, "wb") as local:
                local.write(data)
            os.link(partial, path)
        except FileExistsError:
            return False
        finally:
            os.unlink(partial)
    return True


def move(source: str, target: str) -> None:
    """Move an object within one store, replacing what is there."""
    fs, path = filesystem(source)
    _, target_path = filesystem(target)
    with plain_errors(target, "write"):
        if scheme(source) == "file":
            os.makedirs(os.path.dirname(target_path), exist_ok=True)
            os.replace(path, target_path)
        else:
            fs.cp_file(path, target_path)
            fs.rm_file(path)


def delete(uris: Iterable[str]) -> None:
    """Delete objects; one that is already gone is no error."""
    for uri in uris:
        fs, path = filesystem(uri)
        with plain_errors(uri, "delete"):
            try:
                fs.rm_file(path)
            except FileNotFoundError:
                continue


def delete_folder(uri: str) -> None:
    """Delete everything below a folder and the folder itself; one that is already gone is no error."""
    fs, path = filesystem(uri)
    with plain_errors(uri, "delete"):
        try:
            fs.rm(path, recursive=True)
        except FileNotFoundError:
            return
