"""What travels to the cluster: this package, the job's YAML and a local model, in one folder.

The cluster unpacks it as the job's working directory on each node that runs a part of it.
"""

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import batchdet
from batchdet import storage
from batchdet.cluster.jobfile import JobFile, is_local, read_job_file, written_value
from batchdet.errors import SpecError
from batchdet.model import huggingface
from batchdet.model.families.plugin import look_beside, plugin_to_ship

# Ray's dashboard takes 100 MiB in one request; the package and the YAML need little of it.
MAX_MODEL_BYTES = 90 * 1024 * 1024
_SHIPPED = ("model.uri", "model.labels")


@dataclass(frozen=True)
class Bundle:
    """A folder that is ready to be uploaded.

    Args:
        folder: Where it is.
        job: The job as it is written there.
        notes: What the person who submits should know, one sentence each.
    """

    folder: Path
    job: JobFile
    notes: tuple[str, ...]


def build_bundle(folder: Path, job_path: str, overrides: Sequence[str] = (), env: Sequence[str] = ()) -> Bundle:
    """Lay out what the cluster needs.

    A model or label file that is local is copied along and its URI rewritten. A local source or output is written
    absolute: it must be a folder that all nodes share (or the cluster this very machine). The job runs on the cluster
    that it was submitted to.

    Args:
        folder: An empty folder.
        job_path: The job's YAML.
        overrides: Settings on top of it.
        env: Names of variables that are passed along.

    Raises:
        SpecError: The job is wrong, or its model file does not exist or is too large to travel.
    """
    job = read_job_file(job_path, overrides)
    look_beside(job_path)
    notes: list[str] = []
    rewritten: list[str] = ["compute.address=auto"]
    for key in _SHIPPED:
        uri = written_value(job, key)
        if is_local(uri) and "${" not in uri:
            target = f"shipped/{_ship(folder / 'shipped', key, storage.normalize(uri), notes)}"
            rewritten.append(f"{key}={json.dumps(target)}")
    for key in ("source.uri", "output.uri"):
        uri = written_value(job, key)
        if not is_local(uri):
            continue
        absolute = storage.normalize(uri) if "${" not in uri else uri
        if absolute != uri:
            rewritten.append(f"{key}={json.dumps(absolute)}")
        notes.append(f"{key} is the local path {absolute}: every node of the cluster must see the same folder there")
    needed = [name for name in job.variables if name not in env]
    if needed:
        notes.append(
            f"the job uses {', '.join('${' + name + '}' for name in needed)}: the cluster must have "
            f"{'it' if len(needed) == 1 else 'them'} in its environment, or pass "
            f"{' '.join('--env ' + name for name in needed)}"
        )
    job = read_job_file(job_path, [*overrides, *rewritten])
    (folder / job.name).write_text(job.text, encoding="utf-8")
    for source in filter(None, (Path(batchdet.__file__).parent, plugin_to_ship(job.spec.model.family))):
        if source.is_dir():
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
        else:
            shutil.copyfile(source, folder / source.name)
    return Bundle(folder, job, tuple(notes))


def _ship(folder: Path, key: str, path: str, notes: list[str]) -> str:
    """Copy a local file, or a Hugging Face folder, into the bundle and return its name there."""
    inside = _of_folder(path) if os.path.isdir(path) else []
    if not (os.path.isfile(path) or inside):
        raise SpecError(
            f"{key}: there is no file {path}; give an existing file, which is shipped along, or a URI that the "
            "cluster can open"
        )
    size_bytes = sum(map(os.path.getsize, inside or [path]))
    if size_bytes > MAX_MODEL_BYTES:
        raise SpecError(
            f"{key}: {path} has {size_bytes} bytes and at most {MAX_MODEL_BYTES} travel with a job; put it into "
            "object storage and give its URI"
        )
    folder.mkdir(exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", os.path.basename(path)).lstrip(".-") or "file"
    if (folder / name).exists():
        name = f"{key.rpartition('.')[2]}-{name}"
    if inside:
        (folder / name).mkdir()
    for file in inside or [path]:
        shutil.copyfile(file, folder / name / os.path.basename(file) if inside else folder / name)
    notes.append(f"{key}: {path} ({size_bytes} bytes) is shipped along")
    return name


def _of_folder(path: str) -> list[str]:
    """List what a model cache takes of a Hugging Face folder; [] when it is none."""
    names = sorted(name for name in os.listdir(path) if name in huggingface.NAMES or name.endswith(".safetensors"))
    return [os.path.join(path, name) for name in names] if huggingface.CONFIG in names else []
