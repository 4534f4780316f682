import contextlib
import hashlib
import io
import json
import tarfile
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from batchdet.errors import OutputError, SpecError
from batchdet.sample.dataset import FORMATS, write_sample
from batchdet.sample.scene import CLASSES, render_scene


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_arguments_give_the_same_bytes(tmp_path: Path, form: str) -> None:
    write_sample(str(tmp_path / "one"), 7, form, 3, shard_rows=3)
    write_sample(str(tmp_path / "two"), 7, form, 3, shard_rows=3)
    write_sample(str(tmp_path / "other"), 7, form, 4, shard_rows=3)
    one = digests(tmp_path / "one")
    assert one == digests(tmp_path / "two")
    assert one["instances.json"] != digests(tmp_path / "other")["instances.json"]


def test_webdataset_pairs_each_image_with_its_sidecar(tmp_path: Path) -> None:
    dataset = write_sample(str(tmp_path), 5, "webdataset", 1, shard_rows=3)
    shards = sorted(tmp_path.glob("shards/*.tar"))
    assert [shard.name for shard in shards] == ["sample-000000.tar", "sample-000001.tar"]
    assert dataset.source_uri == f"{tmp_path}/shards/*.tar"
    with tarfile.open(shards[0]) as tar:
        assert tar.getnames()[:2] == ["scene-000000.jpg", "scene-000000.json"]
        assert {(member.mtime, member.uid, member.gid) for member in tar} == {(0, 0, 0)}
        body = tar.extractfile("scene-000001.json")
        assert body is not None
        sidecar = json.load(body)
    assert [item["category_id"] for item in sidecar["objects"]] == render_scene(1, 1).class_ids.tolist()


def test_folder_spreads_images_over_sub_folders(tmp_path: Path) -> None:
    write_sample(str(tmp_path), 5, "folder", 1, shard_rows=3)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jpg"))
    assert names[0] == "images/000/scene-000000.jpg"
    assert names[-1] == "images/001/scene-000004.jpg"
    image = cv2.imread(str(tmp_path / names[2]), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    scene = render_scene(1, 2)
    assert image.shape == scene.rgb.shape
    assert np.abs(image.astype(int) - scene.rgb).mean() < 8


def test_parquet_has_hugging_face_images(tmp_path: Path) -> None:
    write_sample(str(tmp_path), 5, "parquet", 1, shard_rows=3)
    parts = sorted(tmp_path.glob("data/*.parquet"))
    assert [part.name for part in parts] == ["part-00000.parquet", "part-00001.parquet"]
    table = pq.read_table(parts[1])
    assert table.column_names == ["file_name", "image", "objects"]
    assert b"huggingface" in table.schema.metadata
    row = table.to_pylist()[0]
    assert row["image"]["path"] == row["file_name"] == "scene-000003.jpg"
    assert row["image"]["bytes"].startswith(b"\xff\xd8")
    assert {item["label"] for item in json.loads(row["objects"])} <= set(CLASSES)


@pytest.mark.parametrize("form", FORMATS)
def test_ground_truth_is_the_same_in_every_format(tmp_path: Path, form: str) -> None:
    dataset = write_sample(str(tmp_path), 6, form, 2, shard_rows=4)
    truth = json.loads((tmp_path / "instances.json").read_text())
    assert [image["file_name"] for image in truth["images"]] == [f"scene-{i:06d}.jpg" for i in range(6)]
    assert truth["categories"] == [{"id": i, "name": label} for i, label in enumerate(CLASSES)]
    assert dataset.objects == len(truth["annotations"]) == sum(len(render_scene(2, i).class_ids) for i in range(6))
    sizes = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    for item in truth["annotations"]:
        x, y, width_px, height_px = item["bbox"]
        assert min(x, y) >= 0
        assert x + width_px <= sizes[item["image_id"]][0]
        assert y + height_px <= sizes[item["image_id"]][1]
        assert item["area"] == width_px * height_px


def test_pycocotools_reads_the_ground_truth(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    dataset = write_sample(str(tmp_path), 4, "folder", 1)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(dataset.instances_uri)
    assert len(truth.imgs) == 4
    assert len(truth.anns) == dataset.objects


def test_it_writes_to_any_fsspec_uri_and_reports_progress() -> None:
    seen: list[tuple[int, int]] = []
    write_sample("memory://sample-test/here", 3, "folder", 1, 2, lambda done, total: seen.append((done, total)))
    assert seen == [(2, 3), (3, 3)]
    assert fsspec.filesystem("memory").exists("/sample-test/here/instances.json")


@pytest.mark.parametrize(
    ("images", "form", "seed", "shard_rows", "word"),
    [(0, "folder", 1, 1, "images"), (1, "zip", 1, 1, "webdataset"), (1, "folder", -1, 1, "seed"),
     (1, "folder", 1, 0, "shard_rows")],
)  # fmt: skip
def test_wrong_arguments_are_named(
    tmp_path: Path, images: int, form: str, seed: int, shard_rows: int, word: str
) -> None:
    with pytest.raises(SpecError, match=word):
        write_sample(str(tmp_path / "x"), images, form, seed, shard_rows)
    assert not (tmp_path / "x").exists()


def test_a_destination_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="not empty"):
        write_sample(str(tmp_path), 1, "folder", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_destination_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="is a file"):
        write_sample(str(tmp_path / "mine.txt"), 1, "folder", 1)
