"""Ultralytics checkpoints: exported once to ONNX by the user's own ``ultralytics`` package, then run without it.

That package and its weights are AGPL-3.0. batchdet never imports it: the export runs in a process of its own, by the
interpreter that ``BATCHDET_ULTRALYTICS_PYTHON`` names, else by this one.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from batchdet.errors import MissingExtra, ModelError
from batchdet.model.cache import LocalModel, digest_of, engine_folder, write_note, writing
from batchdet.model.format import Format
from batchdet.model.onnx_file import read_onnx
from batchdet.packages import missing_extra

PYTHON: Final = "BATCHDET_ULTRALYTICS_PYTHON"
_SCRIPT: Final = Path(__file__).with_name("ultralytics_export.py")
_VERSION: Final = "import importlib.metadata as m; print(m.version('ultralytics'))"
_TIMEOUT_S: Final = 600
_OTHER_WAYS: Final = (
    f"name a Python that has it in {PYTHON}, or export the checkpoint yourself: "
    "yolo export model=FILE.pt format=onnx dynamic=True"
)


def exported(checkpoint: LocalModel, head: str, cache_dir: str | None = None) -> LocalModel:
    """Return the ONNX export of a checkpoint, made at the first use on this node.

    Args:
        checkpoint: The ``.pt`` file, which the user trusts: reading it runs what its maker put into it.
        head: ``model.head`` of the spec.
        cache_dir: The model cache; None takes the usual one.

    Returns:
        The ONNX file under the checkpoint's digest, which is what identifies the model everywhere.

    Raises:
        MissingExtra: The package is not installed.
        ModelError: It is no checkpoint of a detector of Ultralytics, or has no such head.
    """
    python = os.environ.get(PYTHON) or sys.executable
    key = hashlib.sha256(f"{checkpoint.sha256}\0{head}\0{_version(python)}".encode()).hexdigest()
    with engine_folder(f"ultralytics-{key[:32]}", cache_dir) as folder:
        target, note = os.path.join(folder, "model.onnx"), os.path.join(folder, "model.sha256")
        if not _whole(target, note):
            with writing(os.path.dirname(os.path.dirname(folder))):
                _export(python, checkpoint.path, target, head)
                write_note(note, digest_of(target).encode())
        read_onnx(target)
        return replace(checkpoint, path=target, format=Format.ONNX)


def _missing(why: str = "") -> MissingExtra:
    error = missing_extra("model.uri: checkpoints of Ultralytics need", "ultralytics", "ultralytics")
    return MissingExtra(f"{error.message}; or {_OTHER_WAYS}{why}", key=error.key)


def _version(python: str) -> str:
    try:
        done = subprocess.run(  # not in the user's folder, from which `-c` would import
            [python, "-c", _VERSION], cwd="/", capture_output=True, text=True, timeout=60, check=False
        )
    except OSError as error:
        raise MissingExtra(f"{PYTHON}: {python} cannot be run: {error.strerror}") from error
    if done.returncode:
        raise _missing()
    return done.stdout.strip()


def _whole(target: str, note: str) -> bool:
    try:
        return Path(note).read_text(encoding="ascii") == digest_of(target)
    except (OSError, ValueError):
        return False


def _export(python: str, checkpoint: str, target: str, head: str) -> None:
    with tempfile.TemporaryDirectory(dir=os.path.dirname(target)) as folder:
        # beside a name of its own, because the exporter writes next to what it reads
        own = os.path.join(folder, "model.pt")
        os.link(checkpoint, own)
        settings = {"YOLO_CONFIG_DIR": folder, "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
        try:
            done = subprocess.run(
                [python, "-c", _SCRIPT.read_text(encoding="utf-8"), own, target, head],  # in whose path we are not
                env=os.environ | settings,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ModelError(f"the export of the checkpoint took more than {_TIMEOUT_S} s") from error
    answer = _answer(done)
    if "missing" in answer:
        raise _missing(f" ({answer['missing']})")
    if "error" in answer:
        text = " ".join(str(answer["error"]).split())[:300].removeprefix("ValueError: ")
        raise ModelError(f"the checkpoint cannot be exported by Ultralytics: {text}")


def _answer(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
        return found
    except ValueError:
        last = done.stderr.strip().rpartition("\n")[2]
        return {"error": f"the process ended with {done.returncode}: {last}"}
