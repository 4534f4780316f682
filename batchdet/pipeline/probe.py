"""The probe: the model is loaded once on a worker before the pool starts.

An actor whose constructor raises is started again and again; a bad model must rather fail in seconds, with its
reason.
"""

from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from batchdet.errors import BatchdetError, ClusterError, ModelError
from batchdet.model.cache import fetch_model
from batchdet.model.detector import Detector
from batchdet.model.runtimes import Device
from batchdet.pipeline.canary import Samples, compare
from batchdet.pipeline.resources import ACTOR_CPUS
from batchdet.pipeline.session import Capacity
from batchdet.source.shards import ShardPlan
from batchdet.spec import JobSpec, PrecisionName, RuntimeName
from batchdet.storage import StorageError

_TIMEOUT_S: Final = 60


@dataclass(frozen=True)
class LoadedModel:
    """The model, as a worker loaded it.

    Args:
        runtime: What the actors run it with.
        precision: Number format of their arithmetic.
        why: Why, where the spec leaves it open; "" where it does not.
        canary: What the comparison gave, see :class:`batchdet.model.canary.Agreement`; empty when there was none.
        card: The model's card as plain values.
        labels: Class number -> label.
    """

    runtime: RuntimeName
    precision: PrecisionName
    why: str
    canary: dict[str, Any]
    card: dict[str, Any]
    labels: list[str]


@dataclass(frozen=True)
class Probed:
    """What the probe found.

    Args:
        device: Where the model runs.
        reason: Why there.
        model: How it is computed.
    """

    device: Device
    reason: str
    model: LoadedModel


def _load(spec: JobSpec, sha256: str, device: Device, samples: Samples | None) -> LoadedModel:
    """Load the model in this process, the way the spec says or the canary allows."""
    local = fetch_model(spec.model.uri, sha256)

    def load(runtime: RuntimeName, precision: PrecisionName) -> Detector:
        model = spec.model.model_copy(update={"runtime": runtime, "precision": precision})
        return Detector(model, local.path, local.sha256, device, 1)

    def loaded(detector: Detector, why: str, canary: dict[str, Any] | None = None) -> LoadedModel:
        model = detector.spec
        return LoadedModel(
            model.runtime, model.precision, why, canary or {}, detector.card.to_dict(), list(detector.labels)
        )

    asked = spec.model
    exact_runtime: RuntimeName = "onnxruntime" if asked.runtime == "auto" else asked.runtime
    if asked.runtime == "auto" and asked.precision == "bf16":
        return loaded(load("openvino", "bf16"), "openvino: bf16 is its own")
    exact = load(exact_runtime, "fp32" if asked.precision == "auto" else asked.precision)
    if asked.precision != "auto" or asked.runtime == "onnxruntime":
        return loaded(exact, "" if asked.runtime != "auto" else f"{exact_runtime}: the spec asks for {asked.precision}")
    if device == "gpu":
        return loaded(exact, f"{exact_runtime} in fp32: bf16 is for CPUs")
    if samples is None:
        return loaded(exact, f"{exact_runtime} in fp32: the job is too small to try bf16 out")
    try:
        fast = load("openvino", "bf16")
        agreement = compare(exact, fast, samples.read(spec), asked.score_threshold)
    except (ClusterError, StorageError) as error:  # no package, no bf16, a store that stumbles
        return loaded(exact, f"{exact_runtime} in fp32: {error.message}")
    if agreement.objection:
        return loaded(exact, f"{exact_runtime} in fp32, because of bf16: {agreement.objection}", agreement.to_dict())
    why = (
        f"openvino in bf16: {agreement.exact_ms / agreement.fast_ms:.1f} times as fast as {exact_runtime} in fp32; on "
        f"{agreement.images} of the job's images {agreement.matched:.1%} of {agreement.boxes} boxes agree, and scores "
        f"differ by {agreement.score_difference:.3f}"
    )
    return loaded(fast, why, agreement.to_dict())


def probe_model(
    spec: JobSpec, sha256: str, capacity: Capacity, shards: ShardPlan | None = None, carried: pa.Schema | None = None
) -> Probed:
    """Load the model on a worker, on the device that the spec asks for or that ``auto`` finds.

    Args:
        spec: The job.
        sha256: Digest of the model's bytes.
        capacity: What the cluster has.
        shards: Where to take images from to try a faster way of computing on; None when that is not worth the seconds.
        carried: Columns carried over.

    Raises:
        ModelError: The model does not load, or is not understood.
        ClusterError: No worker could be had in a minute, or the device is not there.
    """
    samples = None if shards is None else Samples(shards, carried)
    wanted = spec.compute.device
    if wanted == "gpu" and capacity.gpus < 1:
        raise ClusterError(
            f"compute.device: gpu, but the cluster has no GPU on its {capacity.nodes} nodes; "
            "add a GPU node, or take device: cpu"
        )
    if wanted == "gpu" or (wanted == "auto" and capacity.gpus >= 1):
        try:
            reason = "the spec says so" if wanted == "gpu" else f"the cluster has {capacity.gpus:g} GPUs"
            return Probed("gpu", reason, _on_worker(spec, sha256, samples, "gpu"))
        except ModelError:
            raise
        except ClusterError as error:
            if wanted == "gpu":
                raise
            reason = f"the cluster has GPUs, but {error.message}"
            return Probed("cpu", reason, _on_worker(spec, sha256, samples, "cpu"))
    reason = "the spec says so" if wanted == "cpu" else "the cluster has no GPU"
    return Probed("cpu", reason, _on_worker(spec, sha256, samples, "cpu"))


def _on_worker(spec: JobSpec, sha256: str, samples: Samples | None, device: Device) -> LoadedModel:
    import ray

    task = ray.remote(_load).options(
        num_cpus=ACTOR_CPUS, num_gpus=1 if device == "gpu" else 0, max_retries=0, name="probe_model"
    )
    reference = task.remote(spec, sha256, device, samples)
    try:
        loaded: LoadedModel = ray.get(reference, timeout=_TIMEOUT_S)
        return loaded
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(reference, force=True)
        if samples is not None:  # an image of the job may hang
            return _on_worker(spec, sha256, None, device)
        raise ClusterError(
            f"no worker with {ACTOR_CPUS} CPUs{' and a GPU' if device == 'gpu' else ''} loaded the model within "
            f"{_TIMEOUT_S} s; the cluster is busy or too small"
        ) from error
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, BatchdetError):
            raise cause from None
        text = " ".join(str(cause).split())[:300]
        raise ModelError(f"{spec.model.uri}: does not load: {type(cause).__name__}: {text}") from None
    except ray.exceptions.RayError as error:
        if samples is not None:  # an image of the job may end its process
            return _on_worker(spec, sha256, None, device)
        text = " ".join(str(error).split())[:300]
        raise ModelError(f"{spec.model.uri}: the process that loaded it died: {text}") from None
