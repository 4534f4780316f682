import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batchdet.model.detector import open_detector
from batchdet.pipeline.probe import Trial
from batchdet.pipeline.samples import ReadSamples, Sample
from batchdet.plan import computed
from batchdet.spec import JobSpec
from tests import tiny_onnx


def jpeg(width: int, height: int, orientation: int = 1) -> bytes:
    sink, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(sink, "JPEG", exif=exif)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("image_count", "workers", "graphs"),
    [(10_000, 2, ("64x32", "32x64")), (1000, 2, ("64x32",)), (100, 2, ()), (None, 1, ("64x32",)), (10_000, 100, ())],
)
def test_canvases_that_many_images_take_get_graphs_of_their_own(
    tmp_path: Path, image_count: int | None, workers: int, graphs: tuple[str, ...]
) -> None:
    model = tiny_onnx.end2end(
        tmp_path / "m.onnx", np.zeros((1, 6), np.float32), images=("N", 3, "H", "W"), imgsz="[64, 64]", stride="32"
    )
    spec = JobSpec.model_validate(
        {"name": "j", "source": {"uri": "in"}, "model": {"uri": str(model)}, "output": {"uri": "out"}}
    )
    # six lie, three of them by their EXIF orientation alone; two stand; one is a square
    sizes = [(640, 300)] * 3 + [(300, 640, 6)] * 3 + [(300, 640)] * 2 + [(640, 640)]
    images = ReadSamples([Sample(0, jpeg(*size), 1000.0, 0) for size in sizes])  # type: ignore[arg-type]
    trial = Trial(spec, "", None, True, image_count, 500_000, workers)
    found = trial._graphs(open_detector(spec.model), images)
    assert tuple(graph for graph in found if graph != "64x64") == graphs
    fixed = computed(spec, {"runtime": "openvino", "precision": "bf16", "graphs": " ".join(found)})
    assert fixed.model.canvas.graphs == found
    assert (fixed.model.runtime, fixed.model.precision) == ("openvino", "bf16")


def test_a_run_begun_before_graphs_were_noted_goes_on_without() -> None:
    spec = JobSpec.model_validate({"name": "j", "source": {"uri": "in"}, "model": {"uri": "m"}, "output": {"uri": "o"}})
    assert computed(spec, {"runtime": "openvino", "precision": "fp32"}).model.canvas.graphs == ()
