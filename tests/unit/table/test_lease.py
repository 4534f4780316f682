import json
import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from batchdet import storage
from batchdet.errors import OutputLocked
from batchdet.table.lease import Lease
from tests.s3_server import S3Server


def test_one_of_two_holds_the_output(tmp_path: Path) -> None:
    with Lease(str(tmp_path)) as held:
        held.check()
        sentence = f"is held by another run .process {os.getpid()} on "
        with pytest.raises(OutputLocked, match=sentence), Lease(str(tmp_path)):
            pass
    with Lease(str(tmp_path)):
        pass
    assert not (tmp_path / "_batchdet/lease.json").exists()


def _hold(out: str, ready: Any) -> None:
    with Lease(out):
        ready.set()
        signal.pause()


def test_a_lease_of_a_dead_process_is_taken_over_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    owner = context.Process(target=_hold, args=(str(tmp_path), ready))
    owner.start()
    assert ready.wait(60)
    with pytest.raises(OutputLocked), Lease(str(tmp_path)):
        pass
    owner.kill()
    owner.join()
    with Lease(str(tmp_path)) as taken:
        taken.check()


@pytest.fixture(params=["file", "memory", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An output on each kind of store."""
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3")
        return storage.join(server.bucket("lease"), tmp_path.name)
    return str(tmp_path) if request.param == "file" else f"memory://{tmp_path.name}"


def _foreign(renewals: int = 1) -> bytes:
    return json.dumps({"owner": "x", "host": "elsewhere", "pid": 1, "boot": "b", "renewals": renewals}).encode()


def test_a_foreign_lease_is_stale_when_nobody_renews_it(out: str) -> None:
    lease = Lease(out, stale_s=0.5)
    assert storage.create(lease.uri, _foreign())
    assert not storage.create(lease.uri, b"second")
    with lease:
        lease.check()


def test_a_foreign_lease_that_is_renewed_is_respected(out: str) -> None:
    lease = Lease(out, stale_s=30)
    storage.write_bytes(lease.uri, _foreign())
    renew = threading.Timer(0.2, lambda: storage.write_bytes(lease.uri, _foreign(2)))
    renew.start()
    with pytest.raises(OutputLocked, match="process 1 on elsewhere"), lease:
        pass
    renew.join()
    storage.delete([lease.uri])


def test_the_old_owner_sees_that_it_was_fenced(out: str) -> None:
    with Lease(out) as old:
        storage.write_bytes(old.uri, _foreign())
        with pytest.raises(OutputLocked, match="was taken over by process 1 on elsewhere"):
            old.check()
    assert storage.exists(old.uri), "the new owner's lease is not removed by the old one"
    storage.delete([old.uri])


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    won = []
    start = threading.Barrier(8)

    def race(i: int) -> None:
        start.wait()
        if storage.create(str(tmp_path / "lease.json"), str(i).encode()):
            won.append(i)

    threads = [threading.Thread(target=race, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "lease.json").read_text() == str(won[0])
    assert [p.name for p in tmp_path.iterdir()] == ["lease.json"]
