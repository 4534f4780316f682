"""Every job in ``jobs/`` is a valid spec, and the README's table names them all."""

import re
from pathlib import Path

import pytest

from batchdet.cluster.bundle import build_bundle
from batchdet.specfile import dump_job, load_job, parse_job

JOBS = Path(__file__).parents[2] / "jobs"
SPECS = sorted(JOBS.glob("*.yaml"))
VALUES = {
    "BATCHDET_BUCKET": "bucket",
    "BATCHDET_IMAGES": "/images",
    "BATCHDET_MODEL": "/model.onnx",
    "BATCHDET_LABELS": "/labels",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)


def test_there_are_jobs() -> None:
    assert {path.stem for path in SPECS} >= {"quickstart", "folder", "s3_webdataset", "parquet", "uri_list"}


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_job_is_valid_and_reads_back(path: Path) -> None:
    spec = load_job(str(path))
    assert spec.name == path.stem.replace("_", "-")
    assert parse_job(dump_job(spec), "dumped") == spec


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_job_uses_known_variables_only(path: Path) -> None:
    assert set(re.findall(r"\$\{(\w+)\}", path.read_text())) <= set(VALUES)


@pytest.mark.parametrize("path", [p for p in SPECS if p.stem != "folder"], ids=lambda path: path.stem)
def test_a_job_can_be_submitted(path: Path, tmp_path: Path) -> None:
    build_bundle(tmp_path, str(path))
    assert (tmp_path / path.name).exists()


def test_quickstart_is_what_make_quickstart_needs() -> None:
    spec = load_job(str(JOBS / "quickstart.yaml"))
    assert spec.source.uri == "quickstart/images/shards/*.tar"
    assert spec.model.uri == "builtin:sample"
    assert spec.output.uri == "quickstart/labels"


def test_the_readme_names_every_job() -> None:
    assert set(re.findall(r"\]\((\w+\.yaml)\)", (JOBS / "README.md").read_text())) == {path.name for path in SPECS}
