import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from batchdet.errors import SpecError
from batchdet.training.coco import read_coco

TRUTH: dict[str, Any] = {
    "images": [
        {"id": 10, "file_name": "a.png", "width": 64, "height": 48},
        {"id": 11, "file_name": "b.png", "width": 64, "height": 48},
    ],
    "annotations": [
        {"id": 1, "image_id": 10, "category_id": 7, "bbox": [1, 2, 30, 20], "iscrowd": 0},
        {"id": 2, "image_id": 10, "category_id": 3, "bbox": [-0.5, 0, 64.9, 48]},
        {"id": 3, "image_id": 10, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
    ],
    "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
}


def written(folder: Path, truth: object = TRUTH, json_at: str = "instances.json", images_at: str = "") -> Path:
    for name in ("a.png", "b.png"):
        (folder / images_at).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / images_at / name), np.zeros((48, 64, 3), np.uint8))
    (folder / json_at).parent.mkdir(parents=True, exist_ok=True)
    (folder / json_at).write_text(truth if isinstance(truth, str) else json.dumps(truth))
    return folder


def changed(key: str, place: int, **values: object) -> dict[str, Any]:
    truth = json.loads(json.dumps(TRUTH))
    truth[key][place] |= values
    return truth


def test_classes_follow_the_category_ids_and_boxes_are_clipped(tmp_path: Path) -> None:
    data = read_coco(str(written(tmp_path)))
    assert data.labels == ("cat", "dog")
    first, second = data.images
    assert first.boxes_xyxy.tolist() == [[1, 2, 31, 22], [0, 0, 64, 48], [0, 0, 9, 9]]
    assert first.class_ids.tolist() == [1, 0, 0]
    assert first.crowd.tolist() == [False, False, True]
    assert len(second.boxes_xyxy) == 0
    assert data.objects == 2
    again = data.to_coco()
    assert [(a["image_id"], a["category_id"], a["iscrowd"]) for a in again["annotations"]] == [
        (0, 1, 0), (0, 0, 0), (0, 0, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("json_at", "images_at", "name"),
    [
        ("instances.json", "images/000", "a.png"),  # batchdet sample
        ("annotations/instances_default.json", "images/default", "default/a.png"),  # CVAT
        ("result.json", "images", "images\\a.png"),  # Label Studio on Windows
        ("result.json", "images", "/data/upload/3/a.png"),  # Label Studio
        ("_annotations.coco.json", "", "./a.png"),
    ],
)
def test_layouts_of_review_tools_are_found(tmp_path: Path, json_at: str, images_at: str, name: str) -> None:
    folder = written(tmp_path, changed("images", 0, file_name=name), json_at, images_at)
    for data in (str(folder), str(folder / json_at)):
        assert read_coco(data).images[0].uri.endswith(str(Path(images_at) / "a.png"))


@pytest.mark.parametrize(
    ("truth", "code", "place"),
    [
        ("{", "truth.not_json", ""),
        ([1], "truth.not_coco", ""),
        ({**TRUTH, "images": []}, "truth.not_coco", ""),
        ({**TRUTH, "annotations": []}, "truth.no_objects", ""),
        ({**TRUTH, "categories": "dog"}, "truth.not_coco", ""),
        ({**TRUTH, "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "cat"}]}, "truth.category_twice", ""),
        (changed("images", 1, file_name="c.png"), "truth.image_missing", "images[1] (id 11)"),
        (changed("images", 1, file_name=".\\a.png"), "truth.image_twice", "images[1] (id 11)"),
        (changed("images", 1, id=10), "truth.image_id", "images[1] (id 10)"),
        (changed("images", 1, width=0), "truth.image", "images[1] (id 11)"),
        (changed("annotations", 2, image_id=5), "truth.unknown_image", "annotations[2] (id 3)"),
        (changed("annotations", 0, category_id=8), "truth.unknown_category", "annotations[0] (id 1)"),
        (changed("annotations", 0, bbox=[50, 2, 30, 20]), "truth.box", "annotations[0] (id 1), on a.png (64 x 48 px)"),
        (changed("annotations", 0, bbox=[5, 2, 0, 20]), "truth.box", "annotations[0] (id 1), on a.png (64 x 48 px)"),
        (changed("annotations", 0, bbox=[5, 2, 3]), "truth.box", "annotations[0] (id 1), on a.png"),
        (changed("annotations", 0, bbox=[5, 2, 3, float("nan")]), "truth.box", "annotations[0] (id 1), on a.png"),
    ],
)
def test_a_wrong_truth_is_refused_with_file_and_entry(tmp_path: Path, truth: object, code: str, place: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_coco(str(written(tmp_path, truth)))
    at = str(tmp_path / "instances.json")
    assert caught.value.message.startswith(at)
    assert (caught.value.code, caught.value.key) == (code, f"{at}: {place}" if place else at)


@pytest.mark.parametrize("wrong", [1, 2, 10, 25])
def test_all_bad_boxes_are_counted_and_ten_of_them_named(tmp_path: Path, wrong: int) -> None:
    truth = json.loads(json.dumps(TRUTH))
    bad = [{"id": 100 + i, "image_id": 11, "category_id": 7, "bbox": [60, 40, 30, 20]} for i in range(wrong)]
    truth["annotations"] += bad
    with pytest.raises(SpecError) as caught:
        read_coco(str(written(tmp_path, truth)))
    message = caught.value.message
    assert message.count("(id 1") == min(wrong, 10)
    assert message.count("b.png") == min(wrong, 10)
    assert (f"{wrong} entries are wrong" in message) == (wrong > 1)
    assert (f"and {wrong - 10} more" in message) == (wrong > 10)


def test_a_name_that_fits_two_files_is_refused(tmp_path: Path) -> None:
    folder = written(written(tmp_path, images_at="one"), images_at="two")
    with pytest.raises(SpecError, match=r"may be any of .*one/a\.png"):
        read_coco(str(folder))
    assert read_coco(str(folder), str(folder / "two")).images[0].uri.endswith("two/a.png")


def test_missing_files_and_doubtful_folders(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file or folder"):
        read_coco(str(tmp_path / "gone.json"))
    with pytest.raises(SpecError, match="holds none of instances"):
        read_coco(str(tmp_path))
    written(tmp_path)
    written(tmp_path, json_at="result.json")
    with pytest.raises(SpecError, match="several truths"):
        read_coco(str(tmp_path))


def test_a_validation_truth_has_the_classes_of_the_training(tmp_path: Path) -> None:
    data = read_coco(str(written(tmp_path)), labels=("bird", "dog", "cat"))
    assert data.images[0].class_ids.tolist() == [1, 2, 2]
    with pytest.raises(SpecError, match="the category 'cat' is not one of the training's: dog"):
        read_coco(str(tmp_path), labels=("dog",))


def test_a_split_is_by_seed_and_loses_nothing(tmp_path: Path) -> None:
    truth = {**TRUTH, "images": [{**TRUTH["images"][0], "id": i, "file_name": f"{i}.png"} for i in range(10, 30)]}
    for i in range(10, 30):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros((48, 64, 3), np.uint8))
    data = read_coco(str(written(tmp_path, truth)))
    train, val = data.split(0.2, seed=1)
    assert (len(train.images), len(val.images)) == (16, 4)
    assert {id(image) for image in (*train.images, *val.images)} == {id(image) for image in data.images}
    assert data.split(0.2, seed=1)[1].images == val.images
    assert data.split(0.2, seed=2)[1].images != val.images
