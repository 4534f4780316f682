"""Annotated pictures of a run: some of its images, fetched again, with what was found in them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import cv2
import pyarrow as pa

from batchdet import storage
from batchdet.decode.image import decode_image
from batchdet.errors import ImageError
from batchdet.results.draw import Box, Pixels, contact_sheet, draw_boxes
from batchdet.results.open import Results, open_results, readable
from batchdet.results.record import read_spec
from batchdet.source.reader import read_image
from batchdet.spec import JobSpec, SourceSpec

Reader = Callable[[SourceSpec, str, str, str, int], bytes]
Chosen = tuple[str, str, int | None]
"""run_id, image_id, and the rank of the detection that is meant, or None for all."""

_MAX_CLASSES: Final = 200
_MAX_GAIN: Final = 3
"""An image counts for at most so many new classes, or only the most crowded ones would be chosen."""

MIN_SCORE: Final = 0.4
"""Boxes below this score are not drawn by default: most are second guesses at an object that has a better box."""

_JPEG_QUALITY: Final = 90
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


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
    chosen: Sequence[Chosen] | None = None,
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
            rows = _rows_of(results, choose_images(results, count, min_score), min_score)
        else:
            rows = _only(_rows_of(results, [(one[0], one[1]) for one in chosen], min_score), chosen)
    skipped: list[str] = []
    left_out: list[int] = []
    files: list[str] = []
    thumbnails: list[tuple[str, Pixels]] = []
    for name, picture in draw_pictures(_fetch(results, rows, read, skipped, left_out)):
        file = storage.join(folder, f"{len(files):02d}-{_file_stem(name)}.jpg")
        storage.write_bytes(file, _jpeg(picture))
        files.append(file)
        thumbnails.append((name, picture))
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


def _rows_of(results: Results, chosen: Sequence[tuple[str, str]], min_score: float) -> list[dict[str, Any]]:
    """Read the rows of some images, each with its ``found`` rows of detections, and how many were ``left_out``."""
    keys = {"run_id": [key[0] for key in chosen], "image_id": [key[1] for key in chosen]}
    fields = pa.schema([("run_id", pa.string()), ("image_id", pa.string())])
    results.connection.register("chosen", pa.table(keys, fields))
    columns = "run_id, image_id, uri, shard_uri, member, position"
    images = results.sql(f"SELECT {columns} FROM images SEMI JOIN chosen USING (run_id, image_id)")
    rows = {
        (row["run_id"], row["image_id"]): {**row, "found": [], "left_out": 0}
        for row in images.to_arrow_table().to_pylist()
    }
    detections = results.sql(
        f"SELECT *, score >= {_sql_score(min_score)} AS sure FROM detections SEMI JOIN chosen USING (run_id, image_id) "
        "ORDER BY detection_index"
    )
    for row in detections.to_arrow_table().to_pylist():
        of = rows[row["run_id"], row["image_id"]]
        if row.pop("sure"):
            of["found"].append(row)
        else:
            of["left_out"] += 1
    return [rows[key] for key in chosen]


def _only(rows: Sequence[dict[str, Any]], chosen: Sequence[Chosen]) -> list[dict[str, Any]]:
    """Leave of each image's detections the one that is meant, where one is."""
    return [
        row if index is None else {**row, "found": [d for d in row["found"] if d["detection_index"] == index]}
        for row, (_, _, index) in zip(rows, chosen, strict=True)
    ]


def _fetch(
    results: Results, rows: Iterable[Mapping[str, Any]], read: Reader, skipped: list[str], left_out: list[int]
) -> Iterator[tuple[str, Pixels, Sequence[Mapping[str, Any]]]]:
    """Fetch and decode images again; those that cannot be are told of in ``skipped``."""
    sources: dict[str, SourceSpec] = {}
    for row in rows:
        if row["run_id"] not in sources:
            sources[row["run_id"]] = read_spec(results.uri, row["run_id"]).source
        source = sources[row["run_id"]]
        try:
            data = read(source, row["uri"], row["shard_uri"], row["member"], row["position"])
            rgb = decode_image(data, source.max_pixels)
        except (ImageError, storage.StorageError) as error:
            named = error.message.startswith(row["uri"])
            skipped.append(error.message if named else f"{row['uri']}: {error.message}")
            continue
        left_out.append(row["left_out"])
        yield row["member"], rgb, row["found"]


def _file_stem(name: str) -> str:
    stem = storage.basename(name).rsplit(".", 1)[0]
    return _UNSAFE.sub("_", stem).strip("._")[:60] or "image"


def _jpeg(rgb: Pixels) -> bytes:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return bytes(data)
