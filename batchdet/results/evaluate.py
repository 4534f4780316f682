"""How good the labels are: average precision against a ground truth in COCO's format.

Source: the measure is COCO's (https://cocodataset.org/#detection-eval), computed by pycocotools.
"""

import contextlib
import io
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchdet import storage
from batchdet.errors import OutputError, SpecError
from batchdet.packages import missing_extra
from batchdet.results.open import Results, open_results, readable
from batchdet.results.record import read_record, read_spec
from batchdet.results.tables import quote_name
from batchdet.spec import JobSpec
from batchdet.text import counted, escape
from batchdet.truth import Truth, read_truth

if TYPE_CHECKING:
    from rich.console import Console

MAX_DETECTIONS: Final = 100
"""COCO's own limit of detections per image and class."""

_NAME_COLUMNS: Final = ("file_name", "filename", "file_path", "image_path", "path", "member", "uri")
"""Columns of ``images`` that may name the file, tried in this order."""

_LOW_THRESHOLD: Final = 0.01
"""Below this threshold, what is cut off no longer moves AP."""

_AREAS: Final = ("all", "small", "medium", "large")


@dataclass(frozen=True)
class ClassResult:
    """Average precision of one class; -1 where the truth holds no object of it."""

    label: str
    ap: float
    ap50: float
    truth_boxes: int


@dataclass(frozen=True)
class Evaluation:
    """Average precision of the labels; every figure is in [0, 1], and -1 where there is nothing to measure.

    Args:
        ap: Mean over IoU 0.50, 0.55, ..., 0.95.
        ap50: At IoU 0.50.
        ap75: At IoU 0.75.
        ap_small: ``ap`` of objects with an area below 32² pixels.
        ap_medium: ``ap`` of objects between.
        ap_large: ``ap`` of objects with an area above 96² pixels.
        images: Images that both the run and the truth hold: those that count.
        images_failed: Of these, images that failed; they count as images without detections.
        images_only_in_run: Images without truth, left out.
        images_only_in_truth: Images that the run does not hold, left out.
        truth_boxes_without_image: Boxes of the truth on images that it does not list, left out.
        detections: Detections on the images that count.
        detections_without_class: Of these, detections whose label is no category of the truth, left out.
        class_matching: ``name``, or ``order`` where no name matched and the n-th class is taken for the n-th category.
        max_detections: At most this many detections per image and class count.
        score_threshold: Detections below it were never kept, which lowers every figure; null when unknown.
        images_of_other_settings: Images that were labelled with other settings only, left out.
        by_class: One entry per category, in the truth's order.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    images: int
    images_failed: int
    images_only_in_run: int
    images_only_in_truth: int
    detections: int
    detections_without_class: int
    class_matching: Literal["name", "order"]
    max_detections: int
    score_threshold: float | None = None
    truth_boxes_without_image: int = 0
    images_of_other_settings: int = 0
    by_class: tuple[ClassResult, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def evaluate(
    uri: str,
    truth: str,
    run: str | None = None,
    settings: str | JobSpec | None = None,
    max_detections: int = MAX_DETECTIONS,
) -> Evaluation:
    """Compare a run's detections with a ground truth.

    Images are matched by file name: a column ``file_name``, ``image_path`` or the like carried over from the source,
    else ``member``, else ``uri``; first as it stands, then its last component where that names one image of the truth.
    Classes are matched by label, whatever the case. Where not one label is a category's name, and there are as many
    labels as categories, the n-th class is taken for the n-th category by id, and ``class_matching`` says so.

    Args:
        uri: The output's folder.
        truth: URI of an ``instances.json``.
        run: Only this run; null takes the newest rows of each image.
        settings: Whose settings; as in :func:`batchdet.open_results`.
        max_detections: At most this many detections per image and class count; COCO's measure takes 100.

    Raises:
        MissingExtra: pycocotools is not installed.
        SpecError: The truth is not one, or shares no image or no class with the run.
    """
    read = read_truth(storage.normalize(truth))
    coco = _as_coco(read)
    results = open_results(uri, run, settings)
    with readable(results.uri):
        matched, only_in_run, duplicates = _match_images(results, coco["images"])
        if not matched.num_rows:
            raise SpecError(
                f"{truth}: not one of its {len(coco['images'])} images is in {results.uri}: the truth names "
                f"{_example(one['file_name'] for one in coco['images'])}, the run "
                f"{_example(row[0] for row in results.sql('SELECT member FROM images LIMIT 1').fetchall())}"
            )
        classes, matching = _match_classes(results, coco["categories"], truth)
        results.connection.register("matched", matched)
        results.connection.register("classes", classes)
        rows = results.sql(
            "SELECT m.truth_id, d.x_min, d.y_min, d.x_max - d.x_min AS w, d.y_max - d.y_min AS h, d.score, "
            "c.category_id FROM detections d JOIN matched m USING (run_id, image_id) JOIN classes c "
            "USING (class_id, label) ORDER BY m.truth_id, d.detection_index"
        ).to_arrow_table()
    detections = np.stack([column.to_numpy().astype(np.float64) for column in rows.columns], axis=1)
    ids = set(matched["truth_id"].to_pylist())
    figures, by_class = _average_precision(coco, ids, detections[detections[:, 6] >= 0], max_detections)
    return Evaluation(
        **figures,
        images=len(ids),
        images_failed=matched["failed"].to_pylist().count(True),
        images_only_in_run=only_in_run + duplicates,
        images_only_in_truth=len(coco["images"]) - len(ids),
        truth_boxes_without_image=read.strays,
        detections=len(detections),
        detections_without_class=int((detections[:, 6] < 0).sum()),
        class_matching=matching,
        max_detections=max_detections,
        score_threshold=_score_threshold(results),
        images_of_other_settings=results.left_out,
        by_class=by_class,
    )


def _score_threshold(results: Results) -> float | None:
    """Return the threshold of all viewed runs; they share their settings."""
    with contextlib.suppress(OutputError):
        return read_spec(results.uri, results.manifest.run_id).model.score_threshold
    return None


def _as_coco(truth: Truth) -> dict[str, Any]:
    """Return a truth as pycocotools takes it: images, categories and annotations are numbered from 1."""
    return {
        "images": [{"id": n, "file_name": image.name} for n, image in enumerate(truth.images, 1)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(truth.categories, 1)],
        "annotations": [
            {
                "id": n,
                "image_id": box.image + 1,
                "category_id": box.category + 1,
                "bbox": list(box.xywh),
                "area": box.area,
                "iscrowd": int(box.crowd),
            }
            for n, box in enumerate(truth.boxes, 1)
        ],
    }


def _match_images(results: Results, truth_images: Sequence[Mapping[str, Any]]) -> tuple[pa.Table, int, int]:
    """Pair the run's images with the truth's.

    Returns:
        ``run_id, image_id, truth_id, failed`` of each pair; images of the run without truth; images left out because
        another one has the same truth.
    """
    last = Counter(posixpath.basename(one["file_name"]) for one in truth_images)
    names = {}
    for one in truth_images:
        name = posixpath.basename(one["file_name"])
        if last[name] == 1:
            names[name] = one["id"]
    names |= {one["file_name"]: one["id"] for one in truth_images}
    con = results.connection
    con.register("truth_names", pa.table({"name": list(names), "id": pa.array(names.values(), pa.int64())}))
    columns = [quote_name(name) for name in _NAME_COLUMNS if name in results.images().schema.names]
    keys = [*(f"{name}::VARCHAR" for name in columns), *(f"split_part({name}::VARCHAR, '/', -1)" for name in columns)]
    joins = " ".join(f"LEFT JOIN truth_names t{n} ON t{n}.name = {key}" for n, key in enumerate(keys))
    con.execute(
        "CREATE OR REPLACE TEMP TABLE named AS SELECT run_id, image_id, status <> 'ok' AS failed, "
        f"coalesce({', '.join(f't{n}.id' for n in range(len(keys)))}) AS truth_id FROM images {joins}"
    )
    ((listed, with_truth),) = con.sql("SELECT count(*), count(truth_id) FROM named").fetchall()
    first = "row_number() OVER (PARTITION BY truth_id ORDER BY run_id, image_id) = 1"
    pairs = con.sql(f"FROM named WHERE truth_id IS NOT NULL QUALIFY {first}").to_arrow_table()
    return pairs, listed - with_truth, with_truth - pairs.num_rows


def _match_classes(
    results: Results, categories: Sequence[Mapping[str, Any]], truth: str
) -> tuple[pa.Table, Literal["name", "order"]]:
    """Return ``class_id, label, category_id`` of each class that was found, -1 for no category, and how it matches."""
    by_name = {_plain_name(one["name"]): one["id"] for one in categories}
    labels = read_record(results.uri, results.manifest.run_id, "stats.json").get("labels", [])
    found = results.sql("SELECT DISTINCT class_id, label FROM detections ORDER BY ALL").to_arrow_table()
    ids, names = found["class_id"].to_pylist(), found["label"].to_pylist()
    matching: Literal["name", "order"] = "name"
    category_ids = [by_name.get(_plain_name(name), -1) for name in names]
    if names and not any(_plain_name(name) in by_name for name in (*names, *labels)):
        if len(labels) != len(categories):
            raise SpecError(
                f"{truth}: not one of its {len(categories)} categories ({_example(c['name'] for c in categories)}) "
                f"is a label of the run ({_example(names)}); give the truth the run's labels, or set model.labels"
            )
        matching = "order"
        category_ids = [categories[i]["id"] if 0 <= i < len(categories) else -1 for i in ids]
    return found.append_column("category_id", pa.array(category_ids, pa.int64())), matching


def _plain_name(label: str) -> str:
    return " ".join(label.casefold().replace("_", " ").replace("-", " ").split())


def _example(names: Iterable[str]) -> str:
    some = [repr(name) for _, name in zip(range(3), names, strict=False)]
    return ", ".join(some) or "nothing"


def _average_precision(
    coco: dict[str, Any], ids: set[int], detections: npt.NDArray[np.float64], max_detections: int
) -> tuple[dict[str, float], tuple[ClassResult, ...]]:
    """Compute COCO's figures over some images.

    Args:
        coco: The truth.
        ids: The images that count.
        detections: ``(N, 7)`` float64: image id, x, y, w, h, score, category id.
        max_detections: Per image and class.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise missing_extra("evaluate needs", "evaluate", "pycocotools") from error

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            **coco,
            "images": [one for one in coco["images"] if one["id"] in ids],
            "annotations": [one for one in coco["annotations"] if one["image_id"] in ids],
        }
        truth.createIndex()
        found = truth.loadRes(detections) if len(detections) else COCO()
        judge = COCOeval(truth, found, "bbox")
        judge.params.imgIds = sorted(ids)
        judge.params.catIds = [one["id"] for one in coco["categories"]]
        judge.params.maxDets = [max_detections]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, :, 0]  # (IoU, recall, class, area)
    figures = {name: _mean(precision[:, :, :, area]) for area, name in enumerate(_AREAS)}
    totals = dict.fromkeys(judge.params.catIds, 0)
    for one in truth.dataset["annotations"]:
        if not one["iscrowd"]:
            totals[one["category_id"]] = totals.get(one["category_id"], 0) + 1
    by_class = tuple(
        ClassResult(one["name"], _mean(precision[:, :, k, 0]), _mean(precision[0, :, k, 0]), totals[one["id"]])
        for k, one in enumerate(coco["categories"])
    )
    named = {"ap": figures["all"], **{f"ap_{name}": figures[name] for name in _AREAS[1:]}}
    return {**named, "ap50": _mean(precision[0, :, :, 0]), "ap75": _mean(precision[5, :, :, 0])}, by_class


def _mean(precision: npt.NDArray[np.float64]) -> float:
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else -1.0


def render_evaluation(evaluation: Evaluation, console: "Console", max_classes: int = 20) -> None:
    """Print an evaluation: the figures, what they rest on, and the classes."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    e = evaluation
    figures = (
        ("AP", e.ap),
        ("AP50", e.ap50),
        ("AP75", e.ap75),
        ("small", e.ap_small),
        ("medium", e.ap_medium),
        ("large", e.ap_large),
    )
    console.print(Text("   ".join(f"{name} {_figure(value)}" for name, value in figures), style="bold"), soft_wrap=True)
    notes = [
        f"on {counted(e.images, 'image')} that both the run and the truth hold, {counted(e.detections, 'detection')}"
    ]
    notes += [f"{e.images_failed:,} of these failed and count as empty"] * bool(e.images_failed)
    notes += [f"without truth: {counted(e.images_only_in_run, 'image')} of the run"] * bool(e.images_only_in_run)
    notes += [f"not in the run: {counted(e.images_only_in_truth, 'image')} of the truth"] * bool(e.images_only_in_truth)
    notes += [
        f"{e.truth_boxes_without_image:,} boxes of the truth are on images that it does not list, and were left out"
    ] * bool(e.truth_boxes_without_image)
    notes += [f"left out: {counted(e.detections_without_class, 'detection')} of other classes"] * bool(
        e.detections_without_class
    )
    notes += ["no label is a category's name: classes were matched by their order"] * (e.class_matching == "order")
    if e.score_threshold is not None and e.score_threshold > _LOW_THRESHOLD:
        low = f"model.score_threshold={_LOW_THRESHOLD}"
        notes.append(f"labels begin at score {e.score_threshold:g}; AP as published needs {low} or lower")
    notes += [f"{e.images_of_other_settings:,} images were labelled with other settings only and are left out"] * bool(
        e.images_of_other_settings
    )
    for note in notes:
        console.print(Text(note, style="dim"), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("class", overflow="fold")
    for name in ("AP50", "AP", "truth boxes"):
        table.add_column(name, justify="right")
    measured = sorted((one for one in e.by_class if one.truth_boxes), key=lambda one: -one.truth_boxes)
    for one in measured[:max_classes]:
        table.add_row(Text(escape(one.label)), _figure(one.ap50), _figure(one.ap), f"{one.truth_boxes:,}")
    console.print(table)
    if len(measured) > max_classes:
        console.print(Text(f"and {len(measured) - max_classes} more classes", style="dim"))


def _figure(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"
