"""The example of a plug-in head, as it stands in jobs/, from the command line to the tables."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from batchdet import open_results
from tests import tiny_onnx

from .conftest import Cli

pytestmark = pytest.mark.slow
JOBS = Path(__file__).parents[2] / "jobs"


@pytest.mark.fault
def test_the_example_beside_its_job(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("centre_head.py", "plugin_head.yaml"):
        shutil.copy(JOBS / name, tmp_path)
    (tmp_path / "images").mkdir()
    for i in range(6):
        pixels = np.full((320, 640, 3), 114, np.uint8)
        pixels[40 : 44 + 4 * i, 80:84] = 255
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), pixels)
    tiny_onnx.centre_net(tmp_path / "centernet.onnx")
    places = {"IMAGES": "images", "MODEL": "centernet.onnx", "LABELS": "labels"}
    for name, place in places.items():
        monkeypatch.setenv(f"BATCHDET_{name}", str(tmp_path / place))
    job = [str(tmp_path / "plugin_head.yaml"), "--set", "model.score_threshold=0.9"]
    done = cli("run", *job)
    assert done.returncode == 0, done.stderr
    boxes = open_results(str(tmp_path / "labels")).detections().to_pandas()
    assert set(boxes["label"]) == {"bright thing"}
    assert len(boxes) == sum(range(1, 7)), "each cell of an even bar is a peak"
    first = boxes.sort_values("y_min").iloc[0]
    assert [first.x_min, first.y_min, first.x_max, first.y_max] == pytest.approx([70, 34, 94, 50], abs=1e-3)

    assert "nothing new" in cli("run", *job).stderr
    head = tmp_path / "centre_head.py"
    head.write_text(head.read_text() + "# another version\n")
    assert "the source of the plug-in centre_head:CentreHead changed" in cli("plan", *job, "--no-measure").stdout
    head.write_text(head.read_text().replace('outputs["heatmap"]', 'outputs["heat"]'))
    broken = cli("plan", *job)
    assert broken.returncode == 5
    assert "centre_head.py, line 21: KeyError: 'heat'" in broken.stderr
