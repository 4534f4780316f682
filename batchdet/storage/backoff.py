"""Calling again after what may pass, until one deadline that every layer below shares.

The outermost :func:`retry` or :func:`persist` sets the deadline. Below it nothing has a patience of its own: calls
inside are not repeated by themselves, and single requests (:mod:`batchdet.storage.s3`) stop at the same moment. So
time does not multiply by layers, whatever fails.
"""

import functools
import random
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar

from batchdet.storage.errors import DiskFull, SizeMismatch, TransientError


@dataclass(frozen=True)
class Patience:
    """How long to go on, counted from the first call.

    Args:
        answering_s: While the store answers, or takes connections at least.
        unreachable_s: While nobody takes a connection.
    """

    answering_s: float
    unreachable_s: float


BRIEF: Final = Patience(40.0, 10.0)
"""For a single operation: a job whose store is sick from the start ends within a minute, a mistyped address sooner."""
LONG: Final = Patience(75.0, 75.0)
"""For a step whose failure would end a long run: a store may be away for a minute."""
WEB: Final = Patience(3.0, 3.0)
"""For one image of a web host: a list may name thousands on a host that is dead."""
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 2.0
"""Short enough that nine of ten requests may be throttled: forty tries go into the long patience."""
_NO_CONNECTION: Final = frozenset(
    {"EndpointConnectionError", "ConnectTimeoutError"}  # botocore
    | {"ClientConnectorError", "ClientConnectorDNSError", "ConnectionTimeoutError"}  # aiohttp: https, gs
    | {"ConnectionRefusedError", "gaierror"}
)
"""What clients raise while nobody takes a connection."""
_MISMATCHES: Final = 4
"""Wrong sizes are believed after so many: an object may really have another one."""
P = ParamSpec("P")
T = TypeVar("T")


class Pauses:
    """The pauses between calls: doubled each time up to a limit, jittered, and over at the deadline.

    Args:
        patience: Counted from now on.
    """

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._started = time.monotonic()
        self._mean_s = _FIRST_PAUSE_S
        self._mismatches = 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first call."""
        return time.monotonic() - self._started

    def next_s(self, error: Exception) -> float | None:
        """Return how many seconds to wait after a failure; None when it is the last one."""
        self._mismatches += isinstance(error, SizeMismatch)
        pause_s = self._mean_s * random.uniform(0.5, 1.5)
        self._mean_s = min(2 * self._mean_s, _LONGEST_PAUSE_S)
        limit_s = self._patience.unreachable_s if _unreachable(error) else self._patience.answering_s
        hopeless = self._mismatches >= _MISMATCHES or isinstance(error, DiskFull)
        return pause_s if not hopeless and self.elapsed_s + pause_s < limit_s else None


def _unreachable(error: BaseException) -> bool:
    """Tell whether nobody took the connection; a client's error, or storage's with that behind it."""
    names = {type(error).__name__, type(error.__cause__).__name__}
    return bool(names & _NO_CONNECTION)


_outer: ContextVar[Pauses | None] = ContextVar("pauses", default=None)


def pauses() -> Pauses:
    """Return pauses for one request, which end where those of the call above end."""
    outer = _outer.get()
    if outer is None:
        return Pauses(BRIEF)
    left = outer._patience
    return Pauses(Patience(left.answering_s - outer.elapsed_s, left.unreachable_s - outer.elapsed_s))


def retry(call: Callable[[], T], patience: Patience = BRIEF) -> T:
    """Call again after a :class:`TransientError`, with exponential, jittered pauses.

    Args:
        call: What to do; safe to repeat.
        patience: No call begins later than this.

    Raises:
        TransientError: That of the last call; its message says how long it was tried.
    """
    if _outer.get() is not None:
        return call()
    pauses = Pauses(patience)
    token = _outer.set(pauses)
    try:
        while True:
            try:
                return call()
            except TransientError as error:
                pause_s = pauses.next_s(error)
                if pause_s is None:
                    error.message += f" (tried for {pauses.elapsed_s:.0f} s)"
                    error.args = (error.message,)
                    raise
                time.sleep(pause_s)
    finally:
        _outer.reset(token)


def persist(call: Callable[[], T]) -> T:
    """Call again for longer than a minute: for repeatable steps whose failure would end a long run."""
    return retry(call, LONG)


def patient(operation: Callable[P, T]) -> Callable[P, T]:
    """Make an operation :func:`retry` by itself where nobody above does."""

    @functools.wraps(operation)
    def retried(*args: P.args, **kwargs: P.kwargs) -> T:
        return retry(lambda: operation(*args, **kwargs))

    return retried
