"""The commands that look at results, as a person types them."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from batchdet.cli import app
from batchdet.cluster.render import RenderOptions
from batchdet.errors import VerificationError
from batchdet.records.schema import image_id
from batchdet.results import pictures
from batchdet.results.similar import Similar
from batchdet.results.vectors import Asked

FIRST, SECOND = "20261122-100000-aaaa", "20261123-100000-bbbb"


@pytest.fixture
def cli():
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "100"})


@pytest.fixture
def photographed(output, fake_image, tmp_path):
    """Two runs over a folder of one image that is there."""
    photos = tmp_path / "photos"
    photos.mkdir()
    cv2.imwrite(str(photos / "a.jpg"), np.full((480, 640, 3), 90, np.uint8))
    cv2.imwrite(str(photos / "b.jpg"), np.full((480, 640, 3), 90, np.uint8))
    boxes = ((0, 0.9, 100, 100, 300, 300), (1, 0.3, 100, 100, 310, 300))
    output.add_run(FIRST, [fake_image("a.jpg", boxes)], shard_uri=str(photos), fingerprint="0" * 64)
    output.add_run(SECOND, [fake_image("b.jpg", boxes)], shard_uri=str(photos))
    return output


def test_pictures_are_of_the_run_that_is_shown(cli, photographed, tmp_path):
    shown = json.loads(cli("show", photographed.uri, "--json", "--pictures", tmp_path / "p").stdout)
    assert [uri.rpartition("/")[2] for uri in shown["pictures"]["files"]] == ["00-b.jpg"]
    assert shown["run"]["run_id"] == SECOND


def test_boxes_below_the_least_score_are_told(cli, photographed, tmp_path):
    default = cli("show", photographed.uri, "--pictures", tmp_path / "p").stdout.splitlines()[-1]
    assert default.endswith("contact_sheet.jpg  (1 box is not drawn, below score 0.4; see --min-score)")
    both = cli("show", photographed.uri, "--pictures", tmp_path / "p", "--min-score", "0.3").stdout.splitlines()[-1]
    assert both.endswith("contact_sheet.jpg")
    assert cli("show", photographed.uri, "--min-score", "1.1").exit_code == 2


def test_verify_prints_its_report_for_programs_also_when_something_is_wrong(cli, photographed):
    assert json.loads(cli("verify", photographed.uri, "--json").stdout)["problems"] == []
    for path in (photographed.folder / "detections").rglob("*.parquet"):
        path.unlink()
    done = cli("verify", photographed.uri, "--json")
    assert done.exit_code == 6
    assert json.loads(done.stdout)["error"]["code"] == VerificationError.code
    assert len(json.loads(done.stdout)["problems"]) == 2
    assert cli("verify", photographed.uri).stdout == ""


def test_verify_without_a_run_looks_at_all(cli, photographed):
    assert cli("verify", photographed.uri).stdout.startswith("2 runs, ")
    assert cli("verify", photographed.uri, "--run", FIRST).stdout.startswith("1 run, ")


def test_every_option_of_a_manifest_has_a_flag(cli, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("batchdet.cluster.render.render", lambda job, target, set_, options: given.append(options))
    words = "--head-cpus 3 --head-memory 9Gi --deadline 60 --ttl 0 --retries 4 --worker-memory 7Gi --workers 5"
    assert cli("render", "job.yaml", "--target", "rayjob").exit_code == 0
    assert cli("render", "job.yaml", "--target", "rayjob", *words.split()).exit_code == 0
    changes = {"head_cpus": 3, "head_memory": "9Gi", "deadline_s": 60, "ttl_s": 0, "retries": 4}
    assert given == [RenderOptions(), dataclasses.replace(RenderOptions(), workers=5, worker_memory="7Gi", **changes)]


@pytest.fixture
def alike(output, fake_image, tmp_path):
    """A run with a vector of each of three images that are there."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, grey in (("a.jpg", 60), ("b.jpg", 90), ("c.jpg", 120)):
        cv2.imwrite(str(photos / name), np.full((480, 640, 3), grey, np.uint8))
    boxes = ((0, 0.9, 100, 200, 300, 400), (1, 0.3, 100, 200, 310, 400))
    vectors = {"a.jpg": (1, 0), "b.jpg": (1, 0.1), "c.jpg": (0, 1)}
    output.add_run(FIRST, [fake_image(n, boxes, vector=v) for n, v in vectors.items()], shard_uri=str(photos))
    return output


def test_the_sheet_of_similar_images_begins_with_the_query(cli, alike, tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(pictures, "contact_sheet", lambda sheet: names.extend(n for n, _ in sheet) or sheet[0][1])
    asked = image_id(str(tmp_path / "photos"), "a.jpg")
    done = cli("similar", alike.uri, asked, "--pictures", tmp_path / "sheet")
    assert done.exit_code == 0, done.output
    assert names == ["query  a.jpg", "0.995  b.jpg", "0.000  c.jpg"]
    files = sorted((tmp_path / "sheet").glob("0*.jpg"))
    assert [file.name for file in files] == ["00-a.jpg", "01-b.jpg", "02-c.jpg"]
    for file in files:  # the note: light letters on a dark field in the upper left corner
        corner = cv2.imread(str(file))[:40, :60].astype(int)
        assert (corner < 60).all(axis=2).mean() > 0.3
        assert (corner > 200).all(axis=2).any()
    assert "query" not in json.loads(cli("similar", alike.uri, asked, "--json").stdout)


@pytest.mark.parametrize("command", ["show", "similar", "duplicates"])
def test_the_option_that_the_note_about_pictures_names_exists(cli, alike, tmp_path, command):
    asked = [image_id(str(tmp_path / "photos"), "a.jpg")] if command == "similar" else []
    asked += ["--min-similarity", "0.9"] if command == "duplicates" else []
    words = [command, alike.uri, *asked, "--pictures", tmp_path / "p"]
    default = cli(*words)
    assert "not drawn, below score 0.4; see --min-score" in default.output
    all_boxes = cli(*words, "--min-score", "0.2")
    assert all_boxes.exit_code == 0
    assert "not drawn" not in all_boxes.output


def test_a_file_that_is_asked_about_is_shown_with_its_box(output, fake_image, tmp_path):
    cv2.imwrite(str(tmp_path / "x.jpg"), np.full((480, 640, 3), 90, np.uint8))
    output.add_run(FIRST, [])
    corners = {"x_min": 100.0, "y_min": 200.0, "x_max": 300.0, "y_max": 400.0}
    detection = {**corners, "label": "car", "class_id": 0, "score": 0.1}
    asked = Asked(np.ones(2, np.float32), str(tmp_path / "x.jpg"), detection=detection)
    found = Similar("x.jpg", 0, 0, (), (), asked)
    written = pictures.write_pictures(output.uri, str(tmp_path / "sheet"), chosen=found.pictures())
    (file,) = written.files
    picture = cv2.imread(file)
    assert (np.ptp(picture[195:405, 95:305], axis=2) > 99).any()
    assert written.boxes_left_out == 0
