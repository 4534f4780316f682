"""Job specs in YAML: read strictly, with the line of each value, and written back.

The dialect is YAML without its surprises: no tags, anchors or aliases, no duplicate keys, and no plain scalar that
two YAML versions read differently (``no``, ``012``, ``1e3``, ``1_000``); such a one must be quoted or spelled out.
"""

import difflib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import yaml
from pydantic import BaseModel, ValidationError

from batchdet import storage
from batchdet.errors import SpecError
from batchdet.spec import JobSpec

_MAX_BYTES: Final = 1024 * 1024
_MAX_DEPTH: Final = 12
_INT: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT: Final = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_WORDS: Final[dict[str, Any]] = {"": None, "~": None, "null": None, "true": True, "false": False}
_AMBIGUOUS: Final = re.compile(
    r"(?i:yes|no|on|off|y|n|true|false|null|[-+]?\.(inf|nan)|[-+]?0x[0-9a-f]+|[-+]?0o?[0-9]+|[-+]?[0-9]+e[-+]?[0-9]+"
    r"|[-+]?[0-9][0-9_]*_[0-9_]*|[-+]?[0-9]+(:[0-5]?[0-9])+)"
)
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_MARKED: Final = re.compile("\ue000([A-Za-z0-9_]+)\ue001")  # ${NAME} while YAML is read: braces mean maps there
_SECRETS: Final = {
    "an AWS access key": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a token": re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{30,}|hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,})"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "an account key": re.compile(r"(?i)(AccountKey|SharedAccessSignature|client_secret|password)="),
    "a user name and password": re.compile(r"[a-z0-9+.-]+://[^/\s@]+:[^/\s@]*@"),
    "a signed query": re.compile(r"(?i)[?&](X-Amz-Signature|X-Goog-Signature|sig|token|access_token)="),
}

Path = tuple[str | int, ...]


@dataclass
class _Document:
    """Parsed YAML with the place of every value."""

    name: str
    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    overrides: dict[Path, str] = field(default_factory=dict)

    def fail(self, line: int | None, message: str) -> NoReturn:
        """Raise a SpecError that begins with file and line."""
        raise SpecError(_unmarked(f"{self.name}:{line}: {message}" if line else f"{self.name}: {message}"))

    def fail_at(self, path: Path, message: str) -> NoReturn:
        """Raise a SpecError that names the line and key of a value."""
        raise SpecError(
            _unmarked(f"{self.place(path)}: {dotted(path)}: {message}" if path else f"{self.name}: {message}")
        )

    def place(self, path: Path) -> str:
        """Say where a value was written: file and line (its own or that of what encloses it), or the ``--set``."""
        while path and path not in self.lines and path not in self.overrides:
            path = path[:-1]
        if path in self.overrides:
            return self.overrides[path]
        return f"{self.name}:{self.lines[path]}" if path else self.name


def _unmarked(text: str) -> str:
    return _MARKED.sub(r"${\1}", text)


def dotted(path: Iterable[str | int]) -> str:
    """Write a key path as ``source.columns[2]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def parse_yaml(text: str, name: str) -> _Document:
    """Parse one strict YAML document.

    Args:
        text: The document.
        name: What to call it in messages.

    Raises:
        SpecError: It is not strict YAML; the message names the line.
    """
    document = _Document(name)
    if len(text) > _MAX_BYTES:
        document.fail(None, f"the file has {len(text)} characters; a job spec has at most {_MAX_BYTES}")
    if "\ue000" in text or "\ue001" in text:
        document.fail(None, "holds characters of Unicode's private use area, which a job spec has no use for")
    try:
        _build(document, yaml.parse(_VARIABLE.sub("\ue000\\1\ue001", text), Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        document.fail(None if mark is None else mark.line + 1, f"not valid YAML: {error.problem or error.context}")
    except yaml.YAMLError as error:
        document.fail(None, f"not valid YAML: {' '.join(str(error).split())}")
    return document


def _build(document: _Document, events: Iterable[yaml.Event]) -> None:
    """Build plain values from parser events: events do not recurse, so that depth can be capped first."""
    stack: list[tuple[Any, Path]] = []
    keys: list[str | None] = []
    documents = 0
    for event in events:
        line = event.start_mark.line + 1  # type: ignore[union-attr]  # a parser's events have marks
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                document.fail(line, "found a second document ('---'); a job spec is one document")
            continue
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            document.fail(line, "anchors and aliases (& and *) are not allowed; write the value out")
        tag = getattr(event, "tag", None)
        if tag:
            document.fail(line, f"the tag {tag} is not allowed; write a plain value")
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            stack.pop()
            keys.pop()
            continue
        if not isinstance(event, yaml.ScalarEvent | yaml.MappingStartEvent | yaml.SequenceStartEvent):
            continue
        holder, base = stack[-1] if stack else (None, ())
        if isinstance(holder, dict) and keys[-1] is None:
            if not isinstance(event, yaml.ScalarEvent):
                document.fail(line, "a key must be plain text")
            if event.value in holder:
                document.fail(line, f"{dotted((*base, event.value))}: this key stands twice; keep one")
            keys[-1] = event.value
            holder[event.value] = None
            document.lines[(*base, event.value)] = line
            continue
        if isinstance(holder, dict):
            slot: str | int = keys[-1] or ""
            keys[-1] = None
        else:
            slot = len(holder) if isinstance(holder, list) else ""
        path = (*base, slot) if stack else ()
        document.lines.setdefault(path, line)
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(document, event.value, path) if event.implicit[0] else event.value
        else:
            value = {} if isinstance(event, yaml.MappingStartEvent) else []
            if len(stack) >= _MAX_DEPTH:
                document.fail(line, f"nested deeper than {_MAX_DEPTH} levels")
        if isinstance(holder, dict):
            holder[slot] = value
        elif isinstance(holder, list):
            holder.append(value)
        else:
            document.data = value
        if not isinstance(event, yaml.ScalarEvent):
            stack.append((value, path))
            keys.append(None)


def _scalar(document: _Document, text: str, path: Path) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if _AMBIGUOUS.fullmatch(text) and not _INT.fullmatch(text):
        document.fail_at(path, f"{text!r} is read differently by different YAML versions; {_advice(text)}")
    if _INT.fullmatch(text):
        return int(text) if len(text) < 20 else text
    return float(text) if _FLOAT.fullmatch(text) else text


def _advice(text: str) -> str:
    word = text.lower()
    if word in {"yes", "no", "on", "off", "y", "n", "true", "false"}:
        return f"write {'true' if word in {'yes', 'on', 'y', 'true'} else 'false'}, or '{text}' in quotes for text"
    if word == "null":
        return f"write null, or '{text}' in quotes for text"
    return f"write the number in plain decimal digits, or '{text}' in quotes for text"


def _expand(document: _Document, value: Any, path: Path) -> Any:
    """Replace ``${NAME}`` in all text, and refuse text that is a secret before or after."""
    if isinstance(value, dict):
        return {key: _expand(document, item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(document, item, (*path, i)) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            document.fail_at(path, f"the environment variable {match[1]} is not set; export it and try again")
        return os.environ[match[1]]

    expanded = _MARKED.sub(replace, value)
    for what, pattern in _SECRETS.items():
        if pattern.search(expanded):
            document.fail_at(
                path,
                f"holds {what}; leave it out, and let the storage client read its credentials from the environment "
                "(AWS_ACCESS_KEY_ID and the like)",
            )
    return expanded


def load_job(path: str, overrides: Sequence[str] = ()) -> JobSpec:
    """Read a job spec.

    Args:
        path: A YAML file; any fsspec URI.
        overrides: Settings on top of the file, each ``key.path=value`` with the value in YAML.

    Raises:
        SpecError: The file does not exist, is not strict YAML, or a key or value is wrong. There is one sentence for
            each mistake, with file, line and key.
    """
    try:
        raw = storage.read_bytes(storage.normalize(path))
    except storage.NotFound as error:
        raise SpecError(f"{path}: there is no such job spec; give the path of a YAML file") from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: byte {error.start} is not UTF-8; a job spec is text") from error
    return parse_job(text, os.path.basename(path) if "://" in path else path, overrides)


def parse_job(text: str, name: str, overrides: Sequence[str] = ()) -> JobSpec:
    """Make a job spec of YAML text; see :func:`load_job`."""
    document = parse_yaml(text, name)
    if not isinstance(document.data, dict):
        found = "nothing" if document.data is None else f"a {type(document.data).__name__}"
        document.fail(None, f"found {found}; a job spec is a mapping with the keys {', '.join(JobSpec.model_fields)}")
    for override in overrides:
        _override(document, override)
    data = _expand(document, document.data, ())
    try:
        return JobSpec.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise SpecError("\n".join(_sentences(document, data, error))) from None


def _override(document: _Document, override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise SpecError(f"--set {override}: write it as key.path=value, such as model.score_threshold=0.4")
    value = parse_yaml(text, f"--set {key}")
    holder = document.data
    for depth, part in enumerate(parts[:-1]):
        if holder.get(part) is None:
            holder[part] = {}
        holder = holder[part]
        if not isinstance(holder, dict):
            raise SpecError(f"--set {override}: {'.'.join(parts[: depth + 1])} is a value and has no keys below it")
    holder[parts[-1]] = value.data
    set_path = tuple(parts)
    for path in [path for path in document.lines if path[: len(set_path)] == set_path]:
        del document.lines[path]
    document.overrides[set_path] = f"--set {override}"


def _sentences(document: _Document, data: Any, error: ValidationError) -> list[str]:
    """Say each mistake once, with its line; the members of a union count as one."""
    said: dict[Path, list[str]] = {}
    for item in error.errors(include_url=False):
        path, inside = _inside(data, item["loc"])
        kind = item["type"]
        if kind == "extra_forbidden":
            keys = _keys_at(path[:-1])
            close = difflib.get_close_matches(str(path[-1]), keys, n=1)
            advice = f"did you mean {close[0]!r}?" if close else f"known here are {', '.join(keys)}"
            text = f"unknown key; {advice}"
        elif kind == "missing":
            path = tuple(item["loc"])
            text = "this key is missing and must be given"
        else:
            found = json.dumps(inside, ensure_ascii=False)
            text = f"found {found if len(found) < 80 else found[:77] + '...'}; {_should(item)}"
        sentences = said.setdefault(path, [])
        if text not in sentences:
            sentences.append(text)
    result = []
    for path, texts in said.items():
        first, *others = texts
        more = "".join(" or " + other.split("; ", 1)[-1].removeprefix("it should be ") for other in others)
        result.append(f"{document.place(path)}: {dotted(path)}: {first}{more}")
    return result


def _should(item: Any) -> str:
    message = str(item["msg"])
    if item["type"] == "string_pattern_mismatch":
        return f"it should match {item['ctx']['pattern']}"
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
    plain = json.loads(spec.model_dump_json())
    return _quote_ambiguous(plain)


class _Dumper(yaml.SafeDumper):
    """Quotes what :func:`parse_yaml` would refuse."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    plain = not (_AMBIGUOUS.fullmatch(text) or _INT.fullmatch(text) or _FLOAT.fullmatch(text) or text in _WORDS)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "'")


def _represent_float(dumper: yaml.SafeDumper, number: float) -> yaml.Node:
    text = repr(number)
    return dumper.represent_scalar("tag:yaml.org,2002:float", text if "." in text else text.replace("e", ".0e"))


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, _represent_float)


def _quote_ambiguous(plain: Any) -> str:
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
