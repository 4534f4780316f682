"""The parts of Kubernetes manifests: pods that run as an ordinary user, with limits, secrets only by reference."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batchdet.errors import SpecError

Node = dict[str, Any]

# The user of the images in infra/ and of rayproject/ray.
USER_ID = 1000
_QUANTITY = re.compile(r"[1-9][0-9]*(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?")
# KubeRay makes names of services and pods from a job's; 35 characters leave room for what it appends.
_NAME_MAX = 35


def label(name: str) -> str:
    """Turn a name into a DNS-1035 label, as KubeRay asks: lower case, digits and '-', a letter first."""
    text = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not text or not text[0].isalpha():
        text = f"job-{text}".strip("-")
    return text[:_NAME_MAX].rstrip("-")


def quantity(option: str, text: str) -> str:
    """Check a Kubernetes quantity, such as ``4``, ``500m`` or ``8Gi``.

    Raises:
        SpecError: It is none; the message names the option.
    """
    if not _QUANTITY.fullmatch(text):
        raise SpecError(f"{option} {text}: found no Kubernetes quantity; write it like 4, 500m or 8Gi")
    return text


@dataclass(frozen=True)
class Pod:
    """What one kind of pod gets.

    Args:
        container: The container's name.
        image: Its image.
        cpus: CPU quantity, request and limit alike.
        memory: Memory quantity, request and limit alike: Ray's own limits assume that what it sees is its own.
        gpus: GPUs.
        env: Variables: a value, or a reference to a secret.
        config_map: A ConfigMap to mount read-only at ``/etc/batchdet``, or "".
        service_account: Its service account, or "" for the namespace's default.
        mount_token: Let the pod speak to the Kubernetes API (Ray's autoscaler has to).
    """

    container: str
    image: str
    cpus: str
    memory: str
    gpus: int = 0
    env: tuple[Node, ...] = ()
    config_map: str = ""
    service_account: str = ""
    mount_token: bool = False


def security_context() -> Node:
    """Return a container's security context: no privileges, none to be gained."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def secret_env(names: Sequence[str], secret: str) -> tuple[Node, ...]:
    """Return variables whose values the pod takes from a secret's keys of the same names."""
    return tuple(
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name}}} for name in sorted(set(names))
    )


def resources(pod: Pod) -> Node:
    """Return requests that equal the limits."""
    amounts: Node = {"cpu": pod.cpus, "memory": pod.memory}
    if pod.gpus:
        amounts["nvidia.com/gpu"] = pod.gpus
    return {"limits": dict(amounts), "requests": dict(amounts)}


def pod_template(pod: Pod, ports: Sequence[tuple[str, int]] = (), restart_policy: str = "") -> Node:
    """Return a pod template with one container."""
    container: Node = {
        "name": pod.container,
        "image": pod.image,
        "imagePullPolicy": "IfNotPresent",
        "resources": resources(pod),
        "securityContext": security_context(),
    }
    if pod.env:
        container["env"] = [dict(variable) for variable in pod.env]
    if ports:
        container["ports"] = [{"name": name, "containerPort": number} for name, number in ports]
    spec: Node = {
        "automountServiceAccountToken": pod.mount_token,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    if pod.service_account:
        spec["serviceAccountName"] = pod.service_account
    if restart_policy:
        spec["restartPolicy"] = restart_policy
    if pod.config_map:
        container["volumeMounts"] = [{"name": "job", "mountPath": "/etc/batchdet", "readOnly": True}]
        spec["volumes"] = [{"name": "job", "configMap": {"name": pod.config_map}}]
    if pod.gpus:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return {"spec": spec}
