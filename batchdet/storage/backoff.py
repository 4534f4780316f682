"""Calling again after what may pass."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from batchdet.storage.errors import TransientError

T = TypeVar("T")


def retry(call: Callable[[], T], tries: int = 4, first_delay_s: float = 0.2) -> T:
    """Call again after a :class:`TransientError`, with exponential, jittered pauses.

    Args:
        call: What to do; safe to repeat.
        tries: Calls in all.
        first_delay_s: Mean of the first pause; each later one is twice as long.
    """
    for attempt in range(tries - 1):
        try:
            return call()
        except TransientError:
            time.sleep(first_delay_s * 2**attempt * random.uniform(0.5, 1.5))
    return call()


def persist(call: Callable[[], T]) -> T:
    """Call again for about a minute: for small, repeatable steps whose failure would end a long run."""
    return retry(call, tries=8, first_delay_s=0.4)
