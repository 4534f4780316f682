"""Outputs made by hand, to the letter of the contract, so that reading is tested apart from writing."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from batchdet.records.schema import DETECTIONS, image_id, schema_of
from batchdet.source.inventory import Inventory
from batchdet.spec import JobSpec, ModelSpec, OutputSpec, SourceSpec
from batchdet.stats import RunStats
from batchdet.table.manifest import Manifest, PartFile

LABELS = ("car", "dog", "person")


@dataclass(frozen=True)
class FakeImage:
    """One image and what was found in it.

    Args:
        member: Its name within the source.
        found: ``(class_id, score, x_min, y_min, x_max, y_max)`` each.
        error_code: Set when it failed.
        carried: Columns carried over.
        vector: Its features, where the run has some.
    """

    member: str
    found: tuple[tuple[float, ...], ...] = ()
    error_code: str | None = None
    carried: tuple[tuple[str, Any], ...] = ()
    size_px: tuple[int, int] = (640, 480)
    vector: tuple[float, ...] | None = None


def some_images(rows: int, seed: int = 0, first: int = 0) -> list[FakeImage]:
    """Make images with 0 to 3 detections; every seventh failed."""
    rng = np.random.default_rng(seed)
    images = []
    for n in range(first, first + rows):
        boxes = [(int(rng.integers(3)), float(rng.random()), 10.0, 20.0, 60.0 + n, 90.0) for _ in range(n % 4)]
        failed = n % 7 == 6
        images.append(FakeImage(f"{n:04d}.jpg", () if failed else tuple(boxes), "truncated" if failed else None))
    return images


def features_of(images: Sequence[FakeImage]) -> dict[str, Any]:
    """Return what a card would say of the vectors of some images."""
    sizes = {len(one.vector) for one in images if one.vector is not None}
    return {"kind": "image", "type": "float32", "size": max(sizes)} if sizes else {}


class FakeOutput:
    """An output folder to which runs are added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = str(folder)

    def run_folder(self, run_id: str) -> Path:
        return self.folder / "_batchdet" / "runs" / run_id

    def add_run(
        self,
        run_id: str,
        images: Sequence[FakeImage],
        shard_uri: str = "/data/photos",
        partition_by: tuple[str, ...] = ("run_date",),
        labels: Sequence[str] = LABELS,
        commit: bool = True,
        part_rows: int = 10,
        source: SourceSpec | None = None,
        model_sha256: str = "ab" * 32,
        fingerprint: str = "f" * 64,
        score_threshold: float = 0.25,
    ) -> Manifest:
        """Write part files and records of a run, and its manifest when it is to be committed.

        A ``shard_uri`` that ends in .tar or .parquet holds the images itself, and one without a name says that it
        could not be read at all; any other is a folder.
        """
        tables = self._tables(run_id, images, shard_uri, labels)
        stats = RunStats.empty(labels)
        stats.add(*tables.values())
        stats.add_times({"read": 0.5, "decode": 1.0, "infer": 6.5, "postprocess": 0.1, "write": 0.2})
        parts = {
            name: self._write_parts(run_id, name, table, partition_by, part_rows) for name, table in tables.items()
        }
        spec = JobSpec(
            name="fake",
            source=source or SourceSpec(uri=shard_uri),
            model=ModelSpec(uri="builtin:sample", score_threshold=score_threshold),
            output=OutputSpec(uri=self.uri, partition_by=partition_by),
        )
        objects = pa.table({"uri": [shard_uri], "size_bytes": [1], "etag": [""]})
        inventory = Inventory("folder", shard_uri, objects, pa.schema([]))
        listed = self.run_folder(run_id) / "inventory.parquet"
        if commit:
            inventory.write(str(listed))
        lineage = {
            "run_id": run_id,
            "name": "fake",
            "model": {
                "uri": "builtin:sample",
                "sha256": model_sha256,
                "family": "yolo_end2end",
                "runtime": "onnxruntime",
                "features": features_of(images),
            },
            "versions": {"batchdet": "0.1.0"},
        }
        at = f"{run_id[:4]}-{run_id[4:6]}-{run_id[6:8]}T12:00:00Z"
        lineage |= {"started_at": at, "finished_at": at}
        run = {"run_id": run_id, "wall_s": 12.5, "images_per_s": len(images) / 12.5}
        manifest = Manifest(
            run_id=run_id,
            name="fake",
            created_at=at,
            schema_version=1,
            fingerprint=fingerprint,
            inventory_digest=inventory.digest,
            partition_by=partition_by,
            images_listed=len(images),
            images_ok=stats.images_ok,
            images_failed=stats.images_failed,
            images=tuple(parts["images"]),
            detections=tuple(parts["detections"]),
            spec_sha256=self._record(run_id, "spec.yaml", yaml.safe_dump(spec.model_dump(mode="json")).encode()),
            stats_sha256=self._record(run_id, "stats.json", json.dumps(stats.to_dict() | {"run": run}).encode()),
            lineage_sha256=self._record(run_id, "lineage.json", json.dumps(lineage).encode()),
            inventory_sha256=hashlib.sha256(listed.read_bytes()).hexdigest() if commit else "",
        )
        if commit:
            self.put_manifest(manifest)
        return manifest

    def put_manifest(self, manifest: Manifest) -> None:
        self._record(manifest.run_id, "manifest.json", manifest.to_json())

    def change_manifest(self, manifest: Manifest, **changes: Any) -> None:
        self.put_manifest(replace(manifest, **changes))

    def _record(self, run_id: str, name: str, data: bytes) -> str:
        path = self.run_folder(run_id) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return hashlib.sha256(data).hexdigest()

    @staticmethod
    def _tables(run_id: str, images: Sequence[FakeImage], shard_uri: str, labels: Sequence[str]) -> dict[str, pa.Table]:
        image_rows, detection_rows = [], []
        carried = list(dict.fromkeys(name for one in images for name, _ in one.carried))
        separator = "#" if shard_uri.endswith((".tar", ".parquet")) else "/"
        for position, one in enumerate(images):
            key = image_id(shard_uri, one.member)
            ok = one.error_code is None
            image_rows.append(
                {
                    "run_id": run_id,
                    "image_id": key,
                    "uri": f"{shard_uri}{separator}{one.member}" if one.member else shard_uri,
                    "shard_uri": shard_uri,
                    "member": one.member,
                    "position": position,
                    "size_bytes": 1000 + position,
                    "width_px": one.size_px[0] if ok else None,
                    "height_px": one.size_px[1] if ok else None,
                    "status": "ok" if ok else "failed",
                    "error_code": one.error_code,
                    "error_message": None if ok else "it is bad",
                    "detection_count": len(one.found),
                    "max_score": max((d[1] for d in one.found), default=None),
                    "features": one.vector,
                    **dict(one.carried),
                }
            )
            for k, (class_id, score, *box) in enumerate(sorted(one.found, key=lambda d: -d[1])):
                row = {"run_id": run_id, "image_id": key, "detection_index": k, "class_id": int(class_id)}
                corners = dict(zip(("x_min", "y_min", "x_max", "y_max"), box, strict=True))
                detection_rows.append(
                    {**row, "label": labels[int(class_id)], "score": score, **corners, **dict(one.carried)}
                )
        extra = [(name, pa.array([dict(one.carried).get(name) for one in images])) for name in carried]
        image_schema = pa.schema(
            [*schema_of("images", features_of(images)), *((name, array.type) for name, array in extra)]
        )
        detection_schema = pa.schema([*DETECTIONS, *((name, array.type) for name, array in extra)])
        return {
            "images": pa.Table.from_pylist(image_rows, image_schema),
            "detections": pa.Table.from_pylist(detection_rows, detection_schema),
        }

    def _write_parts(
        self, run_id: str, name: str, table: pa.Table, partition_by: tuple[str, ...], part_rows: int
    ) -> list[PartFile]:
        if "run_date" in partition_by:
            date = f"{run_id[:4]}-{run_id[4:6]}-{run_id[6:8]}"
            table = table.append_column("run_date", pa.repeat(date, table.num_rows))
        keep = set(table.schema.names) if name == "images" else {*DETECTIONS.names, *partition_by}
        table = table.select([c for c in table.schema.names if c in keep])
        groups: dict[tuple[Any, ...], list[int]] = {}
        for n, values in enumerate(zip(*(table[c].to_pylist() for c in partition_by), strict=True)):
            groups.setdefault(values, []).append(n)
        if not partition_by:
            groups = {(): list(range(table.num_rows))}
        parts = []
        for values, rows in sorted(groups.items(), key=str):
            plain = table.take(rows).drop_columns(list(partition_by))
            coded = ["__HIVE_DEFAULT_PARTITION__" if v is None else quote(str(v), safe="") for v in values]
            hive = [f"{c}={v}" for c, v in zip(partition_by, coded, strict=True)]
            for k, start in enumerate(range(0, max(len(rows), 1), part_rows)):
                path = "/".join([name, *hive, f"part-{run_id}-{k:05d}.parquet"])
                target = self.folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(plain.slice(start, part_rows), target)
                data = target.read_bytes()
                digest = hashlib.sha256(data).hexdigest()
                parts.append(PartFile(path, len(plain.slice(start, part_rows)), len(data), digest))
        return parts


@pytest.fixture
def output(tmp_path: Path) -> FakeOutput:
    """An empty output folder."""
    return FakeOutput(tmp_path / "out")


@pytest.fixture
def fake_image() -> Callable[..., FakeImage]:
    """Make one image."""
    return FakeImage


@pytest.fixture
def make_images() -> Callable[..., list[FakeImage]]:
    """Make several images."""
    return some_images
