"""What can be checked of the images and the cluster without Docker or Kubernetes."""

import fnmatch
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

import batchdet
from batchdet.cluster.requirements import BASE, RUNTIMES, is_older
from batchdet.ray_environment import ray_environment

ROOT = Path(__file__).parents[3]
INFRA = ROOT / "infra"
DOCKERFILES = sorted(INFRA.glob("Dockerfile.*"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions, continued lines joined and comments gone."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        (word.upper(), " ".join(rest.split()))
        for line in joined.splitlines()
        if line.strip()
        for word, _, rest in [line.strip().partition(" ")]
    ]


def constraints() -> dict[str, str]:
    pairs = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    return {name.lower(): version for name, version in pairs}


def test_there_are_two_images() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.gpu"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
class TestDockerfile:
    def test_every_copied_file_exists_and_is_not_ignored(self, path: Path) -> None:
        kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
        for word, rest in instructions(path):
            if word == "COPY" and "--from" not in rest:
                *sources, _ = rest.split()
                for source in sources:
                    assert (ROOT / source).exists(), source
                    assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), source

    def test_it_runs_as_an_ordinary_user(self, path: Path) -> None:
        users = [rest for word, rest in instructions(path) if word == "USER"]
        assert users == ["1000:1000"]
        words = [word for word, _ in instructions(path)]
        assert "RUN" not in words[words.index("USER") :]

    def test_base_images_have_a_version(self, path: Path) -> None:
        stages: set[str] = set()
        for word, rest in instructions(path):
            if word == "FROM":
                image, *alias = rest.split()
                assert image in stages or re.search(r":\d+\.\d+", image), image
                stages.update(alias[1:])

    def test_the_command_line_is_the_entrypoint(self, path: Path) -> None:
        found = dict(instructions(path))
        assert found["ENTRYPOINT"] == '["batchdet"]'
        assert found["CMD"] == '["--help"]'

    @pytest.mark.acceptance("S22")
    def test_all_packages_are_locked_by_their_hashes(self, path: Path) -> None:
        text = " ".join(rest for word, rest in instructions(path) if word == "RUN" and "pip install" in rest)
        assert "--require-hashes --requirement /opt/batchdet/requirements.lock" in text
        assert "--no-deps /wheels/" in text
        assert ("COPY", f"infra/requirements-{path.suffix[1:]}.lock /opt/batchdet/requirements.lock") in instructions(
            path
        )

    def test_no_secret_is_built_in(self, path: Path) -> None:
        assert not re.search(r"(?i)(secret|token|password|access_key)", path.read_text())

    def test_the_tag_is_of_this_version(self, path: Path) -> None:
        assert f"batchdet:{batchdet.__version__}-{path.suffix[1:]}" in path.read_text()


@pytest.mark.acceptance("S22")
@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_the_lock_holds_every_package_of_an_image_with_its_hashes(extra: str) -> None:
    """``make lock`` writes it anew when pyproject.toml or constraints.txt has changed."""
    text = (INFRA / f"requirements-{extra}.lock").read_text()
    entries = [entry for entry in re.split(r"^(?=\S)", text, flags=re.MULTILINE) if entry]
    locked = {}
    for entry in entries:
        name, version = re.match(r"([a-z0-9-]+)==([^\s;]+)", entry).groups()  # type: ignore[union-attr]
        assert "--hash=sha256:" in entry, name
        locked[name] = version
    pinned = {name.replace("_", "-"): version for name, version in constraints().items()}
    assert {name: version for name, version in locked.items() if name in pinned} == {
        name: pinned[name] for name in locked if name in pinned
    }
    for requirement in (*BASE, *(each for each in RUNTIMES if each.extra == extra)):
        assert requirement.name in locked, requirement
        assert not is_older(locked[requirement.name], requirement.floor)


def cluster() -> Any:
    return yaml.safe_load((INFRA / "kuberay" / "cluster.yaml").read_text())


def test_the_cluster_is_of_the_version_of_the_images() -> None:
    spec = cluster()["spec"]
    assert spec["rayVersion"] == constraints()["ray"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["template"]["spec"]["containers"][0]["image"] == f"batchdet:{batchdet.__version__}-cpu"


@pytest.mark.acceptance("S18")
def test_the_cluster_is_closed_and_unprivileged() -> None:
    spec = cluster()["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"] == container["resources"]["requests"]


def test_the_workers_keep_readers() -> None:
    (group,) = cluster()["spec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    assert given == ray_environment(float(container["resources"]["limits"]["cpu"]))


def test_the_readme_names_the_files_and_versions() -> None:
    text = (INFRA / "README.md").read_text()
    for name in ("Dockerfile.cpu", "Dockerfile.gpu", "kuberay/cluster.yaml"):
        assert name in text
        assert (INFRA / name).exists()
    for tag in re.findall(r"batchdet:(\S+?)-[cg]pu", text):
        assert tag == batchdet.__version__


def test_constraints_hold_the_ray_that_is_tested() -> None:
    assert metadata.version("ray") == constraints()["ray"], "install with --constraint constraints.txt"
