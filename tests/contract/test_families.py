"""One suite that every family passes: known from its outputs, decoded to original pixels, sorted, limited."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchdet.errors import ModelError
from batchdet.geometry.letterbox import Letterbox
from batchdet.model.detector import Detector
from batchdet.model.families import FAMILIES, DecodeSettings, Family, Signature, find_family
from batchdet.model.families.family import grid
from batchdet.model.families.yolox import STRIDES
from batchdet.model.runtimes import Tensor, TensorInfo
from batchdet.spec import ModelSpec
from tests import tiny_onnx

CANVAS = (64, 64)
SOURCE = (128, 64)
OBJECTS = np.array(
    [  # xyxy in original pixels, score, class
        [8, 8, 40, 40, 0.9, 1],
        [64, 16, 112, 56, 0.75, 2],
        [0, 0, 24, 24, 0.5, 0],
    ],
    np.float32,
)
CLASSES = 3


def letterbox(family: Family) -> Letterbox:
    return family.preprocess.place(SOURCE, CANVAS)


def end2end_outputs(rows: Any) -> dict[str, Tensor]:
    box = letterbox(FAMILIES["yolo_end2end"])
    output = np.zeros((1, 10, 6), np.float32)
    output[0, : len(rows)] = np.column_stack([box.to_canvas(rows[:, :4]), rows[:, 4:]])
    return {"output0": output}


def _centres(family: Family, rows: Any) -> Any:
    xyxy = letterbox(family).to_canvas(rows[:, :4])
    return np.column_stack([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]])


def dense_outputs(rows: Any) -> dict[str, Tensor]:
    output = np.zeros((1, 4 + CLASSES, 84), np.float32)
    output[0, :4, : len(rows)] = _centres(FAMILIES["yolo_dense"], rows).T
    output[0, 4 + rows[:, 5].astype(int), np.arange(len(rows))] = rows[:, 4]
    return {"output0": output}


def yolox_outputs(rows: Any) -> dict[str, Tensor]:
    corner, stride = grid(CANVAS, STRIDES)
    output = np.zeros((1, 84, 5 + CLASSES), np.float32)
    at = np.arange(len(rows)) * 7
    boxes = _centres(FAMILIES["yolox"], rows)
    output[0, at, :2] = boxes[:, :2] / stride[at] - corner[at]
    output[0, at, 2:4] = np.log(boxes[:, 2:] / stride[at])
    output[0, at, 4] = np.sqrt(rows[:, 4])
    output[0, at, 5 + rows[:, 5].astype(int)] = np.sqrt(rows[:, 4])
    return {"output": output}


def anchors_outputs(rows: Any) -> dict[str, Tensor]:
    output = np.zeros((1, 3 * 84, 5 + CLASSES), np.float32)
    at = np.arange(len(rows)) * 7
    output[0, at, :4] = _centres(FAMILIES["yolo_anchors"], rows)
    output[0, at, 4] = np.sqrt(rows[:, 4])
    output[0, at, 5 + rows[:, 5].astype(int)] = np.sqrt(rows[:, 4])
    return {"output": output}


def detr_outputs(rows: Any) -> dict[str, Tensor]:
    padded = np.zeros((10, 6), np.float32)
    padded[: len(rows)] = rows
    return {
        "labels": padded[None, :, 5].astype(np.int64),
        "boxes": padded[None, :, :4],
        "scores": padded[None, :, 4],
    }


def _logits(family: str, rows: Any, logits: Tensor, nothing: float) -> dict[str, Tensor]:
    """Put rows into the outputs of a DETR whose other queries find nothing."""
    boxes = np.full((1, 10, 4), 0.5, np.float32)
    boxes[0, : len(rows)] = _centres(FAMILIES[family], rows) / (CANVAS * 2)
    padded = np.full((1, 10, logits.shape[1]), nothing, np.float32)
    padded[0, : len(rows)] = logits
    return {"logits": padded, "pred_boxes": boxes}


def focal_outputs(rows: Any) -> dict[str, Tensor]:
    logits = np.full((len(rows), CLASSES), -20.0)
    logits[np.arange(len(rows)), rows[:, 5].astype(int)] = np.log(rows[:, 4] / (1 - rows[:, 4]))
    return _logits("detr_focal", rows, logits, -20)


def softmax_outputs(rows: Any) -> dict[str, Tensor]:
    logits = np.full((len(rows), CLASSES + 1), -30.0)
    logits[np.arange(len(rows)), rows[:, 5].astype(int)] = np.log(rows[:, 4])
    logits[:, -1] = np.log(1 - rows[:, 4])
    found = _logits("detr_softmax", rows, logits, -30)
    found["logits"][0, len(rows) :, -1] = 0
    return found


def ssd_outputs(rows: Any) -> dict[str, Tensor]:
    boxes, scores, labels = np.zeros((1, 10, 4), np.float32), np.zeros((1, 10), np.float32), np.full((1, 10), -1)
    boxes[0, : len(rows)] = letterbox(FAMILIES["ssd"]).to_canvas(rows[:, :4])
    scores[0, : len(rows)], labels[0, : len(rows)] = rows[:, 4], rows[:, 5]
    return {"boxes": boxes, "labels": labels, "scores": scores}


def _gfl(family: str, rows: Any, strides: tuple[int, ...], place: float) -> tuple[Tensor, Tensor]:
    """Return scores ``(1, A, C)`` and bins ``(1, A, 32)`` of which some cells of stride 8 find the rows."""
    boxes = letterbox(FAMILIES[family]).to_canvas(rows[:, :4])
    count = sum((-(-CANVAS[0] // s)) ** 2 for s in strides)
    scores, bins = np.zeros((1, count, CLASSES), np.float32), np.zeros((1, count, 4, 8), np.float32)
    for box, score, number in zip(boxes, rows[:, 4], rows[:, 5].astype(int), strict=True):
        column, row = ((box[:2] + box[2:]) / 2 // 8).astype(int).clip(0, 7)
        at = row * 8 + column
        x, y = (column + place) * 8, (row + place) * 8
        if not (box[0] <= x <= box[2] and box[1] <= y <= box[3]):
            continue  # a cell finds only what its point lies in
        scores[0, at, number] = score
        for side, distance in enumerate((x - box[0], y - box[1], box[2] - x, box[3] - y)):
            cells = np.clip(distance / 8, 0, 6.999)  # two neighbouring bins whose mean it is
            weights = np.full(8, 1e-12)
            weights[int(cells)], weights[int(cells) + 1] = 1 - cells % 1, max(cells % 1, 1e-12)
            bins[0, at, side] = np.log(weights)
    return scores, bins.reshape(1, count, 32)


def nanodet_outputs(rows: Any) -> dict[str, Tensor]:
    return {"output": np.concatenate(_gfl("nanodet", rows, (8, 16, 32, 64), 0.0), axis=2)}


def picodet_outputs(rows: Any) -> dict[str, Tensor]:
    scores, bins = _gfl("picodet", rows, (8, 16, 32, 64), 0.5)
    ends = [64, 80, 84]
    parts = [*np.split(scores, ends, axis=1), *np.split(bins, ends, axis=1)]
    return {f"level{i}": part for i, part in enumerate(parts)}


@dataclass(frozen=True)
class Case:
    family: Family
    outputs: Callable[[Any], dict[str, Tensor]]

    def signature(self) -> Signature:
        inputs = [TensorInfo("images", "float32", (None, 3, 64, 64))]
        if self.family.name == "detr":
            inputs.append(TensorInfo("orig_target_sizes", "int64", (None, 2)))
        outputs = self.outputs(OBJECTS).items()
        return Signature(tuple(inputs), tuple(TensorInfo(n, a.dtype.name, a.shape) for n, a in outputs), CANVAS)

    def decode(self, rows: Any = OBJECTS, **settings: Any) -> Any:
        (found,) = self.family.decode(self.outputs(rows), [letterbox(self.family)], DecodeSettings(**settings))
        return found


CASES = {
    name: Case(FAMILIES[name], outputs)
    for name, outputs in {
        "yolo_end2end": end2end_outputs,
        "yolo_dense": dense_outputs,
        "yolox": yolox_outputs,
        "yolo_anchors": anchors_outputs,
        "detr": detr_outputs,
        "ssd": ssd_outputs,
        "nanodet": nanodet_outputs,
        "picodet": picodet_outputs,
        "detr_focal": focal_outputs,
        "detr_softmax": softmax_outputs,
    }.items()
}
every_family = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def test_every_family_is_tested() -> None:
    assert set(CASES) == set(FAMILIES)


LOOK_ALIKE = {"detr_focal", "detr_softmax"}


@pytest.mark.parametrize(
    "case", [c for name, c in CASES.items() if name not in LOOK_ALIKE], ids=lambda c: c.family.name
)
def test_it_is_known_from_its_outputs(case: Case) -> None:
    family, reason = find_family("auto", case.signature(), {})
    assert family is case.family
    assert reason.startswith("recognised by")


@pytest.mark.parametrize("name", sorted(LOOK_ALIKE))
def test_families_that_look_alike_are_not_guessed(name: str) -> None:
    with pytest.raises(ModelError, match=r"several families \(detr_focal, detr_softmax\).*Set model\.family"):
        find_family("auto", CASES[name].signature(), {})


@every_family
def test_it_can_be_named(case: Case) -> None:
    for asked, metadata in ((case.family.name, {}), ("auto", {"family": case.family.name})):
        assert find_family(asked, case.signature(), metadata)[0] is case.family


@every_family
def test_a_wrong_name_is_refused(case: Case) -> None:
    others = [name for name, family in FAMILIES.items() if family.fits(case.signature())]
    assert others
    for other in others:
        with pytest.raises(ModelError, match=f"names the family {other}, but it has"):
            find_family(other, case.signature(), {})


@every_family
def test_boxes_come_back_in_original_pixels_by_falling_score(case: Case) -> None:
    found = case.decode()
    np.testing.assert_allclose(found.boxes_xyxy, OBJECTS[:, :4], atol=1e-3)
    np.testing.assert_allclose(found.scores, OBJECTS[:, 4], rtol=1e-5)
    assert found.class_ids.tolist() == [1, 2, 0]


@every_family
def test_order_in_the_outputs_does_not_matter(case: Case) -> None:
    np.testing.assert_allclose(case.decode(OBJECTS[::-1]).boxes_xyxy, case.decode().boxes_xyxy, atol=1e-3)


@every_family
@pytest.mark.parametrize(
    ("settings", "classes"),
    [
        ({"score_threshold": 0.6}, [1, 2]),
        ({"score_threshold": 0.95}, []),
        ({"max_detections": 1}, [1]),
        ({"class_ids": (0, 2)}, [2, 0]),
        ({"class_ids": (0,), "max_detections": 1}, [0]),
        ({"class_ids": ()}, []),
    ],
)
def test_what_is_kept(case: Case, settings: dict[str, Any], classes: list[int]) -> None:
    found = case.decode(**settings)
    assert found.class_ids.tolist() == classes
    assert found.boxes_xyxy.shape == (len(classes), 4)


@every_family
def test_nothing_found(case: Case) -> None:
    assert len(case.decode(np.zeros((0, 6), np.float32))) == 0


@every_family
def test_boxes_are_clipped_and_those_outside_are_dropped(case: Case) -> None:
    rows = np.array([[-20, -20, 30, 30, 0.9, 0], [200, 200, 240, 240, 0.8, 1]], np.float32)
    found = case.decode(rows)
    np.testing.assert_allclose(found.boxes_xyxy, [[0, 0, 30, 30]], atol=1e-3)


@every_family
def test_what_is_not_a_number_is_dropped(case: Case) -> None:
    outputs = {name: np.full_like(a, np.nan) if a.dtype.kind == "f" else a for name, a in case.outputs(OBJECTS).items()}
    with np.errstate(all="ignore"):
        (found,) = case.family.decode(outputs, [letterbox(case.family)], DecodeSettings())
    assert len(found) == 0


@every_family
def test_images_of_a_batch_stay_apart(case: Case) -> None:
    one, other = case.outputs(OBJECTS), case.outputs(OBJECTS[:1])
    both = {name: np.concatenate([one[name], other[name]]) for name in one}
    found = case.family.decode(both, [letterbox(case.family)] * 2, DecodeSettings())
    assert [len(f) for f in found] == [3, 1]


@every_family
def test_sizes_are_fed_where_they_are_wanted(case: Case) -> None:
    feeds = case.family.feeds(case.signature(), [letterbox(case.family)] * 2)
    if case.family.name != "detr":
        assert feeds == {}
        return
    assert feeds["orig_target_sizes"].dtype == np.int64
    assert feeds["orig_target_sizes"].tolist() == [[128, 64], [128, 64]]


@pytest.mark.parametrize("name", ["yolo_dense", "yolox", "yolo_anchors"])
def test_dense_families_suppress_within_a_class(name: str) -> None:
    rows = np.array([[8, 8, 40, 40, 0.9, 1], [9, 8, 41, 40, 0.8, 1], [9, 8, 41, 40, 0.7, 2]], np.float32)
    assert CASES[name].decode(rows).class_ids.tolist() == [1, 2]
    assert CASES[name].decode(rows, iou_threshold=0.99).class_ids.tolist() == [1, 1, 2]


@pytest.mark.parametrize("name", ["yolo_end2end", "ssd", "detr", "detr_focal", "detr_softmax"])
def test_families_without_nms_keep_what_the_model_gives(name: str) -> None:
    rows = np.repeat(OBJECTS[:1], 2, axis=0)
    assert len(CASES[name].decode(rows)) == 2


@pytest.mark.parametrize(("name", "count"), [
    ("yolo_dense", 3), ("yolox", 3), ("yolo_anchors", 3),
    ("yolo_end2end", None), ("detr", None), ("detr_focal", 3), ("detr_softmax", 3),
    ("nanodet", 3), ("picodet", 3), ("ssd", None),
])  # fmt: skip
def test_class_counts(name: str, count: int | None) -> None:
    assert CASES[name].family.class_count(CASES[name].signature()) == count


@pytest.mark.parametrize(
    ("shapes", "metadata", "words"),
    [
        ([(1, 1000)], {}, ["no family of detectors", "o0 float32 [1, 1000]", "yolo_end2end:", "detr:"]),
        ([(1, 116, 84), (1, 32, 16, 16)], {}, ["no family of detectors"]),
        ([(1, 7, 84)], {"task": "segment"}, ["the task 'segment'"]),
        ([(1, 7, 84)], {"family": "yolo99"}, ["'yolo99'", "known are yolo_end2end"]),
    ],
)
def test_other_models_are_refused_with_what_was_seen(
    shapes: list[tuple[int, ...]], metadata: dict[str, str], words: list[str]
) -> None:
    outputs = tuple(TensorInfo(f"o{i}", "float32", shape) for i, shape in enumerate(shapes))
    with pytest.raises(ModelError) as caught:
        find_family("auto", Signature((), outputs, CANVAS), metadata)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_boxes_of_one_image_come_without_its_axis() -> None:
    family, outputs = FAMILIES["ssd"], ssd_outputs(OBJECTS)
    alone = {name: array[0] for name, array in outputs.items()}
    shapes = tuple(TensorInfo(name, array.dtype.name, array.shape) for name, array in alone.items())
    signature = Signature((TensorInfo("images", "float32", (None, 3, None, None)),), shapes, CANVAS)
    assert find_family("auto", signature, {})[0] is family
    (found,) = family.decode(alone, [letterbox(family)], DecodeSettings())
    np.testing.assert_allclose(found.boxes_xyxy, CASES["ssd"].decode().boxes_xyxy)
    with pytest.raises(ValueError, match="boxes of one image came for 2"):
        family.decode(alone, [letterbox(family)] * 2, DecodeSettings())


def test_boxes_may_be_shares_of_the_canvas_and_scores_stand_behind_them() -> None:
    family, outputs = FAMILIES["ssd"], ssd_outputs(OBJECTS)
    wanted = CASES["ssd"].decode().boxes_xyxy
    shares = outputs | {"boxes": outputs["boxes"] / np.array(CANVAS * 2, np.float32)}
    np.testing.assert_allclose(
        family.decode(shares, [letterbox(family)], DecodeSettings())[0].boxes_xyxy, wanted, atol=1e-3
    )
    dets = np.concatenate([outputs["boxes"], outputs["scores"][..., None]], axis=2)
    behind = {"dets": dets, "labels": outputs["labels"]}
    found = family.decode(behind, [letterbox(family)], DecodeSettings())[0]
    np.testing.assert_allclose(found.boxes_xyxy, wanted)
    np.testing.assert_allclose(found.scores, OBJECTS[:, 4])


def test_nanodet_of_three_strides_is_told_from_yolox_by_its_labels() -> None:
    output = TensorInfo("output", "float32", (1, 84, CLASSES + 32))
    signature = Signature((TensorInfo("images", "float32", (None, 3, 64, 64)),), (output,), CANVAS)
    assert find_family("auto", signature, {"names": "['a', 'b', 'c']"})[0].name == "nanodet"
    many = repr([f"c{i}" for i in range(CLASSES + 27)])
    assert find_family("auto", signature, {"names": many})[0].name == "yolox"
    coco = Signature(signature.inputs, (TensorInfo("output", "float32", (1, 84, 112)),), CANVAS)
    with pytest.raises(ModelError, match=r"several families \(yolox, nanodet\)"):
        find_family("auto", coco, {})


def test_distances_are_the_means_of_their_bins() -> None:
    """Against the formula in plain Python, on noise, with the centres of NanoDet of three strides."""
    rng = np.random.default_rng(5)
    output = np.concatenate([rng.uniform(0, 1, (1, 84, 2)), rng.normal(0, 2, (1, 84, 32))], axis=2).astype(np.float32)
    box = Letterbox.stretch(CANVAS, CANVAS)
    (found,) = FAMILIES["nanodet"].decode({"o": output}, [box], DecodeSettings(0.9, 1.0))
    cells = [(s, x, y) for s in (8, 16, 32) for y in range(64 // s) for x in range(64 // s)]
    wanted = []
    for (stride, x, y), row in zip(cells, output[0].tolist(), strict=True):
        score = max(row[:2])
        if score < 0.9:
            continue
        sides = []
        for side in range(4):
            weights = [math.exp(v) for v in row[2 + 8 * side : 10 + 8 * side]]
            sides.append(stride * sum(i * w for i, w in enumerate(weights)) / sum(weights))
        px, py = (x + 0.5) * stride, (y + 0.5) * stride
        corners = [px - sides[0], py - sides[1], px + sides[2], py + sides[3]]
        wanted.append([score, *[min(max(c, 0), 64) for c in corners]])
    wanted.sort(reverse=True)
    np.testing.assert_allclose(np.column_stack([found.scores, found.boxes_xyxy]), wanted, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@every_family
def test_through_every_runtime(case: Case, runtime: Any, rows: int, tmp_path: Path) -> None:
    """A model that always gives these outputs, loaded from its file: what comes out is what the family decodes."""
    pytest.importorskip(runtime)
    outputs = {name: array[0] for name, array in case.outputs(OBJECTS).items()}
    sizes = case.family.name == "detr"
    path = tiny_onnx.constant(tmp_path / "m.onnx", outputs, (None, 3, *CANVAS), sizes, family=case.family.name)
    detector = Detector(ModelSpec(uri=str(path), runtime=runtime), str(path), "0" * 64)
    canvases = np.zeros((rows, *CANVAS, 3), np.uint8)
    found = detector.detect(canvases, [letterbox(case.family)] * rows)
    wanted = case.decode()
    assert len(found) == rows
    for each in found:
        np.testing.assert_allclose(each.boxes_xyxy, wanted.boxes_xyxy, atol=1e-3)
        np.testing.assert_allclose(each.scores, wanted.scores, atol=1e-5)
        assert each.class_ids.tolist() == wanted.class_ids.tolist()


@pytest.mark.parametrize("name", ["nanodet", "picodet"])
def test_scores_before_their_sigmoid_get_it(name: str) -> None:
    outputs = CASES[name].outputs(OBJECTS)
    channels = slice(0, CLASSES)
    for key, array in outputs.items():
        if name == "nanodet" or array.shape[2] == CLASSES:
            scores = np.clip(array[..., channels], 1e-6, 1 - 1e-6)
            outputs[key] = np.concatenate([np.log(scores / (1 - scores)), array[..., CLASSES:]], axis=2)
    (found,) = FAMILIES[name].decode(outputs, [letterbox(FAMILIES[name])], DecodeSettings())
    np.testing.assert_allclose(found.scores, OBJECTS[:, 4], rtol=1e-4)
    assert found.class_ids.tolist() == [1, 2, 0]


def test_one_small_box_in_pixels_stays_small() -> None:
    family, outputs = FAMILIES["ssd"], ssd_outputs(OBJECTS[:1])
    outputs["boxes"][0, 0] = [0.2, 0.2, 1.9, 1.9]
    (found,) = family.decode(outputs, [Letterbox.stretch(CANVAS, CANVAS)], DecodeSettings())
    np.testing.assert_allclose(found.boxes_xyxy, [[0.2, 0.2, 1.9, 1.9]])
