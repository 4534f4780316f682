"""Export an Ultralytics checkpoint to ONNX: a script for a process of its own, which alone sees that package.

Its text is run by ``python -c TEXT CHECKPOINT ONNX HEAD`` and prints one JSON object: what was made, or
``{"error": ...}``. It imports nothing of batchdet, so that it runs in any environment that has the package.
"""

import contextlib
import io
import json
import os
import sys
import warnings
from typing import Any


def export(checkpoint: str, target: str, head: str) -> dict[str, str]:
    """Write the ONNX file, with free batch, height and width.

    Args:
        checkpoint: A ``.pt`` file. Reading it runs what its maker put into it.
        target: The file to write.
        head: ``end2end``, ``one_to_many``, or ``auto``: end-to-end where the checkpoint has it.

    Raises:
        ValueError: The checkpoint is for another task, or lacks the head.
    """
    import ultralytics

    model: Any = ultralytics.YOLO(checkpoint, task=None)
    if model.task != "detect":
        raise ValueError(f"it is made for the task {model.task!r}, not for detection")
    detect = model.model.model[-1]
    has = {
        "end2end": getattr(detect, "one2one_cv2", None) is not None,
        "one_to_many": getattr(detect, "cv2", None) is not None,
    }
    chosen = head if head != "auto" else ("end2end" if has["end2end"] else "one_to_many")
    if not has.get(chosen, False):
        others = [name for name, there in has.items() if there]
        raise ValueError(f"it has no head {chosen}; model.head may be auto or {', '.join(others)}")
    if has["end2end"]:
        detect.end2end = chosen == "end2end"
    made = model.export(
        format="onnx",
        dynamic=True,
        simplify=False,
        device="cpu",
        verbose=False,
        **({"nms": False if chosen == "end2end" else None} if has["end2end"] else {}),
    )
    os.replace(made, target)
    return {"head": chosen, "exporter": f"ultralytics {ultralytics.__version__}"}


def main() -> None:
    """Do what the command line says."""
    warnings.simplefilter("ignore")
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            answer = export(*sys.argv[1:4])
    except ImportError as error:
        answer = {"missing": str(error)}
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
