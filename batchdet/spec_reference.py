"""The reference of the job spec, as a Markdown table made from the fields themselves."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from batchdet.spec import JobSpec


def spec_table() -> str:
    """Return a Markdown table of every key, its default and its meaning; the README holds a copy."""
    rows = [f"| `{key}` | {default} | {text} |" for key, default, text in _rows(JobSpec, "")]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows]) + "\n"


def _rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        part: Any = field.annotation
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield from _rows(part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _default(field), (field.description or "").replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "**required**"
    if field.default is None:
        return "null"
    if isinstance(field.default, tuple):
        return f"`[{', '.join(map(str, field.default))}]`"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
