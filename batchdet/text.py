"""Pieces of sentences that many messages share, and texts of others, which may steer no terminal and no spreadsheet."""

import difflib
from collections.abc import Iterable
from typing import Any, Final

_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_DIRECTION: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_MAX_MESSAGE: Final = 1000
_FORMULA: Final = ("=", "+", "-", "@")


def counted(number: int, noun: str, adjective: str = "") -> str:
    """Write a number with its noun: ``1 image``, ``2,000 images``, ``3 new boxes``.

    Args:
        number: How many.
        noun: In the singular.
        adjective: What stands between them.
    """
    ending = "" if number == 1 else "es" if noun.endswith(("s", "x", "ch")) else "s"
    return " ".join(filter(None, (f"{number:,}", adjective, f"{noun}{ending}")))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the question ``did you mean 'shards'?`` with the nearest known word, "" if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def shortened(text: str) -> str:
    """Cut the middle out of a message that quotes too much of what was found."""
    return text if len(text) <= _MAX_MESSAGE else f"{text[: _MAX_MESSAGE // 2]} ... {text[-_MAX_MESSAGE // 2 :]}"


def escape(text: str, keep_newlines: bool = False) -> str:
    """Show control characters as escapes, so that data cannot steer a terminal.

    C0, C1, DEL and the marks that change the direction of writing are escaped.
    """
    return "".join(
        c
        if (c.isprintable() or (keep_newlines and c == "\n")) and c not in _DIRECTION
        else _ESCAPES.get(c, ascii(c)[1:-1])
        for c in text
    )


def csv_cell(value: Any) -> Any:
    """Return a value for a CSV file: a text is escaped, and never begins like a formula of a spreadsheet."""
    if isinstance(value, str):
        text = escape(value)
        return f"'{text}" if text.startswith(_FORMULA) else text
    return "" if value is None else value
