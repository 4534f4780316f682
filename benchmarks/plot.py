"""The benchmarks' pictures, from the reports that they write."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "batchdet", "font.size": 10}
_OURS, _OTHERS = "#1f6f8b", "#c4c9cc"


def compare(report: dict[str, Any], path: Path) -> None:
    """Draw what compare.py found as bars."""
    rows = [row for row in report["contenders"] if row["images_per_s"]]
    rows.sort(key=lambda row: row["images_per_s"])
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.42 * len(rows)), layout="constrained")
    colours = [_OURS if row["name"].startswith("batchdet") else _OTHERS for row in rows]
    bars = axes.barh([row["name"] for row in rows], [row["images_per_s"] for row in rows], color=colours)
    axes.bar_label(bars, fmt="%.1f", padding=10)
    for y, row in enumerate(rows):
        rates = [report["images"] / run["seconds"] for run in row["runs"]]
        axes.plot(rates, [y] * len(rates), "|", color="black", markersize=9)
    axes.margins(x=0.12)
    axes.set_title(f"{report['images']:,} photographs, yolo26n at 640, {report['machine']['cores']} cores", loc="left")
    _finish(figure, axes, path, "images/s, from process start to exit; each run is a tick")


def growth(report: dict[str, Any], path: Path) -> None:
    """Draw seconds, and memory of driver and actor, over the number of images; both axes are logarithmic."""
    runs = report["runs"]
    images = [run["images"] for run in runs]
    figure, (seconds, memory) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    seconds.loglog(images, [run["wall_s"] for run in runs], "o-", color=_OURS, label="start to exit")
    seconds.loglog(images, [run["commit_s"] for run in runs], "o--", color="black", label="commit")
    memory.semilogx(images, [run["driver_mib"] for run in runs], "o-", color=_OURS, label="driver")
    memory.semilogx(images, [run["largest_actor_mib"] for run in runs], "o--", color="black", label="largest actor")
    memory.set_ylim(bottom=0)
    seconds.set_title("seconds", loc="left")
    memory.set_title("MiB that a process has to itself", loc="left")
    for axes in (seconds, memory):
        axes.legend(frameon=False)
        _finish(figure, axes, path, "images")


def control_plane(report: dict[str, Any], path: Path) -> None:
    """Draw the attained over the offered rate, a line for each size of segments; both axes are logarithmic."""
    points = report["points"]
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for rows in sorted({point["segment_rows"] for point in points}):
        line = sorted((p["offered_images_per_s"], p["images_per_s"]) for p in points if p["segment_rows"] == rows)
        axes.loglog(*zip(*line, strict=True), "o-", label=f"segments of {rows}")
    ends = [f(point["offered_images_per_s"] for point in points) for f in (min, max)]
    axes.loglog(ends, ends, ":", color="black", label="what the detectors could do")
    axes.legend(frameon=False)
    axes.set_title("images/s", loc="left")
    _finish(figure, axes, path, "images/s offered: simulated actors x their rate")


def _finish(figure: Figure, axes: Axes, path: Path, label: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(label)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
