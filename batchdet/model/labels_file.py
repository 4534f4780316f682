"""Reading ``model.labels``: one label a line, a JSON or YAML list or map, or Ultralytics' ``data.yaml``."""

import json
import posixpath
import re
from collections.abc import Callable
from typing import Any, Final

import yaml

from batchdet import storage
from batchdet.errors import BatchdetError, SpecError

_MAX_BYTES: Final = 1_000_000
_MAX_LABELS: Final = 100_000
_MAX_LABEL_CHARACTERS: Final = 200
_RIGHT: Final = "write one label a line, a JSON list, or YAML with `names:` as a list or a map from number to label"
_NUMBERED: Final = re.compile(r"\d+\s*:\s+\S.*")
_NAMES: Final = re.compile(r"(?m)^names\s*:")
_MARKUP: Final = ("<!doctype", "<html", "<?xml", "<")
_HEADERS: Final = frozenset({"name", "names", "label", "labels", "class", "classes", "class_name", "category"})
_OTHER_LINES: Final = {
    re.compile(r"-?[\d.]+[\s,;=|].*"): "begins each line with a number",
    re.compile(r"(['\"]).*\1[,;]?"): "has quotation marks around each line",
    re.compile(r".*[,;|]"): "ends each line with a comma or the like",
    re.compile(r"[^=]+=.*"): "holds a setting (KEY = VALUE) on each line",
    re.compile(r".*\.(jpe?g|png|txt)", re.IGNORECASE): "names a file on each line",
}
"""What all lines of a file look like that holds no labels."""
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


class _NoLabels(Exception):
    """What was found instead of labels."""


def read_labels(uri: str) -> tuple[str, ...]:
    """Read the labels of a model's classes, by class number.

    Args:
        uri: Any URI of a text file. Labels stay as they are written: ``no`` is a text, also in YAML.

    Raises:
        SpecError: The file cannot be read, or holds no list of labels; the message says what it holds.
    """
    try:
        size_bytes = storage.stat(storage.normalize(uri)).size_bytes
        data = storage.read_bytes(storage.normalize(uri)) if size_bytes <= _MAX_BYTES else b""
    except BatchdetError as error:
        raise SpecError(f"model.labels: {error.message}", code="model.labels", key="model.labels") from error
    try:
        if size_bytes > _MAX_BYTES:
            raise _NoLabels(f"has {size_bytes} bytes, more than the {_MAX_BYTES} that are read")
        return _labels(_text(data), posixpath.splitext(uri)[1].lower())
    except _NoLabels as error:
        raise SpecError(f"model.labels: {uri} {error}; {_RIGHT}", code="model.labels", key="model.labels") from error


def _text(data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _NoLabels("is not a text file in UTF-8") from error
    if _CONTROLS.search(text):
        raise _NoLabels("is a binary file, no text")
    return text


def _labels(text: str, ending: str) -> tuple[str, ...]:
    start = text.lstrip()
    if start.lower().startswith(_MARKUP):
        raise _NoLabels("is an HTML or XML document, no list of labels")
    if start.startswith(("[", "{")):
        return _from_document(_parsed(text, "JSON", json.loads) if ending == ".json" else _json_or_yaml(text))
    if ending == ".json":
        raise _NoLabels("is no JSON list or map")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    listed = lines and (all(map(_NUMBERED.fullmatch, lines)) or all(line.startswith("- ") for line in lines))
    if ending in (".yaml", ".yml") or _NAMES.search(text) or listed:
        return _from_document(_parsed(text, "YAML", _yaml))
    if "\t" in text.strip() or (ending in (".csv", ".tsv") and any(c in text for c in ",;|")):
        raise _NoLabels("is a table of several columns")
    return _from_lines(lines)


def _json_or_yaml(text: str) -> Any:
    """Read flow style: JSON, else what Python writes, which is YAML, too."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _parsed(text, "JSON or YAML", _yaml)


def _yaml(text: str) -> Any:
    # texts only: with aliases values are shared, not copied, and no value but a text is ever taken
    return yaml.load(text, yaml.BaseLoader)  # it makes no objects


def _parsed(text: str, kind: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}" if mark else ""
        raise _NoLabels(f"is no valid {kind}{where}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise _NoLabels(f"is no valid {kind}") from error


def _from_document(value: Any) -> tuple[str, ...]:
    if isinstance(value, dict) and {"images", "annotations", "categories"} & value.keys():
        raise _NoLabels("is a COCO file of annotations, whose category numbers need not be the model's classes")
    count = None
    if isinstance(value, dict) and "names" in value:
        value, count = value["names"], value.get("nc")
    if isinstance(value, dict):
        labels = _from_map(value)
    elif isinstance(value, list):
        labels = tuple(_label(entry) for entry in value)
    else:
        raise _NoLabels(f"holds {_kind(value)}, no list of labels")
    if not labels:
        raise _NoLabels("holds no labels")
    if count is not None and str(count) != str(len(labels)):
        raise _NoLabels(f"says nc: {count}, but names {len(labels)} classes")
    return labels


def _from_map(value: dict[Any, Any]) -> tuple[str, ...]:
    if not value:
        raise _NoLabels("holds no labels")
    if not all(re.fullmatch(r"[0-9]{1,6}", str(key)) for key in value):
        shown = ", ".join(str(key)[:30] for key in list(value)[:5])
        raise _NoLabels(f"holds a map with the keys {shown}, and no names")
    numbered = {int(key): _label(entry) for key, entry in value.items()}
    if max(numbered) >= _MAX_LABELS:
        raise _NoLabels(f"has the class number {max(numbered)}; {_MAX_LABELS} classes are the limit")
    return tuple(numbered.get(i, f"class_{i}") for i in range(max(numbered) + 1))


def _from_lines(lines: list[str]) -> tuple[str, ...]:
    if not lines:
        raise _NoLabels("holds no labels")
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            raise _NoLabels(f"has a comment ({line[:40]!r}); each of its lines would be a label")
        if line.endswith(("{", "}", "[", "]")):
            raise _NoLabels(f"is no list of labels: its line {number} is {line[:40]!r}")
        _label(line)
    if len(lines) == 1 and any(c in lines[0] for c in ",;"):
        raise _NoLabels(f"holds one line with commas or semicolons ({lines[0][:40]!r})")
    for pattern, what in _OTHER_LINES.items():
        if all(map(pattern.fullmatch, lines)):
            raise _NoLabels(f"{what} ({lines[0][:40]!r})")
    if len(lines) > 1 and lines[0].lower() in _HEADERS:
        raise _NoLabels(f"begins with {lines[0]!r}, which is the name of a column")
    if len(lines) > _MAX_LABELS:
        raise _NoLabels(f"holds {len(lines)} lines; {_MAX_LABELS} classes are the limit")
    return tuple(lines)


def _label(value: Any) -> str:
    """Return a label; what a table cannot hold (half a surrogate pair) is written as an escape."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise _NoLabels(f"holds {_kind(value)} where a label should be")
    text = str(value).strip()
    if not text or len(text) > _MAX_LABEL_CHARACTERS:
        raise _NoLabels(f"has a label of {len(text)} characters; 1 to {_MAX_LABEL_CHARACTERS} are right")
    return text.encode("utf-8", "backslashreplace").decode()


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "a map"
    return "a list" if isinstance(value, list) else "nothing" if value is None else "a single value"
