"""Isolation: which images of a segment end the process that works on them, found out in a process that may die.

The segment is replayed there image by image, each decoded and given to the model alone, with limits of time and
memory. An image in which the process dies, hangs or grows too large is named with its error; the process is started
again behind it. Whatever passes here is labelled by the actor as always.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from batchdet.errors import ClusterError, ImageError
from batchdet.machine import child_environment, die_with_parent, private_bytes, python_command
from batchdet.model.placement import Placement
from batchdet.model.runtimes import Device
from batchdet.pipeline.labeller import load_labeller
from batchdet.pipeline.painter import SegmentPainter
from batchdet.records.painted import Canvas, painted_again, segments_of
from batchdet.records.segment import Segment, table_from_ipc, table_to_ipc
from batchdet.spec import JobSpec

_LOAD_TIMEOUT_S: Final = 120.0
_SAMPLE_S: Final = 0.05
_READY, _BEGIN, _END = "ready", "begin", "end"


@dataclass(frozen=True)
class Replay:
    """What a process needs to work on images as the actor does.

    Args:
        spec: The job; its ``compute`` sets the limits of time and memory.
        model_sha256: Digest of the model's bytes.
        device: ``cpu`` or ``gpu``.
        placement: Images are only decoded and painted, by this; None labels them.
    """

    spec: JobSpec
    model_sha256: str
    device: Device
    placement: Placement | None = None

    def find_fatal(self, segment: Segment, progress: Callable[[], None] = lambda: None) -> dict[int, ImageError]:
        """Replay a segment.

        Args:
            segment: The segment.
            progress: Is called each time that the process has begun or ended an image.

        Returns:
            Place in the segment -> ``crashed``, ``timed_out`` or ``out_of_memory``, of each that ends its process.

        Raises:
            ClusterError: The process does not even start.
        """
        fatal: dict[int, ImageError] = {}
        start = 0
        while start < len(segment.data) and (end := self._replay(segment, start, progress)):
            index, error = end
            fatal[index] = error
            start = index + 1
        return fatal

    def _replay(self, segment: Segment, start: int, progress: Callable[[], None]) -> tuple[int, ImageError] | None:
        """Replay from an image on, until the end (None) or to the image that ends the process."""
        compute = self.spec.compute
        limits = _Limits(compute.image_timeout_s, compute.image_memory_bytes)
        with subprocess.Popen(
            python_command("-m", __name__), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment()
        ) as process:
            try:
                _send(process, self, segment, start)
                return limits.watch(process, progress)
            finally:
                process.kill()


@dataclass
class _Limits:
    """Watches one process from outside: it cannot be trusted to watch itself.

    Args:
        image_timeout_s: For one image.
        image_memory_bytes: Beyond what the process has when the model is loaded.
    """

    image_timeout_s: float
    image_memory_bytes: int

    def watch(self, process: "subprocess.Popen[bytes]", progress: Callable[[], None]) -> tuple[int, ImageError] | None:
        """Follow what the process says, until it has done all (None) or has ended in an image."""
        assert process.stdout is not None
        current, base_bytes, text = -1, sys.maxsize, b""
        deadline = time.monotonic() + _LOAD_TIMEOUT_S
        while True:
            if select.select([process.stdout], [], [], _SAMPLE_S)[0]:
                new = os.read(process.stdout.fileno(), 65536)
                *lines, text = (text + new).split(b"\n")
                for word, number in (line.decode().split() for line in lines):
                    if word == _READY:
                        base_bytes = private_bytes(process.pid)
                    current = int(number) if word == _BEGIN else -1
                    deadline = time.monotonic() + self.image_timeout_s
                progress()
                if not new:
                    return self._ended(process, current)
                continue
            if private_bytes(process.pid) - base_bytes > self.image_memory_bytes:
                limit = f"compute.image_memory_bytes ({self.image_memory_bytes})"
                return current, ImageError("out_of_memory", f"a worker took more than {limit} for this image")
            if time.monotonic() > deadline:
                if current < 0:
                    raise ClusterError(f"the model did not load within {_LOAD_TIMEOUT_S:g} s in a process of its own")
                limit = f"compute.image_timeout_s ({self.image_timeout_s:g})"
                return current, ImageError("timed_out", f"a worker spent more than {limit} on this image")

    @staticmethod
    def _ended(process: "subprocess.Popen[bytes]", current: int) -> tuple[int, ImageError] | None:
        status = process.wait()
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        if current >= 0:
            return current, ImageError("crashed", f"the process that worked on this image ended with {how}")
        if status:
            raise ClusterError(f"a process that was to work on single images ended with {how}")
        return None


def _send(process: "subprocess.Popen[bytes]", replay: Replay, segment: Segment, start: int) -> None:
    assert process.stdin is not None
    head = {
        "spec": replay.spec.model_dump(mode="json"),
        "model_sha256": replay.model_sha256,
        "device": replay.device,
        "start": start,
        "placement": replay.placement and asdict(replay.placement),
    }
    row = painted_again(segment) if any(isinstance(image, Canvas) for image in segment.data) else segment.to_row()
    try:
        process.stdin.write(json.dumps(head).encode() + b"\n" + table_to_ipc(row))
        process.stdin.close()
    except BrokenPipeError:
        return  # its exit status says why


def _alone(segment: Segment, index: int) -> Segment:
    return replace(segment, members=segment.members.slice(index, 1), data=[segment.data[index]])


def _say(word: str, index: int) -> None:
    print(word, index, flush=True)


def _work(spec: JobSpec, head: Mapping[str, Any]) -> Callable[[Segment], object]:
    """Return what the actor does with a segment."""
    place = head["placement"]
    if place is None:
        return load_labeller(spec, head["model_sha256"], "", 1, head["device"], 1).label
    return SegmentPainter(
        Placement.of(place), spec.source.max_pixels, reduce=spec.model.canvas.decode == "reduced"
    ).paint


def main() -> None:
    """Work on the images that the parent sends, and say of each when it begins and when it ends."""
    die_with_parent()  # nobody would end it when the worker dies
    head: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    (segment,) = segments_of(table_from_ipc(sys.stdin.buffer.read()))
    spec = JobSpec.model_validate_json(json.dumps(head["spec"]))
    work = _work(spec, head)
    _say(_READY, 0)
    for index in range(head["start"], len(segment.data)):
        if segment.data[index] is None:
            continue
        _say(_BEGIN, index)
        work(_alone(segment, index))
        _say(_END, index)


if __name__ == "__main__":
    main()
