"""What a run wrote about itself, read back from its folder."""

import json
from typing import Any

from batchdet import storage
from batchdet.errors import OutputError, SpecError
from batchdet.spec import JobSpec
from batchdet.strict_yaml import parse_yaml
from batchdet.table.manifest import run_folder


def read_record(out: str, run_id: str, name: str) -> dict[str, Any]:
    """Read a JSON record of a run; empty when it is missing or damaged, which ``verify`` reports.

    Args:
        out: The output's URI.
        run_id: The run.
        name: ``stats.json`` or ``lineage.json``.
    """
    try:
        raw = json.loads(storage.read_bytes(storage.join(run_folder(out, run_id), name)))
    except (storage.NotFound, ValueError, RecursionError):
        return {}
    return raw if isinstance(raw, dict) else {}


def read_spec(out: str, run_id: str) -> JobSpec:
    """Read the spec of a run.

    Raises:
        OutputError: It is missing, or is not one.
    """
    from pydantic import ValidationError

    uri = storage.join(run_folder(out, run_id), "spec.yaml")
    try:
        # strict, and variables stay as they are written: whoever wrote the output may not be its reader
        return JobSpec.model_validate_json(json.dumps(parse_yaml(storage.read_bytes(uri).decode(), uri).written()))
    except storage.NotFound as error:
        raise OutputError(f"{uri}: missing; batchdet verify {out} tells what else is") from error
    except (SpecError, ValidationError, UnicodeDecodeError) as error:
        raise OutputError(f"{uri}: not a spec of this version of batchdet: {' '.join(str(error).split())}") from error
