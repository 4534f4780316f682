"""Job specs in YAML: settings applied, variables expanded, checked, and every mistake said with its line."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from batchdet import storage
from batchdet.credentials import find_secret, is_secret_name
from batchdet.errors import Mistake, SpecError, SpecErrors
from batchdet.spec import PATTERN_WORDS, PLACES, JobSpec
from batchdet.strict_yaml import MARKED, Document, Path, dotted, dump_yaml, glued, parse_yaml, rewrite
from batchdet.text import did_you_mean, shortened

_MAX_MISTAKES: Final = 20


def make_spec(document: Document, environment: Mapping[str, str]) -> JobSpec:
    """Expand variables and make the job spec.

    Raises:
        SpecError: A variable is not set, a value is a secret, or a key or value is wrong.
    """
    data = rewrite(document.data, lambda text, path: _expand(document, text, path, environment))
    try:
        return JobSpec.model_validate_json(json.dumps(data))
    except ValidationError as error:
        mistakes = _mistakes(document, data, error)
        if (others := len(mistakes) - _MAX_MISTAKES) > 0:
            mistakes[_MAX_MISTAKES:] = [Mistake(f"{document.name}: {others} more mistakes", "spec.more_mistakes")]
        raise SpecErrors(mistakes) from None


def _expand(document: Document, text: str, path: Path, environment: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in environment:
            document.fail_at(
                path, f"the environment variable {match[1]} is not set; export it and try again", "spec.variable"
            )
        if is_secret_name(match[1]):
            document.fail_at(
                path,
                f"{match[1]} is a secret by its name, and the spec is kept with the results; {_REMEDY}",
                "spec.secret",
            )
        return environment[match[1]]

    expanded = MARKED.sub(value, text)
    if what := find_secret(expanded, environment):
        document.fail_at(path, f"holds {what}; {_REMEDY}", "spec.secret")
    return expanded


_REMEDY: Final = (
    "leave it out, and let the storage client read its credentials from the "
    "environment (AWS_ACCESS_KEY_ID and the like)"
)


def load_job(path: str, overrides: Sequence[str] = ()) -> JobSpec:
    """Read a job spec.

    Args:
        path: A YAML file; any fsspec URI.
        overrides: Settings on top of the file, each ``key.path=value`` with the value in YAML.

    Raises:
        SpecError: The file does not exist, is not strict YAML, or a key or value is wrong. There is one sentence for
            each mistake, with file, line and key.
    """
    return make_spec(read_document(path, overrides), os.environ)


def parse_job(text: str, name: str, overrides: Sequence[str] = ()) -> JobSpec:
    """Make a job spec of YAML text; see :func:`load_job`."""
    return make_spec(parse_document(text, name, overrides), os.environ)


def read_document(path: str, overrides: Sequence[str] = ()) -> Document:
    """Read a job's YAML and apply settings to it, without looking at the environment; see :func:`load_job`."""
    try:
        raw = storage.read_bytes(storage.normalize(path))
    except storage.NotFound as error:
        raise SpecError(
            f"{path}: there is no such job file; {storage.what_exists(path)}", code="spec.not_found", key=path
        ) from error
    except storage.StorageError as error:
        if not path:
            raise SpecError("the path of the job file is empty", code="spec.not_found", key="JOB") from error
        if not storage.is_folder(storage.normalize(path)):
            raise SpecError(error.message, code="spec.unreadable", key=path) from error
        raise SpecError(
            f"{path} is a folder, and a job is a YAML file; to label the images of a folder, write "
            f"batchdet label {path} --model MODEL --out OUT",
            code="spec.folder",
            key=path,
        ) from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{path} is no text in UTF-8 (byte {error.start}); a job is a YAML file, saved as UTF-8",
            code="spec.not_text",
            key=path,
        ) from error
    return parse_document(text, storage.basename(path) if "://" in path else path, overrides)


def parse_document(text: str, name: str, overrides: Sequence[str] = ()) -> Document:
    """Read YAML text and apply settings to it, without looking at the environment; see :func:`load_job`."""
    document = parse_yaml(text, name)
    if not isinstance(document.data, dict):
        document.fail_if_glued(text, 1, len(text))
        found = "nothing" if document.data is None else "a list" if isinstance(document.data, list) else "one value"
        document.fail(None, f"found {found}; a job spec is a mapping with the keys {', '.join(JobSpec.model_fields)}")
    _spell_out(document)
    for override in overrides:
        _override(document, override)
        _spell_out(document)
    return document


def _spell_out(document: Document) -> None:
    """Write ``source: photos`` as ``source: {uri: photos}``; likewise the model and the output."""
    for name in PLACES:
        value = document.data.get(name)
        if isinstance(value, str):
            if advice := glued(value) if value.partition(":")[0] in _keys_at((name,)) else "":
                document.fail_at((name,), advice, "spec.blank_missing")
            document.data[name] = {"uri": value}
            if (name,) in document.lines:
                document.lines[(name, "uri")] = document.lines[(name,)]


def _override(document: Document, override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise SpecError(
            f"--set {override}: write it as key.path=value, such as model.score_threshold=0.4",
            code="spec.setting",
            key=f"--set {override}",
        )
    value = parse_yaml(text, f"--set {key}")
    holder = document.data
    for depth, part in enumerate(parts[:-1]):
        if holder.get(part) is None:
            holder[part] = {}
        holder = holder[part]
        if not isinstance(holder, dict):
            above = ".".join(parts[: depth + 1])
            raise SpecError(
                f"--set {override}: {above} is a value and has no keys below it", code="spec.setting", key=above
            )
    holder[parts[-1]] = value.data
    set_path = tuple(parts)
    for path in [path for path in document.lines if path[: len(set_path)] == set_path]:
        del document.lines[path]
    shown = f"{key}=***" if find_secret(override, os.environ) else shortened(override)
    document.overrides[set_path] = f"--set {shown}"


def _mistakes(document: Document, data: Any, error: ValidationError) -> list[Mistake]:
    """Say each mistake once, with its line; the members of a union count as one."""
    said: dict[Path, list[str]] = {}
    codes: dict[Path, str] = {}
    for item in error.errors(include_url=False):
        path, inside = _inside(data, item["loc"])
        kind, code = item["type"], "spec.value"
        if kind == "too_short" and inside:
            continue  # the entry that is wrong has its own sentence
        if kind == "extra_forbidden":
            text, code = f"unknown key; {_advice(path)}", "spec.unknown_key"
        elif kind == "missing":
            path = tuple(item["loc"])
            text, code = "this key is missing and must be given", "spec.missing_key"
        else:
            found = "nothing" if inside in (None, "") else json.dumps(inside, ensure_ascii=False)
            text = f"found {found if len(found) < 80 else found[:77] + '...'}; {_should(item)}"
        codes.setdefault(path, code)
        sentences = said.setdefault(path, [])
        if text not in sentences:
            sentences.append(text)
    result = []
    for path, texts in said.items():
        first, *others = texts
        more = "".join(" or " + other.split("; ", 1)[-1].removeprefix("it should be ") for other in others)
        key = f"{dotted(path)}: " if path else ""
        message = shortened(f"{document.place(path)}: {key}{first}{more}")
        result.append(Mistake(message, codes[path], dotted(path) or None))
    return result


_SHOULD: Final = {
    "string_too_short": "it should be a text",
    "too_short": "it should hold an entry, or be left out",
    "string_type": "it should be a text",
    "bool_type": "it should be true or false",
    "list_type": "it should be a list, such as [a, b]",
    "tuple_type": "it should be a list, such as [a, b]",
    "model_type": "it should hold keys with values",
    "model_attributes_type": "it should hold keys with values",
}
"""Kind of a mistake -> what would be right, where the library says it in the words of its programmers."""


def _advice(path: Path) -> str:
    """Say which key an unknown one may be: one that is spelt alike, or one of that name in another place."""
    keys, word = _keys_at(path[:-1]), str(path[-1])
    last = word.rpartition(".")[2]
    places = [name for name in _keys_at(()) if last in _keys_at((name,))]
    if near := did_you_mean(word, keys):
        return near
    if places and path[:-1] != (places[0],):
        return f"{last} is a key of {' and of '.join(places)}"
    return f"known here are {', '.join(keys)}"


def _should(item: Any) -> str:
    message = str(item["msg"])
    if item["type"] == "string_pattern_mismatch":
        return PATTERN_WORDS[item["ctx"]["pattern"]]
    if item["type"] in _SHOULD:
        return _SHOULD[item["type"]]
    for start in ("Input should be a valid ", "Input should be "):
        if message.startswith(start):
            rest = message.removeprefix(start)
            article = "" if not start.endswith("valid ") else "an " if rest[0] in "aeiou" else "a "
            return f"it should be {article}{rest}"
    return message


def _inside(data: Any, location: tuple[int | str, ...]) -> tuple[Path, Any]:
    """Cut the names of union members off a location, and return the value there."""
    path: list[str | int] = []
    for part in location:
        if isinstance(data, dict) and part in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            break
        path.append(part)
    return tuple(path), data


def _keys_at(path: Path) -> list[str]:
    """List the keys that the spec knows at a path."""
    model: Any = JobSpec
    for part in map(str, path):
        known = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = known.annotation if known else None
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def dump_job(spec: JobSpec) -> str:
    """Write a job spec as YAML that :func:`parse_job` reads back to an equal one."""
    return dump_yaml(json.loads(spec.model_dump_json()))
