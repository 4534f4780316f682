"""The probe: the model is loaded once on a worker before the pool starts, and tried on some images of the job.

An actor whose constructor raises is started again and again; a bad model must rather fail in seconds, with its
reason. ``plan`` does the same in a process of this machine.
"""

import faulthandler
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any, Final

from batchdet.errors import BatchdetError, ClusterError, ModelError
from batchdet.model.detector import Detector
from batchdet.model.fetch import fetch_asked
from batchdet.model.format import Format
from batchdet.model.placement import Placement
from batchdet.model.runtimes import Device, one_line
from batchdet.pipeline.canary import compare
from batchdet.pipeline.resources import ACTOR_CPUS
from batchdet.pipeline.samples import ReadSamples, Samples, measure
from batchdet.pipeline.session import Capacity
from batchdet.roofline import Alone
from batchdet.spec import JobSpec, PrecisionName, RuntimeName

_TIMEOUT_S: Final = 60
_MEASURE_TIMEOUT_S: Final = 10
"""A process that hangs in an image that is measured is ended so soon, by itself."""
_WORTH_A_GRAPH_IMAGES: Final = 200
"""A graph takes as long to compile as it saves on some 70 images."""
_MOST_GRAPHS: Final = 12
_SPOILT: Final = ReadSamples(why_none="an image of the job ended or held up the process that tried it")
_ENGINE_TIMEOUT_S: Final = 900
"""TensorRT builds an engine for minutes when it meets a model or a kind of GPU for the first time."""


@dataclass(frozen=True)
class LoadedModel:
    """The model, as a worker loaded it.

    Args:
        runtime: What the actors run it with.
        precision: Number format of their arithmetic.
        graphs: Canvases with graphs of their own, ``WIDTHxHEIGHT``.
        choices: What ``auto`` chose -> why.
        canary: What the comparison gave, see :class:`batchdet.pipeline.canary.Agreement`; empty when there was none.
        card: The model's card as plain values.
        labels: Class number -> label.
        placement: How it wants images placed.
        alone: What images of the job take on that worker alone; None when that could not be measured.
        why_not_alone: Why not; "" when it could.
    """

    runtime: RuntimeName
    precision: PrecisionName
    graphs: tuple[str, ...]
    choices: dict[str, str]
    canary: dict[str, Any]
    card: dict[str, Any]
    labels: list[str]
    placement: Placement
    alone: Alone | None
    why_not_alone: str

    @property
    def computed(self) -> dict[str, str]:
        """How the model is computed, for ``lineage.json``."""
        return {"runtime": self.runtime, "precision": self.precision, "graphs": " ".join(self.graphs)}


@dataclass(frozen=True)
class Probed:
    """What the probe found.

    Args:
        device: Where the model runs.
        reason: Why there.
        model: How it is computed, and how fast.
    """

    device: Device
    reason: str
    model: LoadedModel


@dataclass(frozen=True)
class Trial:
    """What to try on a worker.

    Args:
        spec: The job.
        sha256: Digest of the model's bytes.
        samples: Where to take images from; None when one of them has ended a worker.
        may_differ: Whether the job is large enough to try a faster, lossy way of computing.
        image_count: Images of the job; None when only reading can tell.
        size_bytes: What they take in the source.
        workers: How many share the work.
    """

    spec: JobSpec
    sha256: str
    samples: Samples | None
    may_differ: bool
    image_count: int | None
    size_bytes: int
    workers: int = 1

    def load(self, device: Device) -> LoadedModel:
        """Load the model in this process, the way the spec says or the canary allows, and take its time.

        Raises:
            ModelError: The model does not load, or is not understood.
            ClusterError: The device is not there.
        """
        images = self.samples.read(self.spec) if self.samples else _SPOILT
        detector, why, canary = self._choose(device, images)
        alone, why_not = None, images.why_none
        if images.images:
            faulthandler.dump_traceback_later(_MEASURE_TIMEOUT_S, exit=True, file=2)
            try:
                alone = measure(detector, device, self.spec, images)
                why_not = "" if alone else f"none of {len(images.images)} images of the job can be decoded"
            except Exception as error:  # a model that fails on an image fails no run: the actors make a row of it
                why_not = f"the model fails on an image of the job: {one_line(error)}"
            finally:
                faulthandler.cancel_dump_traceback_later()
        choices = {"model": why} if why else {}
        if self.spec.model.canvas.shape == "auto":
            choices["canvas"] = _canvas_choice(detector)
        model = detector.spec
        return LoadedModel(
            model.runtime,
            model.precision,
            () if model.canvas.graphs == "auto" else model.canvas.graphs,
            choices,
            canary,
            detector.card.to_dict(),
            list(detector.labels),
            detector.placement,
            alone,
            why_not,
        )

    def _choose(self, device: Device, images: ReadSamples) -> tuple[Detector, str, dict[str, Any]]:
        """Load the model as the actors shall; say why so ("" when the spec says it all), and what the canary found."""
        local = fetch_asked(self.spec.model, self.sha256)

        def load(runtime: RuntimeName, precision: PrecisionName, like: Detector | None = None) -> Detector:
            model = self.spec.model.model_copy(update={"runtime": runtime, "precision": precision})
            if runtime == "openvino" and model.canvas.graphs == "auto":
                like = like or Detector(model, local.path, local.sha256, device, 1)
                canvas = model.canvas.model_copy(update={"graphs": self._graphs(like, images)})
                model = model.model_copy(update={"canvas": canvas})
            return Detector(model, local.path, local.sha256, device, 1)

        asked = self.spec.model
        if local.format is not Format.ONNX and asked.runtime == "auto":
            exact = load("torch", "fp32" if asked.precision == "auto" else asked.precision)
            return exact, f"torch: nothing else runs {local.format.words}", {}
        exact_runtime: RuntimeName = "onnxruntime" if asked.runtime == "auto" else asked.runtime
        if asked.runtime == "auto" and asked.precision == "bf16":
            return load("openvino", "bf16"), "openvino: bf16 is its own", {}
        exact = load(exact_runtime, "fp32" if asked.precision == "auto" else asked.precision)
        if asked.precision != "auto" or asked.runtime in ("onnxruntime", "torch"):
            why = "" if asked.runtime != "auto" else f"{exact_runtime}: the spec asks for {asked.precision}"
            return exact, why, {}
        if device == "gpu":
            return exact, f"{exact_runtime} in fp32: bf16 is for CPUs", {}
        if not self.may_differ:
            return exact, f"{exact_runtime} in fp32: the job is too small to try bf16 out", {}
        if not images.images:
            return exact, f"{exact_runtime} in fp32: bf16 cannot be tried out, {images.why_none}", {}
        try:
            fast = load("openvino", "bf16", exact)
            agreement = compare(exact, fast, images.pixels(self.spec.source.max_pixels), asked.score_threshold)
        except (ClusterError, ModelError) as error:  # no package, no bf16, an image that it fails on
            return exact, f"{exact_runtime} in fp32: {error.message}", {}
        if agreement.objection:
            why = f"{exact_runtime} in fp32, because of bf16: {agreement.objection}"
            return exact, why, agreement.to_dict()
        why = (
            f"openvino in bf16: {agreement.exact_ms / agreement.fast_ms:.1f} times as fast as {exact_runtime} in "
            f"fp32; on {agreement.images} of the job's images {agreement.matched:.1%} of {agreement.boxes} boxes "
            f"agree, and scores differ by {agreement.score_difference:.3f}"
        )
        return fast, why, agreement.to_dict()

    def _graphs(self, detector: Detector, images: ReadSamples) -> tuple[str, ...]:
        """Choose the canvases that get graphs of their own: those that win back what compiling costs, with a margin."""
        if not images.images:
            return ()
        sampled = sum(sample.stored_bytes for sample in images.images) / len(images.images)
        total = self.image_count or self.size_bytes / max(sampled, 1.0)
        each = total / self.workers / len(images.images)  # images of an actor for which one of the samples stands
        canvases = images.canvases(detector).most_common(_MOST_GRAPHS)
        return tuple(f"{w}x{h}" for (w, h), count in canvases if count * each >= _WORTH_A_GRAPH_IMAGES)


def _canvas_choice(detector: Detector) -> str:
    card = detector.card
    width, height = card.canvas_px
    reasons = {
        "fixed": "the model is made for no other",
        "own": "as its image processor does, each image has one of its own; this is that of a photograph of 4:3",
        "square": next((note for note in card.notes if "square" in note), "the model's height and width are not free"),
        "rectangle": f"the longer side; the shorter one is rounded up to {card.stride} px, which saves the margins",
    }
    return f"{card.canvas_shape}, {width} x {height} px: {reasons[card.canvas_shape]}"


def probe_model(trial: Trial, capacity: Capacity) -> Probed:
    """Load the model on a worker, on the device that the spec asks for or that ``auto`` finds.

    Args:
        trial: What to try.
        capacity: What the cluster has.

    Raises:
        ModelError: The model does not load, or is not understood.
        ClusterError: No worker could be had in a minute, or the device is not there.
    """
    asked = trial.spec.compute.actors
    trial = replace(trial, workers=max(1, int(capacity.cpus)) if asked == "auto" else asked)
    wanted = trial.spec.compute.device
    if wanted == "gpu" and capacity.gpus < 1:
        raise ClusterError(
            f"compute.device: gpu, but the cluster has no GPU on its {capacity.nodes} nodes; "
            "add a GPU node, or take device: cpu"
        )
    if wanted == "gpu" or (wanted == "auto" and capacity.gpus >= 1):
        try:
            reason = "the spec says so" if wanted == "gpu" else f"the cluster has {capacity.gpus:g} GPUs"
            return Probed("gpu", reason, _on_worker(trial, "gpu"))
        except ModelError:
            raise
        except ClusterError as error:
            if wanted == "gpu":
                raise
            reason = f"the cluster has GPUs, but {error.message}"
            return Probed("cpu", reason, _on_worker(trial, "cpu"))
    reason = "the spec says so" if wanted == "cpu" else "the cluster has no GPU"
    return Probed("cpu", reason, _on_worker(trial, "cpu"))


def _on_worker(trial: Trial, device: Device) -> LoadedModel:
    import ray

    task = ray.remote(Trial.load).options(
        num_cpus=ACTOR_CPUS, num_gpus=1 if device == "gpu" else 0, max_retries=0, name="probe_model"
    )
    reference = task.remote(trial, device)
    timeout_s = _ENGINE_TIMEOUT_S if trial.spec.model.runtime == "tensorrt" else _TIMEOUT_S
    try:
        loaded: LoadedModel = ray.get(reference, timeout=timeout_s)
        return loaded
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(reference, force=True)
        if trial.samples is not None:  # an image of the job may hang
            return _on_worker(replace(trial, samples=None), device)
        raise ClusterError(
            f"no worker with {ACTOR_CPUS} CPUs{' and a GPU' if device == 'gpu' else ''} loaded the model within "
            f"{timeout_s} s; the cluster is busy or too small"
        ) from error
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, BatchdetError):
            raise cause from None
        text = f"{type(cause).__name__}: {one_line(cause)}"
        raise ModelError(f"{trial.spec.model.uri}: does not load: {text}") from None
    except ray.exceptions.RayError as error:
        if trial.samples is not None:  # an image of the job may end its process
            return _on_worker(replace(trial, samples=None), device)
        raise ModelError(f"{trial.spec.model.uri}: the process that loaded it died: {one_line(error)}") from None


def probe_here(trial: Trial, device: Device) -> LoadedModel:
    """Load the model in a process of this machine, which an image of the job may end.

    Raises:
        ModelError: The model does not load, or is not understood.
        ClusterError: The device is not there, or the process has ended.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=pickle.dumps((trial, device)),
            env=environment,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"trying the model on images of the job took more than {_TIMEOUT_S} s") from None
    if done.returncode:
        raise ClusterError(f"the process that tried the model on images of the job ended with {done.returncode}")
    found = pickle.loads(done.stdout)
    if isinstance(found, BatchdetError):
        raise found
    assert isinstance(found, LoadedModel)
    return found


def main() -> None:
    """Try what the parent sends, and send back what was found or the error."""
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)  # native libraries may print
        trial, device = pickle.loads(sys.stdin.buffer.read())
        try:
            found: LoadedModel | BatchdetError = trial.load(device)
        except BatchdetError as error:
            found = error
        answer.write(pickle.dumps(found))


if __name__ == "__main__":
    from batchdet.pipeline.probe import main as main_of_module  # so that what is pickled has an importable class

    main_of_module()
