"""Loading a Hugging Face folder with the package transformers: offline, safetensors only, no code of the folder."""

import os
from collections.abc import Mapping
from typing import Any

from batchdet.errors import MissingExtra, ModelError
from batchdet.model.huggingface import read_folder
from batchdet.model.loaders.loaded import LoadedModule
from batchdet.model.runtimes import TensorInfo, one_line
from batchdet.packages import missing_extra


def load(path: str) -> LoadedModule:
    """Load a checked folder.

    Args:
        path: A local folder.

    Returns:
        The module with the outputs ``logits`` (N, Q, classes) and ``pred_boxes`` (N, Q, 4), centre and size as shares
        of the canvas.

    Raises:
        MissingExtra: The package transformers, or one that this model needs, is not installed.
        ModelError: The folder is not understood, or its weights are not those of its configuration.
    """
    info = read_folder(path)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("model.uri: Hugging Face folders need", "huggingface", "transformers") from error
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = transformers.AutoModelForObjectDetection.from_pretrained(
            path, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except ImportError as error:
        raise MissingExtra(f"model.uri: this {info.model_type} needs a package: {one_line(error)}") from error
    except Exception as error:
        raise ModelError(f"the package transformers cannot load the model: {one_line(error)}") from error
    lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lacking:  # the library would go on with random numbers in their place
        raise ModelError(f"the folder's weights lack {len(lacking)} tensors of its configuration, first {lacking[0]}")
    model.eval().requires_grad_(False)

    def call(images: Any) -> Mapping[str, Any]:
        found = model(pixel_values=images)
        return {"logits": found.logits, "pred_boxes": found.pred_boxes}

    outputs = (
        TensorInfo("logits", "float32", (None, None, None)),
        TensorInfo("pred_boxes", "float32", (None, None, 4)),
    )
    images = TensorInfo("pixel_values", "float32", (None, 3, *(info.size or (None, None))))
    return LoadedModule(model, call, images, outputs, info.metadata, info.preprocess)
