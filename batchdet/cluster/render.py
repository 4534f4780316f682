"""KubeRay manifests for a job: ``ray.io/v1`` RayJob and RayCronJob, with the job's YAML in a ConfigMap.

Source: KubeRay's CRD reference, https://docs.ray.io/en/master/kuberay/references/api.html (v1.7; RayJob and
``authOptions`` need KubeRay 1.5.1, RayCronJob needs 1.6 and its feature gate ``RayCronJob``).
"""

import math
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import yaml

import batchdet
from batchdet.cluster.jobfile import JobFile, is_local, read_job_file, written_value
from batchdet.cluster.manifests import Node, Pod, label, pod_template, quantity, secret_env, security_context
from batchdet.errors import SpecError
from batchdet.ray_environment import ray_environment

Target = Literal["rayjob", "raycronjob"]
DEFAULT_IMAGE = f"batchdet:{batchdet.__version__}-cpu"
DEFAULT_GPU_IMAGE = f"batchdet:{batchdet.__version__}-gpu"
_JOB_PATH = "/etc/batchdet/job.yaml"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_CRON_FIELD = r"(\*|[0-9A-Za-z]+(-[0-9A-Za-z]+)?)(/[0-9]+)?"
_CRON = re.compile(rf"({_CRON_FIELD}(,{_CRON_FIELD})*)( +{_CRON_FIELD}(,{_CRON_FIELD})*){{4}}|@[a-z]+( [0-9hms]+)?")


@dataclass(frozen=True)
class RenderOptions:
    """What a manifest says beside the job itself.

    Args:
        image: The image of all pods; "" takes the name that ``infra/README.md`` gives the CPU or GPU image.
        namespace: The namespace; "" leaves it to ``kubectl``.
        schedule: Five cron fields; raycronjob only.
        time_zone: An IANA name, such as ``Europe/Berlin``, for the schedule; "" is the operator's own.
        workers: Worker pods; None sizes them by ``compute.actors``, or takes 2.
        max_workers: Let Ray's autoscaler go up to this many; None means no autoscaling.
        worker_cpus: CPUs of a worker pod; a CPU actor takes one.
        worker_memory: Memory of a worker pod.
        head_cpus: CPUs of the head pod, which lists, plans and commits.
        head_memory: Memory of the head pod.
        secret: The Secret that holds the job's variables; "" is ``<name>-env``.
        env: Further variables to take from it, such as ``AWS_ACCESS_KEY_ID``.
        service_account: A service account of the pods, for the cloud's own identities.
        deadline_s: KubeRay ends the job after this many seconds.
        ttl_s: The cluster stays this long after the job, for its logs.
        retries: New clusters to try on; each goes on where the last one stopped.
    """

    image: str = ""
    namespace: str = ""
    schedule: str = ""
    time_zone: str = ""
    workers: int | None = None
    max_workers: int | None = None
    worker_cpus: int = 4
    worker_memory: str = "8Gi"
    head_cpus: int = 2
    head_memory: str = "8Gi"
    secret: str = ""
    env: tuple[str, ...] = ()
    service_account: str = ""
    deadline_s: int = 24 * 3600
    ttl_s: int = 600
    retries: int = 1


def render(
    job_path: str,
    target: Target = "rayjob",
    overrides: Sequence[str] = (),
    options: RenderOptions | None = None,
) -> str:
    """Write the manifests that run a job on Kubernetes.

    Args:
        job_path: The job's YAML. Its ``${NAME}`` stay as they are; the pods take their values from a Secret.
        target: ``rayjob`` runs once, ``raycronjob`` on a schedule.
        overrides: Settings on top of the YAML.
        options: Image, sizes, schedule and the like.

    Returns:
        YAML of two documents, a ConfigMap and the RayJob or RayCronJob; the same input gives the same text.

    Raises:
        SpecError: The job or an option is wrong.
    """
    options = options or RenderOptions()
    # No value of this machine's environment may reach the text, so none is looked at.
    job = read_job_file(job_path, overrides, hide_environment=True)
    _check(job, target, options)
    _check_head(job_path, job.spec.model.family)
    name = label(job.spec.name)
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(f"{name}-job", options),
        "data": {"job.yaml": job.text},
    }
    spec = _ray_job_spec(job, name, options)
    resource: Node = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": _metadata(name, options), "spec": spec}
    if target == "raycronjob":
        cron: Node = {"schedule": options.schedule, "jobTemplate": spec}
        if options.time_zone:
            cron["timeZone"] = options.time_zone
        resource |= {"kind": "RayCronJob", "spec": cron}
    header = f"# batchdet {batchdet.__version__} render --target {target}\n"
    secret_names = _variables(job, options)
    if secret_names:
        header += f"# Needs the Secret {_secret(name, options)} with the keys {', '.join(secret_names)}\n"
    return header + yaml.dump_all([config, resource], Dumper=_Plain, sort_keys=False, allow_unicode=True, width=10_000)


class _Plain(yaml.SafeDumper):
    """Writes everything out where it stands, and text of several lines as a block."""

    def ignore_aliases(self, data: object) -> bool:
        """Never write an anchor: people edit these files."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _represent_text)


def _metadata(name: str, options: RenderOptions) -> Node:
    metadata_: Node = {"name": name}
    if options.namespace:
        metadata_["namespace"] = options.namespace
    metadata_["labels"] = {"app.kubernetes.io/name": "batchdet", "app.kubernetes.io/version": batchdet.__version__}
    return metadata_


def _secret(name: str, options: RenderOptions) -> str:
    return options.secret or f"{name}-env"


def _variables(job: JobFile, options: RenderOptions) -> list[str]:
    return sorted({*job.variables, *options.env})


def _check(job: JobFile, target: Target, options: RenderOptions) -> None:
    if (target == "raycronjob") != bool(options.schedule):
        raise SpecError(
            "--schedule: a raycronjob needs one, such as '0 3 * * *', and a rayjob has none; "
            f"found {options.schedule!r} with --target {target}"
        )
    if options.schedule and not _CRON.fullmatch(options.schedule):
        raise SpecError(f"--schedule {options.schedule!r}: found no five cron fields; write it like '0 3 * * *'")
    if options.time_zone and target != "raycronjob":
        raise SpecError(f"--time-zone {options.time_zone}: only a raycronjob has one")
    for name in options.env:
        if not _NAME.fullmatch(name):
            raise SpecError("--env: found something that is no name of a variable; give the name alone: --env NAME")
    if options.secret and not _SECRET_NAME.fullmatch(options.secret):
        raise SpecError(f"--secret {options.secret}: found no name of a Secret; lower case, digits, '-' and '.'")
    if options.namespace and label(options.namespace) != options.namespace:
        raise SpecError(f"--namespace {options.namespace}: found no name of a namespace; lower case, digits and '-'")
    for option, number, least in (
        ("--workers", options.workers, 1),
        ("--max-workers", options.max_workers, 1),
        ("--worker-cpus", options.worker_cpus, 1),
        ("--head-cpus", options.head_cpus, 1),
        ("--deadline", options.deadline_s, 1),
        ("--ttl", options.ttl_s, 0),
        ("--retries", options.retries, 0),
    ):
        if number is not None and number < least:
            raise SpecError(f"{option} {number}: it should be at least {least}")
    for key in ("source.uri", "output.uri", "model.uri", "model.labels"):
        uri = written_value(job, key)
        if is_local(uri):
            raise SpecError(
                f"{key}: {uri} is a local path and no pod sees it; give a URI that the cluster can open, such as s3://"
            )


def _check_head(job_path: str, family: str) -> None:
    """Refuse a plug-in head that is not installed: a manifest carries no code."""
    outermost = family.partition(":")[0].partition(".")[0]
    beside = Path(os.path.dirname(os.path.abspath(job_path))) / outermost
    if ":" in family and (beside.with_suffix(".py").exists() or beside.is_dir()):
        raise SpecError(
            f"model.family: {family} lies beside the job file, where no pod sees it; install it in the image, or "
            "submit the job, which ships it along"
        )


def _replicas(job: JobFile, options: RenderOptions, gpu: bool) -> tuple[int, int]:
    """Return the workers at the start and at most.

    ``batchdet run`` sizes its pool by the cluster that it finds, so the workers at the start must do for the job;
    with autoscaling Ray adds more while work waits.
    """
    actors = job.spec.compute.actors
    if options.workers is not None:
        fewest = options.workers
    elif actors == "auto":
        fewest = 2
    else:
        fewest = actors if gpu else math.ceil(actors / options.worker_cpus)
    if options.max_workers is not None and options.max_workers < fewest:
        raise SpecError(
            f"--max-workers {options.max_workers}: the job starts with {fewest} workers; give at least that"
        )
    return fewest, options.max_workers or fewest


def _ray_job_spec(job: JobFile, name: str, options: RenderOptions) -> Node:
    gpu = job.spec.compute.device == "gpu"
    image = options.image or (DEFAULT_GPU_IMAGE if gpu else DEFAULT_IMAGE)
    fewest, most = _replicas(job, options, gpu)
    scaling = most > fewest
    env = (
        # Models are cached per pod; the image's home belongs to the pod's user.
        {"name": "BATCHDET_CACHE", "value": "/home/ray/.cache/batchdet"},
        *({"name": key, "value": value} for key, value in ray_environment(options.worker_cpus).items()),
        *secret_env(_variables(job, options), _secret(name, options)),
    )
    common = {"image": image, "env": env, "service_account": options.service_account}
    head = Pod(
        "ray-head",
        cpus=str(options.head_cpus),
        memory=quantity("--head-memory", options.head_memory),
        config_map=f"{name}-job",
        mount_token=scaling,
        **common,  # type: ignore[arg-type]
    )
    worker = Pod(
        "ray-worker",
        cpus=str(options.worker_cpus),
        memory=quantity("--worker-memory", options.worker_memory),
        gpus=1 if gpu else 0,
        **common,  # type: ignore[arg-type]
    )
    submitter = Pod("ray-job-submitter", image, cpus="500m", memory="1Gi")
    cluster: Node = {
        "rayVersion": metadata.version("ray"),
        # KubeRay makes a random token, keeps it in a Secret and gives it to all pods of the cluster.
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": scaling,
        "headGroupSpec": {
            # No actor beside the driver: a head that runs out of memory takes the job with it.
            "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},
            "template": pod_template(head, [("gcs-server", 6379), ("dashboard", 8265), ("client", 10001)]),
        },
        "workerGroupSpecs": [
            {
                "groupName": "gpu-workers" if gpu else "cpu-workers",
                "replicas": fewest,
                "minReplicas": fewest,
                "maxReplicas": most,
                "rayStartParams": {},
                "template": pod_template(worker),
            }
        ],
    }
    if scaling:
        cluster["autoscalerOptions"] = {
            "idleTimeoutSeconds": 120,
            "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}},
            "securityContext": security_context(),
        }
    return {
        "entrypoint": shlex.join(["batchdet", "run", _JOB_PATH, "--set", "compute.address=auto"]),
        "metadata": {"job_name": job.spec.name},  # what Ray's dashboard calls it
        "submissionMode": "K8sJobMode",
        "backoffLimit": options.retries,
        "activeDeadlineSeconds": options.deadline_s,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": options.ttl_s,
        "submitterPodTemplate": pod_template(submitter, restart_policy="Never"),
        "rayClusterSpec": cluster,
    }
