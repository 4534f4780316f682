"""A job's YAML as it travels to a cluster: settings applied, ``${NAME}`` kept as it was written.

An expanded spec would carry the values of this machine's environment to the cluster; the text as written does not.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from batchdet import storage
from batchdet.errors import SpecError
from batchdet.spec import JobSpec
from batchdet.specfile import parse_job, parse_yaml

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_MARKED = re.compile("\ue000([A-Za-z0-9_]+)\ue001")
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
    try:
        text = storage.read_bytes(storage.normalize(path)).decode("utf-8")
    except storage.NotFound as error:
        raise SpecError(f"{path}: there is no such job spec; give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: byte {error.start} is not UTF-8; a job spec is text") from error
    mentioned = {name for source in (text, *overrides) for name in _VARIABLE.findall(source)}
    spec = _check(text, path, overrides, {n for n in mentioned if hide_environment or n not in os.environ})
    document = _written(parse_yaml(text, path).data)
    for override in overrides:
        _set(document, override)
    return JobFile(
        name=re.sub(r"[^A-Za-z0-9._-]", "-", storage.basename(path)).lstrip(".-") or "job.yaml",
        text=dump_plain(document),
        variables=tuple(sorted(_used(document))),
        spec=spec,
        written=document,
    )


def _check(text: str, path: str, overrides: Sequence[str], unset: set[str]) -> JobSpec:
    """Parse a spec with something in the place of each variable that is not set."""
    first: SpecError | None = None
    for placeholder in _PLACEHOLDERS if unset else ("",):

        def fill(source: str, word: str = placeholder) -> str:
            return _VARIABLE.sub(lambda match: word if match[1] in unset else match[0], source)

        try:
            return parse_job(fill(text), path, [fill(override) for override in overrides])
        except SpecError as error:
            first = first or error
    assert first is not None
    raise first


def _set(document: dict[str, Any], override: str) -> None:
    """Apply one setting that :func:`parse_job` has accepted."""
    key, _, text = override.partition("=")
    *parents, last = key.strip().split(".")
    for parent in parents:
        if document.get(parent) is None:
            document[parent] = {}
        document = document[parent]
    document[last] = _written(parse_yaml(text, f"--set {key}").data)


def _used(value: Any) -> set[str]:
    """Collect the variables of all text in a document."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return {name for item in value for name in _used(item)}
    return set(_VARIABLE.findall(value)) if isinstance(value, str) else set()


def _written(value: Any) -> Any:
    """Put ``${NAME}`` back where the reader of YAML holds a mark for it."""
    if isinstance(value, dict):
        return {key: _written(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_written(item) for item in value]
    return _MARKED.sub(r"${\1}", value) if isinstance(value, str) else value


class _Quoting(yaml.SafeDumper):
    """Quotes all text but keys, so that no value can be read as another type."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        """Write keys plainly: they are the spec's own words."""
        node = super().represent_mapping(tag, mapping, flow_style)
        for key, _ in node.value:
            key.style = None
        return node


_Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'"))


def dump_plain(document: dict[str, Any]) -> str:
    """Write plain values as the strict YAML that :mod:`batchdet.specfile` reads."""
    return yaml.dump(document, Dumper=_Quoting, sort_keys=False, allow_unicode=True, width=10_000)


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
