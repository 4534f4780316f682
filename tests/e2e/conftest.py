"""One Ray for all end-to-end tests of a session, and coco120 packed in every way that a source can be."""

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchdet import storage
from batchdet.job import Run, run_job
from batchdet.pipeline.session import ray_session
from batchdet.sample.dataset import write_sample
from batchdet.spec import JobSpec
from tests.s3_server import S3Server

REPOSITORY = Path(__file__).parents[2]
RunJob = Callable[..., Run]
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def one_ray(s3: S3Server) -> Iterator[None]:
    """A Ray that every run of the session shares; it is started after S3, so that its workers know the endpoint.

    Its workers are as important as the rest: at nice 15, Ray's default, they would wait for whatever else is tested.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        with ray_session(None):
            yield


def job(source: str | Path, out: str | Path, model: str | Path = "builtin:sample", **parts: Any) -> JobSpec:
    """Make a job spec from keyword parts such as ``model={...}``."""
    plain: dict[str, Any] = {
        "name": "e2e",
        "source": {"uri": str(source), **parts.get("source_", {})},
        "model": {"uri": str(model), **parts.get("model_", {})},
        "output": {"uri": str(out), **parts.get("output_", {})},
        "compute": parts.get("compute", {}),
        "policy": parts.get("policy", {}),
    }
    return JobSpec.model_validate_json(json.dumps(plain))


def yaml_of(spec: JobSpec, folder: Path) -> Path:
    """Write a job down for the command line (YAML reads JSON)."""
    (folder / "job.yaml").write_text(spec.model_dump_json(exclude_defaults=True))
    return folder / "job.yaml"


@pytest.fixture
def run(one_ray: None) -> RunJob:
    """Run a job on the shared Ray: ``run(source, out, model, model_={...})``."""

    def run_it(source: str | Path, out: str | Path, model: str | Path = "builtin:sample", **parts: Any) -> Run:
        fresh = parts.pop("fresh", False)
        return run_job(job(source, out, model, **parts), fresh=fresh)

    return run_it


def clean_environment() -> dict[str, str]:
    """Return the environment of a user: a Ray in this process leaves its settings (token mode and others) behind."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "PYTHONBREAKPOINT"}
    return kept | {"PYTHONPATH": str(REPOSITORY)}


@pytest.fixture
def cli() -> Cli:
    """Run the command line in a process of its own, as a user would."""

    def run_it(*arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> Any:
        return subprocess.run(
            [sys.executable, "-m", "batchdet", *map(str, arguments)],
            cwd=cwd or REPOSITORY,
            env=clean_environment() | {"COLUMNS": "100"} | (env or {}),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run_it


def sample_images(folder: Path, images: int, seed: int) -> list[tuple[str, bytes]]:
    """Draw images of the sample data set and return them as (name, bytes), sorted."""
    write_sample(str(folder / "s"), images, "folder", seed)
    return [(p.name, p.read_bytes()) for p in sorted((folder / "s").rglob("*.jpg"))]


def pack_tar(files: Sequence[tuple[str, bytes]]) -> bytes:
    """Pack (name, bytes) pairs into a tar, in order."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def write_shards(base: str, files: Sequence[tuple[str, bytes]], shards: int) -> str:
    """Write tar shards below a folder of any store and return a glob for them."""
    for i in range(shards):
        storage.write_bytes(storage.join(base, f"shard-{i:03d}.tar"), pack_tar(files[i::shards]))
    return storage.join(base, "shard-*.tar")


def write_parquet(uri: str, files: Sequence[tuple[str, bytes]]) -> str:
    """Write a Hugging Face style table."""
    images = [{"bytes": data, "path": name} for name, data in files]
    sink = io.BytesIO()
    pq.write_table(pa.table({"file_name": [name for name, _ in files], "image": images}), sink, row_group_size=16)
    storage.write_bytes(uri, sink.getvalue())
    return uri


def write_list(uri: str, uris: Sequence[str]) -> str:
    """Write a CSV of image URIs with a second column."""
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerow(["image_url", "file_name"])
    writer.writerows((each, storage.basename(each)) for each in uris)
    storage.write_bytes(uri, sink.getvalue().encode())
    return uri


@pytest.fixture(scope="session")
def photographs(shared: Path) -> list[tuple[str, bytes]]:
    """coco120 as (name, bytes), sorted."""
    return [(p.name, p.read_bytes()) for p in sorted((shared / "images/coco120/images").glob("*.jpg"))]
