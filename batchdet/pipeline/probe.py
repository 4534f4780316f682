"""The probe: the model is loaded once before the pool starts, and tried on some images of the job.

An actor whose constructor raises is started again and again; a bad model must rather fail in seconds, with its
reason. On a cluster a worker does it. Where a run starts a Ray of its own, a process of this machine does it while Ray
starts, as both take seconds.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from batchdet.errors import BatchdetError, ClusterError, ModelError
from batchdet.machine import gpu_count
from batchdet.pipeline.session import Capacity, ray_runs, usable_cpus
from batchdet.pipeline.trial_process import TrialProcess
from batchdet.spec import ComputeSpec
from batchdet.text import counted

if TYPE_CHECKING:  # the process shall start before these are imported
    from batchdet.model.runtimes import Device
    from batchdet.pipeline.trial import LoadedModel, Trial


@dataclass(frozen=True)
class Probed:
    """What the probe found.

    Args:
        device: Where the model runs.
        reason: Why there.
        model: How it is computed, and how fast.
    """

    device: "Device"
    reason: str
    model: "LoadedModel"


class Probe:
    """A probe that may be under way already, beside a Ray that starts; leave it as a context manager.

    Where a Ray of this process's own is going to start, its process starts at once.

    Args:
        compute: What the job asks for.
    """

    def __init__(self, compute: ComputeSpec) -> None:
        self._trial: Trial | None = None
        self._process: TrialProcess | None = None
        # a GPU is Ray's to give, and a running Ray may have other nodes
        if compute.address is None and not ray_runs() and compute.device != "gpu" and not gpu_count():
            self._process = TrialProcess()

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            self._process.end()

    def begin(self, trial: "Trial") -> None:
        """Say what to try."""
        self._trial = trial
        if self._process is not None:
            self._process.ask(_shared_by(trial, usable_cpus()), "cpu")

    def result(self, capacity: Capacity) -> Probed:
        """Wait for what it finds, having begun.

        Raises:
            ModelError, ClusterError: As :func:`probe_model`.
        """
        assert self._trial is not None
        if self._process is None:
            return probe_model(self._trial, capacity)
        reason = "the spec says so" if self._trial.spec.compute.device == "cpu" else "the cluster has no GPU"
        return Probed("cpu", reason, self._process.result())


def probe_model(trial: "Trial", capacity: Capacity) -> Probed:
    """Load the model on a worker, on the device that the spec asks for or that ``auto`` finds.

    Args:
        trial: What to try.
        capacity: What the cluster has.

    Raises:
        ModelError: The model does not load, or is not understood.
        ClusterError: No worker could be had in a minute, or the device is not there.
    """
    trial = _shared_by(trial, capacity.cpus)
    wanted = trial.spec.compute.device
    if wanted == "gpu" and capacity.gpus < 1:
        raise ClusterError(
            f"compute.device: gpu, but the cluster has no GPU on its {counted(capacity.nodes, 'node')}; "
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


def _shared_by(trial: "Trial", cpus: float) -> "Trial":
    asked = trial.spec.compute.actors
    return replace(trial, workers=max(1, int(cpus)) if asked == "auto" else asked)


def _on_worker(trial: "Trial", device: "Device") -> "LoadedModel":
    import ray

    from batchdet.model.runtimes import one_line
    from batchdet.pipeline.resources import ACTOR_CPUS
    from batchdet.pipeline.trial import Trial, unloadable

    gpus = 1 if device == "gpu" else 0
    # its process ends with it: one that stayed would keep a GPU's memory, of which the actors need all
    task = ray.remote(num_cpus=ACTOR_CPUS, num_gpus=gpus, max_retries=0, max_calls=gpus)(Trial.load)
    reference = task.options(name="probe_model").remote(trial, device)
    timeout_s = trial.timeout_s(device)
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
        raise unloadable(trial, cause) from None
    except ray.exceptions.RayError as error:
        if trial.samples is not None:  # an image of the job may end its process
            return _on_worker(replace(trial, samples=None), device)
        raise ModelError(f"{trial.spec.model.uri}: the process that loaded it died: {one_line(error)}") from None
