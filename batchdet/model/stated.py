"""What a model's file says about itself, read without loading the model."""

import json
from collections.abc import Mapping

from batchdet.errors import ModelError
from batchdet.model import huggingface
from batchdet.model.cache import LocalModel
from batchdet.model.families.plugin import is_plugin
from batchdet.model.format import OWN_KEY, Format, archive_texts, safetensors_texts
from batchdet.model.labels import class_numbers, parse_names
from batchdet.model.labels_file import read_labels
from batchdet.model.onnx_file import read_onnx
from batchdet.spec import ModelSpec


def stated_texts(model: LocalModel) -> Mapping[str, str]:
    """Return the texts in a fetched model by their names; the loader says what is wrong with damaged ones."""
    try:
        if model.format is Format.ONNX:
            return read_onnx(model.path).metadata
        if model.format is Format.NET:
            return dict(json.loads(safetensors_texts(model.path)[OWN_KEY])["properties"])
        if model.format is Format.HUGGINGFACE:
            return huggingface.read_folder(model.path).metadata
        return archive_texts(model.path) if model.format in (Format.TORCHSCRIPT, Format.EXPORTED) else {}
    except (ModelError, ValueError, KeyError, TypeError):
        return {}


def check_classes(spec: ModelSpec, model: LocalModel) -> None:
    """Refuse ``model.classes`` that the model does not have, if ``model.labels`` or its file names its classes.

    If neither does, or a plug-in head may, only loading the model can tell.

    Raises:
        SpecError: There is no such class, and the message names the nearest; or ``model.labels`` cannot be read.
    """
    if spec.classes is None or is_plugin(spec.family):
        return
    named = read_labels(spec.labels) if spec.labels else parse_names(stated_texts(model).get("names", ""))
    if named:
        class_numbers(spec.classes, named)
