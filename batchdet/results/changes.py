"""What differs between a run and a job in what decides results, in words."""

import json
from collections.abc import Iterator
from typing import Any, Final

import batchdet
from batchdet import storage
from batchdet.errors import OutputError, SourceError
from batchdet.model.families.plugin import is_plugin
from batchdet.records.schema import SCHEMA_VERSION
from batchdet.results.record import read_record, read_spec
from batchdet.source.inventory import Inventory
from batchdet.spec import JobSpec
from batchdet.table.lineage import deciding_settings
from batchdet.table.manifest import run_folder

_MAX_TEXT: Final = 60
_DIGITS: Final = 12


def name_changes(out: str, run_id: str, spec: JobSpec, source_format: str, model_sha256: str) -> str:
    """Name everything that gives a job another fingerprint than a run had.

    Args:
        out: The output's URI.
        run_id: The run, committed or not.
        spec: The job.
        source_format: What its ``source.format`` was resolved to.
        model_sha256: Digest of its model's bytes.

    Returns:
        As in ``model.score_threshold changed from 0.25 to 0.4, ...``.
    """
    try:
        before = read_spec(out, run_id)
    except OutputError:
        return f"the spec of run {run_id} cannot be read"
    lineage = read_record(out, run_id, "lineage.json")
    found = list(_differences(_flat(deciding_settings(before)), _flat(deciding_settings(spec))))
    found += _differences({"source.format": _format(out, run_id)}, {"source.format": source_format})
    old_sha256 = str(lineage.get("model", {}).get("sha256", ""))
    if old_sha256 != model_sha256:
        found.append(f"the model's bytes changed (sha256 {old_sha256[:_DIGITS]} to {model_sha256[:_DIGITS]})")
    if not found and is_plugin(spec.model.family):
        found.append(f"the source of the plug-in {spec.model.family} changed")
    elif not found and (before.model.labels, spec.model.labels) != (None, None):
        found.append(f"the labels of model.labels changed ({_text(before.model.labels)}, {_text(spec.model.labels)})")
    schema_version = read_record(out, run_id, "manifest.json").get("schema_version", SCHEMA_VERSION)
    found += _differences({"the schema version": schema_version}, {"the schema version": SCHEMA_VERSION})
    if not found:
        found.append(_other_version(lineage.get("versions", {}).get("batchdet")))
    return ", ".join(found)


def _other_version(name: str | None) -> str:
    """Say that a run with the same settings is of a version that digested them in another way."""
    if name == batchdet.__version__:  # versions under development have one name
        return f"an earlier build of batchdet {name} made it, whose fingerprints differ from those of this one"
    return f"batchdet {name or 'of an unknown version'} made it, whose fingerprints differ from those of this version"


def name_source_change(out: str, run_id: str, spec: JobSpec) -> str:
    """Name the change of ``source.uri`` since a run; "" when it is the same."""
    try:
        before = read_spec(out, run_id).source.uri
    except OutputError:
        return ""
    return "".join(_differences({"source.uri": before}, {"source.uri": spec.source.uri}))


def name_cut_change(out: str, run_id: str, spec: JobSpec) -> str:
    """Name the change of where shards are cut into segments."""
    keys = ("segment_rows", "segment_bytes")
    try:
        before = read_spec(out, run_id).compute
    except OutputError:
        return f"the spec of run {run_id} cannot be read"
    old, new = ({f"compute.{key}": getattr(part, key) for key in keys} for part in (before, spec.compute))
    return ", ".join(_differences(old, new)) or "this version of batchdet cuts segments elsewhere"


def _format(out: str, run_id: str) -> str | None:
    try:
        return Inventory.read(storage.join(run_folder(out, run_id), "inventory.parquet")).format
    except (storage.NotFound, SourceError):
        return None


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if before != after:
            yield f"{key} changed from {_text(before)} to {_text(after)}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 3]}..."
