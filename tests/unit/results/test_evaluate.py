"""Average precision: the figures are pycocotools' own, on the images that both sides hold."""

import contextlib
import copy
import io
import json
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from batchdet.errors import MissingExtra, SpecError
from batchdet.results.evaluate import evaluate, render_evaluation
from batchdet.storage import StorageError

pytest.importorskip("pycocotools")

RUN = "20261122-100000-aaaa"
SHARED = Path(os.environ.get("BATCHDET_SHARED", Path(__file__).parents[4] / "shared"))
TRUTH = {
    "images": [{"id": 11, "file_name": "a.jpg"}, {"id": 12, "file_name": "b.jpg"}],
    "categories": [{"id": 7, "name": "Dog"}, {"id": 3, "name": "traffic light"}],
    "annotations": [
        {"id": 0, "image_id": 11, "category_id": 7, "bbox": [10, 10, 40, 40]},
        {"id": 1, "image_id": 12, "category_id": 3, "bbox": [50, 60, 100, 20]},
    ],
}
PERFECT = {"a.jpg": ((1, 0.9, 10, 10, 50, 50),), "b.jpg": ((0, 0.8, 50, 60, 150, 80),)}
LABELS = ("Traffic_Light", "dog")


@pytest.fixture
def truth_file(tmp_path):
    def write(raw=TRUTH, name="instances.json"):
        path = tmp_path / name
        path.write_text(raw if isinstance(raw, str) else json.dumps(raw))
        return str(path)

    return write


@pytest.fixture
def fill(output, fake_image):
    def run(found=PERFECT, labels=LABELS, run_id=RUN, **options):
        images = [one if not isinstance(one, tuple) else fake_image(name, one) for name, one in found.items()]
        output.add_run(run_id, images, labels=labels, **options)
        return output.uri

    return run


def test_perfect_labels_reach_one(fill, truth_file, capsys):
    e = evaluate(fill(), truth_file())
    assert (e.ap, e.ap50, e.ap75) == pytest.approx((1, 1, 1))
    assert (e.images, e.detections, e.class_matching) == (2, 2, "name")
    assert [(c.label, c.truth_boxes, round(c.ap50, 6)) for c in e.by_class] == [("traffic light", 1, 1), ("Dog", 1, 1)]
    assert e.ap_small == -1
    assert e.ap_medium == pytest.approx(1)
    assert capsys.readouterr().out == ""
    assert json.loads(json.dumps(e.to_dict()))["ap"] == e.ap


def test_a_wrong_box_counts(fill, truth_file):
    found = {**PERFECT, "b.jpg": ((0, 0.8, 0, 0, 10, 10),)}
    e = evaluate(fill(found), truth_file())
    assert e.ap50 == pytest.approx(0.5)
    assert {c.label: round(c.ap50, 6) for c in e.by_class} == {"Dog": 1, "traffic light": 0}


def test_nothing_found_is_zero(fill, truth_file):
    e = evaluate(fill({"a.jpg": (), "b.jpg": ()}), truth_file())
    assert (e.ap, e.detections, e.images) == (0, 0, 2)


def test_images_of_one_side_only_are_counted_and_left_out(fill, truth_file, fake_image):
    found = {"a.jpg": PERFECT["a.jpg"], "c.jpg": ((0, 0.9, 0, 0, 9, 9),)}
    e = evaluate(fill(found), truth_file())
    assert (e.images, e.images_only_in_run, e.images_only_in_truth) == (1, 1, 1)
    assert (e.ap, e.detections) == (pytest.approx(1), 1)
    assert [c.truth_boxes for c in e.by_class] == [0, 1]


def test_failed_images_count_as_empty(fill, truth_file, fake_image):
    found = {"a.jpg": PERFECT["a.jpg"], "b.jpg": fake_image("b.jpg", error_code="truncated")}
    e = evaluate(fill(found), truth_file())
    assert (e.images, e.images_failed) == (2, 1)
    assert e.ap50 == pytest.approx(0.5)


def test_folders_and_carried_columns_name_images(fill, truth_file, fake_image):
    found = {
        "0": fake_image("0", PERFECT["a.jpg"], carried=(("image_path", "val/a.jpg"),)),
        "1": fake_image("1", PERFECT["b.jpg"], carried=(("image_path", "val/b.jpg"),)),
    }
    assert evaluate(fill(found), truth_file()).ap == pytest.approx(1)


def test_the_whole_name_goes_before_its_last_component(fill, truth_file):
    truth = copy.deepcopy(TRUTH)
    truth["images"] = [{"id": 11, "file_name": "left/a.jpg"}, {"id": 12, "file_name": "right/a.jpg"}]
    found = {"left/a.jpg": PERFECT["a.jpg"], "right/a.jpg": PERFECT["b.jpg"], "middle/a.jpg": ()}
    e = evaluate(fill(found), truth_file(truth))
    assert (e.ap, e.images, e.images_only_in_run) == (pytest.approx(1), 2, 1)


def test_a_truth_counts_once(fill, truth_file):
    found = {"x/a.jpg": PERFECT["a.jpg"], "y/a.jpg": PERFECT["a.jpg"], "b.jpg": PERFECT["b.jpg"]}
    e = evaluate(fill(found), truth_file())
    assert (e.ap, e.images, e.images_only_in_run, e.detections) == (pytest.approx(1), 2, 1, 2)


def test_the_newest_rows_are_judged(fill, truth_file):
    fill({**PERFECT, "a.jpg": ()})
    uri = fill({"a.jpg": PERFECT["a.jpg"]}, run_id="20261123-100000-bbbb")
    assert evaluate(uri, truth_file()).ap == pytest.approx(1)
    assert evaluate(uri, truth_file(), run=RUN).ap == pytest.approx(0.5)


def test_unknown_classes_are_left_out_and_counted(fill, truth_file):
    found = {**PERFECT, "a.jpg": (*PERFECT["a.jpg"], (2, 0.99, 10, 10, 50, 50))}
    e = evaluate(fill(found, labels=(*LABELS, "zebra")), truth_file())
    assert (e.ap, e.detections, e.detections_without_class) == (pytest.approx(1), 3, 1)


def test_classes_without_names_are_matched_by_order(fill, truth_file):
    e = evaluate(fill(labels=("0", "1")), truth_file())  # categories by id: 3 traffic light, 7 Dog
    assert (e.ap, e.class_matching) == (pytest.approx(1), "order")


def test_order_is_not_guessed_when_the_numbers_differ(fill, truth_file):
    with pytest.raises(SpecError, match=r"not one of its 2 categories \('traffic light', 'Dog'\) is a label"):
        evaluate(fill(labels=("0", "1", "2")), truth_file())


def test_no_image_in_common(fill, truth_file):
    with pytest.raises(SpecError, match=r"not one of its 2 images is in .*names 'a.jpg', 'b.jpg', the run 'z.jpg'"):
        evaluate(fill({"z.jpg": ()}), truth_file())


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ("no json", "truth.not_json"),
        ("[]", "truth.not_coco"),
        ("{}", "truth.not_coco"),
        ({**TRUTH, "annotations": [{"image_id": 11, "category_id": 7, "bbox": [1, 2]}]}, "truth.box"),
        ({**TRUTH, "annotations": [{"image_id": 11, "bbox": [1, 2, 3, 4]}]}, "truth.unknown_category"),
        (
            {**TRUTH, "annotations": [{"image_id": 11, "category_id": 8, "bbox": [1, 2, 3, 4]}]},
            "truth.unknown_category",
        ),
        ({**TRUTH, "categories": [{"id": "x", "name": "y"}]}, "truth.category"),
        ({**TRUTH, "images": [*TRUTH["images"], {"id": 13, "file_name": "a.jpg"}]}, "truth.image_twice"),
    ],
)
def test_what_is_no_truth_is_told(fill, truth_file, raw, code):
    with pytest.raises(SpecError) as caught:
        evaluate(fill(), truth_file(raw))
    assert caught.value.code == code
    assert "instances.json" in caught.value.key
    assert "\n" not in caught.value.message


def test_backslashes_separate_folders_too(fill, truth_file):
    truth = copy.deepcopy(TRUTH)
    truth["images"] = [{"id": 11, "file_name": "left\\a.jpg"}, {"id": 12, "file_name": ".\\right\\a.jpg"}]
    found = {"left/a.jpg": PERFECT["a.jpg"], "right/a.jpg": PERFECT["b.jpg"]}
    e = evaluate(fill(found), truth_file(truth))
    assert (e.ap, e.images) == (pytest.approx(1), 2)


def test_boxes_on_images_that_the_truth_does_not_list_are_counted_and_left_out(fill, truth_file):
    truth = copy.deepcopy(TRUTH)
    truth["annotations"].append({"id": 9, "image_id": 99, "category_id": 7, "bbox": [1, 1, 2, 2]})
    e = evaluate(fill(), truth_file(truth))
    assert (e.ap, e.truth_boxes_without_image) == (pytest.approx(1), 1)


def test_a_missing_truth_is_told(fill, tmp_path):
    with pytest.raises(StorageError, match=r"none\.json: cannot read: no such object"):
        evaluate(fill(), str(tmp_path / "none.json"))


def test_a_missing_extra_is_named(fill, truth_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(MissingExtra, match=r"pip install 'pycocotools>="):
        evaluate(fill(), truth_file())


@pytest.mark.parametrize("width", [40, 90])
def test_the_first_line_holds_all_figures(fill, truth_file, width):
    found = evaluate(fill(), truth_file())
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as capture:
        render_evaluation(found, console)
    assert capture.get().splitlines()[0].startswith("AP 1.000   AP50 1.000   AP75 1.000   small ")
    assert {"ap", "ap50", "ap75", "images"} <= found.to_dict().keys()


def test_an_evaluation_is_printed(fill, truth_file, fake_image):
    found = {**PERFECT, "c.jpg": (), "b.jpg": fake_image("b.jpg", error_code="empty")}
    console = Console(width=90, no_color=True, force_terminal=False)
    with console.capture() as capture:
        render_evaluation(evaluate(fill(found), truth_file()), console)
    text = capture.get()
    for part in (
        "AP50 0.500",
        "small -",
        "on 2 images",
        "1 of these failed",
        "1 image of the run",
        "traffic light",
        "begin at score 0.25",
    ):
        assert part in text


@pytest.mark.skipif(not (SHARED / "expected").is_dir(), reason="the shared real inputs are not here")
def test_real_detections_give_pycocotools_figures(output, fake_image):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    expected = json.loads((SHARED / "expected" / "yolo26n_coco120.json").read_text())["detections"]
    instances = SHARED / "images" / "coco120" / "instances.json"
    raw = json.loads(instances.read_text())
    categories = sorted(raw["categories"], key=lambda c: c["id"])
    images = [fake_image(name, tuple((d[5], d[4], *d[:4]) for d in found)) for name, found in expected.items()]
    output.add_run(RUN, images, labels=[c["name"] for c in categories], part_rows=1000)
    e = evaluate(output.uri, str(instances))

    ids = {one["file_name"]: one["id"] for one in raw["images"]}
    rows = [
        {
            "image_id": ids[name],
            "category_id": categories[c]["id"],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": s,
        }
        for name, found in expected.items()
        for x0, y0, x1, y1, s, c in found
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(instances))
        judge = COCOeval(truth, truth.loadRes(rows), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    got = (e.ap, e.ap50, e.ap75, e.ap_small, e.ap_medium, e.ap_large)
    assert got == pytest.approx(tuple(judge.stats[:6]), abs=1e-5)
    assert e.images == 120
