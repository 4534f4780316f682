"""The S3 client: s3fs with one layer of retries instead of its three.

botocore, s3fs's requests and s3fs's bodies each repeat by themselves, and multiply: a store that answers every
request with 503 is asked up to 125 times for one object. Here a request is repeated in one place, until the deadline
that :mod:`batchdet.storage.backoff` holds; bodies are repeated by whoever reads them.
"""

import asyncio
import errno
import hashlib
import os
from typing import Any, Final

import fsspec
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from batchdet.storage import backoff
from batchdet.storage.failure import may_pass

_CONNECT_S: Final = 5.0
_READ_S: Final = 20.0
_SLOWEST_BYTES_PER_S: Final = 256 * 1024
_CONNECTIONS: Final = 32
"""As many as threads fetch at once, with room: a request that waits for a connection has no time-out."""


class PatientS3(S3FileSystem):  # type: ignore[misc]
    """S3 whose requests are repeated with jittered pauses until a deadline, and nowhere else."""

    retries = 1

    def __init__(self, environment: str = "", **options: Any) -> None:
        super().__init__(**options)  # fsspec keeps one client for the same arguments, so that these name its settings

    def split_path(self, path: str) -> tuple[str, str, str | None]:
        """Part bucket and key; a key may hold ``?versionId=``, which s3fs would cut off."""
        trail = path[len(path.rstrip("/")) :]
        path = self._strip_protocol(path).lstrip("/")
        if "/" not in path:
            return path, "", None
        bucket, key = self._find_bucket_key(path)
        return bucket, key + trail, None

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        limit_s = self._upload_limit_s(len(kwargs.get("Body") or b""))
        pauses = backoff.pauses()
        asked_before = False
        while True:
            try:
                return await asyncio.wait_for(super()._call_s3(method, *akwarglist, **kwargs), limit_s)
            except FileNotFoundError as error:
                if asked_before and method == "complete_multipart_upload":
                    # it may have been completed, and the reply lost; only a new upload makes sure
                    raise OSError(errno.EIO, "the upload is gone, completed or not") from error
                raise
            except Exception as error:
                pause_s = pauses.next_s(error)
                if pause_s is None or not may_pass(error):
                    raise
                asked_before = True
                await asyncio.sleep(pause_s)

    call_s3 = sync_wrapper(_call_s3)

    def _upload_limit_s(self, size_bytes: int) -> float | None:
        """Limit a request with a body: while nobody takes it, aiohttp counts no time."""
        if not size_bytes:
            return None
        waits_s = (self.config_kwargs.get(name, 0.0) for name in ("connect_timeout", "read_timeout"))
        return float(sum(waits_s)) + size_bytes / _SLOWEST_BYTES_PER_S

    async def _abort_mpu(self, bucket: str, key: str, mpu: str) -> None:
        try:
            await super()._abort_mpu(bucket, key, mpu)
        except FileNotFoundError:
            return  # what is gone need not be aborted, and the failure before matters more

    abort_mpu = sync_wrapper(_abort_mpu)


def s3_client() -> PatientS3:
    """Return this process's client for what the environment says now.

    Users' own settings go before: ``AWS_MAX_ATTEMPTS`` and ``AWS_RETRY_MODE`` let botocore repeat too, and
    ``config_kwargs`` of fsspec's configuration for ``s3`` replace each value given here.
    """
    settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    config: dict[str, Any] = {
        "connect_timeout": _CONNECT_S,
        "read_timeout": _READ_S,
        "max_pool_connections": _CONNECTIONS,
    }
    if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & set(settings):
        config["retries"] = {"total_max_attempts": 1}
    return PatientS3(
        environment=hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest(),
        use_listings_cache=False,
        local_expiry_check=True,
        config_kwargs={**config, **fsspec.config.conf.get("s3", {}).get("config_kwargs", {})},
    )
