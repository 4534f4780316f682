"""Write sample scenes as a dataset: images in one of three formats and ground truth in COCO JSON."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from batchdet import storage
from batchdet.errors import OutputError, SpecError
from batchdet.sample.scene import KIND_SETS, Scene, render_scene

FORMATS = ("webdataset", "folder", "parquet")
INSTANCES = "instances.json"

_JPEG_QUALITY = 92
_PARQUET_SCHEMA = pa.schema(
    [
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]), nullable=False),
        pa.field("objects", pa.string(), nullable=False),
    ],
    metadata={
        "huggingface": json.dumps(
            {
                "info": {
                    "features": {
                        "file_name": {"dtype": "string", "_type": "Value"},
                        "image": {"_type": "Image"},
                        "objects": {"dtype": "string", "_type": "Value"},
                    }
                }
            }
        )
    },
)


@dataclass(frozen=True)
class SampleDataset:
    """What `write_sample` wrote.

    Attributes:
        uri: the destination, a local path made absolute.
        format: one of `FORMATS`.
        images: number of images.
        objects: number of objects on them.
        source_uri: what a job spec's ``source.uri`` should say.
        instances_uri: the COCO JSON.
    """

    uri: str
    format: str
    images: int
    objects: int
    source_uri: str
    instances_uri: str


@dataclass(frozen=True)
class _Example:
    """One encoded scene with its ground truth."""

    file_name: str
    jpeg: bytes
    width_px: int
    height_px: int
    objects: list[dict[str, Any]]


def write_sample(
    destination: str,
    images: int,
    format: str,
    seed: int,
    shard_rows: int = 500,
    progress: Callable[[int, int], None] | None = None,
    kinds: str = "known",
) -> SampleDataset:
    """Draw scenes and write them; the same arguments give the same bytes.

    Args:
        destination: local path or fsspec URI of a folder that is empty or not there.
        images: how many, at least 1.
        format: ``webdataset`` (``shards/*.tar``), ``folder`` (``images/*/*.jpg``) or ``parquet``
            (``data/*.parquet``).
        seed: stream of scenes, 0 or more; from `TRAINING_SEED_START` on, the embedded model knows them.
        shard_rows: images in one tar, sub-folder or Parquet file.
        progress: called with images written so far and in all, after each shard.
        kinds: a key of `KIND_SETS`.

    Returns:
        What was written. ``instances.json`` is written last, so its presence says that all is there.

    Raises:
        SpecError: if an argument is out of range.
        OutputError: if the destination is not empty.
    """
    _check(images, format, seed, shard_rows)
    if kinds not in KIND_SETS:
        raise SpecError(f"kinds is {kinds!r}; it must be one of {', '.join(KIND_SETS)}")
    drawn = KIND_SETS[kinds]
    labels = tuple(kind.label for kind in drawn)
    root = storage.normalize(destination)
    if storage.list_names(root):
        raise OutputError(f"{root} is not empty; name a folder that is empty or does not exist")
    if storage.exists(root) and not storage.is_folder(root):
        raise OutputError(f"{root} is a file; name a folder that is empty or does not exist")
    write = {"webdataset": _write_tar, "folder": _write_folder, "parquet": _write_parquet}[format]
    examples = (_encode(render_scene(seed, index, drawn), index, labels) for index in range(images))
    coco = _CocoTruth()
    for shard_index in range(-(-images // shard_rows)):
        write(root, shard_index, coco.pass_on(islice(examples, shard_rows)))
        if progress is not None:
            progress(len(coco.images), images)
    instances_uri = storage.join(root, INSTANCES)
    storage.write_bytes(instances_uri, coco.to_json(seed, labels))
    pattern = {"webdataset": "shards/*.tar", "folder": "images", "parquet": "data/*.parquet"}[format]
    source_uri = storage.join(root, pattern)
    return SampleDataset(root, format, images, len(coco.annotations), source_uri, instances_uri)


class _CocoTruth:
    """Ground truth in the COCO format, gathered while examples pass by."""

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def pass_on(self, examples: Iterator[_Example]) -> Iterator[_Example]:
        for example in examples:
            image_id = len(self.images)
            size = {"width": example.width_px, "height": example.height_px}
            self.images.append({"id": image_id, "file_name": example.file_name, **size})
            for item in example.objects:
                annotation = {"id": len(self.annotations) + 1, "image_id": image_id, "iscrowd": 0}
                width_px, height_px = item["bbox"][2:]
                area = {"area": width_px * height_px}
                shape = {"bbox": item["bbox"], "category_id": item["category_id"]}
                self.annotations.append({**annotation, **shape, **area})
            yield example

    def to_json(self, seed: int, labels: tuple[str, ...]) -> bytes:
        truth = {
            "info": {"description": f"batchdet sample, seed {seed}", "version": "1"},
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": class_id, "name": label} for class_id, label in enumerate(labels)],
        }
        return _json(truth)


def _check(images: int, format: str, seed: int, shard_rows: int) -> None:
    if format not in FORMATS:
        raise SpecError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    for name, value, least in (("images", images, 1), ("seed", seed, 0), ("shard_rows", shard_rows, 1)):
        if value < least:
            raise SpecError(f"{name} is {value}; it must be {least} or more")


def _encode(scene: Scene, index: int, labels: tuple[str, ...]) -> _Example:
    done, code = cv2.imencode(".jpg", scene.rgb[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert done
    objects = []
    for (x_min, y_min, x_max, y_max), class_id in zip(scene.boxes_xyxy.tolist(), scene.class_ids.tolist(), strict=True):
        box_xywh = [x_min, y_min, x_max - x_min, y_max - y_min]
        objects.append({"bbox": box_xywh, "category_id": class_id, "label": labels[class_id]})
    height_px, width_px = scene.rgb.shape[:2]
    return _Example(f"scene-{index:06d}.jpg", code.tobytes(), width_px, height_px, objects)


def _write_tar(root: str, shard_index: int, examples: Iterator[_Example]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for example in examples:
            size = {"width": example.width_px, "height": example.height_px}
            sidecar = _json({"file_name": example.file_name, **size, "objects": example.objects})
            stem = example.file_name.removesuffix(".jpg")
            for name, body in ((example.file_name, example.jpeg), (f"{stem}.json", sidecar)):
                member = tarfile.TarInfo(name)  # time, user and group stay 0: the bytes must not vary
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    storage.write_bytes(storage.join(root, f"shards/sample-{shard_index:06d}.tar"), buffer.getvalue())


def _write_folder(root: str, shard_index: int, examples: Iterator[_Example]) -> None:
    for example in examples:
        uri = storage.join(root, f"images/{shard_index:03d}/{example.file_name}")
        storage.write_bytes(uri, example.jpeg)


def _write_parquet(root: str, shard_index: int, examples: Iterator[_Example]) -> None:
    rows = [
        {
            "file_name": example.file_name,
            "image": {"bytes": example.jpeg, "path": example.file_name},
            "objects": _json(example.objects).decode(),
        }
        for example in examples
    ]
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=_PARQUET_SCHEMA)
    pq.write_table(table, buffer, row_group_size=100, compression="snappy")
    storage.write_bytes(storage.join(root, f"data/part-{shard_index:05d}.parquet"), buffer.getvalue())


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
