"""Settings: what gives runs the same fingerprint, and which fingerprint a run's id or a job stands for."""

import hashlib
from collections.abc import Sequence
from typing import Final, get_args

from batchdet import storage
from batchdet.errors import OutputError
from batchdet.model.families.plugin import is_plugin, look_beside, plugin_sha256
from batchdet.model.fetch import fetch_asked
from batchdet.spec import JobSpec, SourceFormat
from batchdet.specfile import load_job
from batchdet.table.lineage import fingerprint
from batchdet.table.manifest import Manifest

_FORMATS: Final = tuple(name for name in get_args(SourceFormat) if name != "auto")


def fingerprint_of(spec: JobSpec, source_format: str, model_sha256: str) -> str:
    """Return the fingerprint of a job.

    Args:
        spec: The job.
        source_format: What ``source.format`` was resolved to.
        model_sha256: Digest of the model's bytes.

    Raises:
        SpecError: The plug-in that the job names is not there.
        StorageError: The file that ``model.labels`` names cannot be read.
    """
    labels = (
        ""
        if spec.model.labels is None
        else hashlib.sha256(storage.read_bytes(storage.normalize(spec.model.labels))).hexdigest()
    )
    head = plugin_sha256(spec.model.family) if is_plugin(spec.model.family) else ""
    return fingerprint(spec, source_format, model_sha256, labels, head)


def find_settings(out: str, runs: Sequence[Manifest], asked: str | JobSpec) -> str:
    """Return the fingerprint that a reader asks for.

    Args:
        out: The output's URI, for messages.
        runs: Its committed runs, oldest first.
        asked: A run's id, a job or a job's file.

    Raises:
        OutputError: No committed run has this id or these settings.
        SpecError: The file is no job.
        ModelError: The job's model cannot be fetched.
    """
    if isinstance(asked, str):
        for manifest in runs:
            if manifest.run_id == asked:
                return manifest.fingerprint
        if not _may_be_a_file(asked):
            known = ", ".join(m.run_id for m in runs)
            raise OutputError(
                f"{out}: no committed run {asked!r}; there are: {known}. A job's file does as well",
                code="output.unknown_settings",
                key=asked,
            )
    return _of_job(out, runs, asked)


def _may_be_a_file(asked: str) -> bool:
    return asked.endswith((".yaml", ".yml")) or storage.exists(storage.normalize(asked))


def _of_job(out: str, runs: Sequence[Manifest], job: str | JobSpec) -> str:
    """Return the newest fingerprint that the job has for one of the formats; its source is not listed for that."""
    if isinstance(job, str):
        look_beside(job)
    spec = load_job(job) if isinstance(job, str) else job
    model_sha256 = fetch_asked(spec.model).sha256
    formats = _FORMATS if spec.source.format == "auto" else (spec.source.format, "uri_list")
    possible = {fingerprint_of(spec, name, model_sha256) for name in formats}
    for manifest in reversed(runs):
        if manifest.fingerprint in possible:
            return manifest.fingerprint
    raise OutputError(
        f"{out}: no committed run has the settings of the job {spec.name}; batchdet run makes one",
        code="output.unknown_settings",
        key=job if isinstance(job, str) else spec.name,
    )
