"""YAML without its surprises, with the line of each value.

No tags, anchors or aliases, no duplicate keys, and no plain scalar that two YAML versions read differently (``no``,
``012``, ``1e3``, ``1_000``): such a one must be quoted or spelled out. A value without quotes ends with its line.
``${NAME}`` may stand anywhere in a text.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import yaml

from batchdet.errors import SpecError
from batchdet.text import shortened

_MAX_CHARACTERS: Final = 256 * 1024
_MAX_VALUES: Final = 10_000
_MAX_DEPTH: Final = 12
_INT: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT: Final = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_WORDS: Final[dict[str, Any]] = {"": None, "~": None, "null": None, "true": True, "false": False}
_AMBIGUOUS: Final = re.compile(
    r"(?i:yes|no|on|off|y|n|true|false|null|[-+]?\.(inf|nan)|[-+]?0x[0-9a-f]+|[-+]?0o?[0-9]+|[-+]?[0-9]+e[-+]?[0-9]+"
    r"|[-+]?[0-9][0-9_]*_[0-9_]*|[-+]?[0-9]+(:[0-5]?[0-9])+)"
)
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
MARKED: Final = re.compile("\ue000([A-Za-z0-9_]+)\ue001")  # ${NAME} while YAML is read: braces mean maps there

_GLUED: Final = re.compile(r"\s*(?:- +)?([A-Za-z_]\w*):((?!//)[^\s:].*)")
"""A key whose value follows the colon without a blank."""
_PLAIN_WORDS: Final = {
    "mapping values are not allowed": "found a second ': ' in a value, or a line that is indented too far; put a value "
    "with ': ' in quotes",
    "found character '\\t'": "found a tab; indent with blanks",
    "expected <block end>": "this line is indented differently from the lines that it belongs to",
    "could not find expected ':'": "found a line without ': ' between a key and its value",
    "found unexpected end of stream": "a quote is not closed",
    "expected ',' or": "a bracket is not closed, or a comma is missing",
}
"""What the parser says -> the same for a person."""

Path = tuple[str | int, ...]


@dataclass
class Document:
    """Parsed YAML with the place of every value, before variables are expanded.

    Args:
        name: What to call it in messages.
        data: Plain values; a variable stands in them as a mark.
        lines: Key path -> line, from 1.
        overrides: Key path -> the ``--set`` that gave the value.
    """

    name: str
    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    overrides: dict[Path, str] = field(default_factory=dict)

    @property
    def variables(self) -> set[str]:
        """Names of the environment variables that the text uses."""
        return set(MARKED.findall(json.dumps(self.data, ensure_ascii=False)))

    def written(self) -> Any:
        """Return plain values with each ``${NAME}`` as it was written."""
        return rewrite(self.data, lambda text, path: unmarked(text))

    def fail(self, line: int | None, message: str, code: str = "spec.yaml") -> NoReturn:
        """Raise a SpecError that begins with file and line, which is also its key."""
        where = f"{self.name}:{line}" if line else self.name
        raise SpecError(shortened(unmarked(f"{where}: {message}")), code=code, key=where)

    def fail_at(self, path: Path, message: str, code: str = "spec.value") -> NoReturn:
        """Raise a SpecError that names the line and key of a value."""
        text = f"{self.place(path)}: {dotted(path)}: {message}" if path else f"{self.name}: {message}"
        raise SpecError(shortened(unmarked(text)), code=code, key=dotted(path) or None)

    def fail_if_glued(self, text: str, line: int, last: int) -> None:
        """Refuse a key that no blank parts from its value, if there is one between two lines of the text.

        Raises:
            SpecError: There is; of several the first is named.
        """
        for number, written in enumerate(text.splitlines()[line - 1 : last], line):
            if advice := glued(written):
                self.fail(number, advice, "spec.blank_missing")

    def place(self, path: Path) -> str:
        """Say where a value was written: file and line (its own or that of what encloses it), or the ``--set``."""
        while path and path not in self.lines and path not in self.overrides:
            path = path[:-1]
        if path in self.overrides:
            return self.overrides[path]
        return f"{self.name}:{self.lines[path]}" if path else self.name


def glued(text: str) -> str:
    """Say what is wrong with a line such as ``uri:photos``; "" if a blank follows its colon, or it has none."""
    found = _GLUED.fullmatch(text)
    if not found:
        return ""
    value = found[2] if len(found[2]) < 60 else f"{found[2][:57]}..."
    return f"a blank is missing after the colon; write '{found[1]}: {value}'"


def unmarked(text: str) -> str:
    """Show each variable as it was written."""
    return MARKED.sub(r"${\1}", text)


def dotted(path: Iterable[str | int]) -> str:
    """Write a key path as ``source.columns[2]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def rewrite(value: Any, change: Callable[[str, Path], str], path: Path = ()) -> Any:
    """Apply a change to all text in plain values."""
    if isinstance(value, dict):
        return {key: rewrite(item, change, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [rewrite(item, change, (*path, i)) for i, item in enumerate(value)]
    return change(value, path) if isinstance(value, str) else value


def parse_yaml(text: str, name: str) -> Document:
    """Parse one strict YAML document.

    Args:
        text: The document.
        name: What to call it in messages.

    Raises:
        SpecError: It is not strict YAML; the message names the line.
    """
    document = Document(name)
    if len(text) > _MAX_CHARACTERS:
        document.fail(None, f"the file has {len(text)} characters; a job spec has at most {_MAX_CHARACTERS}")
    if "\ue000" in text or "\ue001" in text:
        document.fail(None, "holds characters of Unicode's private use area, which a job spec has no use for")
    try:
        _build(document, yaml.parse(_VARIABLE.sub("\ue000\\1\ue001", text), Loader=yaml.SafeLoader), text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        document.fail_if_glued(text, 1, line or 0)
        said = str(error.problem or error.context)
        plain = next((words for start, words in _PLAIN_WORDS.items() if said.startswith(start)), said)
        document.fail(line, f"not valid YAML: {plain}")
    except yaml.YAMLError as error:
        document.fail(None, f"not valid YAML: {' '.join(str(error).split())}")
    return document


def _build(document: Document, events: Iterable[yaml.Event], text: str) -> None:
    """Build plain values from parser events: events do not recurse, so that depth can be capped first."""
    stack: list[tuple[Any, Path]] = []
    keys: list[str | None] = []
    documents = 0
    folded: tuple[int, int] | None = None
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
        if len(document.lines) > _MAX_VALUES:
            document.fail(line, f"more than {_MAX_VALUES} values; a job spec has a few dozen")
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            last = event.end_mark.line + 1  # type: ignore[union-attr]
            if event.implicit[0] and event.value and last > line and folded is None:
                folded = (line, last)
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
    if folded is not None:  # only now: a bracket that is not closed makes such values, too
        document.fail_if_glued(text, *folded)
        document.fail(folded[0], f"a value goes on until line {folded[1]}; write it on one line, or in quotes")


def _scalar(document: Document, text: str, path: Path) -> Any:
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


def dump_yaml(plain: Any) -> str:
    """Write plain values as the strict YAML that :func:`parse_yaml` reads."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 30)


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
