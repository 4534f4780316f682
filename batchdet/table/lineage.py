"""Lineage: the digests and versions that made a run, and the fingerprint that says when two runs are the same."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import TypeAdapter

import batchdet
from batchdet import storage
from batchdet.errors import OutputError
from batchdet.records.schema import SCHEMA_VERSION
from batchdet.spec import JobSpec
from batchdet.table.manifest import run_folder

_RUN_TIME: Final = "%Y%m%d-%H%M%S"
_PACKAGES: Final = (
    "ray",
    "pyarrow",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "simplejpeg",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "openvino",
)


@dataclass(frozen=True)
class Lineage:
    """What made a run; ``lineage.json`` in its folder.

    Args:
        run_id: Sorts by time.
        name: The spec's name.
        fingerprint: See :func:`fingerprint`.
        inventory_digest: What was labelled.
        started_at: ISO 8601, UTC.
        finished_at: The same, "" until the commit.
        model: The detector: uri, sha256, family, runtime, canvas, licence, ...
        versions: Package -> version.
        machine: Of the driver: processor count, platform.
        choices: What ``auto`` chose, with the reason.
        computed: ``runtime``, ``precision``, ``graphs``, ``fit``, ``silu`` and ``decode``; a run goes on with the same.
        canary: How a lossy way of computing compared with the exact one on some of the job's images.
        prediction: What the run was to take, see :class:`batchdet.prediction.Prediction`; empty when nobody could tell.
        cut: Where shards are cut into segments, as the spec says; a run goes on only with the same cut.
        segment_rows: Images of a segment at most, as the spec says or as ``auto`` chose; a run goes on with the same.
        fresh: Whether the run was to label everything again.
        derived_from: Runs from whose rows this one was made, without the model; empty for a run that labelled. A run
            that only makes its settings current names the newest run of these settings, and has no rows.
    """

    run_id: str
    name: str
    fingerprint: str
    inventory_digest: str
    started_at: str
    finished_at: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    computed: dict[str, str] = field(default_factory=dict)
    canary: dict[str, Any] = field(default_factory=dict)
    prediction: dict[str, Any] = field(default_factory=dict)
    cut: str = ""
    segment_rows: int = 64
    fresh: bool = False
    derived_from: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """Serialise."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @staticmethod
    def read(out: str, run_id: str) -> "Lineage | None":
        """Read a run's lineage, or return None when there is none yet.

        Raises:
            OutputError: The file is not one.
        """
        uri = storage.join(run_folder(out, run_id), "lineage.json")
        try:
            return _adapter().validate_json(storage.read_bytes(uri), strict=True)
        except storage.NotFound:
            return None
        except ValueError as error:
            why = " ".join(str(error).split())[:500]
            raise OutputError(f"{uri}: not a lineage of batchdet: {why}", code="output.lineage", key=uri) from error


@functools.cache
def _adapter() -> TypeAdapter[Lineage]:
    return TypeAdapter(Lineage)


def now() -> str:
    """Return the time as ISO 8601, UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_run_id(earlier: Iterable[str] = ()) -> str:
    """Return a run id: UTC time to the second, then 4 random hex digits.

    Args:
        earlier: The ids of the output's runs. The new one sorts after all of them, because the newest rows win by run
            id: where the clock has not moved on by a second, or goes behind that of an earlier driver, the id's time
            is the newest run's and a second.
    """
    begun = datetime.now(UTC).replace(tzinfo=None)
    for run_id in earlier:
        with contextlib.suppress(ValueError, OverflowError):
            begun = max(begun, datetime.strptime(run_id[:15], _RUN_TIME) + timedelta(seconds=1))
    return f"{begun.strftime(_RUN_TIME)}-{secrets.token_hex(2)}"


def run_date(run_id: str) -> str:
    """Return the date of a run id as ``YYYY-MM-DD``."""
    return f"{run_id[:4]}-{run_id[4:6]}-{run_id[6:8]}"


def fingerprint(spec: JobSpec, source_format: str, model_sha256: str, labels_sha256: str, head_sha256: str = "") -> str:
    """Digest everything that changes results, and nothing else.

    Settings left as they are by default do not count, so that a version with more settings does not label everything
    again; a default that changes must therefore change what is digested in another way.

    Args:
        spec: The job. Where its images and its model are does not count: inventory and digests stand for them.
        source_format: What ``source.format`` was resolved to.
        model_sha256: Digest of the model's bytes.
        labels_sha256: Digest of the file that ``model.labels`` names, or "".
        head_sha256: Digest of the source of the plug-in that ``model.family`` names, or "".

    Returns:
        64 hex digits.
    """
    parts = deciding_settings(spec, only_changed=True)
    facts = [SCHEMA_VERSION, source_format, parts["source"], parts["model"], model_sha256, labels_sha256, head_sha256]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def deciding_settings(spec: JobSpec, only_changed: bool = False) -> dict[str, dict[str, Any]]:
    """Return the settings that change results, as plain values: those of ``source`` and ``model`` but for places.

    Args:
        spec: The job.
        only_changed: Leave out those that are as they are by default.
    """
    plain = spec.model_dump(mode="json", exclude_defaults=only_changed)
    places = {"source": {"uri", "format"}, "model": {"uri", "sha256", "labels"}}
    return {part: {k: v for k, v in plain[part].items() if k not in left_out} for part, left_out in places.items()}


def versions() -> dict[str, str]:
    """Return the versions of batchdet and of the packages that touch pixels or tables."""
    found = {"batchdet": batchdet.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Describe the driver's machine."""
    return {"platform": platform.platform(), "machine": platform.machine(), "processors": os.cpu_count()}
