"""The probe: the model is loaded once on a worker before the pool starts.

An actor whose constructor raises is started again and again; a bad model must rather fail in seconds, with its
reason.
"""

from dataclasses import dataclass
from typing import Any, Final

from batchdet.errors import BatchdetError, ClusterError, ModelError
from batchdet.model.cache import fetch_model
from batchdet.model.detector import Detector
from batchdet.model.runtimes import Device
from batchdet.pipeline.resources import ACTOR_CPUS
from batchdet.pipeline.session import Capacity
from batchdet.spec import JobSpec

_TIMEOUT_S: Final = 60


@dataclass(frozen=True)
class Probed:
    """What the probe found.

    Args:
        device: Where the model runs.
        reason: Why there.
        card: The model's card as plain values.
        labels: Class number -> label.
    """

    device: Device
    reason: str
    card: dict[str, Any]
    labels: list[str]


def _load(spec: JobSpec, sha256: str, device: Device) -> tuple[dict[str, Any], list[str]]:
    local = fetch_model(spec.model.uri, sha256)
    detector = Detector(spec.model, local.path, local.sha256, device, 1)
    detector.probe()
    return detector.card.to_dict(), list(detector.labels)


def probe_model(spec: JobSpec, sha256: str, capacity: Capacity) -> Probed:
    """Load the model on a worker, on the device that the spec asks for or that ``auto`` finds.

    Raises:
        ModelError: The model does not load, or is not understood.
        ClusterError: No worker could be had in a minute, or the device is not there.
    """
    wanted = spec.compute.device
    if wanted == "gpu" and capacity.gpus < 1:
        raise ClusterError(
            f"compute.device: gpu, but the cluster has no GPU on its {capacity.nodes} nodes; "
            "add a GPU node, or take device: cpu"
        )
    if wanted == "gpu" or (wanted == "auto" and capacity.gpus >= 1):
        try:
            reason = "the spec says so" if wanted == "gpu" else f"the cluster has {capacity.gpus:g} GPUs"
            return Probed("gpu", reason, *_on_worker(spec, sha256, "gpu"))
        except ModelError:
            raise
        except ClusterError as error:
            if wanted == "gpu":
                raise
            reason = f"the cluster has GPUs, but {error.message}"
            return Probed("cpu", reason, *_on_worker(spec, sha256, "cpu"))
    reason = "the spec says so" if wanted == "cpu" else "the cluster has no GPU"
    return Probed("cpu", reason, *_on_worker(spec, sha256, "cpu"))


def _on_worker(spec: JobSpec, sha256: str, device: Device) -> tuple[dict[str, Any], list[str]]:
    import ray

    task = ray.remote(_load).options(
        num_cpus=ACTOR_CPUS, num_gpus=1 if device == "gpu" else 0, max_retries=0, name="probe_model"
    )
    reference = task.remote(spec, sha256, device)
    try:
        return ray.get(reference, timeout=_TIMEOUT_S)
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(reference, force=True)
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
        text = " ".join(str(error).split())[:300]
        raise ModelError(f"{spec.model.uri}: the process that loaded it died: {text}") from None
