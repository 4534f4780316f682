"""The fsspec file system of a URI."""

from typing import Any, cast

from batchdet.errors import MissingExtra
from batchdet.storage.errors import StorageError
from batchdet.storage.uri import is_s3, scheme

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
    try:
        # not url_to_fs: it would follow a chain (a::b://c), which a hostile object name may spell
        kind = fsspec.get_filesystem_class(name)
        if is_s3(uri):
            from batchdet.storage.s3 import s3_client

            fs = s3_client()  # a name may hold "?versionId=", so that its query says nothing
        else:
            fs = kind(**kind._get_kwargs_from_urls(uri))
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
