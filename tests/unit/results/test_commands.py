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
