"""The lease on an output: one writer at a time, on any store.

A small object that is created only if it does not exist, and renewed while its owner lives. Whether an owner lives is
seen by watching it renew, never by comparing clocks; on the same machine its process is looked at instead. Before the
commit the owner looks whether the lease is still its own.
"""

import json
import os
import socket
import threading
import time
import uuid
from types import TracebackType
from typing import Any, Final, Self

from batchdet import storage
from batchdet.errors import OutputLocked

RENEW_S: Final = 5.0
STALE_S: Final = 20.0
_WATCH_S: Final = 0.5


class Lease:
    """Holds an output while the block runs.

    Args:
        out: The output's URI.
        renew_s: Seconds between renewals.
        stale_s: A lease that is not renewed for so long is taken over.

    Raises:
        OutputLocked: Another run holds the output; the message says which.
    """

    def __init__(self, out: str, renew_s: float = RENEW_S, stale_s: float = STALE_S) -> None:
        self.uri = storage.join(out, "_batchdet", "lease.json")
        self._out = out
        self._renew_s, self._stale_s = renew_s, stale_s
        self._owner = {"owner": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "boot": _boot_id()}
        self._count = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Self:
        while not storage.create(self.uri, self._text()):
            seen = self._read()
            if seen is not None and not self._dead(seen):
                raise OutputLocked(
                    f"output.uri: {self._out} is held by another run (process {seen.get('pid')} on "
                    f"{seen.get('host')}); wait for it, or give this one an output of its own"
                )
            if seen is not None and self._read() == seen:
                storage.delete([self.uri])
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(self._renew_s)
        try:
            if self._is_mine():
                storage.delete([self.uri])
        except storage.StorageError:
            return  # it goes stale by itself; what the block raised matters more

    def check(self) -> None:
        """Make sure that the lease is still this run's own.

        Raises:
            OutputLocked: Another run has taken it over.
        """
        if not self._is_mine():
            seen = self._read() or {}
            raise OutputLocked(
                f"output.uri: {self._out} was taken over by process {seen.get('pid')} on {seen.get('host')} while this "
                "run did not answer; nothing more is written here"
            )

    def _keep(self) -> None:
        while not self._ended.wait(self._renew_s):
            try:
                if not self._is_mine():
                    return
                storage.write_bytes(self.uri, self._text())
            except storage.StorageError:
                continue  # the store may be back before the lease is stale

    def _is_mine(self) -> bool:
        seen = storage.persist(self._read)
        return seen is not None and seen.get("owner") == self._owner["owner"]

    def _text(self) -> bytes:
        self._count += 1
        return json.dumps({**self._owner, "renewals": self._count}).encode()

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(storage.read_bytes(self.uri))
        except storage.NotFound:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _dead(self, seen: dict[str, Any]) -> bool:
        """Tell whether a lease's owner has ended: at once on this machine, else by watching it."""
        here = (self._owner["host"], self._owner["boot"])
        if (seen.get("host"), seen.get("boot")) == here and isinstance(seen.get("pid"), int):
            return not os.path.exists(f"/proc/{seen['pid']}")
        deadline = time.monotonic() + self._stale_s
        while time.monotonic() < deadline:
            time.sleep(min(_WATCH_S, self._stale_s / 4))
            if self._read() != seen:
                return self._read() is None
        return True


def _boot_id() -> str:
    """Name this boot of this machine and its process namespace, in which a process number means something."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex
