"""The roofline: how fast a pool could be by what its steps take alone, how fast it was, and what held it back.

What steps take alone comes from a worker that had the machine to itself (:class:`Alone`), what they took in the pool
from its actors (:class:`Pace`). Both are needed: steps that slow each other down look as busy as steps that do not.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

Bottleneck = Literal["model", "decode", "read", "stage", "contention", "start-up"]

STEADY: Final = (0.1, 0.9)
"""The steady rate leaves out the first and the last tenth of the images: a pool that fills and one that drains."""
GOOD_SHARE: Final = 0.8
"""A pool that attains so much of its ceiling is held back by what the ceiling is made of."""
NOTABLE_LOSS: Final = 0.1
"""A smaller share of the actors' time is not called a bottleneck."""
_MOST_MARKS: Final = 1024
_WORK: Final = ("decode", "infer", "rows", "stage")


@dataclass(frozen=True)
class Spread:
    """A mean over sampled images, and how sure it is.

    Args:
        mean: The mean.
        error: Its standard error, relative to it.
    """

    mean: float
    error: float

    @staticmethod
    def of(groups: Sequence[Sequence[float]]) -> "Spread":
        """Average samples.

        Images of one shard resemble each other, so the error is the larger one of two: images taken as independent,
        and means of shards taken as independent. A single image has an error of one half.

        Args:
            groups: The samples of each shard; at least one in all.
        """
        groups = [group for group in groups if group]
        values = [value for group in groups for value in group]
        mean = statistics.fmean(values)
        if len(values) < 2 or mean <= 0:
            return Spread(mean, 0.5)
        error = statistics.stdev(values) / math.sqrt(len(values))
        if len(groups) > 1:
            error = max(error, statistics.stdev(map(statistics.fmean, groups)) / math.sqrt(len(groups)))
        return Spread(mean, error / mean)


@dataclass(frozen=True)
class Alone:
    """What an image takes on one worker that has the machine to itself.

    Args:
        device: Where the model ran: ``cpu`` or ``gpu``.
        batch_rows: Images given to the model at once.
        images: Images measured.
        shards: Shards that they come from.
        read_ms: Milliseconds of reading, opening the shards included.
        decode_ms: Of decoding and painting the canvas, on one core.
        model_ms: Of the model, with what follows it up to detections.
        work_ms: Of both together.
        stored_bytes: What an image takes in the source, with what a tar puts around it.
        sampled_bytes: What those images take there of which this is the mean; more than were measured.
        carried_bytes: Text of the columns that are carried over, for an image.
        detections: Objects found in an image.
        image_vector_bytes: What the features of an image take; 0 without.
        detection_vector_bytes: Likewise those of a detection.
    """

    device: str
    batch_rows: int
    images: int
    shards: int
    read_ms: float
    decode_ms: Spread
    model_ms: Spread
    work_ms: Spread
    stored_bytes: Spread
    sampled_bytes: float
    carried_bytes: float
    detections: Spread
    image_vector_bytes: int = 0
    detection_vector_bytes: int = 0


@dataclass(frozen=True)
class Pool:
    """Who works.

    Args:
        device: ``cpu`` or ``gpu``.
        actors: Detector actors.
        decoders: Images that are decoded at the same time for all of them, beside the model; 0 when each actor decodes
            and runs the model by turns.
        readers: Shards read at the same time.
        per_device: Actors that take turns on a device; 1 where each has one for itself, as on CPUs.
    """

    device: str
    actors: int
    decoders: int
    readers: int
    per_device: int = 1

    def actor_ms(self, decode_ms: float, model_ms: float) -> float:
        """Say how many milliseconds one actor takes for an image at best."""
        if not self.decoders:
            return decode_ms + model_ms
        return max(decode_ms * self.actors / self.decoders, model_ms * self.per_device)


class Pace:
    """How a run goes, as its driver sees it, in bounded memory.

    Args:
        started: When the run began, by ``clock``.
        clock: Tells the time in seconds.
    """

    def __init__(self, started: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._started, self._clock = started, clock
        self._marks: list[tuple[float, int]] = []
        self._stride, self._segments, self._last = 1, 0, started
        self.images = 0
        self.times_s: dict[str, float] = {}
        self.start_up_s = 0.0
        """Seconds from the start until an actor began to label."""

    def add(self, images: int, times_s: Mapping[str, float]) -> None:
        """Count a segment that is staged.

        Args:
            images: Images in it.
            times_s: Seconds by step: read, idle, decode, infer, rows, stage, ...
        """
        self._last = self._clock()
        if not self._segments:
            work_s = sum(times_s.get(step, 0.0) for step in _WORK)
            self.start_up_s = max(0.0, self._last - self._started - work_s)
        self.images += images
        for step, seconds in times_s.items():
            self.times_s[step] = self.times_s.get(step, 0.0) + seconds
        self._segments += 1
        if self._segments % self._stride == 0:
            self._marks.append((self._last, self.images))
            if len(self._marks) > _MOST_MARKS:
                self._marks, self._stride = self._marks[1::2], 2 * self._stride

    @property
    def labelling_s(self) -> float:
        """Seconds from when an actor began to label to the last segment."""
        return max(0.0, self._last - self._started - self.start_up_s)

    def step_ms(self, step: str) -> float:
        """Return milliseconds of a step for an image, summed over all who worked at once."""
        return self.times_s.get(step, 0.0) / self.images * 1e3 if self.images else 0.0

    def rate(self, actors: int) -> tuple[float, bool]:
        """Return images per second, and whether the run was long enough to leave out its beginning and its end."""
        low, high = (share * self.images for share in STEADY)
        inside = [mark for mark in self._marks if low <= mark[1] <= high]
        if len(inside) > 2 * actors and inside[-1][0] > inside[0][0]:
            (first_s, first), (last_s, last) = inside[0], inside[-1]
            return (last - first) / (last_s - first_s), True
        return (self.images / self.labelling_s if self.labelling_s > 0 else 0.0), False


def roofline(pool: Pool, alone: Alone | None, why_not_alone: str, pace: Pace) -> dict[str, Any]:
    """Compare a run with its ceiling.

    Args:
        pool: Who worked.
        alone: What the steps take alone; None when that could not be measured.
        why_not_alone: Why not; "" when it could.
        pace: How the run went; at least one image.

    Returns:
        What ``stats.json`` holds under ``roofline``; the README explains it.
    """
    in_run = {f"{step}_ms": round(pace.step_ms(step), 3) for step in (*_WORK, "idle", "read")}
    in_run["model_ms"] = in_run.pop("infer_ms")
    decode_ms, model_ms = in_run["decode_ms"], in_run["model_ms"]
    if alone:
        decode_ms, model_ms = alone.decode_ms.mean, alone.model_ms.mean
        if not pool.decoders:  # what the pool did can be done: then the machine was not the worker's alone
            decode_ms, model_ms = min(decode_ms, in_run["decode_ms"]), min(model_ms, in_run["model_ms"])
    else:  # what the pool took for the model counts the turns of others on the device already
        pool = replace(pool, per_device=1)
    rates = {
        "read_only": _rate(pool.readers, in_run["read_ms"]),
        "decode_only": _rate(pool.decoders or pool.actors, decode_ms),
        "model_only": _rate(pool.actors, model_ms * pool.per_device),
    }
    reached = _rate(pool.actors, pool.actor_ms(decode_ms, model_ms)) or 0.0
    ceiling = min(reached, rates["read_only"] or reached)
    attained, steady = pace.rate(pool.actors)
    share = attained / ceiling if ceiling else None
    bottleneck, why = _bottleneck(pool, alone, pace, attained, share, rates)
    return {
        "alone": asdict(alone) if alone else None,
        "alone_missing": why_not_alone,
        "in_run": {"images": pace.images, **in_run},
        "pool": asdict(pool),
        "rates_images_per_s": rates,
        "ceiling_images_per_s": round(ceiling, 3),
        "attained_images_per_s": round(attained, 3),
        "steady": steady,
        "share": None if share is None else round(share, 4),
        "bottleneck": bottleneck,
        "why": why,
    }


def _rate(workers: int, each_ms: float) -> float | None:
    return round(workers / each_ms * 1e3, 3) if each_ms > 0 else None


def _bottleneck(
    pool: Pool,
    alone: Alone | None,
    pace: Pace,
    attained: float,
    share: float | None,
    rates: Mapping[str, float | None],
) -> tuple[Bottleneck, str]:
    """Name what holds a run back, with a sentence.

    What the actors' time went into besides work that is needed anyway is a loss; the largest one is to blame, if
    the ceiling is far and the loss is notable. Else it is the step that the ceiling is made of.
    """
    if pace.start_up_s > pace.labelling_s:
        return "start-up", f"{pace.start_up_s:.1f} s of start-up for {pace.labelling_s:.1f} s of labelling"
    decode_ms, model_ms, idle_ms, stage_ms = (pace.step_ms(step) for step in ("decode", "infer", "idle", "stage"))
    losses: dict[Bottleneck, float] = {"read": idle_ms, "stage": stage_ms}
    if alone and not pool.decoders:  # beside the model, decoding takes no time of the actor's own
        losses["contention"] = decode_ms + model_ms - alone.work_ms.mean
    name = max(losses, key=lambda loss: losses[loss])
    spent_ms = pool.actors / attained * 1e3 if attained else 0.0
    if share is not None and share < GOOD_SHARE and losses[name] > NOTABLE_LOSS * spent_ms:
        if name == "contention" and alone:
            return name, (
                f"decoding and model take {decode_ms + model_ms:.1f} ms an image in the pool, {alone.work_ms.mean:.1f} "
                "alone: workers disturb each other, or something else uses these cores"
            )
        if name == "stage":
            return name, f"writing results takes {stage_ms:.1f} of {spent_ms:.1f} ms an image"
        return "read", f"actors wait for images {idle_ms:.1f} of {spent_ms:.1f} ms an image"
    read_only, decode_only, model_only = (rates[key] or math.inf for key in ("read_only", "decode_only", "model_only"))
    if read_only < min(decode_only, model_only):
        return "read", f"{pool.readers} readers bring {read_only:.0f} images/s"
    slowest: Bottleneck = "decode" if decode_only < model_only else "model"
    source = (
        f"alone, decoding takes {alone.decode_ms.mean:.1f} and the model {alone.model_ms.mean:.1f} ms"
        if alone
        else (f"in the pool, decoding takes {decode_ms:.1f} and the model {model_ms:.1f} ms")
    )
    return slowest, f"{source} an image"
