"""Vectors of committed runs: which of them can be compared, and the vector of an image that is asked about."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from batchdet import storage
from batchdet.decode.canvas import decoded_onto_canvas
from batchdet.decode.header import read_header
from batchdet.errors import ImageError, ModelError, OutputError, SpecError
from batchdet.model.cache import LocalModel
from batchdet.model.child import in_child
from batchdet.model.detector import Detector
from batchdet.model.labels import label
from batchdet.records.detections import Detections
from batchdet.results.open import Results, open_results, readable
from batchdet.results.record import read_record, read_spec
from batchdet.results.tables import TableName, quote_text
from batchdet.spec import JobSpec, ModelSpec, unknown_way
from batchdet.text import counted

Vector = npt.NDArray[np.float32]
_IMAGE_ID: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Vectors:
    """Vectors of one model, made in one way, so that they can be compared.

    Args:
        results: The output with all its runs, so that each image counts once.
        run_ids: The runs that hold such vectors, oldest first.
        features: What the model's card says of them.
        passed_over: Runs whose vectors are others.
    """

    results: Results
    run_ids: tuple[str, ...]
    features: dict[str, Any]
    passed_over: tuple[str, ...]

    @property
    def kind(self) -> Literal["image", "boxes"]:
        """Whether images or detections have vectors."""
        kind: Literal["image", "boxes"] = self.features["kind"]
        return kind

    @property
    def table(self) -> TableName:
        """The table that holds them."""
        return "images" if self.kind == "image" else "detections"

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return int(self.features["size"])

    @property
    def condition(self) -> str:
        """SQL that holds for rows with such a vector."""
        return f"run_id IN ({', '.join(map(quote_text, self.run_ids))}) AND features IS NOT NULL"


@dataclass(frozen=True)
class Asked:
    """What neighbours are searched of.

    Args:
        vector: ``(D,)`` float32.
        uri: Where the image is.
        run_id: The run that holds the image; "" for a file.
        image_id: Likewise.
        detection: The box of a file that is meant, as a row of the detections table; null for a whole image, and for
            one of the tables.
    """

    vector: Vector
    uri: str
    run_id: str = ""
    image_id: str = ""
    detection: dict[str, Any] | None = None


def open_vectors(
    uri: str,
    run: str | None = None,
    settings: str | JobSpec | None = None,
    kind: Literal["image", "boxes"] | None = None,
) -> Vectors:
    """Find the vectors of an output: those of its newest run that has any, and of all runs that made them alike.

    Args:
        uri: The output's folder.
        run: Take the vectors of this run, and of no other.
        settings: Whose settings; as in :func:`batchdet.open_results`.
        kind: Only vectors of images, or of boxes; null takes those of the newest run.

    Raises:
        OutputError: There is no such output or run, or it holds no vectors.
    """
    results = open_results(uri, run, settings)
    made = {m.run_id: _made(results.uri, m.run_id) for m in results.viewed}
    with_vectors = [run_id for run_id, how in made.items() if how is not None and kind in (None, how[1]["kind"])]
    if not with_vectors:
        which, what = f"run {run}" if run else "no run of these settings", f"features of {kind}" if kind else "features"
        asked = kind or "image (or boxes)"
        raise OutputError(
            f"{results.uri}: {which} holds {'no ' if run else ''}{what}; run the job with --set model.features={asked}"
        )
    newest = made[with_vectors[-1]]
    assert newest is not None
    alike = tuple(run_id for run_id in with_vectors if made[run_id] == newest)
    others = tuple(run_id for run_id in with_vectors if run_id not in alike)
    return Vectors(results, alike, newest[1], others)


def _made(out: str, run_id: str) -> tuple[str, dict[str, Any]] | None:
    """Return what vectors depend on: the model's digest, and what is pooled how."""
    model = read_record(out, run_id, "lineage.json").get("model") or {}
    return (str(model["sha256"]), model["features"]) if model.get("features") else None


def ask_row(vectors: Vectors, image_id: str, box: int) -> Asked:
    """Find an image of the tables, or its detection of rank ``box``.

    Raises:
        SpecError: They hold no vector of it.
    """
    rank = "" if vectors.kind == "image" else f" AND detection_index = {int(box)}"
    with readable(vectors.results.uri):
        rows = vectors.results.sql(
            f"SELECT asked.features, places.uri, run_id FROM {vectors.table} AS asked "
            "JOIN (SELECT run_id, image_id, uri FROM images) AS places USING (run_id, image_id) "
            f"WHERE image_id = {quote_text(image_id)}{rank} AND {vectors.condition}"
        ).fetchall()
    if not rows:
        what = "vector of an image" if vectors.kind == "image" else f"vector of detection {box} of an image"
        raise SpecError(f"{vectors.results.uri}: there is no {what} {image_id}", code="similar.no_vector", key=image_id)
    vector, uri, run_id = rows[0]
    return Asked(np.array(vector, np.float32), uri, run_id, image_id)


def ask_file(vectors: Vectors, uri: str, box: int) -> Asked:
    """Run an image through the run's own model with its own settings.

    Raises:
        SpecError: The file is not there, is no image, or has no detection of rank ``box``.
        ModelError: The model is not there any more, is another one, or was computed in a way that this version lacks.
    """
    run_id = vectors.run_ids[-1]
    spec = read_spec(vectors.results.uri, run_id)
    lineage = read_record(vectors.results.uri, run_id, "lineage.json")
    uri = storage.normalize(uri)
    try:
        data = storage.read_bytes(uri)
        read_header(memoryview(data))  # what is no image is refused before a model is loaded for it
        model = _model_of(spec, lineage)
        found, labels = in_child("batchdet.results.vectors:detect_file", model, data, spec.source.max_pixels)
    except (storage.StorageError, ImageError) as error:
        raise SpecError(
            f"{uri} is neither an image id (32 hex digits) nor an image: {error.message}",
            code="similar.no_image", key=uri,
        ) from error  # fmt: skip
    if vectors.kind == "image":
        assert found.image_features is not None
        return Asked(found.image_features, uri)
    assert found.features is not None
    if box >= len(found):
        raise SpecError(
            f"{uri}: {counted(len(found), 'object')} found in it, and --box {box} names none of them",
            code="similar.no_box", key="--box",
        )  # fmt: skip
    class_id = int(found.class_ids[box])
    detection = dict(zip(("x_min", "y_min", "x_max", "y_max"), found.boxes_xyxy[box].tolist(), strict=True))
    detection |= {"label": label(labels, class_id), "class_id": class_id, "score": float(found.scores[box])}
    return Asked(found.features[box], uri, detection=detection)


def _model_of(spec: JobSpec, lineage: Mapping[str, Any]) -> ModelSpec:
    """Return the spec of a run's own model, to compute as the run did.

    Raises:
        ModelError: As of :func:`ask_file`.
    """
    how = lineage.get("computed", {})
    if unknown := unknown_way(how):
        raise ModelError(f"run {lineage.get('run_id', '')} cannot label another image: {unknown}")
    return spec.model.model_copy(update={"sha256": lineage["model"]["sha256"]}).as_computed(how)


def detect_file(
    model: ModelSpec, local: LocalModel, data: bytes, max_pixels: int
) -> tuple[Detections, tuple[str, ...]]:
    """Run one encoded image through a model, decoded as its spec says; for a process of its own.

    Args:
        model: How it is to be computed.
        local: The model on this node.
        data: The image.
        max_pixels: ``source.max_pixels``.

    Returns:
        What is found, and the labels of the model.

    Raises:
        ImageError: It cannot be decoded.
        ModelError: The model does not load.
    """
    detector = Detector(model, local.path, local.sha256)
    reduce = model.canvas.decode == "reduced"
    canvas, letterbox = decoded_onto_canvas(data, max_pixels, detector.letterbox, reduce)
    return detector.detect(canvas[None], [letterbox])[0], tuple(detector.labels)


def is_image_id(text: str) -> bool:
    """Tell whether a text has the form of an image id."""
    return _IMAGE_ID.fullmatch(text) is not None
