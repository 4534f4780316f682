"""One net in every format it can come in gives the same detections."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchdet.errors import ModelError
from batchdet.model.detector import Detector, open_detector
from batchdet.model.fetch import BUILTIN_SAMPLE
from batchdet.spec import CanvasSpec, ModelSpec
from tests import tiny_torch

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

SIDE_PX = 96
FORMATS = ("safetensors", "torchscript", "pt2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from batchdet.model.nets.checkpoint import save_net
    from batchdet.model.nets.detector_net import compose
    from batchdet.training.export import fuse
    from batchdet.training.initial import open_initial, take_over

    folder = tmp_path_factory.mktemp("formats")
    sample = open_initial(BUILTIN_SAMPLE)
    net = compose(sample.composition)
    take_over(net, sample.composition, sample.labels, sample)
    net.eval()
    texts = sample.properties | {"imgsz": f"[{SIDE_PX}, {SIDE_PX}]"}
    save_net(net, folder / "net.safetensors", sample.composition, texts, {})
    example = torch.rand(2, 3, SIDE_PX, SIDE_PX)
    for ending in ("torchscript", "pt2"):
        tiny_torch.save_module(folder / f"net.{ending}", fuse(net), example, texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATCHDET_CACHE", str(folder / "cache" / "batchdet"))
        yield folder


@functools.cache
def detector(folder: Path, ending: str) -> Detector:
    """Open the net in one of its formats, once for all tests."""
    uri = BUILTIN_SAMPLE if ending == "onnx" else str(folder / f"net.{ending}")
    canvas = CanvasSpec(size_px=SIDE_PX if ending == "onnx" else None)
    return open_detector(ModelSpec(uri=uri, score_threshold=0.0, trusted=True, canvas=canvas))


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("ending", FORMATS)
def test_detections_do_not_depend_on_the_format(folder: Path, ending: str, rows: int) -> None:
    reference, ours = detector(folder, "onnx"), detector(folder, ending)
    assert ours.labels == reference.labels != ()
    assert ours.family is reference.family
    letterbox = reference.letterbox(SIDE_PX, SIDE_PX)
    assert ours.letterbox(SIDE_PX, SIDE_PX) == letterbox
    canvases = np.random.default_rng(rows).integers(0, 256, (rows, SIDE_PX, SIDE_PX, 3), np.uint8)
    pairs = zip(*(each.detect(canvases, [letterbox] * rows) for each in (reference, ours)), strict=True)
    for wanted, found in pairs:
        assert len(found) == len(wanted) > 20
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)
        clear = np.abs(np.diff(wanted.scores, prepend=2, append=-1)) > 1e-5  # near ties may change places
        clear = clear[1:] & clear[:-1]
        np.testing.assert_allclose(found.boxes_xyxy[clear], wanted.boxes_xyxy[clear], atol=0.05)
        assert (found.class_ids[clear] == wanted.class_ids[clear]).all()


def test_what_formats_say_of_themselves(folder: Path) -> None:
    cards = {ending: detector(folder, ending).card for ending in FORMATS}
    assert cards["safetensors"].format == "a net of batchdet's own (safetensors)"
    assert cards["torchscript"].canvas_shape == "fixed", "a trace holds for the canvas that it was made with"
    assert cards["safetensors"].canvas_shape == "rectangle"
    assert {card.canvas_px for card in cards.values()} == {(SIDE_PX, SIDE_PX)}
    assert all(card.runtime.startswith("torch ") for card in cards.values())


def test_the_parts_of_a_net_are_those_of_its_export(folder: Path) -> None:
    ours, exported = (detector(folder, ending).anatomy for ending in ("safetensors", "onnx"))
    for part in ("backbone", "neck"):
        strides = [(m.stride, m.channels) for m in exported.of(part)]  # type: ignore[arg-type]
        assert set(strides) <= {(m.stride, m.channels) for m in ours.of(part)}  # type: ignore[arg-type]
    assert {p.name: round(p.gflops, 2) for p in ours.parts}["backbone"] == round(exported.parts[0].gflops, 2)


@pytest.mark.parametrize("ending", ["torchscript", "pt2"])
def test_files_that_hide_their_parts_say_so(folder: Path, ending: str) -> None:
    with pytest.raises(ModelError, match="does not show its parts; the model's ONNX export does"):
        _ = detector(folder, ending).anatomy


@pytest.mark.parametrize("ending", ["torchscript", "pt2"])
@pytest.mark.acceptance("S4")
def test_files_that_can_run_code_are_refused_unless_trusted(
    folder: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: loaded.append(a))
    monkeypatch.setattr(torch.export, "load", lambda *a, **k: loaded.append(a))
    with pytest.raises(ModelError, match=r"which can run code of its own while it is loaded; set model\.trusted: true"):
        open_detector(ModelSpec(uri=str(folder / f"net.{ending}")))
    assert not loaded
