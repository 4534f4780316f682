import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from batchdet.errors import ClusterError, ModelError, SpecError
from batchdet.forecast import trial_of
from batchdet.model import detector
from batchdet.model.detector import open_detector
from batchdet.model.runtimes import onnxruntime
from batchdet.model.runtimes.openvino import has_bf16
from batchdet.pipeline import canary
from batchdet.pipeline import probe as probe_module
from batchdet.pipeline import trial as trial_module
from batchdet.pipeline.canary import Agreement, Way
from batchdet.pipeline.probe import Probe
from batchdet.pipeline.samples import ReadSamples, Sample
from batchdet.pipeline.session import Capacity
from batchdet.pipeline.trial import LoadedModel, Trial
from batchdet.pipeline.trial_process import TrialProcess
from batchdet.plan import plan_job
from batchdet.sample.dataset import write_sample
from batchdet.spec import ComputeSpec, JobSpec, ModelSpec
from tests import tiny_onnx


def jpeg(width: int, height: int, orientation: int = 1) -> bytes:
    sink, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(sink, "JPEG", exif=exif)
    return sink.getvalue()


def job(model: dict[str, Any]) -> JobSpec:
    return JobSpec.model_validate({"name": "j", "source": {"uri": "in"}, "model": model, "output": {"uri": "out"}})


def trial_on(spec: JobSpec, data: list[bytes], image_count: int) -> Trial:
    """Return the trial of a larger job with these images."""
    samples = SimpleNamespace(read=lambda _: ReadSamples([Sample(0, each, 1000.0, 0) for each in data]))
    return Trial(spec, "", samples, True, image_count, 500_000)  # type: ignore[arg-type]


def loaded_by_what_is_said(
    monkeypatch: pytest.MonkeyPatch, spec: JobSpec, compare: Callable[..., Agreement], slower: bool = False
) -> LoadedModel:
    """Try a model whose ways are judged, not compared; one image in five may stand on the canvas of the others."""
    monkeypatch.setattr(trial_module, "compare", compare)
    monkeypatch.setattr(trial_module, "is_slower", lambda *_: slower)
    return trial_on(spec, [jpeg(192, 120)] * 4 + [jpeg(192, 90)], 300).load("cpu")


@pytest.mark.parametrize(
    ("image_count", "workers", "graphs"),
    [
        (10_000, 2, ("64x32", "32x64")),
        (500, 2, ("64x32",)),
        (100, 2, ()),
        (None, 2, ("64x32",)),
        (10_000, 200, ()),
    ],
)
def test_canvases_that_many_images_take_get_graphs_of_their_own(
    tmp_path: Path, image_count: int | None, workers: int, graphs: tuple[str, ...]
) -> None:
    model = tiny_onnx.end2end(
        tmp_path / "m.onnx", np.zeros((1, 6), np.float32), images=("N", 3, "H", "W"), imgsz="[64, 64]", stride="32"
    )
    spec = job({"uri": str(model)})
    # six lie, three of them by their EXIF orientation alone; two stand; one is a square
    sizes = [(640, 300)] * 3 + [(300, 640, 6)] * 3 + [(300, 640)] * 2 + [(640, 640)]
    images = ReadSamples([Sample(0, jpeg(*size), 1000.0, 0) for size in sizes])  # type: ignore[arg-type]
    trial = Trial(spec, "", None, True, image_count, 500_000, workers)
    found = trial._graphs(open_detector(spec.model), images, "tight")
    assert tuple(graph for graph in found if graph != "64x64") == graphs
    how = {"runtime": "openvino", "precision": "bf16", "graphs": " ".join(found), "fit": "loose"}
    fixed = spec.as_computed(how)
    assert (fixed.model.canvas.graphs, fixed.model.canvas.fit) == (found, "loose")
    assert (fixed.model.runtime, fixed.model.precision) == ("openvino", "bf16")


LOOSE_FIRST = [("rational", "loose"), ("rational", "tight"), ("exact", "tight")]


@pytest.mark.parametrize(
    ("slower", "refused", "boxes", "asked", "tried"),
    [
        (False, [], True, {}, LOOSE_FIRST[:1]),
        (False, LOOSE_FIRST[:1], True, {}, LOOSE_FIRST[:2]),
        (False, LOOSE_FIRST, True, {}, LOOSE_FIRST),
        (False, LOOSE_FIRST, False, {}, LOOSE_FIRST[:1]),
        (True, [], True, {}, [("exact", "loose")]),
        (True, [("exact", "loose")], True, {}, [("exact", "loose"), ("exact", "tight")]),
        (False, [("rational", "tight")], True, {"canvas": {"fit": "tight"}}, LOOSE_FIRST[1:]),
        (False, [("rational", "tight")], True, {"canvas": {"shape": "square"}}, LOOSE_FIRST[1:]),
        (False, [("exact", "loose")], True, {"silu": "exact"}, [("exact", "loose"), ("exact", "tight")]),
        (False, [], True, {"canvas": {"graphs": ()}}, [("exact", "tight")]),
        (False, [], True, {"canvas": {"graphs": ("192x96",)}}, [("rational", "tight")]),  # which moves none
        (False, [], True, {"canvas": {"graphs": ("192x100", "256x128")}}, [("exact", "tight")]),  # not to be had
    ],
)
def test_lossy_ways_are_tried_the_quickest_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    slower: bool,
    refused: list[tuple[str, str]],
    boxes: bool,
    asked: dict[str, Any],
    tried: list[tuple[str, str]],
) -> None:
    """By what ``compare`` says of each: one that it refuses is followed by one that loses less, if there are boxes."""
    pytest.importorskip("openvino")
    file = tiny_onnx.end2end(tmp_path / "m.onnx", silu=True, imgsz="[192, 192]", stride="32")
    spec = job({"uri": str(file), **asked})
    ways = []
    square = spec.model.canvas.shape == "square"

    def compare(exact: Way, fast: Way, *_: Any) -> Agreement:
        assert exact.detector.spec.runtime == "onnxruntime"
        assert exact.detector.letterbox(640, 300).canvas == (192, 192 if square else 96)
        ways.append((fast.detector.spec.silu, fast.detector.spec.canvas.fit))
        matched = 0.9 if ways[-1] in refused else 1.0
        return Agreement(5, 60 if boxes else 0, matched, 0.01, 2.0, 1.0, 2.0)

    found = loaded_by_what_is_said(monkeypatch, spec, compare, slower)
    assert ways == tried
    taken = ("exact", "tight") if ways[-1] in refused else ways[-1]
    assert (found.silu, found.fit) == taken
    assert found.runtime == ("onnxruntime" if ways[-1] in refused else "openvino")
    assert (found.placement.loose != ()) is (found.fit == "loose")
    assert ("canvases loose: 2.0 times" in found.choices["model"]) is (found.fit == "loose")
    assert ("may stand on a larger one of 192 x 128" in found.choices.get("canvas", "")) is (found.fit == "loose")


@pytest.mark.parametrize(
    ("asked", "height_px", "refused", "tried"),
    [
        ({"canvas": {"fit": "loose"}}, 128, [], [("bf16", "rational", "loose")]),
        ({"canvas": {"fit": "loose"}}, 128, ["rational"], [("bf16", "rational", "loose"), ("bf16", "exact", "loose")]),
        ({"silu": "rational"}, 96, [], [("bf16", "rational", "loose")]),
        ({"silu": "rational"}, 96, ["loose"], [("bf16", "rational", "loose"), ("bf16", "rational", "tight")]),
        ({"silu": "rational", "canvas": {"fit": "loose"}}, 128, [], [("bf16", "rational", "loose")]),
        ({"silu": "rational", "canvas": {"fit": "loose"}, "precision": "fp32"}, 128, [], []),
        ({"precision": "bf16"}, 96, [], []),
    ],
)
def test_what_the_spec_asks_for_by_name_is_taken_and_the_rest_is_compared_with_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
    height_px: int,
    refused: list[str],
    tried: list[tuple[str, str, str]],
) -> None:
    """A precision by name says it all; beside it nothing lossy is taken that is not named, too."""
    if not has_bf16():
        pytest.skip("this processor has no bf16 arithmetic, or OpenVINO is not installed")
    file = tiny_onnx.end2end(tmp_path / "m.onnx", silu=True, imgsz="[192, 192]", stride="32")
    spec = job({"uri": str(file), **asked})
    ways = []

    def compare(exact: Way, fast: Way, *_: Any) -> Agreement:
        base, quick = exact.detector.spec, fast.detector.spec
        assert (base.runtime, base.precision) == ("openvino", "fp32")
        assert (base.silu, base.canvas.fit) == (spec.model.silu, spec.model.canvas.fit)
        assert exact.detector.letterbox(640, 300).canvas == (192, height_px)
        ways.append((quick.precision, quick.silu, quick.canvas.fit))
        return Agreement(5, 60, 0.9 if set(refused) & set(ways[-1]) else 1.0, 0.01, 2.0, 1.0, 2.0)

    found = loaded_by_what_is_said(monkeypatch, spec, compare)
    assert ways == tried
    assert (found.canary != {}) is (tried != [])
    named = spec.model.precision, spec.model.silu, spec.model.canvas.fit
    exactly = tuple(
        way if way != "auto" else usual for way, usual in zip(named, ("fp32", "exact", "tight"), strict=True)
    )
    assert (found.precision, found.silu, found.fit) == (tried[-1] if tried else exactly)
    assert found.runtime == "openvino"
    words = "times as fast as openvino in fp32" if tried else "is its own"
    assert words in found.choices["model"]


@pytest.mark.parametrize(
    ("asked", "tried"),
    [
        ({}, LOOSE_FIRST[0]),
        ({"silu": "exact"}, ("exact", "loose")),
        ({"silu": "rational"}, ("rational", "loose")),
        ({"silu": "exact", "canvas": {"fit": "tight"}}, None),
    ],
)
def test_without_bf16_what_else_is_quicker_is_tried_in_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], tried: tuple[str, str] | None
) -> None:
    pytest.importorskip("openvino")
    file = tiny_onnx.end2end(tmp_path / "m.onnx", silu=True, imgsz="[192, 192]", stride="32")
    spec = job({"uri": str(file), **asked})
    load = detector.load_runtime

    def without_bf16(*arguments: Any) -> Any:
        if "bf16" in arguments:
            raise ClusterError("model.precision: bf16, but this processor has no bf16 arithmetic; take fp32 or auto")
        return load(*arguments)

    monkeypatch.setattr(detector, "load_runtime", without_bf16)
    found = loaded_by_what_is_said(monkeypatch, spec, lambda *_: Agreement(5, 60, 1.0, 0.01, 2.0, 1.0, 2.0))
    assert found.precision == "fp32"
    assert found.runtime == ("openvino" if tried else "onnxruntime")
    assert (found.silu, found.fit) == (tried or ("exact", "tight"))
    assert "no bf16 arithmetic" in found.choices["model"] or tried


def test_what_is_openvinos_own_needs_openvino(tmp_path: Path) -> None:
    file = tiny_onnx.end2end(tmp_path / "m.onnx", imgsz="[64, 64]", stride="32")
    model = {"uri": str(file), "canvas": {"fit": "loose"}, "runtime": "onnxruntime"}
    spec = job(model)
    with pytest.raises(SpecError, match=r"model\.canvas\.fit: loose needs model\.runtime: openvino"):
        trial_on(spec, [jpeg(64, 30)], 10_000).load("cpu")


def test_a_fixed_canvas_with_odd_sides_is_tried_in_bf16(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    file = tiny_onnx.end2end(tmp_path / "m.onnx", images=("N", 3, 300, 300))
    spec = job({"uri": str(file)})
    found = trial_on(spec, [jpeg(64, 30)], 10_000).load("cpu")
    assert found.fit == "tight"
    assert "too few to compare" in found.choices["model"]


def test_the_canary_sees_first_by_turns_what_moves_and_what_does_not(tmp_path: Path) -> None:
    file = tiny_onnx.end2end(tmp_path / "m.onnx", imgsz="[192, 192]", stride="32")
    tight = open_detector(ModelSpec(uri=str(file)))
    loose = SimpleNamespace(letterbox=replace(tight.placement, loose=((192, 128),)).letterbox)
    sizes = [(192, 120), (192, 121), (192, 122), (192, 90), (192, 91), (8, 8)]
    data = [jpeg(*size) for size in sizes]
    images = ReadSamples([Sample(0, each, 1000.0, 0) for each in (*data, b"no image")])
    order = [data.index(each) for each in images.by_turns(tight, loose)]  # type: ignore[arg-type]
    assert order == [3, 0, 4, 1, 2, 5]
    assert images.by_turns(tight, tight) == data


def test_a_run_begun_before_graphs_were_noted_goes_on_without() -> None:
    spec = job({"uri": "m"})
    canvas = spec.as_computed({"runtime": "openvino", "precision": "fp32"}).model.canvas
    assert (canvas.graphs, canvas.fit) == ((), "tight")


ONE = Capacity(2.0, 0.0, 1, (2.0,), (0.0,))


def trial(tmp_path: Path, model: str) -> Trial:
    """Try a model on a folder of three drawn scenes."""
    folder = write_sample(str(tmp_path / "in"), 3, "folder", 3).source_uri
    spec = JobSpec.model_validate(
        {"name": "j", "source": {"uri": folder}, "model": {"uri": model}, "output": {"uri": str(tmp_path / "out")}}
    )
    return trial_of(plan_job(spec))


@contextmanager
def probing(trial: Trial) -> Iterator[Probe]:
    """Probe as a run does that starts a Ray of its own."""
    with Probe(trial.spec.compute) as probe:
        probe.begin(trial)
        yield probe


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests may have left one running in this process."""
    monkeypatch.setattr(probe_module, "ray_runs", lambda: False)


@pytest.mark.usefixtures("no_ray")
def test_a_probe_beside_a_ray_that_starts_finds_what_one_on_a_worker_does(tmp_path: Path) -> None:
    asked = trial(tmp_path, "builtin:sample")
    with probing(asked) as probe:
        found = probe.result(ONE)
    here = asked.load("cpu")
    assert (found.device, found.reason) == ("cpu", "the cluster has no GPU")
    assert (found.model.computed, found.model.card) == (here.computed, here.card)
    assert (found.model.rehearsed, found.model.placement) == (here.rehearsed, here.placement)
    assert found.model.alone is not None
    assert found.model.alone.images == 3


@pytest.mark.parametrize("gain", [0.0, 100.0])
def test_a_gpu_computes_in_half_width_where_that_agrees_and_is_quicker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: float
) -> None:
    """With the CPU in the GPU's place, where fp16 is never quicker."""
    place = onnxruntime.Place("CPUExecutionProvider", "cpu", True)
    monkeypatch.setattr(onnxruntime, "CUDA", place)
    monkeypatch.setattr(canary, "MIN_GAIN", gain)
    monkeypatch.setattr(canary, "MIN_BOXES", 3)
    asked = trial(tmp_path, "builtin:sample")
    compute = asked.spec.compute.model_copy(update={"batch_rows": 2})
    found = replace(asked, spec=asked.spec.model_copy(update={"compute": compute}), may_differ=True).load("gpu")
    assert found.canary["arithmetic"]["matched"] > 0.98
    assert (found.runtime, found.precision) == ("onnxruntime", "fp32" if gain else "fp16")
    start = "onnxruntime in fp32, because of fp16: it is " if gain else "onnxruntime in fp16: "
    assert found.choices["model"].startswith(start)
    assert found.alone is not None
    assert found.alone.batch_rows == 2


@pytest.mark.usefixtures("no_ray")
def test_a_bad_model_is_said_by_the_process_that_tried_it(tmp_path: Path) -> None:
    asked = trial(tmp_path, "builtin:sample")
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x07no model")
    spec = asked.spec.model_copy(update={"model": ModelSpec(uri=str(tmp_path / "bad.onnx"))})
    with probing(replace(asked, spec=spec, sha256="")) as probe, pytest.raises(ModelError, match=r"bad\.onnx"):
        probe.result(ONE)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("may_differ", [False, True])
def test_an_image_that_ends_the_process_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may_differ: bool
) -> None:
    monkeypatch.setenv("BATCHDET_FAILPOINT", "probe.image=abort")
    with probing(replace(trial(tmp_path, "builtin:sample"), may_differ=may_differ)) as probe:
        found = probe.result(ONE).model
    assert found.alone is None
    assert found.why_not_alone == "an image of the job ended or held up the process that tried it"
    assert found.runtime == "onnxruntime"


@pytest.mark.fault
@pytest.mark.usefixtures("no_ray")
def test_an_image_that_hangs_in_the_canary_holds_it_up_for_a_few_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHDET_FAILPOINT", "probe.image=hang")
    started = time.monotonic()
    with probing(replace(trial(tmp_path, "builtin:sample"), may_differ=True)) as probe:
        found = probe.result(ONE).model
    assert found.why_not_alone == "an image of the job ended or held up the process that tried it"
    assert time.monotonic() - started < 45, "not the minute that a trial may take"


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("asked", [False, True])
def test_who_leaves_early_leaves_no_process(tmp_path: Path, asked: bool) -> None:
    with Probe(ComputeSpec()) as probe:
        assert probe._process is not None
        process = probe._process._child._process
        if asked:
            probe.begin(trial(tmp_path, "builtin:sample"))
        assert process.poll() is None
    assert process.returncode is not None


def test_a_process_that_nobody_asks_ends_with_the_one_that_started_it() -> None:
    started = TrialProcess()
    process = started._child._process
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    assert process.stdout.read() == b""
    process.stdout.close()
    assert process.wait(60) == 0


def test_on_a_cluster_no_process_is_started_here() -> None:
    with Probe(ComputeSpec(address="auto")) as probe:
        assert probe._process is None
