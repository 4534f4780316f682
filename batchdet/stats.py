"""What a run found, counted in bounded memory: statistics that merge in any order to the same numbers.

Sums are kept as integers (scores in steps of 2**-32, times in microseconds), so that merging is exactly
associative and commutative: the same run gives the same ``stats.json`` however its files were grouped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchdet.records.schema import STATUS_OK

STEPS: Final = ("read", "decode", "infer", "postprocess", "write")
"""Steps whose time is shown first, in the order of the data's way."""

SCORE_EDGES: Final = tuple(k / 20 for k in range(21))
"""20 bins of 0.05; the last one holds 1.0 too."""

BOX_SIZE_EDGES_PX: Final = (0, *(2**k for k in range(16)), None)
"""Bins of sqrt(area); the last one is open."""

DETECTIONS_PER_IMAGE_EDGES: Final = (0, *(2**k for k in range(14)), None)
"""Bins of detections in one image: none, 1, 2-3, 4-7, ...; the last one is open."""

MEGAPIXEL_EDGES: Final = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, None)
"""Bins of width x height in millions of pixels; the last one is open."""

COCO_SMALL_PX2: Final = 32**2
COCO_LARGE_PX2: Final = 96**2
"""COCO's bounds of small | medium | large boxes, by area. Source: https://cocodataset.org/#detection-eval."""

_SCORE_STEPS: Final = 2**32
_Counts = npt.NDArray[np.int64]


@dataclass
class _Extent:
    """Minimum, maximum and sum of whole numbers."""

    count: int = 0
    total: int = 0
    low: int | None = None
    high: int | None = None

    def add(self, values: npt.NDArray[np.int64]) -> None:
        if len(values):
            self.merge(_Extent(len(values), int(values.sum()), int(values.min()), int(values.max())))

    def merge(self, other: "_Extent") -> None:
        self.count += other.count
        self.total += other.total
        self.low = min((v for v in (self.low, other.low) if v is not None), default=None)
        self.high = max((v for v in (self.high, other.high) if v is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        mean = round(self.total / self.count, 3) if self.count else None
        return {"min": self.low, "max": self.high, "mean": mean, "sum": self.total, "images": self.count}

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> "_Extent":
        return _Extent(raw["images"], raw["sum"], raw["min"], raw["max"])


@dataclass
class _ClassCount:
    """Detections of one class."""

    count: int = 0
    images: int = 0
    score_sum_q32: int = 0
    max_score: float = 0.0

    def merge(self, other: "_ClassCount") -> None:
        self.count += other.count
        self.images += other.images
        self.score_sum_q32 += other.score_sum_q32
        self.max_score = max(self.max_score, other.max_score)

    def to_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "images": self.images,
            "mean_score": round(self.score_sum_q32 / _SCORE_STEPS / self.count, 9) if self.count else None,
            "max_score": self.max_score if self.count else None,
            "score_sum_q32": self.score_sum_q32,
        }

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> "_ClassCount":
        return _ClassCount(raw["count"], raw["images"], raw["score_sum_q32"], raw["max_score"] or 0.0)


def _zeros(edges: Sequence[Any]) -> _Counts:
    return np.zeros(len(edges) - 1, np.int64)


@dataclass
class RunStats:
    """Statistics of one run. Make one with :meth:`empty`, then :meth:`add` tables and :meth:`merge` others.

    Args:
        labels: The model's labels, in its order.
        wall_s: How long the run took; set by the caller at the end, dropped by :meth:`merge`.
        images_per_s: Its rate; set by the caller at the end, dropped by :meth:`merge`.
    """

    labels: tuple[str, ...]
    wall_s: float | None = None
    images_per_s: float | None = None
    images_ok: int = 0
    images_failed: int = 0
    images_with_detections: int = 0
    size_bytes: int = 0
    by_error_code: dict[str, int] = field(default_factory=dict)
    by_class: dict[str, _ClassCount] = field(default_factory=dict)
    time_us: dict[str, int] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)
    score_counts: _Counts = field(default_factory=lambda: _zeros(SCORE_EDGES))
    box_size_counts: _Counts = field(default_factory=lambda: _zeros(BOX_SIZE_EDGES_PX))
    coco_counts: _Counts = field(default_factory=lambda: np.zeros(3, np.int64))
    per_image_counts: _Counts = field(default_factory=lambda: _zeros(DETECTIONS_PER_IMAGE_EDGES))
    megapixel_counts: _Counts = field(default_factory=lambda: _zeros(MEGAPIXEL_EDGES))
    width_px: _Extent = field(default_factory=_Extent)
    height_px: _Extent = field(default_factory=_Extent)

    @staticmethod
    def empty(labels: Sequence[str]) -> "RunStats":
        """Return statistics of nothing.

        Args:
            labels: The model's labels, in its order; classes are listed in this order.
        """
        return RunStats(labels=tuple(dict.fromkeys(labels)))

    @property
    def images_listed(self) -> int:
        """Images counted, ok and failed."""
        return self.images_ok + self.images_failed

    @property
    def detections(self) -> int:
        """Detections counted."""
        return sum(c.count for c in self.by_class.values())

    def add(self, images: pa.Table, detections: pa.Table) -> None:
        """Count rows of both tables.

        The detections of one image must come in one call, or ``images`` of a class counts it twice. They need
        not come in the call that brings the image.

        Args:
            images: Rows of :data:`batchdet.records.schema.IMAGES`; further columns are passed over.
            detections: Rows of :data:`batchdet.records.schema.DETECTIONS`; likewise.
        """
        if images.num_rows:
            self._add_images(images)
        if detections.num_rows:
            self._add_detections(detections)

    def _add_images(self, images: pa.Table) -> None:
        ok = pc.equal(images["status"], STATUS_OK)
        failed = images.filter(pc.invert(ok))
        self.images_ok += images.num_rows - failed.num_rows
        self.images_failed += failed.num_rows
        for entry in pc.value_counts(failed["error_code"].combine_chunks()).to_pylist():
            code = entry["values"] or "unknown"
            self.by_error_code[code] = self.by_error_code.get(code, 0) + entry["counts"]
        sizes = images["size_bytes"]
        self.size_bytes += pc.sum(sizes.filter(pc.greater_equal(sizes, 0)), min_count=0).as_py()

        found = images["detection_count"].filter(ok).to_numpy()
        self.images_with_detections += int(np.count_nonzero(found))
        self.per_image_counts += _power_of_two_bins(found, len(self.per_image_counts))

        sized = images.filter(pc.and_(images["width_px"].is_valid(), images["height_px"].is_valid()))
        width, height = (sized[name].to_numpy().astype(np.int64) for name in ("width_px", "height_px"))
        self.width_px.add(width)
        self.height_px.add(height)
        bounds = np.array([e * 1e6 for e in MEGAPIXEL_EDGES if e is not None])
        bins = np.searchsorted(bounds, width * height, side="right") - 1
        self.megapixel_counts += np.bincount(bins, minlength=len(self.megapixel_counts))

    def _add_detections(self, detections: pa.Table) -> None:
        score = np.clip(np.nan_to_num(detections["score"].to_numpy().astype(np.float64)), 0, 1)
        bins = np.minimum(np.floor(score * 20), 19).astype(np.int64)
        self.score_counts += np.bincount(bins, minlength=20)

        x_min, y_min, x_max, y_max = (
            detections[name].to_numpy().astype(np.float64) for name in ("x_min", "y_min", "x_max", "y_max")
        )
        area = np.nan_to_num(np.maximum(x_max - x_min, 0) * np.maximum(y_max - y_min, 0))
        self.box_size_counts += _power_of_two_bins(np.sqrt(area), len(self.box_size_counts))
        bins = np.searchsorted([COCO_SMALL_PX2, COCO_LARGE_PX2], area, side="right")
        self.coco_counts += np.bincount(bins, minlength=3)

        labels, label = _codes(detections["label"])
        image_ids, image = _codes(detections["image_id"])
        pairs = np.unique(label * len(image_ids) + image) // len(image_ids)
        totals, sums = np.zeros(len(labels), np.int64), np.zeros(len(labels), np.int64)
        highest, images = np.zeros(len(labels)), np.bincount(pairs, minlength=len(labels))
        np.add.at(totals, label, 1)
        np.add.at(sums, label, np.rint(score * _SCORE_STEPS).astype(np.int64))
        np.maximum.at(highest, label, score)
        for k in np.flatnonzero(totals).tolist():
            one = _ClassCount(int(totals[k]), int(images[k]), int(sums[k]), float(highest[k]))
            self.by_class.setdefault(labels[k], _ClassCount()).merge(one)

    def add_times(self, seconds_by_step: Mapping[str, float]) -> None:
        """Add time spent in steps, summed over all who worked at once.

        Args:
            seconds_by_step: Step (see :data:`STEPS`) to seconds.
        """
        for step, seconds in seconds_by_step.items():
            self.time_us[step] = self.time_us.get(step, 0) + round(seconds * 1e6)

    def add_passed_over(self, counts: Mapping[str, int]) -> None:
        """Add members of archives that are neither images nor carried over: kind -> how many."""
        for kind, count in counts.items():
            self.passed_over[kind] = self.passed_over.get(kind, 0) + count

    def merge(self, other: "RunStats") -> "RunStats":
        """Return the statistics of both together; neither is changed.

        Where the labels differ, those of the sum are sorted.
        """
        same = self.labels == other.labels
        out = RunStats.empty(self.labels if same else sorted({*self.labels, *other.labels}))
        for part in (self, other):
            for name in ("images_ok", "images_failed", "images_with_detections", "size_bytes"):
                setattr(out, name, getattr(out, name) + getattr(part, name))
            for code, count in part.by_error_code.items():
                out.by_error_code[code] = out.by_error_code.get(code, 0) + count
            for label, one in part.by_class.items():
                out.by_class.setdefault(label, _ClassCount()).merge(one)
            for step, time_us in part.time_us.items():
                out.time_us[step] = out.time_us.get(step, 0) + time_us
            out.add_passed_over(part.passed_over)
            for name in _HISTOGRAMS:
                getattr(out, name).__iadd__(getattr(part, name))
            out.width_px.merge(part.width_px)
            out.height_px.merge(part.height_px)
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return what ``stats.json`` holds; equal statistics give equal text.

        A histogram is ``{"edges": [...], "counts": [...]}``: bin ``i`` holds ``edges[i] <= value < edges[i + 1]``,
        and an edge ``null`` means without end. Classes without detections are listed too, with count 0.
        """
        labels = [*self.labels, *sorted(set(self.by_class) - set(self.labels))]
        steps = [*(s for s in STEPS if s in self.time_us), *sorted(set(self.time_us) - set(STEPS))]
        return {
            "images": {
                "listed": self.images_listed,
                "ok": self.images_ok,
                "failed": self.images_failed,
                "by_error_code": {code: self.by_error_code[code] for code in sorted(self.by_error_code)},
                "with_detections": self.images_with_detections,
                "size_bytes": self.size_bytes,
                "width_px": self.width_px.to_dict(),
                "height_px": self.height_px.to_dict(),
                "megapixels": _histogram(MEGAPIXEL_EDGES, self.megapixel_counts),
                "detections_per_image": _histogram(DETECTIONS_PER_IMAGE_EDGES, self.per_image_counts),
            },
            "detections": {
                "total": self.detections,
                "by_class": {label: self.by_class.get(label, _ClassCount()).to_dict() for label in labels},
                "score": _histogram(SCORE_EDGES, self.score_counts),
                "box_size_px": _histogram(BOX_SIZE_EDGES_PX, self.box_size_counts),
                "box_size_coco": dict(zip(("small", "medium", "large"), self.coco_counts.tolist(), strict=True)),
            },
            "members_passed_over": {kind: self.passed_over[kind] for kind in sorted(self.passed_over)},
            "time_by_step_s": {step: self.time_us[step] / 1e6 for step in steps},
            "labels": list(self.labels),
            **({} if self.wall_s is None else {"wall_s": self.wall_s}),
            **({} if self.images_per_s is None else {"images_per_s": self.images_per_s}),
        }

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> "RunStats":
        """Read statistics back from :meth:`to_dict`.

        Raises:
            KeyError: A key is missing.
        """
        images, detections = raw["images"], raw["detections"]
        classes = {label: _ClassCount.from_dict(one) for label, one in detections["by_class"].items()}
        return RunStats(
            labels=tuple(raw["labels"]),
            wall_s=raw.get("wall_s"),
            images_per_s=raw.get("images_per_s"),
            images_ok=images["ok"],
            images_failed=images["failed"],
            images_with_detections=images["with_detections"],
            size_bytes=images["size_bytes"],
            by_error_code=dict(images["by_error_code"]),
            by_class={label: one for label, one in classes.items() if one.count},
            passed_over=dict(raw.get("members_passed_over", {})),
            time_us={step: round(seconds * 1e6) for step, seconds in raw["time_by_step_s"].items()},
            score_counts=np.array(detections["score"]["counts"], np.int64),
            box_size_counts=np.array(detections["box_size_px"]["counts"], np.int64),
            coco_counts=np.array([detections["box_size_coco"][k] for k in ("small", "medium", "large")], np.int64),
            per_image_counts=np.array(images["detections_per_image"]["counts"], np.int64),
            megapixel_counts=np.array(images["megapixels"]["counts"], np.int64),
            width_px=_Extent.from_dict(images["width_px"]),
            height_px=_Extent.from_dict(images["height_px"]),
        )


_HISTOGRAMS: Final = ("score_counts", "box_size_counts", "coco_counts", "per_image_counts", "megapixel_counts")


def _codes(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the distinct values of a column and, for each row, which of them it holds."""
    array = column.combine_chunks()
    coded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    return coded.dictionary.to_pylist(), coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _histogram(edges: Sequence[float | None], counts: _Counts) -> dict[str, Any]:
    return {"edges": list(edges), "counts": counts.tolist()}


def _power_of_two_bins(values: npt.NDArray[Any], bins: int) -> _Counts:
    """Count values below 1 in bin 0, [1, 2) in bin 1, [2, 4) in bin 2, ..., the rest in the last bin."""
    exponent = np.frexp(values.astype(np.float64))[1]  # exact at the edges, as a logarithm is not
    return np.bincount(np.clip(exponent, 0, bins - 1), minlength=bins)
