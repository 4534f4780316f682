"""Pieces of sentences that many messages share."""

import difflib
from collections.abc import Iterable


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
