"""What file systems and their clients raise, in plain words; which of it may pass."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from batchdet.errors import BatchdetError
from batchdet.storage.errors import DiskFull, NotFound, StorageError, TransientError
from batchdet.storage.uri import is_s3, scheme

_CLIENTS: Final = frozenset({"aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "gcsfs", "s3fs", "urllib3"})
_NO_CREDENTIALS: Final = frozenset({"NoCredentialsError", "PartialCredentialsError"})
LASTING: Final = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS}
    | {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP, errno.ENAMETOOLONG, errno.EILSEQ}
    | {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMSGSIZE, errno.ENXIO, errno.ENODEV, errno.EXDEV}
    | {getattr(errno, "EREMCHG", errno.EINVAL)}
)
"""A file system or store understood, and said no. Everything else (EIO, ESTALE, ETIMEDOUT, ENOMEM, EMFILE, ...) may
pass: it says nothing lasting about an object, so no row may come of it."""
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""It passes when somebody makes room, for which nobody waits."""
_IN_THE_WAY: Final[dict[type[Exception], str]] = {
    IsADirectoryError: "it is a folder",
    NotADirectoryError: "a part of its path is a file, not a folder",
    FileExistsError: "a file of that name is in the way",
}
_DAMAGED_ON_THE_WAY: Final = frozenset({"BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"})
"""What S3 says of a request that did not arrive whole; s3fs gives it the number of a refusal."""


def may_pass(error: Exception) -> bool:
    """Tell whether the same call may succeed a little later."""
    kind = type(error)
    if isinstance(error, (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)):
        return False
    if kind.__name__ in _NO_CREDENTIALS or kind.__name__ in {"FileExpired", "ParamValidationError"}:
        return False
    if _code(error) in _DAMAGED_ON_THE_WAY:
        return True
    return _is_of_a_store(error) and getattr(error, "errno", None) not in LASTING


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
        raise StorageError(f"{uri}: cannot {action}: {_IN_THE_WAY[type(error)]}") from error
    except Exception as error:
        if not _is_of_a_store(error):
            raise
        kind = type(error).__name__
        if kind == "FileExpired":
            raise StorageError(f"{uri}: cannot {action}: it has changed since it was listed") from error
        if kind in _NO_CREDENTIALS:
            raise StorageError(f"{uri}: cannot {action}: no credentials for {scheme(uri)}:// were found") from error
        number = getattr(error, "errno", None)
        if number in FULL:
            raise DiskFull(f"{uri}: cannot {action}: {_reason(error)}; make room there, and run the same command again",
                           key=uri) from error  # fmt: skip
        passing = may_pass(error) and (number is not None or scheme(uri) not in {"file", "memory"})
        failure = TransientError if passing else StorageError
        raise failure(f"{uri}: cannot {action}{_at(uri)}: {_reason(error)}") from error


def endpoint(uri: str) -> str:
    """Return the address of an S3 URI's server where the environment names one, else ""."""
    if not is_s3(uri):
        return ""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _is_of_a_store(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _CLIENTS


def _answer(error: Exception) -> dict[str, Any]:
    """Return what an S3 server answered, where s3fs or botocore tell."""
    answer = getattr(error.__cause__ or error, "response", None)
    return answer if isinstance(answer, dict) else {}


def _code(error: Exception) -> str:
    return str(_answer(error).get("Error", {}).get("Code", ""))


def _reason(error: Exception) -> str:
    said = _answer(error).get("Error", {})
    status = _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    if said.get("Message"):
        words = [str(status), *([said["Code"]] if said.get("Code") != str(status) else [])]
        return f"the store answers {' '.join(words)}: {' '.join(said['Message'].split())}"
    if isinstance(error, OSError) and error.strerror:
        return " ".join(error.strerror.split())
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _at(uri: str) -> str:
    return f" at {endpoint(uri)}" if endpoint(uri) else ""


def _who(uri: str) -> str:
    return "the file's permissions" if scheme(uri) == "file" else "the credentials and what they may do"
