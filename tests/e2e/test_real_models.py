"""Real models on real photographs: tar shards in S3, through the whole pipeline, against the reference's AP."""

from pathlib import Path

import pytest

from batchdet import open_results, storage
from batchdet.results.evaluate import evaluate
from batchdet.results.verify import verify
from tests.s3_server import S3Server

from .conftest import RunJob, write_list, write_parquet, write_shards

pytestmark = pytest.mark.slow

REFERENCE_AP = {"yolo26n": 0.403, "yolo11n_320": 0.284, "yolox_nano_416": 0.288, "deimv2_atto_320": 0.267}
Photographs = list[tuple[str, bytes]]


@pytest.mark.parametrize(
    "model",
    list(REFERENCE_AP),  # the contract suite takes each model's AP without a cluster
)
@pytest.mark.fault
def test_ap_of_tar_shards_in_s3(
    model: str, s3: S3Server, run: RunJob, shared: Path, photographs: Photographs, tmp_path: Path
) -> None:
    bucket = s3.bucket("real-models")
    glob = write_shards(storage.join(bucket, "shards"), photographs, 3)
    out = storage.join(bucket, f"labels-{model}")
    settings = {"score_threshold": 0.001, "max_detections": 300, "canvas": {"shape": "square"}}
    done = run(glob, out, shared / f"models/{model}.onnx", model_=settings)
    assert (done.images_ok, done.images_failed) == (120, 0)
    found = evaluate(out, str(shared / "images/coco120/instances.json"))
    assert found.images == 120
    assert found.ap == pytest.approx(REFERENCE_AP[model], abs=0.005)
    assert verify(out).problems == []


def _by_name(out: str) -> dict[str, list[tuple[object, ...]]]:
    images = open_results(out).images().to_pandas()
    detections = open_results(out).detections().to_pandas()
    names = images["file_name"] if "file_name" in images else images["member"].str.split("/").str[-1]
    name_of = dict(zip(images["image_id"], names, strict=True))
    columns = ["detection_index", "class_id", "label", "score", "x_min", "y_min", "x_max", "y_max"]
    rows: dict[str, list[tuple[object, ...]]] = {name: [] for name in names}
    for image_id, *values in detections[["image_id", *columns]].itertuples(index=False):
        rows[name_of[image_id]].append(tuple(values))
    return {name: sorted(found) for name, found in rows.items()}  # type: ignore[type-var]


@pytest.mark.fault
def test_every_format_gives_the_same_detections(
    s3: S3Server, run: RunJob, shared: Path, photographs: Photographs, tmp_path: Path
) -> None:
    few, bucket = photographs[:40], s3.bucket("formats")
    for name, data in few:
        storage.write_bytes(storage.join(bucket, "photos", name[:11], name), data)
        storage.write_bytes(str(tmp_path / "photos" / name), data)
    sources = {
        "folder": storage.join(bucket, "photos"),
        "webdataset": write_shards(storage.join(bucket, "shards"), few, 2),
        "parquet": write_parquet(storage.join(bucket, "table.parquet"), few),
        "uri_list": write_list(
            storage.join(bucket, "list.csv"), [storage.join(bucket, "photos", n[:11], n) for n, _ in few]
        ),
        "local_list": write_list(str(tmp_path / "list.csv"), [f"photos/{n}" for n, _ in few]),
    }
    found = {}
    for format_, source in sources.items():
        out = str(tmp_path / format_)
        done = run(source, out, shared / "models/yolo11n_320.onnx", compute={"segment_rows": 16})
        assert (done.images_ok, done.images_failed) == (40, 0), format_
        found[format_] = _by_name(out)
    assert sum(map(len, found["folder"].values())) > 100
    for format_ in sources:
        assert found[format_] == found["folder"], format_


def test_actors_and_batches_do_not_change_what_is_found(
    run: RunJob, shared: Path, photographs: Photographs, tmp_path: Path
) -> None:
    glob = write_shards(str(tmp_path / "shards"), photographs[:24], 2)
    found = []
    for i, compute in enumerate(
        [
            {"actors": 1, "batch_rows": 1, "segment_rows": 64},
            {"actors": 2, "batch_rows": 7, "segment_rows": 5},
        ]
    ):
        run(glob, tmp_path / f"out{i}", shared / "models/yolo11n_320.onnx", compute=compute)
        found.append(_by_name(str(tmp_path / f"out{i}")))
    assert found[0].keys() == found[1].keys()
    for name, rows in found[0].items():
        assert [r[:3] for r in rows] == [r[:3] for r in found[1][name]]
        for one, other in zip(rows, found[1][name], strict=True):
            assert one[3:] == pytest.approx(other[3:], abs=0.01)
