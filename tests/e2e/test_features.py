"""Features from the command line: a run with vectors, then what they are for."""

import json
from pathlib import Path

import cv2
import pytest

from batchdet import open_results

from .conftest import Cli, RunJob, sample_images

pytestmark = pytest.mark.slow


@pytest.mark.fault
def test_images_and_boxes_are_found_again(run: RunJob, cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    images = sample_images(tmp_path / "drawn", 12, 5)
    for name, data in images:
        (folder / Path(name).name).write_bytes(data)
    first = sorted(folder.iterdir())[0]
    cv2.imwrite(str(folder / "again.jpg"), cv2.imread(str(first)), [cv2.IMWRITE_JPEG_QUALITY, 60])
    (folder / "broken.jpg").write_bytes(images[1][1][:200])
    lenient = {"max_failed_fraction": 0.5}

    out = tmp_path / "out"
    run(folder, out, model_={"features": "image", "features_type": "float16"}, policy=lenient)
    rows = {Path(row["uri"]).name: row for row in open_results(str(out)).images().to_arrow().to_pylist()}
    assert rows["broken.jpg"]["features"] is None
    assert {len(row["features"]) for name, row in rows.items() if name != "broken.jpg"} == {96}
    by_id = json.loads(cli("similar", out, rows["again.jpg"]["image_id"], "--json").stdout)
    by_file = json.loads(cli("similar", out, folder / "again.jpg", "--json").stdout)
    assert Path(by_id["neighbours"][0]["uri"]).name == first.name
    assert Path(by_file["neighbours"][0]["uri"]).name == "again.jpg"
    assert by_file["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-3)
    done = cli("duplicates", out, "--json", "--min-similarity", "0.99", "--pictures", tmp_path / "sheet")
    groups = [{Path(m["uri"]).name for m in group} for group in json.loads(done.stdout)["groups"]]
    assert {first.name, "again.jpg"} in groups
    assert (tmp_path / "sheet" / "contact_sheet.jpg").stat().st_size > 1000

    newest = run(folder, out, model_={"features": "boxes"}, policy=lenient)
    refused = cli("duplicates", out, "--run", newest.run_id)
    assert f"run {newest.run_id} holds no features of image" in refused.stderr
    boxes = open_results(str(out)).detections().to_arrow().to_pylist()
    assert {len(row["features"]) for row in boxes} == {64 + 96 + 96}
    of_file = json.loads(cli("similar", out, first, "--box", "0", "--json", "--top", "2").stdout)
    assert {Path(n["uri"]).name for n in of_file["neighbours"]} == {first.name, "again.jpg"}
    assert of_file["neighbours"][0]["label"] == of_file["neighbours"][1]["label"]
    assert cli("verify", out).returncode == 0
