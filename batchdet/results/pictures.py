"""Annotated pictures of a run: some of its images, fetched again, with what was found in them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import cv2
import numpy as np
import pyarrow as pa

from batchdet import storage
from batchdet.decode.image import decode_image
from batchdet.errors import ImageError
from batchdet.results.draw import Box, Pixels, contact_sheet, draw_boxes, draw_note
from batchdet.results.open import Results, open_results, readable
from batchdet.results.record import read_spec
from batchdet.source.reader import read_image
from batchdet.spec import JobSpec, SourceSpec

Reader = Callable[[SourceSpec, str, str, str, int], bytes]
_MAX_CLASSES: Final = 200
_MAX_GAIN: Final = 3
"""An image counts for at most so many new classes, or only the most crowded ones would be chosen."""

MIN_SCORE: Final = 0.4
"""Boxes below this score are not drawn by default: most are second guesses at an object that has a better box."""

_JPEG_QUALITY: Final = 90
_MAX_FILE_PIXELS: Final = 1_000_000_000
"""Of a file that is in no table; the model has seen it already, under the limit of its run."""
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Chosen:
    """An image of the tables that is to be drawn.

    Args:
        run_id: Its run.
        image_id: Its id.
        detection_index: Rank of the one detection that is drawn, whatever its score; null draws all.
        note: Written on the picture, and before its name below.
    """

    run_id: str
    image_id: str
    detection_index: int | None = None
    note: str = ""


@dataclass(frozen=True)
class OtherFile:
    """An image file, in no table, that is to be drawn.

    Args:
        uri: Where it is.
        detections: Rows of the detections table, drawn whatever their score.
        note: Written on the picture, and before its name below.
    """

    uri: str
    detections: tuple[Mapping[str, Any], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Pictures:
    """What was written.

    Args:
        files: URIs of the pictures, in the order of the contact sheet.
        contact_sheet: Its URI; null when there is no picture.
        skipped: One sentence for each image that could not be fetched or decoded again.
        min_score: Only boxes with at least this score are drawn.
        boxes_left_out: Boxes of these images with a lower one.
    """

    files: tuple[str, ...]
    contact_sheet: str | None
    skipped: tuple[str, ...]
    min_score: float
    boxes_left_out: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def summary(self) -> str:
        """Say in a line where to look, and what is not to be seen there."""
        if self.contact_sheet is None:
            return "none, no image could be read again" if self.skipped else "none, the run has no image to draw"
        if not self.boxes_left_out:
            return self.contact_sheet
        boxes = "1 box is" if self.boxes_left_out == 1 else f"{self.boxes_left_out:,} boxes are"
        return f"{self.contact_sheet}  ({boxes} not drawn, below score {self.min_score:g}; see --min-score)"


def write_pictures(
    uri: str,
    folder: str,
    run: str | None = None,
    count: int = 12,
    read: Reader = read_image,
    min_score: float = MIN_SCORE,
    chosen: Sequence[Chosen | OtherFile] | None = None,
    settings: str | JobSpec | None = None,
) -> Pictures:
    """Write annotated pictures and a contact sheet.

    The choice is the same every time: images with boxes to draw first, spread over the classes.

    Args:
        uri: The output's folder.
        folder: Where the JPEG files go; any URI that can be written.
        run: Only this run; null takes the newest rows of each image.
        count: At most this many pictures.
        read: Fetches an image again: (source, uri, shard_uri, member, position) -> bytes.
        min_score: Only boxes with at least this score are drawn; the tables hold many that the model hardly believes.
        chosen: Draw these, in this order, instead of a choice of ``count``.
        settings: Whose settings; as in :func:`batchdet.open_results`.

    Raises:
        OutputError: There is no such output or run, or its files cannot be read.
        StorageError: The folder cannot be written.
    """
    results = open_results(uri, run, settings)
    folder = storage.normalize(folder)
    with readable(results.uri):
        if chosen is None:
            chosen = [Chosen(*key) for key in choose_images(results, count, min_score)]
        rows = _rows_of(results, chosen, min_score)
    skipped: list[str] = []
    left_out: list[int] = []
    files: list[str] = []
    thumbnails: list[tuple[str, Pixels]] = []
    for row, rgb in _fetch(results, rows, read, skipped):
        ((name, picture),) = draw_pictures([(row["member"], rgb, row["found"])])
        if row["note"]:
            draw_note(picture, row["note"])
        file = storage.join(folder, f"{len(files):02d}-{_file_stem(name)}.jpg")
        storage.write_bytes(file, _jpeg(picture))
        files.append(file)
        left_out.append(row["left_out"])
        thumbnails.append((f"{row['note']}  {name}".strip(), picture))
    sheet = None
    if thumbnails:
        sheet = storage.join(folder, "contact_sheet.jpg")
        storage.write_bytes(sheet, _jpeg(contact_sheet(thumbnails)))
    return Pictures(tuple(files), sheet, tuple(skipped), min_score, sum(left_out))


def draw_pictures(
    images: Iterable[tuple[str, Pixels, Sequence[Mapping[str, Any]]]],
    truth: Mapping[str, Sequence[Box]] | None = None,
) -> Iterator[tuple[str, Pixels]]:
    """Draw the rows of the detections table on their images.

    Args:
        images: Name, ``(H, W, 3)`` uint8 RGB, and rows of :data:`batchdet.records.schema.DETECTIONS`.
        truth: Name -> boxes of the ground truth.

    Yields:
        Name and the picture, uint8 RGB.
    """
    for name, rgb, rows in images:
        boxes = [
            Box((row["x_min"], row["y_min"], row["x_max"], row["y_max"]), row["label"], row["class_id"], row["score"])
            for row in rows
        ]
        yield name, draw_boxes(rgb, boxes, (truth or {}).get(name, ()))


def choose_images(results: Results, count: int, min_score: float = 0.0) -> list[tuple[str, str]]:
    """Choose images to look at: varied, and the same every time.

    Image ids are digests, so that the lowest of a class are a fair sample of it.

    Args:
        results: The runs.
        count: At most this many.
        min_score: Detections below it do not count.

    Returns:
        ``(run_id, image_id)`` of each, those with the most new classes first.
    """
    candidates = results.sql(
        f"WITH sure AS (FROM detections WHERE score >= {_sql_score(min_score)}), "
        "common AS (SELECT label FROM sure GROUP BY ALL "
        f"ORDER BY count(*) DESC, label LIMIT {_MAX_CLASSES}), "
        "pairs AS (SELECT DISTINCT label, image_id FROM sure SEMI JOIN common USING (label)), "
        f"few AS (SELECT DISTINCT unnest(min(image_id, {max(int(count), 1)})) AS image_id FROM pairs GROUP BY label) "
        "SELECT run_id, image_id, list(DISTINCT label) FROM sure SEMI JOIN few USING (image_id) GROUP BY ALL"
    ).fetchall()
    left = {(run_id, image_id): frozenset(labels) for run_id, image_id, labels in sorted(candidates)}
    chosen: list[tuple[str, str]] = []
    seen: set[str] = set()
    while left and len(chosen) < count:
        best = min(left, key=lambda key: (-min(len(left[key] - seen), _MAX_GAIN), key[1]))
        if not left[best] - seen:
            seen.clear()  # every class was shown: begin again
        seen |= left.pop(best)
        chosen.append(best)
    if len(chosen) < count:
        empty = (
            "SELECT run_id, image_id FROM images WHERE status = 'ok' AND "
            f"(detection_count = 0 OR max_score < {_sql_score(min_score)}) "
            f"ORDER BY detection_count > 0, image_id LIMIT {int(count) - len(chosen)}"
        )
        chosen += results.sql(empty).fetchall()
    return chosen


def _sql_score(score: float) -> str:
    return f"{float(score)!r}::FLOAT"  # as narrow as the column, or 0.7 would leave out a box of score 0.7


def _rows_of(results: Results, chosen: Sequence[Chosen | OtherFile], min_score: float) -> list[dict[str, Any]]:
    """Return what is to be drawn: rows of images with ``found`` rows of detections, how many are ``left_out``, a note.

    The row of a file that is in no table has an empty run id.
    """
    stored = [(one.run_id, one.image_id) for one in chosen if isinstance(one, Chosen)]
    images = _stored_rows(results, stored)
    rows: list[dict[str, Any]] = []
    for one in chosen:
        if isinstance(one, OtherFile):
            place = {"run_id": "", "uri": one.uri, "member": storage.basename(one.uri)}
            rows.append({**place, "found": list(one.detections), "left_out": 0, "note": one.note})
            continue
        row = images[one.run_id, one.image_id]
        index, least = one.detection_index, np.float32(min_score)  # as narrow as the column
        found = [d for d in row["found"] if (d["score"] >= least if index is None else d["detection_index"] == index)]
        left_out = len(row["found"]) - len(found) if index is None else 0
        rows.append({**row, "found": found, "left_out": left_out, "note": one.note})
    return rows


def _stored_rows(results: Results, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Read the rows of images, ``(run_id, image_id)`` each, with their rows of detections as ``found``."""
    columns = {"run_id": [key[0] for key in keys], "image_id": [key[1] for key in keys]}
    fields = pa.schema([("run_id", pa.string()), ("image_id", pa.string())])
    results.connection.register("chosen", pa.table(columns, fields))
    images = results.sql(
        "SELECT run_id, image_id, uri, shard_uri, member, position "
        "FROM images SEMI JOIN chosen USING (run_id, image_id)"
    )
    rows = {(row["run_id"], row["image_id"]): {**row, "found": []} for row in images.to_arrow_table().to_pylist()}
    detections = results.sql(
        "SELECT * FROM detections SEMI JOIN chosen USING (run_id, image_id) ORDER BY detection_index"
    )
    for row in detections.to_arrow_table().to_pylist():
        rows[row["run_id"], row["image_id"]]["found"].append(row)
    return rows


def _fetch(
    results: Results, rows: Iterable[Mapping[str, Any]], read: Reader, skipped: list[str]
) -> Iterator[tuple[Mapping[str, Any], Pixels]]:
    """Fetch and decode images again; those that cannot be are told of in ``skipped``."""
    sources: dict[str, SourceSpec] = {}
    for row in rows:
        run_id, uri = row["run_id"], row["uri"]
        if run_id and run_id not in sources:
            sources[run_id] = read_spec(results.uri, run_id).source
        try:
            if run_id:
                data = read(sources[run_id], uri, row["shard_uri"], row["member"], row["position"])
            else:
                data = storage.read_bytes(uri)
            rgb = decode_image(data, sources[run_id].max_pixels if run_id else _MAX_FILE_PIXELS)
        except (ImageError, storage.StorageError) as error:
            skipped.append(error.message if error.message.startswith(uri) else f"{uri}: {error.message}")
            continue
        yield row, rgb


def _file_stem(name: str) -> str:
    stem = storage.basename(name).rsplit(".", 1)[0]
    return _UNSAFE.sub("_", stem).strip("._")[:60] or "image"


def _jpeg(rgb: Pixels) -> bytes:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return bytes(data)
