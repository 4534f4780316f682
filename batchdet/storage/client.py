"""The fsspec file system of a URI, and its failures in plain words."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from batchdet.errors import BatchdetError, MissingExtra
from batchdet.storage.errors import NotFound, StorageError, TransientError
from batchdet.storage.uri import scheme

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
S3 = frozenset({"s3", "s3a"})
_CLIENTS = frozenset({"aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "gcsfs", "s3fs", "urllib3"})


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
    if name in S3:
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
    if scheme(uri) not in S3:
        return ""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _at(uri: str) -> str:
    return f" at {endpoint(uri)}" if endpoint(uri) else ""


def _who(uri: str) -> str:
    return "the file's permissions" if scheme(uri) == "file" else "the credentials and what they may do"
