"""Every column of every table: name, Arrow type, unit, meaning. Stated here and nowhere else."""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa

SCHEMA_VERSION: Final = 1
"""Raised when a column changes its name, type or meaning."""

ERROR_CODES: Final[dict[str, str]] = {
    "empty": "the file has no bytes",
    "not_an_image": "the first bytes are those of no known file format, or of a text or HTML page",
    "unsupported_format": "a known format, or TIFF compression, that is not on the allow-list (PSD, EPS, CgBI, ...)",
    "unsupported_mode": "pixels of a kind that has no rule (floating point, more than 4 channels)",
    "truncated": "the image data ends too early",
    "corrupt": "the decoder refused the data (checksum, markers, structure)",
    "too_large": "more pixels or bytes than the limits of the spec allow",
    "unreadable": "the object could not be read (missing, permission, storage failure after retries)",
    "size_mismatch": "fewer or more bytes arrived than were listed",
    "unsafe_member": "an archive member that is not a plain file, or whose name is not safe",
    "duplicate_member": "the same member name occurs a second time in its shard",
    "shard_truncated": "the shard ends in the middle; images behind this point cannot be listed",
    "shard_corrupt": "the shard cannot be read from this point on; images behind it cannot be listed",
    "shard_unreadable": "the shard is gone, forbidden, or not as it was listed; the rest of it is not labelled",
    "refused_uri": "the listed URI is not on the allow-list",
    "null_image": "the table's image column holds nothing in this row",
    "inference": "the model failed on this image",
    "crashed": "the process that worked on this image died, each time",
    "timed_out": "a worker spent more than compute.image_timeout_s on this image",
    "out_of_memory": "a worker took more than compute.image_memory_bytes for this image",
}
"""Error code of a failed image -> what it means."""

PASSING_SHARD_CODES: Final = frozenset({"shard_unreadable"})
"""Codes of a shard that another try may read although it has not changed: every run tries it again."""

SHARD_CODES: Final = PASSING_SHARD_CODES | {"shard_truncated", "shard_corrupt"}
"""Codes of rows that say something of a shard (a tar or Parquet file) and nothing of an image in it."""

RETRIABLE_CODES: Final = SHARD_CODES | {
    "unreadable",
    "size_mismatch",
    "inference",
    "crashed",
    "timed_out",
    "out_of_memory",
}
"""Codes of failures that another try may mend, because they need not lie in the image."""

FEATURES: Final = "features"
"""Name of the column of vectors, in ``images`` or in ``detections``."""

STATUS_OK: Final = "ok"
STATUS_FAILED: Final = "failed"


def _field(name: str, type_: pa.DataType, text: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, type_, nullable=nullable, metadata={"description": text})


MEMBERS: Final = pa.schema(
    [
        _field("uri", pa.string(), "where the image is: its own URI, or SHARD#MEMBER inside an archive or table"),
        _field("shard_uri", pa.string(), "the source object (or folder, or list) that holds the image"),
        _field("member", pa.string(), "the image's name within shard_uri; unique there"),
        _field("position", pa.int64(), "place within its shard, from 0"),
        _field("size_bytes", pa.int64(), "encoded size; -1 when it is not known"),
        _field("error_code", pa.string(), "why reading failed, else null", nullable=True),
        _field("error_message", pa.string(), "the same for a person, else null", nullable=True),
    ]
)
"""One row per listed image of a segment, as a reader makes it. Columns carried over follow."""

IMAGES: Final = pa.schema(
    [
        _field("run_id", pa.string(), "the run that labelled the image; sorts by time"),
        _field("image_id", pa.string(), "32 hex digits from shard_uri and member; the same in every run"),
        *[f for f in MEMBERS if not f.name.startswith("error_")],
        _field("width_px", pa.int32(), "width of the upright image; null when it failed", nullable=True),
        _field("height_px", pa.int32(), "height of the upright image; null when it failed", nullable=True),
        _field("status", pa.string(), "ok or failed"),
        _field("error_code", pa.string(), "why it failed, else null", nullable=True),
        _field("error_message", pa.string(), "the same for a person, else null", nullable=True),
        _field("detection_count", pa.int32(), "rows in detections"),
        _field("max_score", pa.float32(), "highest score; null without detections", nullable=True),
    ]
)
"""One row per listed image. Columns carried over from the source follow."""

DETECTIONS: Final = pa.schema(
    [
        _field("run_id", pa.string(), "the run that labelled the image"),
        _field("image_id", pa.string(), "joins with images.image_id"),
        _field("detection_index", pa.int32(), "rank within the image by score, from 0"),
        _field("class_id", pa.int32(), "the model's class number"),
        _field("label", pa.string(), "the class's text"),
        _field("score", pa.float32(), "confidence in [0, 1]"),
        _field("x_min", pa.float32(), "left edge, pixels of the upright original"),
        _field("y_min", pa.float32(), "top edge, pixels of the upright original"),
        _field("x_max", pa.float32(), "right edge, pixels of the upright original"),
        _field("y_max", pa.float32(), "bottom edge, pixels of the upright original"),
    ]
)
"""One row per detected object."""


def schema_of(table: str, features: Mapping[str, Any]) -> pa.Schema:
    """Return the columns of a table for a job that may want vectors beside the boxes.

    Args:
        table: ``images`` or ``detections``.
        features: What the model's card says of them: ``kind`` (image, boxes), ``type`` (float32, float16) and ``size``;
            empty for none.
    """
    schema = {"images": IMAGES, "detections": DETECTIONS}[table]
    if not features or table != {"image": "images", "boxes": "detections"}[features["kind"]]:
        return schema
    number = {"float32": pa.float32(), "float16": pa.float16()}[features["type"]]
    vector = pa.list_(pa.field("element", number, nullable=False), features["size"])
    text = "vector pooled inside the model (model.features); null when the image failed"
    return schema.append(_field(FEATURES, vector, text, nullable=True))


def image_id(shard_uri: str, member: str) -> str:
    """Name an image for ever, from where it is and nothing else.

    Args:
        shard_uri: The source object (or folder, or list) that holds the image.
        member: The image's name within it.

    Returns:
        32 lower-case hex digits (128 bits of BLAKE2b over both, separated by NUL).
    """
    key = shard_uri.encode("utf-8", "surrogateescape") + b"\0" + member.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(key, digest_size=16).hexdigest()
