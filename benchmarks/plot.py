"""Draw benchmarks/results/compare.json as bars; run by compare.py in the environment that has matplotlib."""

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt


def main() -> None:
    """Read the JSON named first and write the picture named second."""
    report = json.loads(Path(sys.argv[1]).read_text())
    rows = [row for row in report["contenders"] if row["images_per_s"]]
    rows.sort(key=lambda row: row["images_per_s"])
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "batchdet", "font.size": 10}
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.42 * len(rows)), layout="constrained")
    colours = ["#1f6f8b" if row["name"].startswith("batchdet") else "#c4c9cc" for row in rows]
    bars = axes.barh([row["name"] for row in rows], [row["images_per_s"] for row in rows], color=colours)
    axes.bar_label(bars, fmt="%.1f", padding=10)
    for y, row in enumerate(rows):
        rates = [report["images"] / run["seconds"] for run in row["runs"]]
        axes.plot(rates, [y] * len(rates), "|", color="black", markersize=9)
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("images/s, from process start to exit; each run is a tick")
    axes.set_title(f"{report['images']:,} photographs, yolo26n at 640, {report['machine']['cores']} cores", loc="left")
    figure.savefig(sys.argv[2], metadata={"Date": None} if sys.argv[2].endswith(".svg") else None)


if __name__ == "__main__":
    main()
