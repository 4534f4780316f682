"""The lease on an output: one writer at a time, on any store.

Numbered objects, ``_batchdet/lease/000007.json``, each created only if it does not exist: whoever has made the highest
number holds the output, and renews the object while it lives. In the end it marks it as released. A stale one is never
deleted or replaced by those who want it; they create the next number, and one of them succeeds. So the number is a
fencing token: an owner that was thought dead and wakes up sees a higher one, and writes nothing more.

A commit takes the next number, too: creating ``000008.json`` with the name of the run is the one write by which an
owner of number 7 commits. If another run has taken number 8 meanwhile, that write fails, whenever it is made. The
manifest follows; where its writer ends in between, the next owner writes it first.

Source: fencing tokens as in M. Kleppmann, "Designing Data-Intensive Applications" (2017), chapter 8.

Whether an owner lives is seen by watching it renew, never by comparing clocks; on the same machine its process is
looked at first.
"""

import getpass
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Final, Self

from batchdet import storage
from batchdet.errors import BatchdetError, OutputLocked
from batchdet.failpoint import failpoint
from batchdet.table.lineage import now

RENEW_S: Final = 5.0
STALE_S: Final = 20.0
_WATCH_S: Final = 0.5
_WAIT_S: Final = 2.0
_NAME: Final = re.compile(r"(\d{6,})\.json")


@dataclass(frozen=True)
class Commit:
    """What a lease's object says of a commit whose manifest may not be written yet.

    Args:
        run_id: The run.
        number: The number that the commit took; it names the manifest's draft.
        sha256: Digest of the draft.
    """

    run_id: str
    number: int
    sha256: str


class Lease:
    """Holds an output while the block runs.

    Args:
        out: The output's URI.
        waiting: Called once with a sentence when another run holds the output, which is then waited for; None raises
            instead.
        renew_s: Seconds between renewals.
        stale_s: A lease that is not renewed for so long is taken over.

    Raises:
        OutputLocked: Another run holds the output, the message says which; or it was taken over while the block ran.
    """

    def __init__(
        self,
        out: str,
        waiting: Callable[[str], None] | None = None,
        renew_s: float = RENEW_S,
        stale_s: float = STALE_S,
    ) -> None:
        self._out = out
        self._waiting = waiting
        self._renew_s, self._stale_s = renew_s, stale_s
        self._number = 0
        self._state: dict[str, Any] = {
            **_this_process(),
            "user": _user(),
            "since": now(),
            "owner": uuid.uuid4().hex,
            "renewals": 0,
            "run_id": None,
            "images_done": None,
            "images_total": None,
            "commit": None,
        }
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self.lost = False
        """Whether the thread that renews it has seen that it belongs to another; :meth:`check` says to whom."""

    @property
    def uri(self) -> str:
        """Where this lease's object is."""
        return _uri(self._out, self._number)

    @property
    def next_number(self) -> int:
        """The number that a commit is going to take."""
        return self._number + 1

    @property
    def commit(self) -> Commit | None:
        """The last commit, of this owner or the one before, until :meth:`settle` says that its manifest is there."""
        return _commit_of(self._state)

    def __enter__(self) -> Self:
        told = False
        while not self._acquire(told):
            told = True
            time.sleep(_WAIT_S)
        self._thread.start()
        return self

    def _acquire(self, told: bool) -> bool:
        """Try to take the output; False when its owner lives and is to be waited for."""
        while True:
            number, seen = _newest(self._out)
            if seen is not None and _is_live(self._out, number, seen, self._stale_s):
                by = f"output.uri: {self._out} is held by another run ({_who(seen)})"
                if self._waiting is None:
                    raise OutputLocked(
                        f"{by}; wait for it (policy.when_locked: wait), or give this one an output of its own"
                    )
                if not told:
                    self._waiting(f"{by}; waiting until it ends")
                return False
            failpoint("lease.acquire")
            self._state["commit"] = (seen or {}).get("commit")
            if self._create(number + 1):
                return True

    def _create(self, number: int) -> bool:
        """Make the object of a number, and make sure that it is the highest one; then older ones may go."""
        uri, text = _uri(self._out, number), self._text()
        if not storage.persist(lambda: storage.create(uri, text)):
            return False
        self._number = number
        *older, highest = storage.persist(lambda: _numbers(self._out)) or [0]
        if highest != number:  # it had been used and tidied away since it was looked up
            storage.persist(lambda: storage.delete([self.uri]))
            return False
        storage.persist(lambda: storage.delete(_uri(self._out, n) for n in older))
        return True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(self._renew_s)
        try:
            mine = self._is_mine()
            if mine:
                self._release()
        except storage.StorageError:
            return  # it goes stale by itself; what the block raised matters more
        if not mine and isinstance(error, BatchdetError):
            raise self._taken_over() from error  # files that the new owner tidied away are no errors of their own

    def _release(self) -> None:
        try:
            self._write(released=True)
        except storage.StorageError:  # on a full disk nothing can be written, but deleted
            storage.delete([self.uri])

    def name_run(self, run_id: str) -> None:
        """Say which run this is, so that nothing of it is taken for left over."""
        storage.persist(lambda: self._write(run_id=run_id))

    def tell(self, images_done: int, images_total: int | None) -> None:
        """Say how far the run is; others read it once the lease is renewed.

        Args:
            images_done: Images that are labelled and staged.
            images_total: Images of the run; None if only reading can tell.
        """
        with self._writing:
            self._state |= {"images_done": images_done, "images_total": images_total}

    def check(self) -> None:
        """Make sure that the lease is still this run's own.

        Raises:
            OutputLocked: Another run has taken it over.
        """
        with self._writing:
            mine = storage.persist(self._is_mine)
        if not mine:
            raise self._taken_over()

    def take_for_commit(self, run_id: str, sha256: str) -> None:
        """Take the next number for a run: the commit point.

        If the store does not answer, nobody knows whether it was taken; the next owner finds out.

        Args:
            run_id: The run.
            sha256: Digest of the manifest's draft, which is there already.

        Raises:
            OutputLocked: Another run has taken the output over; nothing was committed.
        """
        with self._writing:
            before = self._state["commit"]
            self._state["commit"] = asdict(Commit(run_id, self.next_number, sha256))
            if not self._create(self.next_number):
                self._state["commit"] = before
                self.lost = True
        if self.lost:
            raise self._taken_over()

    def settle(self) -> None:
        """Note that the manifest of :attr:`commit` is there; in the object, if that is still this owner's."""
        with self._writing:
            self._state["commit"] = None
            if storage.persist(self._is_mine):
                storage.persist(self._write_now)

    def _taken_over(self) -> OutputLocked:
        _, seen = _newest(self._out)
        return OutputLocked(
            f"output.uri: {self._out} was taken over ({_who(seen or {})}) while this run did not answer; "
            "nothing more is written here"
        )

    def _keep(self) -> None:
        while not self._ended.wait(self._renew_s):
            try:
                with self._writing:
                    if not self._is_mine():
                        self.lost = True
                        return
                    self._write_now()
            except storage.StorageError:
                continue  # the store may be back before the lease is stale

    def _is_mine(self) -> bool:
        """Look whether no higher number is there, and whether the object of this one is still this owner's."""
        if _numbers(self._out)[-1:] != [self._number]:
            return False
        try:
            return bool(_read(self._out, self._number).get("owner") == self._state["owner"])
        except storage.NotFound:
            return False

    def _write(self, **changes: Any) -> None:
        with self._writing:
            self._state |= changes
            self._write_now()

    def _write_now(self) -> None:
        storage.write_bytes(self.uri, self._text())

    def _text(self) -> bytes:
        self._state["renewals"] += 1
        return json.dumps(self._state).encode()


def live_holder(out: str, stale_s: float = STALE_S) -> dict[str, Any] | None:
    """Say who holds an output.

    Args:
        out: The output's URI.
        stale_s: An owner on another machine is watched for at most so long.

    Returns:
        ``host``, ``pid``, ``user``, ``since``, ``run_id``, ``images_done`` and ``images_total`` of a living owner, each
        None while it is not known; None when there is none.
    """
    number, seen = _newest(out)
    return seen if seen is not None and _is_live(out, number, seen, stale_s) else None


def last_holder(out: str) -> dict[str, Any] | None:
    """Say who held an output last, whether or not it lives; see :func:`live_holder`."""
    return _newest(out)[1]


def unwritten_commit(out: str) -> Commit | None:
    """Return a commit of which the lease tells, and whose manifest its writer may not have written."""
    return _commit_of(_newest(out)[1] or {})


def _folder(out: str) -> str:
    return storage.join(out, "_batchdet", "lease")


def _uri(out: str, number: int) -> str:
    return storage.join(_folder(out), f"{number:06d}.json")


def _numbers(out: str) -> list[int]:
    matches = (_NAME.fullmatch(name) for name in storage.list_names(_folder(out)))
    return sorted(int(match[1]) for match in matches if match)


def _newest(out: str) -> tuple[int, dict[str, Any] | None]:
    """Return the highest number and what its object says; 0 and None when there is none."""
    while numbers := storage.persist(lambda: _numbers(out)):
        try:
            return numbers[-1], storage.persist(lambda: _read(out, numbers[-1]))
        except storage.NotFound:
            continue  # a newer owner has tidied up
    return 0, None


def _read(out: str, number: int) -> dict[str, Any]:
    try:
        found = json.loads(storage.read_bytes(_uri(out, number)))
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def _commit_of(state: dict[str, Any]) -> Commit | None:
    found = state.get("commit")
    try:
        return Commit(**found) if found else None
    except TypeError:
        return None  # written by another version


def _is_live(out: str, number: int, seen: dict[str, Any], stale_s: float) -> bool:
    """Tell whether a lease's owner lives: by its process when it is one of this machine, else by watching it."""
    if seen.get("released"):
        return False
    here = _this_process()
    if (seen.get("host"), seen.get("boot")) == (here["host"], here["boot"]) and isinstance(seen.get("pid"), int):
        state, started = _process(seen["pid"])
        if state in {"", "Z", "X"} or started != seen.get("started"):
            return False
        if state not in {"T", "t"}:  # one that is stopped has to be watched
            return True
    deadline = time.monotonic() + stale_s
    while time.monotonic() < deadline:
        time.sleep(min(_WATCH_S, stale_s / 4))
        now_number, now = _newest(out)
        if now_number != number:
            return now is not None and not now.get("released")
        if now != seen:
            return now is not None and not now.get("released")
    return False


def _who(seen: dict[str, Any]) -> str:
    return f"process {seen.get('pid')} on {seen.get('host')}"


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "boot": _boot_id(), "pid": os.getpid(), "started": _process(os.getpid())[1]}


def _process(pid: int) -> tuple[str, str]:
    """Return a process's state, as one letter of proc(5), and when it started; "" when there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have no name for its user
        return None


def _boot_id() -> str:
    """Name this boot of this machine and its process namespace, in which a process number means something."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex
