"""bf16 where the processor has it and the job's own images allow it; and a run never mixes two ways of computing."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from batchdet import forecast as forecast_module
from batchdet.errors import BatchdetError
from batchdet.job import Run
from batchdet.model.runtimes.openvino import has_bf16
from batchdet.table.lineage import Lineage

from .conftest import RunJob, write_shards

pytestmark = pytest.mark.slow


@pytest.fixture
def no_job_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have lossy ways tried, however few the images are."""
    monkeypatch.setattr(forecast_module, "_WORTH_A_CANARY_BYTES", 0)


def lineage_of(done: Run) -> Lineage:
    found = Lineage.read(done.output, done.run_id)
    assert found is not None
    return found


@pytest.mark.usefixtures("no_job_is_too_small")
def test_a_larger_job_is_computed_in_bf16_where_its_images_agree(
    run: RunJob, photographs: list[tuple[str, bytes]], shared: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    glob = write_shards(str(tmp_path / "in"), photographs[:24], 2)
    done = run(glob, tmp_path / "out", shared / "models/yolo26n.onnx")
    assert (done.images_ok, done.images_failed) == (24, 0)
    lineage = lineage_of(done)
    if not has_bf16():
        assert lineage.computed["precision"] == "fp32"
    assert lineage.canary["arithmetic"]["boxes"] >= 20
    assert lineage.canary["arithmetic"]["matched"] >= 0.98
    assert lineage.canary["arithmetic"]["score_difference"] <= 0.03
    # whether it is faster is the machine's affair; what is taken must be what is recorded
    taken = lineage.computed["precision"]
    assert lineage.model["precision"] == taken
    runtime = lineage.computed["runtime"]
    assert lineage.choices["model"].startswith(f"{runtime} in {taken}")


def test_a_run_goes_on_as_it_was_begun(
    run: RunJob, photographs: list[tuple[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchdet.pipeline import ray_data

    pytest.importorskip("openvino")
    glob = write_shards(str(tmp_path / "in"), photographs[:4], 1)
    real = ray_data.label_segments

    def stops(*arguments: object) -> object:
        next(iter(real(*arguments)))  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ray_data, "label_segments", stops)
        with pytest.raises(KeyboardInterrupt):
            run(glob, tmp_path / "out", compute={"segment_rows": 2})
    (folder,) = (tmp_path / "out/_batchdet/runs").iterdir()
    begun = (folder / "lineage.json").read_text()
    assert '"runtime": "onnxruntime"' in begun
    (folder / "lineage.json").write_text(begun.replace('"runtime": "onnxruntime"', '"runtime": "openvino"'))
    done = run(glob, tmp_path / "out", compute={"segment_rows": 2})
    assert done.run_id == folder.name
    lineage = lineage_of(done)
    assert lineage.computed == {
        "runtime": "openvino",
        "precision": "fp32",
        "graphs": "",
        "fit": "tight",
        "silu": "exact",
        "decode": "full",
    }
    assert lineage.model["runtime"].startswith("openvino ")


def test_bf16_of_onnx_runtime_is_a_mistake(run: RunJob, photographs: list[tuple[str, bytes]], tmp_path: Path) -> None:
    glob = write_shards(str(tmp_path / "in"), photographs[:2], 1)
    with pytest.raises(BatchdetError, match=r"model\.precision: bf16 needs model\.runtime: openvino") as caught:
        run(glob, tmp_path / "out", model_={"runtime": "onnxruntime", "precision": "bf16"})
    assert caught.value.exit_status == 2


def _enlarged(photographs: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Photographs four times as large, as a camera would make them; every other one is stored turned."""
    made = []
    for number, (name, data) in enumerate(photographs):
        with Image.open(io.BytesIO(data)) as small:
            large = small.convert("RGB").resize((4 * small.width, 4 * small.height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        if number % 2:
            large, exif[0x0112] = large.transpose(Image.Transpose.ROTATE_90), 6
        sink = io.BytesIO()
        large.save(sink, "JPEG", quality=90, exif=exif)
        made.append((name, sink.getvalue()))
    return made


@pytest.mark.fault
@pytest.mark.usefixtures("no_job_is_too_small")
def test_large_photographs_are_decoded_smaller_where_the_boxes_agree(
    run: RunJob, photographs: list[tuple[str, bytes]], shared: Path, tmp_path: Path
) -> None:
    glob = write_shards(str(tmp_path / "in"), _enlarged(photographs[:16]), 2)
    ways = {}
    for decode in ("auto", "full", "reduced"):
        canvas = {"decode": decode}
        model = {"runtime": "onnxruntime", "precision": "fp32", "canvas": canvas}
        done = run(glob, tmp_path / decode, shared / "models/yolo26n.onnx", model_=model)
        rows = done.results().sql("SELECT member, width_px, height_px FROM images ORDER BY member").fetchall()
        boxes = done.results().detections().to_pandas()
        ways[decode] = (lineage_of(done), rows, boxes.sort_values(["image_id", "detection_index"]))
    auto, full, reduced = ways["auto"], ways["full"], ways["reduced"]
    assert auto[0].canary["decode"]["images"] > 0
    taken = auto[0].computed["decode"]
    assert auto[0].choices["decode"].startswith("reduced: " if taken == "reduced" else "full, because of ")
    assert (full[0].computed["decode"], reduced[0].computed["decode"]) == ("full", "reduced")
    assert full[0].canary == reduced[0].canary == {}
    assert auto[1] == full[1] == reduced[1], "sizes are those of the upright originals"
    assert auto[2].drop(columns="run_id").equals(ways[taken][2].drop(columns="run_id")), (
        "the same command, the same rows"
    )
    assert not full[2]["score"].equals(reduced[2]["score"]), "it is lossy"
    clear = full[2][full[2].score > 0.5]
    near = clear.merge(reduced[2], on=["image_id", "label"], suffixes=("", "_r"))
    near["off"] = (
        near[[f"{side}_{axis}" for side in ("x", "y") for axis in ("min", "max")]]
        .sub(near[[f"{side}_{axis}_r" for side in ("x", "y") for axis in ("min", "max")]].to_numpy())
        .abs()
        .max(axis=1)
    )
    found = near[near.off < 60].groupby(["image_id", "detection_index"]).ngroups
    assert found >= 0.95 * len(clear)


@pytest.mark.fault
@pytest.mark.parametrize(
    ("exact", "lossy", "fewer", "mean", "most"),
    [
        ({"silu": "exact", "canvas": {"graphs": ["640x480", "640x448"]}}, {"silu": "rational"}, 0, 0.005, 0.03),
        # of the ten most fit these canvases less tightly
        ({"canvas": {"fit": "tight", "graphs": ["640x480", "480x640"]}}, {"fit": "loose"}, 1, 0.03, 0.3),
    ],
)
def test_a_lossy_way_that_the_spec_asks_for(
    exact: dict[str, Any],
    lossy: dict[str, str],
    fewer: int,
    mean: float,
    most: float,
    run: RunJob,
    photographs: list[tuple[str, bytes]],
    shared: Path,
    tmp_path: Path,
) -> None:
    """The same clear boxes are found, and scores move a little."""
    pytest.importorskip("openvino")
    glob = write_shards(str(tmp_path / "in"), photographs[:10], 1)
    ((key, way),) = lossy.items()
    other = exact | lossy if key in exact else exact | {"canvas": exact["canvas"] | lossy}
    scores = []
    for model in (exact, other):
        settings = {"runtime": "openvino", "precision": "fp32", **model}
        done = run(glob, tmp_path / f"out{len(scores)}", shared / "models/yolo26n.onnx", model_=settings)
        assert (lineage_of(done).computed[key] == way) is (model is other)
        found = done.results().detections().to_pandas().score
        scores.append(found[found > 0.3].sort_values().to_numpy())
    least = min(map(len, scores))
    assert least > 20
    assert max(map(len, scores)) <= least + fewer
    off = abs(scores[0][-least:] - scores[1][-least:])
    assert 0 < off.mean() < mean
    assert off.max() < most
