"""A Hugging Face folder from the command line to the tables."""

from pathlib import Path

import numpy as np
import pytest

from batchdet import open_results
from batchdet.decode.canvas import painted
from batchdet.decode.image import decode_image
from batchdet.model.detector import open_detector
from batchdet.spec import ModelSpec
from tests.huggingface_folders import make_folder

from .conftest import RunJob, sample_images

pytestmark = pytest.mark.slow
pytest.importorskip("transformers")


@pytest.mark.fault
def test_a_folder_labels_images(run: RunJob, tmp_path: Path) -> None:
    for name in ("in", "detr"):
        (tmp_path / name).mkdir()
    for name, data in sample_images(tmp_path / "drawn", 10, 3):
        (tmp_path / "in" / Path(name).name).write_bytes(data)
    make_folder(tmp_path / "detr", "detr")
    settings = {"uri": str(tmp_path / "detr"), "score_threshold": 0.1}
    run(tmp_path / "in", tmp_path / "out", model_=settings)

    results = open_results(str(tmp_path / "out"))
    boxes = results.detections().to_arrow().to_pylist()
    detector = open_detector(ModelSpec(**settings))
    for image in results.images().to_arrow().to_pylist():
        pixels = decode_image(Path(image["uri"].removeprefix("file://")).read_bytes(), 10**8)
        letterbox = detector.letterbox(pixels.shape[1], pixels.shape[0])
        (wanted,) = detector.detect(painted(pixels, letterbox)[None], [letterbox])
        found = [row for row in boxes if row["image_id"] == image["image_id"]]
        assert image["status"] == "ok"
        assert image["detection_count"] == len(found) == len(wanted) == 15
        found.sort(key=lambda row: -row["score"])
        np.testing.assert_allclose([row["score"] for row in found], wanted.scores, atol=1e-5)
        assert [row["label"] for row in found] == [f"thing {i}" for i in wanted.class_ids]
