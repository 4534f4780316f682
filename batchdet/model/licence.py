"""Under which licences a model stands: its weights, and the code that made it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from batchdet.model.cache import LocalModel
from batchdet.model.format import Format
from batchdet.model.stated import stated_texts

_NOT_STATED: Final = "not stated in the file"
_OF_LOADERS: Final = {
    Format.HUGGINGFACE: "Apache-2.0 (Hugging Face transformers)",
    Format.NET: "Apache-2.0 (batchdet)",
}
_COPYLEFT: Final = "AGPL"


@dataclass(frozen=True)
class Licences:
    """What a file says, or its maker is known for; "" for what is not stated.

    Args:
        weights: Licence of the weights.
        code: Licence of the model's code: that of its architecture and export.
    """

    weights: str
    code: str

    def __str__(self) -> str:
        if self.weights and self.weights == self.code:
            return f"weights and code: {self.weights}"
        return f"weights: {self.weights or _NOT_STATED}; code: {self.code or _NOT_STATED}"

    @property
    def warning(self) -> str:
        """What somebody who uses the model should know before; "" for nothing."""
        if _COPYLEFT not in f"{self.weights} {self.code}".upper():
            return ""
        return (
            f"the model is under the AGPL ({self}): whoever lets others use it over a network owes them the source of "
            "the whole, unless its maker sold another licence"
        )


def licences(kind: Format, texts: Mapping[str, str]) -> Licences:
    """Find the licences of a model.

    Args:
        kind: Its format.
        texts: What its file says about itself. ``license`` (or ``licence``) is that of the weights, ``code_license``
            that of the code. Ultralytics puts both under one, which its exports name.
    """
    weights = texts.get("license") or texts.get("licence") or ""
    code = texts.get("code_license") or _OF_LOADERS.get(kind, "")
    if not code and "ultralytics" in f"{weights} {texts.get('author', '')}".lower():
        code = weights
    return Licences(weights, code)


def licences_of(model: LocalModel) -> Licences:
    """Find the licences of a fetched model without loading it."""
    return licences(model.format, stated_texts(model))
