"""Printing."""

import json
from typing import Any

from batchdet.text import escape


def print_json(value: Any) -> None:
    """Print for programs."""
    print(json.dumps(value, indent=2, default=str))


def print_facts(facts: list[tuple[str, str]]) -> None:
    """Print headings and texts in two columns."""
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        print(f"{name.ljust(width)}  {escape(value)}")  # labels and columns are other people's texts


def console() -> Any:
    """Return rich's console."""
    from rich.console import Console

    return Console()
