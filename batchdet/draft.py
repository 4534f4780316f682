"""Job files that batchdet writes itself: from arguments (``batchdet label``) and from answers (``batchdet init``)."""

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from batchdet import storage
from batchdet.errors import BatchdetError, SpecError
from batchdet.places import in_full
from batchdet.spec import JobSpec
from batchdet.specfile import load_job, make_spec, parse_document
from batchdet.strict_yaml import dump_yaml
from batchdet.table.manifest import list_runs
from batchdet.text import escape

_LABEL: Final = "batchdet label"
_ARGUMENTS: Final = {"source": "SOURCE", "model": "--model", "output": "--out"}
_MOST_NAMED: Final = 3


def job_name(source: str) -> str:
    """Return a name for a job, from the folder or file that its source names."""
    source = source if "://" in source or "${" in source else os.path.abspath(source)
    parts = [part for part in re.split(r"[/\\]", source.partition("://")[2] or source) if part]
    fixed = [part for part in parts if not storage.is_glob(part) and "${" not in part]
    stem = re.sub(r"\.(tar|tgz|tar\.gz|parquet|csv|tsv|txt|jsonl)$", "", fixed[-1] if fixed else "")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-")[:63].rstrip("._-") or "job"


def place_in_full(uri: str) -> str:
    """Return a place as it means the same in every working directory; one that begins with a variable stays."""
    return uri if uri.startswith(("builtin:", "${")) else storage.normalize(uri)


@contextmanager
def job_of_arguments(source: str, model: str, out: str, settings: Sequence[str] = ()) -> Iterator[str]:
    """Write the job file of ``batchdet label`` beside the output, and give its path while the job is run.

    A file that says the same is used as it is. A file that this call wrote is removed if the block fails before a run
    has begun: the arguments were wrong, and a corrected call would find another job there.

    Args:
        source: As ``source.uri``.
        model: As ``model.uri``.
        out: As ``output.uri``.
        settings: Further keys, each ``key.path=value``.

    Yields:
        The path: ``OUT.yaml``, or in the working directory if the output is not local.

    Raises:
        SpecError: An argument is wrong, or the file holds another job.
    """
    text, spec = _written(source, model, out, settings)
    output = storage.normalize(spec.output.uri)
    local = storage.scheme(output) == "file"
    path = f"{output}.yaml" if local else os.path.abspath(f"{storage.basename(output)}.yaml")
    created = storage.create(path, text.encode())
    if not created:
        _check_same(path, spec)
    try:
        yield path
    except BatchdetError:
        if created and not _has_begun(output):
            Path(path).unlink(missing_ok=True)
        raise


def _written(source: str, model: str, out: str, settings: Sequence[str]) -> tuple[str, JobSpec]:
    """Return the text of the job file, with settings in it, and the spec that it gives."""
    plain: dict[str, Any] = {
        "name": job_name(source),
        "source": {"uri": source},
        "model": {"uri": model},
        "output": {"uri": out},
    }
    document = parse_document(dump_yaml(plain), _LABEL, settings)
    for group, name in _ARGUMENTS.items():
        document.overrides.setdefault((group, "uri"), name)
    make_spec(document, os.environ)  # a wrong setting is said as the user wrote it
    written = document.written()
    for part, key in (("source", "uri"), ("model", "uri"), ("model", "labels"), ("output", "uri")):
        if isinstance(written[part].get(key), str):
            written[part][key] = place_in_full(written[part][key])
    text = f"# Written by `{_LABEL}`; `batchdet run` with this file does the same.\n{dump_yaml(written)}"
    return text, make_spec(parse_document(text, _LABEL), os.environ)


def _check_same(path: str, spec: JobSpec) -> None:
    """Refuse a job file that is another one."""
    try:
        other = in_full(load_job(path))
    except SpecError as error:
        raise SpecError(
            f"{path}: this file is in the way, and it is no job ({error.message.splitlines()[0]}); give another --out, "
            "or move the file away",
            code="job.file_exists",
            key=path,
        ) from error
    changed = list(_changes(other.model_dump(mode="json"), in_full(spec).model_dump(mode="json")))
    if not changed:
        return
    shown = "; ".join(f"{key}: {_value(old)} there, {_value(new)} here" for key, old, new in changed[:_MOST_NAMED])
    more = f"; and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
    raise SpecError(
        f"{path}: this file holds another job ({shown}{more}); edit and run it (batchdet run {shlex.quote(path)}), or "
        "give another --out",
        code="job.file_exists",
        key=path,
        hint=shlex.join(
            ["batchdet", "run", path, *(w for k, _, new in changed for w in ("--set", f"{k}={_value(new)}"))]
        ),
    )


def _changes(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _changes(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield key, old, new


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _has_begun(output: str) -> bool:
    """Tell whether an output holds a run, committed or not."""
    with suppress(BatchdetError):
        return bool(list_runs(output))
    return False


def commented_job(job: Mapping[str, Any], found: Mapping[str, str], file: str) -> str:
    """Write the job file of ``batchdet init``.

    Args:
        job: The answers as plain values, with places written in full.
        found: What source and model were found to be, for comments.
        file: Its name, for the commands in the first line.
    """
    model, command = job["model"], escape(shlex.quote(file))
    lines = [
        ("", f"Written by `batchdet init`. Predict the run: batchdet plan {command}. Start it: batchdet run {command}"),
        (dump_yaml({"name": job["name"]}).strip(), ""),
        (f"source: {{uri: {_quoted(job['source']['uri'])}}}", found["source"].partition(" at ")[0]),
        ("model:", ""),
        (f"  uri: {_quoted(model['uri'])}", found["model"]),
        *([("  trusted: true", "the file may run code while it is loaded")] if model.get("trusted") else []),
        (f"  score_threshold: {model['score_threshold']}", "detections below this score are dropped"),
        (f"  classes: {_quoted(model['classes'])}", "null keeps all; or a list, such as [person, car]"),
        (f"output: {{uri: {_quoted(job['output']['uri'])}}}", "two Parquet tables: images and detections"),
        (f"compute: {{address: {_quoted(job['compute']['address'])}}}", "null: this machine; or a Ray cluster"),
    ]
    return "".join(
        f"{line}{'  ' * bool(line)}# {escape(comment)}\n" if comment else f"{line}\n" for line, comment in lines
    )


def _quoted(value: Any) -> str:
    """Write a value as JSON, which is YAML too."""
    return json.dumps(value, ensure_ascii=False)
