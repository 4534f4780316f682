import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from batchdet.cluster.render import RenderOptions, render
from batchdet.errors import SpecError
from batchdet.specfile import parse_job

SCHEMA = json.loads((Path(__file__).parent / "kuberay_v1.schema.json").read_text())
JOBS = Path(__file__).parents[3] / "jobs"
JOB = """\
name: Street_Labels.v2
source: {uri: "s3://${BUCKET}/shards/*.tar"}
model: {uri: s3://models/detector.onnx}
output: {uri: "s3://${BUCKET}/labels"}
"""
CRON = RenderOptions(schedule="0 3 * * *")


@pytest.fixture
def job(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return str(path)


def documents(text: str) -> list[Any]:
    """Parse manifests and hold each against the schema."""
    found = list(yaml.safe_load_all(text))
    for document in found:
        jsonschema.validate(document, SCHEMA)
    return found


def job_spec(text: str) -> Any:
    spec = documents(text)[1]["spec"]
    return spec.get("jobTemplate", spec)


def workers(text: str) -> Any:
    (group,) = job_spec(text)["rayClusterSpec"]["workerGroupSpecs"]
    return group


def test_a_rayjob(job: str) -> None:
    config, resource = documents(render(job))
    assert config["metadata"]["name"] == "street-labels-v2-job"
    assert resource["kind"] == "RayJob"
    assert resource["metadata"]["name"] == "street-labels-v2"
    spec = resource["spec"]
    assert spec["entrypoint"] == "batchdet run /etc/batchdet/job.yaml --set compute.address=auto"
    assert spec["metadata"] == {"job_name": "Street_Labels.v2"}
    assert spec["shutdownAfterJobFinishes"] is True
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is False
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert head["volumes"] == [{"name": "job", "configMap": {"name": "street-labels-v2-job"}}]
    assert head["containers"][0]["volumeMounts"][0]["readOnly"] is True
    assert head["automountServiceAccountToken"] is False


def test_a_raycronjob(job: str) -> None:
    options = RenderOptions(schedule="*/15 0-6 * * 1-5", time_zone="Europe/Berlin", namespace="vision")
    text = render(job, "raycronjob", options=options)
    config, resource = documents(text)
    assert resource["kind"] == "RayCronJob"
    assert resource["spec"]["schedule"] == "*/15 0-6 * * 1-5"
    assert resource["spec"]["timeZone"] == "Europe/Berlin"
    assert resource["metadata"]["namespace"] == config["metadata"]["namespace"] == "vision"
    assert resource["spec"]["jobTemplate"] == job_spec(render(job, options=RenderOptions(namespace="vision")))


def test_the_job_in_the_config_map_is_the_job(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["model.score_threshold=0.4", "compute.device=cpu"]
    config, _ = documents(render(job, overrides=settings))
    monkeypatch.setenv("BUCKET", "b")
    assert parse_job(config["data"]["job.yaml"], "config map") == parse_job(JOB, "job", settings)


def test_the_same_input_gives_the_same_text_without_anchors(job: str) -> None:
    options = RenderOptions(env=("A", "B"), max_workers=9)
    text = render(job, options=options)
    assert text == render(job, options=options)
    assert "&id" not in text
    assert "*id" not in text


@pytest.mark.acceptance("S18")
def test_no_value_of_the_environment_appears(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BUCKET", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "value-that-nobody-may-see")
    text = render(job, options=RenderOptions(env=("AWS_SECRET_ACCESS_KEY",)))
    assert "value-that-nobody-may-see" not in text
    for container in containers(text)[:2]:
        references = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in container["env"] if "valueFrom" in e}
        assert references == {
            name: {"name": "street-labels-v2-env", "key": name} for name in ("AWS_SECRET_ACCESS_KEY", "BUCKET")
        }
        assert [e for e in container["env"] if "value" in e] == [
            {"name": "BATCHDET_CACHE", "value": "/home/ray/.cache/batchdet"},
            {"name": "RAY_num_workers_soft_limit", "value": "8"},
        ]


def containers(text: str) -> list[Any]:
    spec = job_spec(text)
    templates = [spec["rayClusterSpec"]["headGroupSpec"]["template"], workers(text)["template"]]
    return [t["spec"]["containers"][0] for t in [*templates, spec["submitterPodTemplate"]]]


def test_the_secret_can_be_named(job: str) -> None:
    text = render(job, options=RenderOptions(secret="team.credentials"))
    assert "# Needs the Secret team.credentials with the keys BUCKET" in text
    assert "street-labels-v2-env" not in text


@pytest.mark.acceptance("S18")
def test_no_pod_has_privileges_and_requests_are_limits(job: str) -> None:
    text = render(job, "raycronjob", ["compute.device=gpu"], RenderOptions(schedule="@daily", max_workers=4))
    for container in containers(text):
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["runAsNonRoot"] is True


def test_gpus(job: str) -> None:
    text = render(job, overrides=["compute.device=gpu", "compute.actors=3"])
    group = workers(text)
    assert group["groupName"] == "gpu-workers"
    assert (group["minReplicas"], group["maxReplicas"]) == (3, 3)
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {c["image"].rpartition("-")[2] for c in containers(text)} == {"gpu"}
    assert "nvidia.com/gpu" not in json.dumps(job_spec(render(job)))


@pytest.mark.parametrize(
    ("actors", "options", "sizes"),
    [
        ("auto", RenderOptions(), (2, 2, False)),
        ("9", RenderOptions(), (3, 3, False)),
        ("9", RenderOptions(worker_cpus=8), (2, 2, False)),
        ("auto", RenderOptions(workers=1, max_workers=10), (1, 10, True)),
        ("auto", RenderOptions(max_workers=2), (2, 2, False)),
    ],
)
def test_sizes(job: str, actors: str, options: RenderOptions, sizes: tuple[int, int, bool]) -> None:
    text = render(job, overrides=[f"compute.actors={actors}"], options=options)
    group = workers(text)
    cluster = job_spec(text)["rayClusterSpec"]
    assert (group["minReplicas"], group["maxReplicas"], cluster["enableInTreeAutoscaling"]) == sizes
    assert group["replicas"] == group["minReplicas"]
    assert ("autoscalerOptions" in cluster) is sizes[2]


@pytest.mark.parametrize(
    ("target", "overrides", "options", "message"),
    [
        ("raycronjob", [], RenderOptions(), "a raycronjob needs one"),
        ("rayjob", [], CRON, "a rayjob has none"),
        ("raycronjob", [], RenderOptions(schedule="tomorrow"), "no five cron fields"),
        ("raycronjob", [], RenderOptions(schedule="TZ=UTC 0 3 * * *"), "no five cron fields"),
        ("rayjob", [], RenderOptions(time_zone="UTC"), "only a raycronjob has one"),
        ("rayjob", [], RenderOptions(env=("A=secret-value",)), "give the name alone"),
        ("rayjob", [], RenderOptions(secret="No Name"), "no name of a Secret"),
        ("rayjob", [], RenderOptions(namespace="No Name"), "no name of a namespace"),
        ("rayjob", [], RenderOptions(worker_memory="lots"), "--worker-memory lots: found no Kubernetes quantity"),
        ("rayjob", [], RenderOptions(head_memory="8 Gi"), "--head-memory"),
        ("rayjob", [], RenderOptions(workers=0), "--workers 0: it should be at least 1"),
        ("rayjob", [], RenderOptions(max_workers=1), "the job starts with 2 workers"),
        ("rayjob", [], RenderOptions(deadline_s=0), "--deadline 0"),
        ("rayjob", ["output.uri=/labels"], RenderOptions(), "output.uri: /labels is a local path and no pod sees it"),
        ("rayjob", ["model.uri=model.onnx"], RenderOptions(), "model.uri: model.onnx is a local path"),
        ("rayjob", ["nmae=x"], RenderOptions(), "did you mean 'name'"),
    ],
)
def test_mistakes(job: str, target: Any, overrides: list[str], options: RenderOptions, message: str) -> None:
    with pytest.raises(SpecError, match=message) as error:
        render(job, target, overrides, options)
    assert "secret-value" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "label"),
    [("a", "a"), ("A_b.C", "a-b-c"), ("2024-labels", "job-2024-labels"), ("x" * 63, "x" * 35), ("9", "job-9")],
)
def test_names(job: str, name: str, label: str) -> None:
    config, resource = documents(render(job, overrides=[f'name="{name}"']))
    assert resource["metadata"]["name"] == label
    assert config["metadata"]["name"] == f"{label}-job"


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_jobs_of_this_repository(path: Path) -> None:
    refused = {"quickstart": "local path", "plugin_head": "lies beside the job file, where no pod sees it"}
    if path.stem in refused:
        with pytest.raises(SpecError, match=refused[path.stem]):
            render(str(path))
    else:
        documents(render(str(path)))
