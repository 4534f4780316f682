"""Predictions: time, core- or GPU-hours and output size of a job, each with an interval of 80 %.

A prediction rests on what images take (:class:`Basis`): measured alone on some images of the job, or, better, by
earlier runs of the same model and settings. Relative errors of its factors are taken as independent and add up by
their squares.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from batchdet.roofline import Alone, Pool
from batchdet.text import counted

INTERVAL: Final = 0.8
_Z: Final = statistics.NormalDist().inv_cdf((1 + INTERVAL) / 2)

ATTAINED_SHARE: Final = 1.0
"""What a pool usually attains of its ceiling: what actors lose to each other, the probe loses to a Ray that starts."""
_SHARE_ERROR: Final = 0.14
"""So that 80 % of the runs attain between 0.84 and 1.2 of it; 14 runs of `make bench` on two machines: 0.77 to 1.24,
half of them 0.96 to 1.10."""
_RATE_ERROR: Final = 0.1
"""Between two runs of the same job on the same machine."""
_START_UP_ERROR: Final = 0.3
START_UP_S: Final = 9.0
"""Ray, the probe and the actors, in a Ray of the run's own; a run says what it took: 6 to 10 s on two cores."""
_ACTORS_START_UP_S: Final = 2.0
"""The actors' part of it, if Ray was running already: 1 to 4 s on two cores."""
_ACTORS_PER_RAY: Final = 1.2
"""The actors' part by that of Ray's start: both are imports, and slower together on a machine that is busy. 0.8 to 1.5
in six runs on two busy cores, where Ray took 3.6 to 8.2 s."""
JUDGED_S: Final = 10.0
"""A run that labels for less time, or for less than it took to start, is not compared with what was predicted."""
_FINISH_MS: Final = 0.15
"""Commit, for an image."""
_IMAGE_ROW_BYTES: Final = 65
_DETECTION_ROW_BYTES: Final = 26
"""Of rows in part files, compressed, with what names the image; without columns that are carried over."""
_CARRIED_SHARE: Final = 0.3
"""Of the text of those, what compression leaves."""
_PART_FILE_BYTES: Final = 5_000
"""Schema and statistics of a small one."""
_OUTPUT_ERROR: Final = 0.25


@dataclass(frozen=True)
class Estimate:
    """A number that is not known yet.

    Args:
        low: In one of ten cases it is less.
        likely: The best guess.
        high: In one of ten cases it is more.
    """

    low: float
    likely: float
    high: float

    @staticmethod
    def around(likely: float, *errors: float) -> "Estimate":
        """Estimate a product whose factors have these relative errors."""
        factor = math.exp(_Z * math.hypot(*errors))
        return Estimate(likely / factor, likely, likely * factor)

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.low + other.low, self.likely + other.likely, self.high + other.high)


@dataclass(frozen=True)
class Past:
    """What an earlier run tells.

    Args:
        run_id: The run.
        actor_ms: Milliseconds of one actor for an image, at its steady rate.
        start_up_s: Until an actor began to label.
        encoded_bytes: Mean size of an image.
        output_bytes: Part files, for an image.
    """

    run_id: str
    actor_ms: float
    start_up_s: float
    encoded_bytes: float
    output_bytes: float

    @staticmethod
    def read(run_id: str, output_bytes: int, stats: Mapping[str, Any]) -> "Past | None":
        """Read it from ``stats.json``; None when the run was too short for a steady rate, or says nothing of it."""
        try:
            found, images = stats["roofline"], stats["images"]
            if not found["steady"]:
                return None
            return Past(
                run_id,
                found["pool"]["actors"] / found["attained_images_per_s"] * 1e3,
                stats["run"]["start_up_s"],
                images["size_bytes"] / images["listed"],
                output_bytes / images["listed"],
            )
        except (LookupError, TypeError, ZeroDivisionError):
            return None


@dataclass(frozen=True)
class StartUp:
    """What goes by before an actor labels.

    Args:
        passed_s: Seconds that have gone by.
        left_s: Seconds that will.
    """

    passed_s: float
    left_s: float

    @staticmethod
    def under_way(passed_s: float, ray_s: float) -> "StartUp":
        """Say what is left once the probe is through.

        Args:
            passed_s: Since the command.
            ray_s: The start of Ray's part of it; about 0 if Ray was running.
        """
        return StartUp(passed_s, max(_ACTORS_START_UP_S, _ACTORS_PER_RAY * ray_s))

    def estimate(self) -> Estimate:
        """Estimate the whole, in seconds."""
        return Estimate(self.passed_s, self.passed_s, self.passed_s) + Estimate.around(self.left_s, _START_UP_ERROR)


@dataclass(frozen=True)
class Basis:
    """What a prediction rests on; each error is relative.

    Args:
        actor_ms: Milliseconds of one actor for an image, in a pool.
        actor_error: Its error.
        stored_bytes: Of an image in the source.
        stored_error: Its error.
        sampled_bytes: So much of the source was looked at for it; about the rest nothing is known.
        output_bytes: Of an image in the tables.
        output_fixed_bytes: Of the tables without images.
        output_error: The error of both.
        start_up: Until an actor labels.
        why: Where all this comes from, as a sentence.
    """

    actor_ms: float
    actor_error: float
    stored_bytes: float
    stored_error: float
    sampled_bytes: float
    output_bytes: float
    output_fixed_bytes: float
    output_error: float
    start_up: StartUp
    why: str

    @staticmethod
    def of_alone(alone: Alone, pool: Pool | None, start_up: StartUp | None = None) -> "Basis":
        """Rest on what was measured alone.

        Args:
            alone: The figures.
            pool: Who will work; None takes an actor that decodes and runs the model by turns.
            start_up: Until an actor labels; None before a run.
        """
        turns = pool or Pool(alone.device, 1, 0, 1)
        sampled = f"{counted(alone.images, 'image')} of {counted(alone.shards, 'shard')}"
        return Basis(
            actor_ms=turns.actor_ms(alone.decode_ms.mean, alone.model_ms.mean) / ATTAINED_SHARE,
            actor_error=math.hypot(alone.work_ms.error, _SHARE_ERROR),
            stored_bytes=alone.stored_bytes.mean,
            stored_error=alone.stored_bytes.error,
            sampled_bytes=alone.sampled_bytes,
            output_bytes=_IMAGE_ROW_BYTES
            + alone.image_vector_bytes
            + alone.carried_bytes * _CARRIED_SHARE
            + alone.detections.mean * (_DETECTION_ROW_BYTES + alone.detection_vector_bytes),
            output_fixed_bytes=2 * _PART_FILE_BYTES,
            output_error=math.hypot(min(alone.detections.error, 1.0), _OUTPUT_ERROR),
            start_up=start_up or StartUp(0.0, START_UP_S),
            why=f"{sampled}, measured alone on one worker "
            f"(±{alone.work_ms.error:.0%}), and a pool that attains {ATTAINED_SHARE:.0%} of its ceiling "
            f"(±{_SHARE_ERROR:.0%})",
        )

    @staticmethod
    def of_past(runs: Sequence[Past], start_up: StartUp | None = None) -> "Basis":
        """Rest on earlier runs of the same model and settings.

        Args:
            runs: The newest first; at least one.
            start_up: Until an actor labels; None takes the newest run's.
        """
        logs = [math.log(run.actor_ms) for run in runs]
        between = statistics.stdev(logs) if len(runs) > 1 else 0.0
        newest = runs[0]
        which = f"run {newest.run_id}" if len(runs) == 1 else f"the last {len(runs)} runs, {newest.run_id} the newest"
        return Basis(
            actor_ms=math.exp(statistics.fmean(logs)),
            actor_error=max(between, _RATE_ERROR),
            stored_bytes=newest.encoded_bytes,
            stored_error=_RATE_ERROR,
            sampled_bytes=0.0,
            output_bytes=newest.output_bytes,
            output_fixed_bytes=0.0,
            output_error=_OUTPUT_ERROR,
            start_up=start_up or StartUp(0.0, newest.start_up_s),
            why=f"the rate of {which}, with the same model and settings (±{max(between, _RATE_ERROR):.0%})",
        )


@dataclass(frozen=True)
class Prediction:
    """What a job is going to take.

    Args:
        images: To be labelled; its ends are equal when the listing counts them.
        images_per_s: Of all actors, or of one when ``actors`` is None.
        time_s: From the command to the commit; when ``actors`` is None with one actor.
        hours: Of processor cores, or of GPUs, that label.
        hours_of: ``core`` or ``gpu``.
        output_bytes: Part files of the whole run.
        start_up_s: The part of ``time_s`` before an actor labels.
        actors: Detector actors; None when the cluster is not known yet.
        interval: Share of the cases in which a number lies between its ends.
        why: What it rests on.
    """

    images: Estimate
    images_per_s: Estimate
    time_s: Estimate
    hours: Estimate
    hours_of: str
    output_bytes: Estimate
    start_up_s: float
    actors: int | None
    interval: float
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, rounded."""
        return {
            key: {end: round(number, 6) for end, number in value.items()} if isinstance(value, dict) else value
            for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Amount:
    """How much there is to do.

    Args:
        images: Counted; None when only reading tells.
        size_bytes: Of the source's objects.
        staged_images: At most so many of them are done already.
    """

    images: int | None
    size_bytes: int
    staged_images: int = 0

    def estimate(self, basis: Basis) -> tuple[float, float]:
        """Return the number of images, and its relative error."""
        if self.images is not None:
            return max(0, self.images - self.staged_images), 0.0
        if basis.stored_bytes <= 0 or self.size_bytes <= 0:
            return 0.0, 0.0
        unseen = max(0.0, 1 - basis.sampled_bytes / self.size_bytes)
        images = max(0.0, self.size_bytes / basis.stored_bytes - self.staged_images)
        return round(images), basis.stored_error * math.sqrt(unseen)


def predict(
    basis: Basis, to_do: Amount, whole: Amount, pool: Pool | None, device: str, segment_rows: int, shards: int
) -> Prediction:
    """Predict a job.

    Args:
        basis: What it rests on.
        to_do: What is left to label.
        whole: What the tables will hold.
        pool: Who will work; None when the cluster is not known yet.
        device: ``cpu`` or ``gpu``.
        segment_rows: Images of a segment; a job of few segments keeps few actors busy.
        shards: How many there are left; each has a segment at least.
    """
    images, count_error = to_do.estimate(basis)
    errors = (count_error, basis.actor_error)
    busy = min(pool.actors, max(1, shards, math.ceil(images / segment_rows))) if pool else 1
    actor_s = images * basis.actor_ms / 1e3
    rows, rows_error = whole.estimate(basis)
    output = basis.output_fixed_bytes + rows * basis.output_bytes
    return Prediction(
        images=Estimate.around(images, count_error),
        images_per_s=Estimate.around(busy / basis.actor_ms * 1e3, basis.actor_error),
        time_s=basis.start_up.estimate()
        + Estimate.around(actor_s / busy, *errors)
        + Estimate.around(rows * _FINISH_MS / 1e3, rows_error),
        hours=Estimate.around(actor_s / 3600, *errors),
        hours_of="gpu" if device == "gpu" else "core",
        output_bytes=Estimate.around(output, rows_error, basis.output_error),
        start_up_s=round(basis.start_up.passed_s + basis.start_up.left_s, 3),
        actors=pool.actors if pool else None,
        interval=INTERVAL,
        why=basis.why,
    )


def compare(prediction: Prediction, actual: Mapping[str, float], judged: bool = True) -> dict[str, Any]:
    """Put what was predicted and what came beside each other.

    Args:
        prediction: What was predicted.
        actual: ``images``, ``images_per_s``, ``time_s``, ``hours`` and ``output_bytes``.
        judged: Whether the run was long enough, see :data:`JUDGED_S`.

    Returns:
        What ``stats.json`` holds under ``prediction``; ``within`` is None if the run is not judged.
    """
    predicted = prediction.to_dict()
    within = {key: predicted[key]["low"] <= value <= predicted[key]["high"] for key, value in actual.items()}
    return {"predicted": predicted, "actual": dict(actual), "within": within if judged else None}
