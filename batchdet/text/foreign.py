"""Names, labels and messages that others wrote: what they may do to a terminal or a spreadsheet is taken from them."""

from typing import Any, Final

_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_DIRECTION: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_FORMULA: Final = ("=", "+", "-", "@")


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
