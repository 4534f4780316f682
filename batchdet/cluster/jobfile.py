"""A job's YAML as it travels to a cluster: settings applied, ``${NAME}`` kept as it was written.

An expanded spec would carry the values of this machine's environment to the cluster; the text as written does not.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batchdet import storage
from batchdet.errors import SpecError
from batchdet.spec import JobSpec
from batchdet.specfile import make_spec, read_document
from batchdet.strict_yaml import Document, dump_yaml

# What stands for a variable that is not set here while the rest is checked: one fits text, the other a sha256.
_PLACEHOLDERS = ("placeholder", "0" * 64)


@dataclass(frozen=True)
class JobFile:
    """A job spec as text and as checked values.

    Args:
        name: The file's name, safe for a shell and for a ConfigMap.
        text: The YAML with settings applied and no variable expanded; without comments, in which anything may stand.
        variables: The environment variables that the text uses, sorted.
        spec: What the text says, with placeholders for the unset ones.
        written: The same document as plain values, nothing expanded.
    """

    name: str
    text: str
    variables: tuple[str, ...]
    spec: JobSpec
    written: dict[str, Any]


def read_job_file(path: str, overrides: Sequence[str] = (), hide_environment: bool = False) -> JobFile:
    """Read a job's YAML, apply settings to it and check it.

    Args:
        path: A YAML file; any fsspec URI.
        overrides: Settings on top of it, each ``key.path=value``.
        hide_environment: Treat every variable as unset, so that no value of this machine's is looked at.

    Raises:
        SpecError: The file does not exist, or something in it or in the settings is wrong.
    """
    document = read_document(path, overrides)
    environment = {} if hide_environment else dict(os.environ)
    written = document.written()
    return JobFile(
        name=re.sub(r"[^A-Za-z0-9._-]", "-", storage.basename(path)).lstrip(".-") or "job.yaml",
        text=dump_yaml(written),
        variables=tuple(sorted(document.variables)),
        spec=_check(document, environment),
        written=written,
    )


def _check(document: Document, environment: dict[str, str]) -> JobSpec:
    """Make the spec with something in the place of each variable that is not set."""
    first: SpecError | None = None
    for placeholder in _PLACEHOLDERS:
        try:
            return make_spec(document, dict.fromkeys(document.variables, placeholder) | environment)
        except SpecError as error:
            first = first or error
    assert first is not None
    raise first


def written_value(job: JobFile, key: str) -> str:
    """Return a text value as it was written (nothing expanded), or "" where it is absent.

    Args:
        job: The job.
        key: A dotted path, such as ``source.uri``.
    """
    value: Any = job.written
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""


def is_local(uri: str) -> bool:
    """Tell whether a URI as written names a file or folder of one machine."""
    return bool(uri) and not uri.startswith(("${", "builtin:", "memory:")) and storage.scheme(uri) == "file"
