"""The texts of a model's classes."""

import ast
import json
from collections.abc import Sequence
from typing import Any, Final

from batchdet.errors import SpecError
from batchdet.text import counted, did_you_mean

_COCO_NAMES: Final = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
COCO_80: Final = tuple(_COCO_NAMES.split(","))
"""The 80 categories of COCO, in the order of their ids (Lin et al., arXiv:1405.0312)."""

NUMBERS: Final = "numbers, because the model names none"
"""Where labels come from if nothing names the classes."""
_MAX_TEXT: Final = 1_000_000


def label(labels: Sequence[str], class_id: int) -> str:
    """Return the text of a class, ``class_<n>`` where the labels end."""
    return labels[class_id] if 0 <= class_id < len(labels) else f"class_{class_id}"


def find_labels(
    filed: tuple[str, tuple[str, ...]] | None, named: tuple[str, ...], class_count: int | None, assume_coco: bool
) -> tuple[tuple[str, ...], str]:
    """Find the labels of a model.

    Args:
        filed: The spec's ``model.labels``, and the labels that it holds.
        named: The labels that the model (or the head of a plug-in) names; none if it is empty.
        class_count: Number of classes, None when the outputs do not show it.
        assume_coco: Take COCO's 80 when neither labels nor a number are to be had.

    Returns:
        The labels by class number, and where they come from (for the model's card).

    Raises:
        SpecError: The file holds another number of labels than the model has classes.
    """
    if filed is not None:
        uri, labels = filed
        count = class_count or len(named)
        if count not in (0, len(labels)):
            text = f"model.labels: {uri} holds {counted(len(labels), 'label')}, the model has {counted(count, 'class')}"
            raise SpecError(text, code="model.labels", key="model.labels")
        return labels, f"from {uri}"
    if named:
        return named, "from the model's metadata"
    if class_count == len(COCO_80):
        return COCO_80, "COCO's 80, because the model has 80 classes and names none"
    if class_count is None and assume_coco:
        return COCO_80, "COCO's 80 by assumption: the model names none; set model.labels if it is another set"
    return tuple(f"class_{i}" for i in range(class_count or 0)), NUMBERS


def parse_names(text: str) -> tuple[str, ...]:
    """Read a model's ``names``: a dict from number to text, or a list, written as JSON or as Python.

    Returns:
        The labels by number; empty when the text is neither.
    """
    if not text or len(text) > _MAX_TEXT:
        return ()
    value = _parse(text)
    if isinstance(value, dict):
        try:
            numbered = {int(k): _text(v) for k, v in value.items()}
        except (TypeError, ValueError):
            return ()
        if not numbered or min(numbered) < 0 or max(numbered) > 100_000:
            return ()
        return tuple(numbered.get(i, f"class_{i}") for i in range(max(numbered) + 1))
    return tuple(map(_text, value)) if isinstance(value, list | tuple) else ()


def _text(value: Any) -> str:
    """Return a label as text; what a table cannot hold (half a surrogate pair) is written as an escape."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _parse(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


def class_numbers(wanted: Sequence[str | int], labels: Sequence[str]) -> tuple[int, ...]:
    """Turn the spec's ``model.classes`` into class numbers.

    Args:
        wanted: Labels or numbers.
        labels: The model's labels by number.

    Raises:
        SpecError: The model has no such class; the message names the nearest.
    """
    numbers = set()
    for entry in wanted:
        if isinstance(entry, str):
            same = [i for i, text in enumerate(labels) if text == entry]
            if not same:
                known = f"it has {', '.join(labels[:10])}" + ", ..." * (len(labels) > 10)
                hint = did_you_mean(entry, labels) or known
                raise SpecError(
                    f"model.classes: the model has no class {entry!r}; {hint}",
                    code="model.unknown_class",
                    key="model.classes",
                )
            numbers.update(same)
        elif entry < 0 or (labels and entry >= len(labels)):
            last = len(labels) - 1
            raise SpecError(
                f"model.classes: the model has no class number {entry}; they go from 0 to {last}",
                code="model.unknown_class",
                key="model.classes",
            )
        else:
            numbers.add(entry)
    return tuple(sorted(numbers))


def numbers(text: str) -> tuple[int, ...]:
    """Read a metadata text such as ``32`` or ``[640, 640]``; empty when it is neither."""
    value = _parse(text) if 0 < len(text) < 1000 else None
    entries: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    return tuple(entries) if all(type(n) is int and n > 0 for n in entries) else ()
