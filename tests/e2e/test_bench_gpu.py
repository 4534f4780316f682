"""`make bench-gpu` where there is no GPU: the same script on the CPU, and one sentence without that."""

import contextlib
import json
from pathlib import Path

import pytest

from batchdet import machine
from batchdet.pipeline.session import Capacity

pytestmark = pytest.mark.slow


@pytest.mark.fault
def test_the_script_measures_on_the_cpu(one_ray: None, shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    from benchmarks import gpu

    what = ["--device", "cpu", "--images", "24", "--models", "yolox_nano_416", "--batches", "4"]
    what += ["--runtimes", "onnxruntime", "tensorrt"]
    where = ["--results", str(tmp_path), "--readme", str(tmp_path / "README.md")]
    (tmp_path / "README.md").write_text("before\n<!-- gpu.py writes from here -->\nold\n<!-- to here -->\nafter\n")
    assert gpu.main([*what, *where]) == 1, "TensorRT is not to be had"
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert len(rows) == 4
    for decode in ("actor", "stage"):
        row = rows[f"yolox_nano_416 onnxruntime fp32 4 {decode} 1"]
        assert row["images"] == 24
        assert row["ap"] == pytest.approx(0.292, abs=0.01)
        assert row["images_per_s"] > 0
        assert row["share_of_the_slower"] == pytest.approx(
            row["images_per_s"] / min(row["model_alone_images_per_s"], row["decoding_alone_images_per_s"]), rel=0.05
        )
        refused = rows[f"yolox_nano_416 tensorrt fp32 4 {decode} 1"]
        assert refused["failure"].startswith("model.runtime: tensorrt computes on GPUs")
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.count("| yolox_nano_416 |") == 4
    assert "old" not in text


def test_the_usual_choices_come_first() -> None:
    pytest.importorskip("pycocotools")
    from benchmarks import gpu

    every = [row.key for row in gpu.rows(gpu._options([]))]
    assert len(every) == len(set(every)) == 144
    assert every[0] == "yolo26n onnxruntime fp32 64 actor 1"
    differing = [sum(a != b for a, b in zip(every[0].split(), key.split(), strict=True)) for key in every]
    assert differing == sorted(differing)


def test_a_row_s_failure_is_its_own_and_no_row_is_begun_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycocotools")
    from benchmarks import gpu

    begun: list[str] = []

    def measure(bench: gpu.Bench, row: gpu.Row) -> dict[str, object]:
        begun.append(row.key)
        if len(begun) > 1:
            raise RuntimeError("the device is lost")
        return {"images_per_s": 5}

    monkeypatch.setattr(gpu, "ray_session", lambda address: contextlib.nullcontext(Capacity(2, 0, 1, (2,), (0,))))
    monkeypatch.setattr(gpu.Bench, "pack", lambda bench: None)
    monkeypatch.setattr(gpu.Bench, "measure", measure)
    monkeypatch.setattr(gpu, "table", lambda report: "")
    what = ["--device", "cpu", "--models", "yolo26n", "--batches", "4", "8", "--results", str(tmp_path)]
    assert gpu.main(what) == 1
    first = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row.get("failure") for row in first.values()] == [None, *["RuntimeError: the device is lost"] * 3]
    gpu.main(what)
    assert begun[4:] == [*begun[1:4], begun[0]], "what has no figure comes first"
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == first, "a figure stays"
    gpu.main([*what, "--minutes", "-1"])
    assert len(begun) == 8
    assert "minutes are over: 4 of 4 rows are left out" in capsys.readouterr().err


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocotools")
    from benchmarks import gpu

    if not machine.run_limited(["nvidia-smi"], 30)[0]:
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit, match=r"^bench-gpu: nvidia-smi finds no GPU"):
        gpu.main([])
