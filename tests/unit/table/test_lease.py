import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batchdet import storage
from batchdet.errors import OutputLocked
from batchdet.table.lease import Lease, _process, live_holder
from tests.s3_server import S3Server


def test_one_of_two_holds_the_output(tmp_path: Path) -> None:
    with Lease(str(tmp_path)) as held:
        held.check()
        sentence = f"is held by another run .process {os.getpid()} on "
        with pytest.raises(OutputLocked, match=sentence), Lease(str(tmp_path)):
            pass
    with Lease(str(tmp_path)):
        pass
    assert [p.name for p in (tmp_path / "_batchdet/lease").iterdir()] == ["000002.json"]


def _hold(out: str, ready: Any, named: bool) -> None:
    with Lease(out) as held:
        held.name_run("run-of-the-owner") if named else None
        ready.set()
        while True:
            time.sleep(0.05)
            try:
                held.check()
            except OutputLocked as error:
                sys.exit(error.exit_status)


def _owner(folder: Path, named: bool = False) -> BaseProcess:
    """Start a process that holds the output until it is fenced, and wait until it does."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    owner = context.Process(target=_hold, args=(str(folder), ready, named))
    owner.start()
    assert ready.wait(60)
    return owner


def test_a_lease_says_whose_run_it_is(tmp_path: Path) -> None:
    owner = _owner(tmp_path, named=True)
    holder = live_holder(str(tmp_path))
    assert holder is not None
    assert holder["run_id"] == "run-of-the-owner"
    owner.kill()
    owner.join()


def test_a_lease_of_a_dead_process_is_taken_over_at_once(tmp_path: Path) -> None:
    owner = _owner(tmp_path)
    with pytest.raises(OutputLocked), Lease(str(tmp_path)):
        pass
    holder = live_holder(str(tmp_path))
    assert holder is not None
    assert (holder["pid"], holder["run_id"]) == (owner.pid, None)
    assert owner.pid is not None
    os.kill(owner.pid, signal.SIGKILL)
    os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # dead, but its entry in /proc stays until it is joined
    with Lease(str(tmp_path)) as taken:
        taken.check()
    owner.join()
    assert live_holder(str(tmp_path)) is None


@pytest.mark.acceptance("R8")
def test_an_owner_that_is_stopped_is_taken_over_and_fenced(tmp_path: Path) -> None:
    owner = _owner(tmp_path)
    assert owner.pid is not None
    os.kill(owner.pid, signal.SIGSTOP)
    while _process(owner.pid)[0] not in {"T", "t"}:  # on a busy machine that takes a moment
        time.sleep(0.01)
    with Lease(str(tmp_path), stale_s=0.5) as taken:
        os.kill(owner.pid, signal.SIGCONT)
        owner.join(60)
        assert owner.exitcode == 4, "it woke up and saw that the lease is another's"
        taken.check()


def test_a_process_number_that_was_given_again_is_not_the_owner(tmp_path: Path) -> None:
    owner = _owner(tmp_path)
    owner.kill()
    owner.join()
    (file,) = (tmp_path / "_batchdet/lease").iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pid": os.getpid()}))
    assert live_holder(str(tmp_path)) is None
    with Lease(str(tmp_path)) as taken:
        taken.check()


@pytest.mark.acceptance("R32")
def test_a_lease_may_be_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    first = Lease(str(tmp_path))
    first.__enter__()

    def release_first(seconds: float) -> None:
        assert said, "it said so before it waited"
        first.__exit__(None, None, None)

    clock = SimpleNamespace(sleep=release_first, monotonic=time.monotonic)
    monkeypatch.setattr("batchdet.table.lease.time", clock)  # not everybody's: threads of other tests sleep too
    with Lease(str(tmp_path), waiting=said.append) as second:
        monkeypatch.undo()
        second.check()
    assert len(said) == 1
    assert said[0].endswith("; waiting until it ends")


@pytest.fixture(params=["file", "memory", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An output on each kind of store."""
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3")
        return storage.join(server.bucket("lease"), tmp_path.name)
    return str(tmp_path) if request.param == "file" else f"memory://{tmp_path.name}"


def _foreign(renewals: int = 1, **more: Any) -> bytes:
    return json.dumps({"owner": "x", "host": "elsewhere", "pid": 1, "boot": "b", "renewals": renewals, **more}).encode()


def _object(out: str, number: int) -> str:
    return storage.join(out, "_batchdet/lease", f"{number:06d}.json")


def test_a_foreign_lease_is_stale_when_nobody_renews_it(out: str) -> None:
    assert storage.create(_object(out, 3), _foreign())
    with Lease(out, stale_s=0.5) as lease:
        lease.check()
        assert lease.uri == _object(out, 4)
        assert storage.list_names(storage.join(out, "_batchdet/lease")) == ["000004.json"]


def test_a_foreign_lease_that_is_renewed_is_respected(out: str) -> None:
    storage.write_bytes(_object(out, 1), _foreign())
    renew = threading.Timer(0.2, lambda: storage.write_bytes(_object(out, 1), _foreign(2)))
    renew.start()
    with pytest.raises(OutputLocked, match="process 1 on elsewhere"), Lease(out, stale_s=30):
        pass
    renew.join()


def test_a_foreign_lease_that_was_released_is_free(out: str) -> None:
    storage.write_bytes(_object(out, 1), _foreign(released=True))
    with Lease(out, stale_s=60) as lease:
        lease.check()


def test_the_old_owner_sees_that_it_was_fenced(out: str) -> None:
    with Lease(out, renew_s=0.05) as old:
        storage.write_bytes(_object(out, 2), _foreign())
        sentence = r"was taken over \(process 1 on elsewhere\)"
        with pytest.raises(OutputLocked, match=sentence):
            old.check()
        for _ in range(200):
            if old.lost:
                break
            time.sleep(0.05)
        assert old.lost
    assert json.loads(storage.read_bytes(_object(out, 2)))["owner"] == "x", "the new owner's lease is left alone"


def test_a_number_that_was_tidied_away_is_not_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that looked long ago finds its number free, although a higher one exists."""
    out = str(tmp_path)
    storage.write_bytes(_object(out, 1), _foreign(released=True))

    def meanwhile(name: str, data: bytes = b"") -> None:
        monkeypatch.undo()
        storage.write_bytes(_object(out, 3), _foreign())
        storage.delete([_object(out, 1)])

    monkeypatch.setattr("batchdet.table.lease.failpoint", meanwhile)
    with Lease(out, stale_s=0.2) as lease:
        assert lease.uri == _object(out, 4)
        lease.check()


@pytest.mark.acceptance("R8")
def test_of_many_that_want_a_stale_lease_one_gets_it(tmp_path: Path) -> None:
    out, many = str(tmp_path), 8
    storage.write_bytes(_object(out, 1), _foreign())
    start, end = threading.Barrier(many), threading.Barrier(many)
    outcomes = []

    def race() -> None:
        start.wait()
        try:
            with Lease(out, stale_s=0.3) as lease:
                lease.check()
                outcomes.append("held")
                end.wait()
        except OutputLocked:
            outcomes.append("locked")
            end.wait()

    threads = [threading.Thread(target=race) for _ in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held"] + ["locked"] * (many - 1)


def test_an_error_of_a_fenced_owner_says_that_it_was_fenced(tmp_path: Path) -> None:
    out = str(tmp_path)

    def fail(taken_over: bool) -> None:
        with Lease(out, stale_s=0.1):
            if taken_over:
                storage.write_bytes(_object(out, 2), _foreign())
            raise storage.NotFound("a staged file is gone")

    with pytest.raises(OutputLocked, match="was taken over") as caught:
        fail(taken_over=True)
    assert isinstance(caught.value.__cause__, storage.NotFound)
    with pytest.raises(storage.NotFound):
        fail(taken_over=False)


def test_a_lease_that_cannot_be_marked_as_released_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lease(str(tmp_path)), monkeypatch.context() as patch:

        def full(uri: str, data: bytes) -> None:
            raise storage.StorageError(f"{uri}: cannot write: no space left on device")

        lease = Lease(str(tmp_path / "other"))
        lease.__enter__()
        patch.setattr(storage, "write_bytes", full)
        lease.__exit__(None, None, None)
        assert live_holder(str(tmp_path / "other")) is None
