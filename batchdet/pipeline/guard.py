"""The guard: what an actor does around each segment, so that images which end their process are found."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from batchdet.errors import ClusterError, ImageError
from batchdet.pipeline.attempts import Attempts
from batchdet.pipeline.isolation import Replay
from batchdet.pipeline.watchdog import Watchdog
from batchdet.records.segment import Segment

_SUSPECT_AFTER: Final = 2
"""So many workers must have died with a segment before its images are suspected; one may have been killed."""

_GIVE_UP_AFTER: Final = 8


class Guard:
    """Watches the process that it is made in, which is to have loaded all that it needs.

    A segment with which workers have died on this node is suspected to hold an image that ends its process: its
    images are tried one by one in a process that may die, and those that end it become failed rows.

    Args:
        notes: Names the notes of attempts.
        replay: Tries images one by one, the way that the actor works on them.
        memory_bytes: The process may take so much memory of its own beyond what it has now.
    """

    def __init__(self, notes: str, replay: Replay, memory_bytes: int) -> None:
        self._attempts = Attempts(notes)
        self._replay = replay
        self._watchdog = Watchdog(replay.spec.compute.image_timeout_s, memory_bytes)

    def step(self, images: int) -> None:
        """Allow the next step so much time as that many images may take."""
        self._watchdog.step(images)

    @contextmanager
    def around(self, segment: Segment) -> Iterator[dict[int, ImageError]]:
        """Note that a segment is in work while the block runs.

        Yields:
            Place in the segment -> error, of images that may not be touched.

        Raises:
            ClusterError: Workers die with a segment although each of its images passes alone.
        """

        def progress() -> None:
            self._attempts.touch(segment.name)

        with self._attempts.of(segment.name) as deaths:
            if deaths >= _GIVE_UP_AFTER:
                raise ClusterError(
                    f"{segment.shard_uri}: {deaths} workers have died with segment {segment.segment_index}, "
                    "although each of its images passes alone; a smaller compute.batch_rows or a larger "
                    "compute.image_memory_bytes may help"
                )
            fatal = self._replay.find_fatal(segment, progress) if deaths >= _SUSPECT_AFTER else {}
            try:
                yield fatal
            finally:
                self._watchdog.rest()
