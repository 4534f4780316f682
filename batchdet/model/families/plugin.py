"""Plug-in heads: families that users write for detectors whose outputs batchdet does not know."""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import sysconfig
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from batchdet.errors import ModelError, SpecError
from batchdet.geometry.letterbox import Letterbox
from batchdet.model.families.family import (
    SCORE_ROUNDING,
    DecodeSettings,
    Family,
    SenselessOutput,
    Signature,
    candidates,
    detections,
    strongest,
    suppressed,
)
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Tensor
from batchdet.records.detections import Detections
from batchdet.spec import FAMILIES, FAMILY_GROUP

Array = npt.NDArray[Any]
_INTEGERS: Final = "iu"
_USER_ERRORS: Final = (Exception, SystemExit)
"""What a user's code may raise; ``sys.exit`` would end the job with status 0 and nothing done."""
_FOLDER: Final = "BATCHDET_PLUGINS"
"""Environment variable with the folder of the job file; child processes and workers of this machine inherit it."""
_PACKAGE: Final = str(Path(__file__).parents[2]) + os.sep


class Head(ABC):
    """What you write: how the outputs of your detector become boxes.

    It is made once in each process, without arguments, and holds no state between images. Everything else is done for
    you: the score threshold, classes, limits, original pixels, order.
    """

    preprocess: Preprocess = Preprocess()
    """What the model is fed, and how images are put on its canvas."""
    labels: tuple[str, ...] = ()
    """Texts of the classes by number; empty takes the model file's, or the spec's ``model.labels``."""
    nms: bool = False
    """Whether overlapping boxes of one class are to be suppressed, by ``model.iou_threshold``."""

    @abstractmethod
    def decode(self, outputs: Mapping[str, Array], canvas: tuple[int, int]) -> tuple[Array, Array, Array]:
        """Find boxes in the outputs for one image.

        Args:
            outputs: The model's outputs by name, without the axis of the batch.
            canvas: ``(width_px, height_px)`` that the model saw.

        Returns:
            Boxes ``(N, 4)``: x_min, y_min, x_max, y_max in pixels of the canvas; scores ``(N,)`` in 0..1; and class
            numbers ``(N,)``, integers. In any order; low scores may stay in.
        """


class PluginError(ModelError):
    """A plug-in head failed, or returned something else than it must; no image is to blame."""


class PluginFamily(Family):
    """Makes a :class:`batchdet.model.families.Family` of a user's head.

    Args:
        name: As the spec has it.
        head: The user's object.
    """

    def __init__(self, name: str, head: Head) -> None:
        self.name = name
        self.summary = f"the head of {type(head).__module__}"
        self.preprocess = head.preprocess
        self.labels = head.labels
        self._head = head

    def fits(self, signature: Signature) -> str | None:
        """Whatever the user names is taken."""
        return None

    def recognise(self, signature: Signature, metadata: Mapping[str, str]) -> str | None:
        """A plug-in is named, never guessed."""
        return None

    def class_count(self, signature: Signature) -> int | None:
        """Return the number of labels, None when the head has none."""
        return len(self.labels) or None

    def decode(
        self, outputs: Mapping[str, Tensor], letterboxes: Sequence[Letterbox], settings: DecodeSettings
    ) -> list[Detections]:
        """Turn the outputs of one run into detections.

        Raises:
            PluginError: The head failed, or returned arrays of other shapes.
            SenselessOutput: What the head returned cannot be true.
        """
        for name, array in outputs.items():
            if array.ndim == 0 or len(array) != len(letterboxes):
                raise PluginError(
                    f"model.family: {self.name}: the model's output {name} is {list(array.shape)} for "
                    f"{len(letterboxes)} images; its first axis must be that of the images"
                )
        found = []
        for i, letterbox in enumerate(letterboxes):
            boxes, scores, class_ids = self._decoded({n: array[i] for n, array in outputs.items()}, letterbox.canvas)
            choose, place = (candidates, suppressed) if self._head.nms else (strongest, detections)
            keep = choose(scores, class_ids, settings)
            try:
                found.append(place(boxes[keep], scores[keep], class_ids[keep], letterbox, settings))
            except SenselessOutput as error:
                file = sys.modules[type(self._head).__module__].__file__
                raise error.about(f"model.family: {self.name}: decode in {file} returned what cannot be true") from None
        return found

    def _decoded(self, outputs: dict[str, Array], canvas: tuple[int, int]) -> tuple[Any, Any, Any]:
        try:
            returned = self._head.decode(outputs, canvas)
        except _USER_ERRORS as error:
            raise PluginError(f"model.family: {self.name}: {_where(error, self._head)}: {_said(error)}") from error
        try:
            boxes, scores, class_ids = (np.asarray(part) for part in returned)
        except (TypeError, ValueError) as error:
            raise self._wrong(f"{type(returned).__name__}") from error
        if boxes.size == scores.size == class_ids.size == 0:  # of empty lists, whatever their shape and type
            boxes, scores, class_ids = np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int32)
        n = len(scores) if scores.ndim == 1 else -1
        if boxes.shape != (n, 4) or class_ids.shape != (n,) or (n and class_ids.dtype.kind not in _INTEGERS):
            raise self._wrong(", ".join(f"{part.dtype} {list(part.shape)}" for part in (boxes, scores, class_ids)))
        if n and not (scores.min() >= -SCORE_ROUNDING and scores.max() <= 1 + SCORE_ROUNDING):
            raise self._wrong(f"scores from {scores.min():.3g} to {scores.max():.3g}, which must lie in 0..1")
        last = len(self.labels) - 1 if self.labels else None
        if n and not (class_ids.min() >= 0 and (last is None or class_ids.max() <= last)):
            wanted = "0 or more" if last is None else f"from 0 to {last}"
            raise self._wrong(f"class numbers from {class_ids.min()} to {class_ids.max()}, which must be {wanted}")
        return boxes.astype(np.float32), scores.clip(0, 1).astype(np.float32), class_ids.astype(np.int32)

    def _wrong(self, found: str) -> PluginError:
        return PluginError(
            f"model.family: {self.name}: decode returned {found}; it must return boxes [N, 4], scores [N] and "
            "integer class numbers [N]"
        )


def look_beside(job_path: str) -> None:
    """Let a head be loaded that lies beside a job file of this machine.

    The folder never enters ``sys.path``: only the module that the spec names is loaded from it, by its file.
    """
    if "://" not in job_path:
        os.environ[_FOLDER] = os.path.dirname(os.path.abspath(job_path))


def class_path(name: str) -> str:
    """Return ``module:Class`` of a plug-in that the spec names so or by its entry point."""
    if ":" in name:
        return name
    (point,) = importlib.metadata.entry_points(group=FAMILY_GROUP, name=name)
    return point.value


def load_plugin(name: str) -> PluginFamily:
    """Import a user's head and make one.

    Raises:
        SpecError: There is no such module or class, or it is no head; the message names ``model.family``.
        PluginError: Its module or its constructor fails.
    """
    module_name, _, class_name = class_path(name).partition(":")
    try:
        module = _module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise PluginError(f"model.family: {name}: {_where(error)}: {_said(error)}") from error
        raise SpecError(
            f"model.family: {name}: there is no module {module_name}; it must lie beside the job file, or be installed"
        ) from error
    except _USER_ERRORS as error:
        raise PluginError(f"model.family: {name}: {_where(error)}: {_said(error)}") from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Head)):
        what = f"has no class {class_name}" if found is None else f"has a {class_name} that is no batchdet.plugin.Head"
        raise SpecError(f"model.family: {name}: {module.__file__} {what}")
    try:
        head = found()
    except _USER_ERRORS as error:
        raise PluginError(f"model.family: {name}: {_where(error)}: {_said(error)}") from error
    labels_fit = isinstance(head.labels, tuple | list) and all(isinstance(text, str) for text in head.labels)
    if not isinstance(head.preprocess, Preprocess) or not labels_fit:
        raise PluginError(f"model.family: {name}: preprocess must be a Preprocess, and labels a tuple of texts")
    return PluginFamily(name, head)


def _module(name: str) -> ModuleType:
    """Import a module: an installed one, else a file or a package beside the job."""
    root = name.partition(".")[0]
    folder = os.environ.get(_FOLDER)
    if folder and root not in sys.modules and importlib.util.find_spec(root) is None:
        for file, inside in (
            (Path(folder, f"{root}.py"), None),
            (Path(folder, root, "__init__.py"), Path(folder, root)),
        ):
            if file.is_file():
                _load_file(root, file, inside)
                break
    return importlib.import_module(name)


def _load_file(name: str, file: Path, package: Path | None) -> None:
    spec = importlib.util.spec_from_file_location(
        name, file, submodule_search_locations=None if package is None else [str(package)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def is_plugin(name: str) -> bool:
    """Tell whether ``model.family`` names a plug-in."""
    return name != "auto" and name not in FAMILIES


def plugin_root(name: str) -> Path:
    """Return the file of a plug-in's module, or the folder of the outermost package that it is in.

    Raises:
        SpecError, PluginError: As of :func:`load_plugin`.
    """
    load_plugin(name)
    outermost = sys.modules[class_path(name).partition(":")[0].partition(".")[0]]
    file = Path(str(outermost.__file__)) if outermost.__file__ else Path(next(iter(outermost.__path__))) / "__init__.py"
    return file.parent if file.name == "__init__.py" else file


def plugin_to_ship(name: str) -> Path | None:
    """Return what other machines need of a plug-in that is not installed; None when they need nothing."""
    if not is_plugin(name):
        return None
    root = plugin_root(name)
    installed = [Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")]
    return None if any(root.is_relative_to(place) for place in installed) else root


def plugin_sha256(name: str) -> str:
    """Return the digest of a plug-in's source, on which results depend."""
    root = plugin_root(name)
    files = sorted(root.rglob("*.py")) if root.is_dir() else [root]
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def _where(error: BaseException, head: Head | None = None) -> str:
    """Name the line that failed: the last in the head's file, else the last outside batchdet, else the last of all."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = sys.modules[type(head).__module__].__file__ if head is not None else None
    in_head = (f for f in reversed(frames) if f.filename == own)
    elsewhere = (f for f in reversed(frames) if not f.filename.startswith((_PACKAGE, "<")))
    frame = next(in_head, None) or next(elsewhere, frames[-1])
    return f"{frame.filename}, line {frame.lineno}"


def _said(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"
