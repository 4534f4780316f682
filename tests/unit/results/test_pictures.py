"""Annotated pictures: a varied choice, the same every time, and none that stops the others."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from batchdet.errors import ImageError, OutputError
from batchdet.results.draw import Box
from batchdet.results.open import open_results
from batchdet.results.pictures import choose_images, draw_pictures, write_pictures
from batchdet.results.record import read_spec
from batchdet.spec import SourceSpec

FIRST, SECOND = "20261122-100000-aaaa", "20261123-100000-bbbb"
SHARED = Path(os.environ.get("BATCHDET_SHARED", Path(__file__).parents[4] / "shared"))


def jpeg(*, value=90):
    return cv2.imencode(".jpg", np.full((480, 640, 3), value, np.uint8))[1].tobytes()


def fake_read(source, uri, shard_uri, member, position):
    assert isinstance(source, SourceSpec)
    assert uri == f"{shard_uri}/{member}"
    assert isinstance(position, int)
    if member == "bad.jpg":
        raise ImageError("unreadable", "it is gone")
    return b"not an image" if member == "odd.jpg" else jpeg()


@pytest.fixture
def box():
    return lambda class_id, score=0.5: (class_id, score, 100, 100, 300, 300)


def members(results, chosen):
    rows = results.images().to_arrow(["image_id", "member"]).to_pydict()
    names = dict(zip(rows["image_id"], rows["member"], strict=True))
    return [names[image_id] for _, image_id in chosen]


class TestChoice:
    """Which images are chosen."""

    def test_all_classes_are_shown(self, output, fake_image, box):
        images = [fake_image(f"car{n}.jpg", (box(0),)) for n in range(40)]
        images += [fake_image("dog.jpg", (box(1),)), fake_image("person.jpg", (box(2),))]
        output.add_run(FIRST, images)
        results = open_results(output.uri)
        chosen = members(results, choose_images(results, 3))
        assert {"dog.jpg", "person.jpg"} < set(chosen)
        assert len(members(results, choose_images(results, 30))) == 30

    def test_it_is_the_same_every_time(self, output, make_images):
        output.add_run(FIRST, make_images(60))
        first, second = (choose_images(open_results(output.uri), 8) for _ in range(2))
        assert first == second
        assert len(set(first)) == 8

    def test_images_without_detections_only_fill_up(self, output, fake_image, box):
        images = [fake_image(f"{n}.jpg") for n in range(9)]
        output.add_run(FIRST, [*images, fake_image("car.jpg", (box(0),)), fake_image("x.jpg", error_code="empty")])
        results = open_results(output.uri)
        chosen = members(results, choose_images(results, 4))
        assert chosen[0] == "car.jpg"
        assert len(chosen) == 4
        assert "x.jpg" not in members(results, choose_images(results, 99))

    def test_boxes_with_low_scores_do_not_count(self, output, fake_image, box):
        images = [fake_image(f"doubtful{n}.jpg", (box(1, 0.3),)) for n in range(9)]
        output.add_run(FIRST, [*images, fake_image("sure.jpg", (box(0, 0.7), box(1, 0.3))), fake_image("empty.jpg")])
        results = open_results(output.uri)
        chosen = members(results, choose_images(results, 3, 0.7))
        assert chosen[:2] == ["sure.jpg", "empty.jpg"]
        assert chosen[2].startswith("doubtful")
        assert len(choose_images(results, 99, 0.7)) == 11

    def test_nothing_to_choose_from(self, output):
        output.add_run(FIRST, [])
        assert choose_images(open_results(output.uri), 4) == []


def test_pictures_and_a_contact_sheet_are_written(output, fake_image, box, tmp_path):
    images = [fake_image(f"some where/ph\u00f6to {n}.jpg", (box(n % 3, 0.9),)) for n in range(5)]
    output.add_run(FIRST, images)
    made = write_pictures(output.uri, str(tmp_path / "pictures"), count=4, read=fake_read)
    assert len(made.files) == 4
    assert made.skipped == ()
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == sorted(
        [Path(f).name for f in made.files] + ["contact_sheet.jpg"]
    )
    for uri in (*made.files, made.contact_sheet):
        picture = cv2.imread(uri)
        assert picture is not None
        assert (picture != 90).any()


def test_boxes_with_low_scores_are_not_drawn(output, fake_image, box, tmp_path):
    output.add_run(FIRST, [fake_image("a.jpg", (box(0, 0.4), box(1, 0.39))), fake_image("b.jpg", (box(1, 0.2),))])
    made = write_pictures(output.uri, str(tmp_path / "pictures"), read=fake_read)
    first, second = (cv2.imread(uri) for uri in made.files)
    assert (np.ptp(first, axis=2) > 99).any()  # the one box
    assert not (np.ptp(second, axis=2) > 99).any()
    assert made.boxes_left_out == 2
    everything = write_pictures(output.uri, str(tmp_path / "all"), read=fake_read, min_score=0.0)
    assert everything.boxes_left_out == 0
    assert all((np.ptp(cv2.imread(uri), axis=2) > 99).any() for uri in everything.files)


def test_images_that_are_gone_or_bad_are_told_and_skipped(output, fake_image, box, tmp_path):
    images = [fake_image(name, (box(0),)) for name in ("bad.jpg", "odd.jpg", "good.jpg")]
    output.add_run(FIRST, images)
    made = write_pictures(output.uri, str(tmp_path / "pictures"), read=fake_read)
    assert [Path(f).name for f in made.files] == ["00-good.jpg"]
    assert len(made.skipped) == 2
    assert any("bad.jpg: it is gone" in text for text in made.skipped)


def test_no_image_no_contact_sheet(output, tmp_path):
    output.add_run(FIRST, [])
    made = write_pictures(output.uri, str(tmp_path / "pictures"), read=fake_read)
    assert (made.files, made.contact_sheet) == ((), None)


def test_each_run_reads_from_its_own_source(output, fake_image, box, tmp_path):
    seen = {}

    def read(source, uri, shard_uri, member, position):
        seen[member] = source.uri
        return jpeg()

    output.add_run(FIRST, [fake_image("a.jpg", (box(0),))], shard_uri="/data/one")
    output.add_run(SECOND, [fake_image("b.jpg", (box(0),))], shard_uri="/data/two")
    write_pictures(output.uri, str(tmp_path / "pictures"), read=read)
    assert seen == {"a.jpg": "/data/one", "b.jpg": "/data/two"}


def test_truth_is_drawn():
    rgb = np.zeros((480, 640, 3), np.uint8)
    truth = {"a": [Box((10, 10, 200, 200), "car", 0)]}
    (with_truth,), (plain,) = (list(draw_pictures([("a", rgb, [])], t)) for t in (truth, None))
    assert with_truth[1].any()
    assert not plain[1].any()


def test_a_damaged_spec_is_one_sentence(output, make_images):
    output.add_run(FIRST, make_images(3))
    path = output.run_folder(FIRST) / "spec.yaml"
    for data in (b"nonsense: [", b"name: x\n", b""):
        path.write_bytes(data)
        with pytest.raises(OutputError, match="not a spec") as caught:
            read_spec(output.uri, FIRST)
        assert "\n" not in caught.value.message
    path.unlink()
    with pytest.raises(OutputError, match="missing"):
        read_spec(output.uri, FIRST)


@pytest.mark.skipif(not (SHARED / "expected").is_dir(), reason="the shared real inputs are not here")
def test_real_photographs(output, fake_image, tmp_path):
    expected = json.loads((SHARED / "expected" / "yolo26n_coco120.json").read_text())["detections"]
    images = [fake_image(name, tuple((d[5], d[4], *d[:4]) for d in found)) for name, found in expected.items()]
    source = str(SHARED / "images" / "coco120" / "images")
    output.add_run(FIRST, images, shard_uri=source, labels=[f"class {k}" for k in range(80)], part_rows=1000)
    made = write_pictures(output.uri, str(tmp_path / "pictures"), count=3)
    assert len(made.files) == 3
    assert made.skipped == ()
