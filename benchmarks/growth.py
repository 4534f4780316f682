"""What a run costs as it grows: seconds and memory from 1,000 to 100,000 images, and of planning up to 100,000 shards.

make bench-growth                                  about 3 minutes on 2 cores
make bench-growth GROWTH="--images 1000 5000"      some of it

Tiny images, so that what grows with their number is seen and not what they hold. Each run is `batchdet run` in a
process of its own; failpoints that only count tell when labelling and the commit began. Memory is what a process has to
itself (resident less shared), sampled twice a second: the driver, and the largest of its actors. Each plan is made in a
process of its own, too; its shards are hard links, so that listing them costs what listing so many files costs.
"""

import argparse
import io
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from batchdet.failpoint import VARIABLE
from batchdet.machine import private_bytes
from batchdet.plan import plan_job
from batchdet.specfile import parse_job
from benchmarks import plot
from benchmarks.report import (
    README,
    RESULTS,
    busy_share,
    machine,
    markdown,
    one_line,
    say,
    unquiet,
    write_json,
    write_readme,
)
from tests.ray_head import descendants

JOB = """name: growth
source: {{uri: "{folder}/in/shard-*.tar"}}
model: {{uri: "builtin:sample", canvas: {{size_px: 32}}}}
output: {{uri: "{folder}/out"}}
"""
SHARD_IMAGES = 2000
_SAMPLE_S = 0.5
_MOST_LINKS = 30_000
"""Some file systems allow 65,000 names of one file."""
_STAMPS = ("run.lineage.after", "commit.gather.before", "run.committed")
T = TypeVar("T")


def tiny_images(count: int) -> list[tuple[str, bytes]]:
    """Make photographs of noise, 32 x 32 px, as (name, bytes); 64 different ones in turn."""
    rng = np.random.default_rng(7)
    pictures = []
    for _ in range(64):
        sink = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(sink, "JPEG", quality=60)
        pictures.append(sink.getvalue())
    return [(f"{i:08d}.jpg", pictures[i % len(pictures)]) for i in range(count)]


def write_shards(folder: Path, images: int, shards: int) -> None:
    """Write ``images`` tiny images as a tar, and give it so many names: ``shard-000000.tar`` and on."""
    folder.mkdir(parents=True)
    first = folder / "shard-000000.tar"
    with tarfile.open(first, "w") as tar:
        for name, data in tiny_images(images):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    for i in range(1, shards):
        shard = folder / f"shard-{i:06d}.tar"
        if i % _MOST_LINKS:
            os.link(first, shard)
        else:
            shard.write_bytes(first.read_bytes())
            first = shard


def in_a_process(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a new process, so that its memory is its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _is_called(pid: int, name: bytes) -> bool:
    try:
        return name in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def measure_run(images: int) -> dict[str, Any]:
    """Run a job from start to exit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        each = min(images, SHARD_IMAGES)
        write_shards(folder / "in", each, images // each)
        (folder / "job.yaml").write_text(JOB.format(folder=folder))
        stamps = {place: folder / place for place in _STAMPS}
        rules = ";".join(f"{place}=count:{file}" for place, file in stamps.items())
        command = [sys.executable, "-m", "batchdet", "run", str(folder / "job.yaml")]
        busy = busy_share()
        driver, actor, began = 0, 0, time.time()
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {VARIABLE: rules})
            while process.poll() is None:
                family = descendants(process.pid)
                # the first process only waits for its child, which has the same command line
                driver = max([driver, *(private_bytes(pid) for pid in family if _is_called(pid, b"batchdet\0run"))])
                actor = max([actor, *(private_bytes(pid) for pid in family if _is_called(pid, b"DetectorActor"))])
                time.sleep(_SAMPLE_S)
        ended = time.time()
        if process.returncode:
            raise SystemExit(f"the run over {images} images failed: {(folder / 'log').read_text()[-2000:]}")
        labelling, committing, committed = (stamps[place].stat().st_mtime for place in _STAMPS)
    return {
        "images": images // each * each,
        "wall_s": round(ended - began, 2),
        "start_s": round(labelling - began, 2),
        "labelling_s": round(committing - labelling, 2),
        "commit_s": round(committed - committing, 2),
        "driver_mib": round(driver / 2**20),
        "largest_actor_mib": round(actor / 2**20),
        "busy_before": round(busy, 3),
    }


def measure_plan(shards: int) -> dict[str, Any]:
    """Plan a job, and make Ray Data's read tasks of it; memory is what that adds to the process at most."""
    from batchdet.pipeline.datasource import SegmentDatasource

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "in", 1, shards)
        spec = parse_job(JOB.format(folder=folder), "growth")
        before = _peak_bytes()
        began = time.perf_counter()
        plan = plan_job(spec)
        planned = time.perf_counter()
        source = SegmentDatasource(plan.shards, range(len(plan.shards)), spec, plan.inventory.carried, {}, 64, 1)
        tasks = source.get_read_tasks(1)
        ended = time.perf_counter()
        assert len(plan.shards) == shards
        return {
            "shards": shards,
            "plan_s": round(planned - began, 3),
            "tasks": len(tasks),
            "tasks_s": round(ended - planned, 3),
            "added_mib": round((_peak_bytes() - before) / 2**20, 1),
        }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fit_line(sizes: Sequence[int], seconds: Sequence[float]) -> dict[str, float]:
    """Fit ``seconds = fixed_s + us_each * size`` so that relative errors are small, and say how far off it is.

    Returns:
        ``fixed_s``; ``us_each``, microseconds for each; and ``worst``, the largest relative difference.
    """
    x, y = np.array(sizes, float), np.array(seconds, float)
    slope, fixed = np.polyfit(x, y, 1, w=1 / y)
    worst = np.abs((fixed + slope * x) / y - 1).max()
    return {"fixed_s": round(fixed, 3), "us_each": round(slope * 1e6, 1), "worst": round(worst, 3)}


def table(report: dict[str, Any]) -> str:
    """Write the Markdown that goes into the README."""
    runs, plans = report["runs"], report["plans"]
    rows = [
        (
            run["images"],
            run["wall_s"],
            run.get("marginal_images_per_s"),
            run["start_s"],
            run["labelling_s"],
            run["commit_s"],
            f"{run['commit_s'] / run['wall_s']:.1%}",
            run["driver_mib"],
            run["largest_actor_mib"],
        )
        for run in runs
    ]
    header = ("images", "start to exit, s", "marginal images/s", "until labelling, s", "labelling, s", "commit, s")
    text = [f"Images of 32 px, `builtin:sample`; {one_line(report['machine'])}.", ""]
    text.append(markdown((*header, "its share", "driver, MiB", "largest actor, MiB"), rows))
    planned = [(p["shards"], p["plan_s"], p["tasks"], p["tasks_s"], p["added_mib"]) for p in plans]
    header = ("shards", "`plan_job`, s", "read tasks", "making them, s", "memory added, MiB")
    text += [_fitted(report["runs_fit"], "run", "image"), "", markdown(header, planned)]
    text += [_fitted(report["plans_fit"], "plan", "shard"), *unquiet([run["busy_before"] for run in runs])]
    return "\n".join([*text, "", "![growth](results/growth.svg)"])


def _fitted(fit: dict[str, float] | None, what: str, of: str) -> str:
    if fit is None:
        return ""
    return (
        f"\nA {what} takes {fit['fixed_s']:.3g} s and {fit['us_each']:,.0f} µs for each {of}; this line is nowhere "
        f"more than {fit['worst']:.0%} off."
    )


def main() -> None:
    """Measure, write JSON, picture and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 100, 10_000, 100_000])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of growth.json and growth.svg")
    parser.add_argument("--readme", type=Path, default=README, help="where the tables go")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    for images in options.images:
        say(f"a run over {images:,} images")
        run = measure_run(images)
        if runs:
            more_s = run["wall_s"] - runs[-1]["wall_s"]
            run["marginal_images_per_s"] = round((run["images"] - runs[-1]["images"]) / more_s, 1)
        runs.append(run)
        say(f"    {run}")
    plans = []
    for shards in options.shards:
        plans.append(in_a_process(measure_plan, shards))
        say(f"a plan: {plans[-1]}")
    report = {
        "machine": machine(),
        "runs": runs,
        "runs_fit": _fit(runs, "images", "wall_s"),
        "plans": plans,
        "plans_fit": _fit(plans, "shards", "plan_s"),
    }
    write_json(options.results / "growth.json", report)
    plot.growth(report, options.results / "growth.svg")
    text = table(report)
    write_readme(options.readme, "growth.py", text)
    print(text)


def _fit(points: Sequence[dict[str, Any]], size: str, seconds: str) -> dict[str, float] | None:
    """Fit a line; null with fewer than three points, on which any line would lie."""
    return fit_line([p[size] for p in points], [p[seconds] for p in points]) if len(points) > 2 else None


if __name__ == "__main__":
    main()
