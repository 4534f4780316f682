"""Forecasts: what a plan is going to take, from earlier runs or from some of its images; and what it took."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from batchdet.errors import BatchdetError, Interrupted, ModelError, SpecError
from batchdet.machine import gpu_count
from batchdet.plan import Plan, as_begun
from batchdet.prediction import JUDGED_S, Amount, Basis, Past, Prediction, StartUp, compare, predict
from batchdet.results.record import read_record
from batchdet.results.speed import summary
from batchdet.results.units import format_duration
from batchdet.roofline import Pace, Pool, roofline
from batchdet.table.lineage import Lineage

if TYPE_CHECKING:
    from batchdet.pipeline.resources import Workers
    from batchdet.pipeline.trial import LoadedModel, Trial

_WORTH_A_CANARY_BYTES: Final = 100_000_000
_WORTH_A_CANARY_IMAGES: Final = 1000
_PAST_RUNS: Final = 3


def trial_of(plan: Plan) -> "Trial":
    """Say what to try on a worker before the pool starts; a lossy way only where its gain outweighs the seconds."""
    from batchdet.pipeline.samples import Samples
    from batchdet.pipeline.trial import Trial

    shards = plan.shards
    may_differ = shards.size_bytes >= _WORTH_A_CANARY_BYTES or (shards.image_count or 0) >= _WORTH_A_CANARY_IMAGES
    samples = Samples.of(shards, plan.inventory.carried)
    return Trial(as_begun(plan), plan.model_sha256, samples, may_differ, shards.image_count, shards.size_bytes)


@dataclass(frozen=True)
class Forecast:
    """What a plan is going to take.

    Args:
        prediction: The numbers; None when there is nothing to go by.
        why_not: Why there are none, or what they leave open; "" when there is nothing to say.
        choices: What ``auto`` chooses here -> why.
    """

    prediction: Prediction | None
    why_not: str = ""
    choices: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``plan --json``."""
        prediction = self.prediction.to_dict() if self.prediction else None
        return {"prediction": prediction, "prediction_note": self.why_not, "choices": dict(self.choices)}


def forecast(plan: Plan, measure: bool = True) -> Forecast:
    """Say what a plan is going to take, without Ray.

    Args:
        plan: The plan.
        measure: Load the model here and try it on some of the plan's images.

    Raises:
        SpecError, ModelError: The model and its settings do not go together, or it fails.
    """
    if plan.finished_run_id is not None:
        return Forecast(None, "there is nothing to do")
    if plan.derivation is not None:
        return Forecast(None, "rows are derived without the model")
    notes, model = [], None
    device = "gpu" if plan.spec.compute.device == "gpu" or gpu_count() else "cpu"
    if measure:
        model, device, objection = _try_here(plan, device)
        notes += [objection] if objection else []
    workers, objection = _workers_here(plan, device, model)
    notes += [objection] if objection else []
    rows, why = segment_rows(plan, workers, model)
    choices = (
        (workers.choices if workers else {}) | (model.choices if model else {}) | {"segment_rows": f"{rows}: {why}"}
    )
    prediction = predict_run(plan, model, device, workers.pool if workers else None, rows)
    if prediction is None and not notes:
        notes = [model.why_not_alone if model else "no earlier run tells, and nothing was measured (--no-measure)"]
    return Forecast(prediction, "; ".join(notes), choices)


def segment_rows(plan: Plan, workers: "Workers | None", model: "LoadedModel | None") -> tuple[int, str]:
    """Say how many images make a segment, at most, and why.

    Args:
        plan: The plan.
        workers: Who will work; None when the cluster is not known yet.
        model: As a worker loaded it; None when none did.
    """
    asked = plan.spec.compute.segment_rows
    if plan.begun is not None:
        return plan.begun.segment_rows, "as the run was begun"
    if asked != "auto":
        return asked, "the spec says so"
    if workers is None:
        return Lineage.segment_rows, "until it is known who works"
    from batchdet.pipeline.resources import choose_segment_rows

    return choose_segment_rows(workers, model.alone if model else None, plan.shards.image_count)


def predict_run(
    plan: Plan,
    model: "LoadedModel | None",
    device: str,
    pool: Pool | None,
    rows: int,
    staged: Mapping[str, int] | None = None,
    start_up: StartUp | None = None,
) -> Prediction | None:
    """Predict a run, from earlier runs of the same model and settings if there are any, else from its images.

    Args:
        plan: The plan.
        model: As a worker loaded it; None when none did.
        device: ``cpu`` or ``gpu``.
        pool: Who will work; None when the cluster is not known yet.
        rows: Images of a segment.
        staged: Shard id -> segments, of shards that an earlier process has begun or finished.
        start_up: That of a run whose actors come next; None when it has not begun.

    Returns:
        None when there is nothing to go by.
    """
    past = list(islice(_past(plan, model, device), _PAST_RUNS))
    if past:
        basis = Basis.of_past(past, start_up)
    elif model and model.alone:
        basis = Basis.of_alone(model.alone, pool, start_up)
    else:
        return None
    shards = plan.shards
    whole = Amount(shards.image_count, shards.size_bytes)
    to_do = Amount(shards.image_count, shards.size_bytes, sum((staged or {}).values()) * rows)
    return predict(basis, to_do, whole, pool, device, rows, len(shards))


def _past(plan: Plan, model: "LoadedModel | None", device: str) -> Iterator[Past]:
    """Read earlier runs of the same fingerprint, computed the same way on the same kind of device, newest first.

    Which canvases have graphs of their own may differ: it depends on how many images each worker was to do.
    """
    out = plan.spec.output.uri
    for manifest in reversed(plan.committed):
        if manifest.fingerprint != plan.fingerprint:
            continue
        stats = read_record(out, manifest.run_id, "stats.json")
        computed = read_record(out, manifest.run_id, "lineage.json").get("computed", {})
        same = model is None or computed | {"graphs": ""} == model.computed | {"graphs": ""}
        size_bytes = sum(part.size_bytes for part in (*manifest.images, *manifest.detections))
        found = Past.read(manifest.run_id, size_bytes, stats)
        if found and same and stats["roofline"]["pool"]["device"] == device:
            yield found


def _try_here(plan: Plan, device: Any) -> "tuple[LoadedModel | None, Any, str]":
    from batchdet.pipeline.trial_process import TrialProcess

    try:
        with TrialProcess() as process:
            process.ask(trial_of(plan), device)
            model = process.result()
        return model, device, model.why_not_alone
    except (Interrupted, SpecError, ModelError):  # the run would end with it, too
        raise
    except BatchdetError as error:
        if device == "gpu" and plan.spec.compute.device == "auto":
            return _try_here(plan, "cpu")
        return None, device, f"it cannot be measured here: {error.message}"


def _workers_here(plan: Plan, device: Any, model: "LoadedModel | None") -> "tuple[Workers | None, str]":
    from batchdet.pipeline.resources import plan_workers
    from batchdet.pipeline.session import Capacity, usable_cpus

    if plan.spec.compute.address is not None:
        one = "one core" if device == "cpu" else "one GPU"
        return None, f"the size of the cluster at compute.address is not known yet, so the time is that of {one}"
    cpus, gpus = float(usable_cpus()), float(gpu_count())
    here, alone = Capacity(cpus, gpus, 1, (cpus,), (gpus,)), model.alone if model else None
    try:
        return plan_workers(plan.spec.compute, here, device, "as found here", alone), ""
    except BatchdetError as error:
        return None, error.message


def _is_judged(labelling_s: float, start_up_s: float) -> bool:
    """Tell whether a run labels for long enough to be compared with a ceiling and a prediction."""
    return labelling_s >= max(JUDGED_S, start_up_s)


class Account:
    """What a run takes, written down while it goes on.

    Args:
        plan: What is to be done.
        model: As a worker loaded it.
        workers: Who will work.
        rows: Images of a segment.
        staged: Shard id -> segments that are staged already.
        started: When the run began, by ``time.monotonic``.
        reached: Step of the start-up -> when it was done, in order, by the same clock.
    """

    def __init__(
        self,
        plan: Plan,
        model: "LoadedModel",
        workers: "Workers",
        rows: int,
        staged: Mapping[str, int],
        started: float,
        reached: Mapping[str, float],
    ) -> None:
        self._model, self._pool, self._started, self._reached = model, workers.pool, started, reached
        self.pace = Pace(started)
        passed_s, ray_s = time.monotonic() - started, reached["ray"] - reached["plan"]
        start_up = StartUp.under_way(passed_s, ray_s)
        self.prediction = predict_run(plan, model, workers.device, self._pool, rows, staged, start_up)
        """What the run is going to take; None when there is nothing to go by."""
        self.measured: dict[str, Any] = {}

    @property
    def expected_s(self) -> float | None:
        """Seconds that the run is going to take from here on; None when there is nothing to go by."""
        if self.prediction is None:
            return None
        return max(0.0, self.prediction.time_s.likely - (time.monotonic() - self._started))

    @property
    def outlook(self) -> str:
        """The prediction as a sentence, or why there is none; of a short run the time is all that is said."""
        if self.prediction is None:
            return f"nothing, {self._model.why_not_alone}"
        time_s, start_up_s = self.prediction.time_s.likely, self.prediction.start_up_s
        if not _is_judged(time_s - start_up_s, start_up_s):
            return f"about {format_duration(time_s)}"
        return summary(self.prediction.to_dict())

    def close(self, wall_s: float, output_bytes: int) -> dict[str, Any]:
        """Return what ``stats.json`` holds of it; nothing when nothing was labelled.

        Args:
            wall_s: Seconds that labelling took, the actors' start included.
            output_bytes: Size of the part files.

        Returns:
            ``run``, ``roofline`` and ``prediction``.
        """
        pace = self.pace
        if not pace.images:
            return {}
        found = roofline(self._pool, self._model.alone, self._model.why_not_alone, pace)
        found["judged"] = judged = found["steady"] and _is_judged(pace.labelling_s, pace.start_up_s)
        rate = pace.images / pace.labelling_s if pace.labelling_s > 0 else 0.0
        actual = {
            "images": pace.images,
            "images_per_s": round(rate, 3),
            "time_s": round(time.monotonic() - self._started, 3),
            "hours": round(self._pool.actors * pace.labelling_s / 3600, 6),
            "output_bytes": output_bytes,
        }
        self.measured = {
            "run": {
                "images_per_s": round(pace.images / wall_s, 3),  # an earlier process may have labelled the others
                "start_up_s": round(pace.start_up_s, 3),
                "start_up": self._start_up(),
            },
            "roofline": found,
            "prediction": compare(self.prediction, actual, judged) if self.prediction else None,
        }
        return self.measured

    def _start_up(self) -> dict[str, float]:
        """Split the start-up into its steps; ``load_s`` is that part of ``actors_s`` which is not Ray's."""
        times = [self._started, *self._reached.values(), self._started + self.pace.start_up_s]
        steps = {
            f"{step}_s": round(max(0.0, end - begin), 3)
            for step, begin, end in zip((*self._reached, "actors"), times, times[1:], strict=False)
        }
        return steps | {"load_s": round(self.pace.times_s.get("load", 0.0) / self._pool.actors, 3)}
