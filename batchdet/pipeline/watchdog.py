"""The watchdog: ends a worker that hangs in one image or takes all memory for it, before it takes the node along.

The segment is tried again then, and with :mod:`batchdet.pipeline.isolation` the image is found.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Final

from batchdet.machine import private_bytes

_SAMPLE_S: Final = 0.1
_REARM_S: Final = 1.0


@contextlib.contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """End this process, by a timer in C, when the block takes longer. A process has one such timer."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


class Watchdog:
    """Watches the process that it is made in.

    Args:
        image_timeout_s: An image may take so long.
        memory_bytes: The process may take so much memory of its own beyond what it has now.
    """

    def __init__(self, image_timeout_s: float, memory_bytes: int) -> None:
        self._image_timeout_s = image_timeout_s
        self._limit_bytes = private_bytes(os.getpid()) + memory_bytes
        self._armed_at, self._armed_for = 0.0, 0
        threading.Thread(target=self._watch_memory, name="watchdog", daemon=True).start()

    def step(self, images: int) -> None:
        """Allow the next step so much time as that many images may take.

        A timer in C ends the process: code that hangs may well hold the interpreter's lock. It is set anew once a
        second, not for each image, so an image may take a second more than it should.
        """
        now = time.monotonic()
        if images == self._armed_for and now - self._armed_at < _REARM_S:
            return
        self._armed_at, self._armed_for = now, images
        faulthandler.dump_traceback_later(self._image_timeout_s * images + _REARM_S, exit=True, file=2)

    def rest(self) -> None:
        """Nothing is worked on now."""
        faulthandler.cancel_dump_traceback_later()
        self._armed_for = 0

    def _watch_memory(self) -> None:
        while True:
            time.sleep(_SAMPLE_S)
            used = private_bytes(os.getpid())
            if used > self._limit_bytes:
                print(f"watchdog: {used} bytes in use, {self._limit_bytes} allowed; this worker ends", file=sys.stderr)
                sys.stderr.flush()
                os._exit(1)
