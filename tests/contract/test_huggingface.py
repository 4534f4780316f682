"""Hugging Face folders give what the library itself gives: the same numbers in, the same detections out."""

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchdet.errors import ModelError, SpecError
from batchdet.model.detector import Detector, open_detector
from batchdet.model.fetch import fetch_model
from batchdet.model.huggingface import FAMILIES
from batchdet.model.placement import Placement
from batchdet.spec import CanvasSpec, ModelSpec
from tests.huggingface_folders import BY_EDGES, CLASSES, SIZE_PX, STRETCHED, make_folder, processor_of

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

TYPES = (*STRETCHED, *BY_EDGES)
SIZES = [(320, 240), (200, 300), (640, 120)]
"""Of images, ``(width_px, height_px)``: landscape, portrait, and one that the longest edge limits."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    for model_type in TYPES:
        (root / model_type).mkdir()
        make_folder(root / model_type, model_type)
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATCHDET_CACHE", str(tmp_path_factory.mktemp("cache") / "batchdet"))
        yield


def spec(folder: Path, **more: Any) -> ModelSpec:
    return ModelSpec(uri=str(folder), score_threshold=0.0, max_detections=1000, **more)


@functools.cache
def plain(folder: Path) -> Detector:
    """Open a folder without further settings, once for all tests."""
    return open_detector(spec(folder))


def image(size: tuple[int, int]) -> Any:
    """Noise, of which every way of resizing makes something else."""
    return np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("model_type", TYPES)
def test_images_get_the_canvas_and_the_numbers_of_the_library(
    folders: Path, cache: Any, model_type: str, size: tuple[int, int]
) -> None:
    from batchdet.decode.canvas import paint

    detector = plain(folders / model_type)
    pixels = image(size)
    wanted = processor_of(folders / model_type, model_type)(images=pixels, return_tensors="np")["pixel_values"]
    letterbox = detector.letterbox(*size)
    assert (letterbox.canvas[1], letterbox.canvas[0]) == wanted.shape[2:]
    canvas = np.zeros((*wanted.shape[2:], 3), np.uint8)
    paint(pixels, letterbox, canvas)
    factors, offsets = detector.preprocess.affine()
    found = (canvas * factors + offsets).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("model_type", TYPES)
def test_detections_are_those_of_the_library(folders: Path, cache: Any, model_type: str, rows: int) -> None:
    detector = plain(folders / model_type)
    size = SIZES[0]
    letterbox = detector.letterbox(*size)
    width, height = letterbox.canvas
    canvases = np.random.default_rng(1).integers(0, 256, (rows, height, width, 3), np.uint8)
    factors, offsets = detector.preprocess.affine()
    planes = torch.from_numpy((canvases * factors + offsets).transpose(0, 3, 1, 2).astype(np.float32))
    library = torch.nn.Module()
    library.model = _as_the_library_has_it(folders / model_type)
    with torch.inference_mode():
        outputs = library.model(pixel_values=planes)
    processor = processor_of(folders / model_type, model_type)
    wanted = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[size[::-1]] * rows)
    found = detector.detect(canvases, [letterbox] * rows)
    for ours, theirs in zip(found, wanted, strict=True):
        boxes = theirs["boxes"].numpy().clip(0, np.array([*size, *size]))
        order = np.argsort(-theirs["scores"].numpy(), kind="stable")
        real = order[((boxes[order, 2:] - boxes[order, :2]) > 0).all(axis=1)]
        np.testing.assert_allclose(ours.scores, theirs["scores"].numpy()[real], atol=1e-6)
        np.testing.assert_allclose(ours.boxes_xyxy, boxes[real], atol=1e-2)
        assert ours.class_ids.tolist() == theirs["labels"].numpy()[real].tolist()
        assert len(ours) > 5


@functools.cache
def _as_the_library_has_it(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()


@pytest.mark.parametrize("model_type", TYPES)
def test_the_card(folders: Path, cache: Any, model_type: str) -> None:
    detector = plain(folders / model_type)
    card = detector.card
    assert card.family == FAMILIES[model_type]
    assert card.labels == tuple(f"thing {i}" for i in range(CLASSES))
    assert card.format == "a Hugging Face folder"
    assert card.canvas_px == ((SIZE_PX, SIZE_PX) if model_type in STRETCHED else (128, 96))
    assert card.canvas_shape == ("fixed" if model_type in STRETCHED else "own")
    assert card.producer.startswith("transformers ")
    assert card.dynamic_batch
    total = sum(p.numel() for p in _as_the_library_has_it(folders / model_type).parameters())
    assert sum(part.parameters for part in detector.anatomy.parts) == total


@pytest.mark.parametrize("model_type", ["rt_detr", "d_fine", "detr"])
def test_features_are_the_maps_that_the_library_computes(folders: Path, cache: Any, model_type: str) -> None:
    detector = open_detector(spec(folders / model_type, features="image"))
    letterbox = detector.letterbox(*SIZES[0])
    width, height = letterbox.canvas
    canvas = np.random.default_rng(2).integers(0, 256, (1, height, width, 3), np.uint8)
    (found,) = detector.detect(canvas, [letterbox])
    factors, offsets = detector.preprocess.affine()
    planes = torch.from_numpy((canvas * factors + offsets).transpose(0, 3, 1, 2).astype(np.float32))
    model = _as_the_library_has_it(folders / model_type)
    with torch.inference_mode():
        maps = model.model.backbone(planes, torch.ones(1, height, width, dtype=torch.bool))
    np.testing.assert_allclose(found.image_features, maps[-1][0].mean((2, 3))[0].numpy(), atol=1e-4)


def test_a_plain_vit_has_no_maps_to_pool(folders: Path, cache: Any) -> None:
    with pytest.raises(SpecError, match=r"model\.features_from: auto, but no backbone is found"):
        open_detector(spec(folders / "yolos", features="image"))


def test_a_longest_side_of_the_users_own(folders: Path, cache: Any) -> None:
    detector = open_detector(spec(folders / "detr", canvas=CanvasSpec(size_px=320)))
    assert detector.preprocess.shortest_px == 192
    assert detector.letterbox(320, 240).canvas == (256, 192)
    with pytest.raises(SpecError, match=r"model\.canvas\.shape: rectangle, but the model gives each image its own"):
        open_detector(spec(folders / "detr", canvas=CanvasSpec(shape="rectangle")))
    with pytest.raises(SpecError, match=r"model\.canvas\.size_px: 320, but the model is made for 128 x 128 only"):
        open_detector(spec(folders / "rt_detr", canvas=CanvasSpec(size_px=320)))


def test_other_runtimes_refuse_it(folders: Path, cache: Any) -> None:
    with pytest.raises(SpecError, match=r"model\.runtime: openvino does not run a Hugging Face folder; take auto or"):
        open_detector(spec(folders / "detr", runtime="openvino"))


@pytest.mark.parametrize("precision", ["bf16"])
def test_half_the_bits_on_a_cpu_are_near(folders: Path, cache: Any, precision: Any) -> None:
    exact, half = (open_detector(spec(folders / "rt_detr", precision=p)) for p in ("fp32", precision))
    letterbox = exact.letterbox(*SIZES[0])
    canvas = image((SIZE_PX, SIZE_PX))[None]
    one, other = (each.detect(canvas, [letterbox])[0] for each in (exact, half))
    assert half.card.precision == precision
    np.testing.assert_allclose(other.scores, one.scores, atol=0.02)
    assert (other.scores != one.scores).any()


def test_weights_that_are_missing_are_not_made_up(folders: Path, cache: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folders / "detr" / name).read_bytes())
    weights = load_file(folders / "detr" / "model.safetensors")
    del weights["class_labels_classifier.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="weights lack 1 tensors of its configuration, first class_labels_classifier"):
        open_detector(spec(tmp_path))


def test_the_weights_file_stands_for_its_folder(folders: Path, cache: Any) -> None:
    whole, by_file = (fetch_model(str(path)) for path in (folders / "detr", folders / "detr" / "model.safetensors"))
    assert whole == by_file


def test_every_process_gives_the_same_place(folders: Path, cache: Any) -> None:
    placement = open_detector(spec(folders / "yolos")).placement
    assert Placement.of(json.loads(json.dumps(asdict(placement)))) == placement
    assert placement.letterbox(333, 250).canvas == (112, 96)


def test_a_detector_takes_what_the_cache_gives(folders: Path, cache: Any) -> None:
    local = fetch_model(str(folders / "detr"))
    assert Detector(spec(folders / "detr"), local.path, local.sha256).card.sha256 == local.sha256
