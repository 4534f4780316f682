"""Failpoints: places where a test can make a real process fail, named by an environment variable.

``BATCHDET_FAILPOINT`` holds rules ``NAME[@N][?MARKER]=ACTION[:PATH]``, separated by ``;``::

    commit.manifest.before=kill                    SIGKILL to itself
    decode?POISON=abort                            only for images whose bytes hold POISON
    staged.before@3=pause:/tmp/here                the third time: make the file, and wait until it is gone

``@N`` counts the times that the place is passed in one process. Without the variable a failpoint is one look at an
empty tuple.
"""

import errno
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

VARIABLE: Final = "BATCHDET_FAILPOINT"
_EAT_BYTES: Final = 4 * 1024**3
"""``eat`` ends here, so that a test whose guard is broken does not take the machine along."""


@dataclass
class _Rule:
    name: str
    action: str
    path: str
    marker: bytes
    only_at: int
    hits: int = field(default=0)


def _parse(text: str) -> tuple[_Rule, ...]:
    rules = []
    for part in filter(None, (p.strip() for p in text.split(";"))):
        where, _, what = part.partition("=")
        where, _, marker = where.partition("?")
        name, _, count = where.partition("@")
        action, _, path = what.partition(":")
        if action not in _ACTIONS or (count and not count.isdigit()):
            raise ValueError(f"{VARIABLE}: {part!r} is no rule; write NAME[@N][?MARKER]=ACTION[:PATH]")
        rules.append(_Rule(name, action, path, marker.encode(), int(count or 0)))
    return tuple(rules)


def failpoint(name: str, data: Any = b"") -> None:
    """Fail here, if the environment says so.

    Args:
        name: The place.
        data: Bytes in which a rule's marker is looked for.
    """
    if _RULES:
        _pass(name, data)


def _pass(name: str, data: Any) -> None:
    for rule in _RULES:
        if rule.name != name or (rule.marker and rule.marker not in bytes(data)):
            continue
        rule.hits += 1
        if rule.only_at in {0, rule.hits}:
            _ACTIONS[rule.action](rule.path)


def _kill(path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # the signal may arrive a moment later


def _abort(path: str) -> None:
    os.abort()


def _hang(path: str) -> None:
    while True:
        time.sleep(1)


def _eat(path: str) -> None:
    taken = []
    for _ in range(_EAT_BYTES // (16 << 20)):
        taken.append(b"\1" * (16 << 20))
        time.sleep(0.002)
    raise MemoryError(f"took {_EAT_BYTES} bytes")


def _count(path: str) -> None:
    with Path(path).open("ab") as file:
        file.write(b".")


def _pause(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    while Path(path).exists():
        time.sleep(0.02)


def _disk_full(path: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


_ACTIONS: Final = {
    "kill": _kill,
    "abort": _abort,
    "hang": _hang,
    "eat": _eat,
    "count": _count,
    "pause": _pause,
    "disk_full": _disk_full,
}
_RULES = _parse(os.environ.get(VARIABLE, ""))
