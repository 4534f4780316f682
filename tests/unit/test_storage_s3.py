"""What the S3 client does with a sick server, request by request."""

import asyncio
import errno
import os
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from s3fs import S3FileSystem

from batchdet import storage
from batchdet.errors import OutputError, OutputLocked
from batchdet.places import check_writable
from batchdet.storage import StorageError, TransientError, backoff
from batchdet.storage.failure import may_pass
from batchdet.table.lease import Lease
from tests.fault_proxy import FaultProxy, fault_proxy
from tests.s3_server import S3Server

BUCKET = "s3://storage-requests"


@pytest.fixture(scope="module")
def running(s3: S3Server) -> Iterator[FaultProxy]:
    s3.bucket(BUCKET.removeprefix("s3://"))
    with fault_proxy(s3, 1) as proxy:
        yield proxy


@pytest.fixture
def proxy(running: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
    yield running
    running.clear()


@pytest.mark.parametrize("fault", ["slow_down", "internal_error", "refuse", "cut"])
def test_one_request_each_time_and_an_end(fault: str, proxy: FaultProxy) -> None:
    uri = f"{BUCKET}/dead"
    storage.write_bytes(uri, b"12")
    obj = storage.stat(uri)
    rule = proxy.add(fault)
    with pytest.raises(TransientError, match=rf"^{uri}: cannot read at {proxy.endpoint}: .+ \(tried for [12] s\)$"):
        storage.retry(lambda: storage.read_object(obj), backoff.Patience(2.0, 2.0))
    # pauses of about 0.2, 0.4 and 0.8 s; aiohttp may ask twice on a new connection; three layers would ask 100 times
    assert 3 <= rule.hits <= 14


def test_an_object_that_changes_while_it_is_open(proxy: FaultProxy) -> None:
    uri = f"{BUCKET}/open"
    storage.write_bytes(uri, b"1" * 20_000_000)
    with storage.open_read(uri) as file:
        assert file.read(1000) == b"1" * 1000
        storage.write_bytes(uri, b"2" * 20_000_000)
        with pytest.raises(StorageError, match="changed since it was listed"):
            file.read()


def test_short_bodies_are_found_out_in_open_files(proxy: FaultProxy) -> None:
    uri, data = f"{BUCKET}/short", os.urandom(1000)
    storage.write_bytes(uri, data)
    rule = proxy.add("short", method="GET", path="/short", count=2)
    with storage.open_read(uri) as file:
        assert file.read() == data
    assert rule.hits == 2


def test_a_created_object_whose_answer_was_lost_is_ones_own(proxy: FaultProxy) -> None:
    with proxy.fault("lose_reply", method="PUT", count=1):
        assert storage.create(f"{BUCKET}/mine", b"me")
    with proxy.fault("lose_reply", method="PUT", count=1):
        assert not storage.create(f"{BUCKET}/mine", b"you")
    assert storage.read_bytes(f"{BUCKET}/mine") == b"me"


def test_parts_of_an_upload_are_repeated_and_a_failed_upload_leaves_nothing(proxy: FaultProxy) -> None:
    fs, path = storage.filesystem(f"{BUCKET}/parts")
    data = os.urandom(12 << 20)
    with proxy.fault("slow_down", path="partNumber=2", count=2) as rule:
        fs.pipe_file(path, data, chunksize=5 << 20)
    assert rule.hits == 2
    assert fs.cat_file(path) == data

    def upload() -> None:
        with storage.plain_errors(f"{BUCKET}/lost", "write"):
            fs.pipe_file(f"{path}-lost", data, chunksize=5 << 20)

    with proxy.fault("slow_down", path="partNumber=2"), pytest.raises(TransientError, match="503 SlowDown"):
        storage.retry(upload, backoff.Patience(1.0, 1.0))
    assert not storage.exists(f"{BUCKET}/parts-lost")
    assert fs.list_multipart_uploads("storage-requests") == []


def test_an_upload_that_is_gone_after_a_lost_answer_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [ConnectionResetError("lost"), FileNotFoundError("NoSuchUpload")]

    async def answer(self: Any, method: str, **kwargs: Any) -> None:
        raise answers.pop(0)

    monkeypatch.setattr(S3FileSystem, "_call_s3", answer)
    fs, _ = storage.filesystem(BUCKET)
    with pytest.raises(OSError, match="completed or not") as caught:
        asyncio.run(fs._call_s3("complete_multipart_upload"))
    assert caught.value.errno == errno.EIO
    assert may_pass(caught.value)
    assert answers == []


def test_users_settings_go_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"):
        monkeypatch.delenv(name, raising=False)
    config = storage.filesystem(BUCKET)[0].config_kwargs
    assert (config["read_timeout"], config["retries"]["total_max_attempts"]) == (20.0, 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "7")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 300}})
    config = storage.filesystem(BUCKET)[0].config_kwargs
    assert config["read_timeout"] == 300
    assert config["connect_timeout"] == 5.0
    assert "retries" not in config


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(errno.EBUSY, "slow down"), True), (OSError(errno.EIO, "x"), True), (TimeoutError(), True),
        (OSError(errno.EINVAL, "bad name"), False), (OSError(errno.ENOSYS, "x"), False), (FileNotFoundError(), False),
        (PermissionError(), False), (FileExistsError(), False), (ZeroDivisionError(), False),
    ],
)  # fmt: skip
def test_what_may_pass(error: Exception, passes: bool) -> None:
    assert may_pass(error) == passes


@pytest.mark.parametrize("code", ["BadDigest", "IncompleteBody"])
def test_a_request_that_was_damaged_on_the_way_may_pass(code: str) -> None:
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    answer = {"Error": {"Code": code, "Message": "x"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    assert may_pass(translate_boto_error(ClientError(answer, "PutObject")))


@pytest.mark.acceptance("R40")
def test_a_store_that_ignores_conditions_is_refused_by_its_name(proxy: FaultProxy) -> None:
    check_writable(f"{BUCKET}/out")
    proxy.add("ignore_condition", method="PUT")
    with pytest.raises(OutputError, match="If-None-Match") as refused:
        check_writable(f"{BUCKET}/out")
    assert refused.value.code == "output.no_conditional_writes"
    assert proxy.endpoint in refused.value.message
    assert [one for one in storage.find_all(f"{BUCKET}/out") if one.size_bytes] == [], "nothing is left there"


@pytest.mark.acceptance("R40", "R8")
def test_an_owner_whose_object_was_replaced_sees_that(proxy: FaultProxy) -> None:
    """On a store that ignored the condition only once, say, while it was moved."""
    with Lease(f"{BUCKET}/replaced", renew_s=3600) as lease:
        storage.write_bytes(lease.uri, b'{"owner": "another"}')
        with pytest.raises(OutputLocked):
            lease.check()
