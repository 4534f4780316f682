"""Hive partitions: ``column=value`` folders that pyarrow, DuckDB, pandas and Spark read back as they were meant."""

import hashlib
import re
from typing import Final
from urllib.parse import quote, unquote

NULL: Final = "__HIVE_DEFAULT_PARTITION__"
"""What every reader takes for null, percent-encoded or not; as a text of a source it means null, too."""
_MOST_BYTES: Final = 255
"""Of a folder's name, on every file system."""
_MARK_CHARACTERS: Final = 16
_BAD_IN_NAMES: Final = re.compile(r"[/\\=%?*\[\]\x00-\x1f\x7f]")


def folder_of(name: str, value: str | None) -> str:
    """Return the folder of a partition: percent-encoded, so that any value comes back.

    A value too long for a folder's name is cut, and ends with ``~`` and 16 hex digits of its digest: it does not come
    back whole, but no two become one.
    """
    if value is None:
        return f"{name}={NULL}"
    folder = f"{name}={quote(value, safe='')}"
    if len(folder.encode()) <= _MOST_BYTES:
        return folder
    mark = f"~{hashlib.sha256(value.encode()).hexdigest()[:_MARK_CHARACTERS]}"
    room = _MOST_BYTES - len(f"{name}={mark}".encode())
    kept = 0
    for character in value:
        room -= len(quote(character, safe=""))
        if room < 0:
            break
        kept += 1
    return f"{name}={quote(value[:kept], safe='')}{mark}"


def value_of(text: str) -> str | None:
    """Return the value that a folder's name holds behind ``=``; None for null."""
    return None if text == NULL else unquote(text)


def is_too_long(name: str, value: str) -> bool:
    """Tell whether :func:`folder_of` cuts a value."""
    return len(f"{name}={quote(value, safe='')}".encode()) > _MOST_BYTES


def why_not(name: str) -> str:
    """Say why a column of this name cannot be a partition, as half a sentence; "" if it can."""
    if not name:
        return "it is empty"
    if name.startswith((".", "_")):
        return "readers pass over folders that begin with '.' or '_'"
    if found := _BAD_IN_NAMES.search(name):
        return f"readers do not find {found[0]!r} in a folder's name again"
    return "it is too long" if len(name.encode()) > _MOST_BYTES // 2 else ""
