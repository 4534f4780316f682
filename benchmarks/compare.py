"""batchdet and the alternatives on the same photographs, with the same model, on the same machine.

make bench                                                    everything; about 25 minutes on 2 cores
make bench BENCH="--only batchdet,daft --images 480"          some of it
make bench BENCH="--batchdet-set model.runtime=openvino"      another row of batchdet, with other settings
make bench BENCH="--without-bf16"                             all of them as on a processor without bf16

The 120 photographs of the shared data are packed several times over under different names, as tar shards for batchdet
and as files for the others, which read files. Every contender is a fresh process, counted from its start to its exit,
model and imports included; all run once, then all again (A B C A B C). Before the clock runs, each labels a few images,
so that nobody pays for a cold disk. Afterwards each one's boxes are read back and compared with those of batchdet in
fp32 on ONNX Runtime, on rectangular and on square canvases. The scripts are in benchmarks/contenders/.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from batchdet import open_results
from batchdet.machine import private_bytes
from benchmarks import plot
from benchmarks.agreement import COLUMNS, SCORE_TOLERANCE, Boxes, above, average_precision, by_image, share_matched
from benchmarks.report import (
    HERE,
    QUIET,
    README,
    RESULTS,
    busy_share,
    machine,
    one_line,
    say,
    steady,
    unquiet,
    versions,
    write_json,
    write_readme,
)
from tests.ray_head import descendants

SHARED = Path(os.environ.get("BATCHDET_SHARED", HERE.parents[1] / "shared"))
SCORE_THRESHOLD = 0.25
_LOW_SCORE = 0.001
_SMALL = 16
_LIMIT_S = 1800
_POLL_S = 0.2
_PACKAGES = ("ultralytics", "torch", "daft", "ray", "onnxruntime", "openvino", "opencv-python", "pyarrow", "numpy")
_GUESS_IMAGES_PER_S = {"batchdet": 25.0, "ray-data": 13.0}
JOB = """name: compare
source: {{uri: "{images}/*.tar"}}
model: {{uri: "{model}", score_threshold: {threshold}}}
output: {{uri: "{output}"}}
"""


@dataclass
class Contender:
    """One row of the table.

    Args:
        name: As it stands in the table.
        script: In benchmarks/contenders/; null is batchdet.
        model: File or folder, by its name in the work folder or in the shared models.
        settings: batchdet only: what ``--set`` gets.
        env: Beside the environment that all have.
    """

    name: str
    script: str | None = None
    model: str = "yolo26n.onnx"
    settings: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    computed: dict[str, str] = field(default_factory=dict)
    boxes: Boxes = field(default_factory=dict)
    failure: str = ""
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """What ``--only`` names."""
        return self.name.split()[0]

    def expected_s(self, images: int) -> float:
        """Guess the seconds of a run, from earlier ones if there are any."""
        if self.runs:
            return float(self.runs[-1]["seconds"])
        return 8 + images / _GUESS_IMAGES_PER_S.get(self.group, 22.0)


def contenders(batchdet_settings: Sequence[Sequence[str]], cores: int) -> list[Contender]:
    """List everyone, batchdet first."""
    own = [Contender(" ".join(("batchdet", *each)), settings=tuple(each)) for each in [(), *batchdet_settings]]
    # Importing ultralytics limits torch to one thread unless this is set, which would be unfair on a CPU.
    threads = {"OMP_NUM_THREADS": str(cores)}
    return [
        *own,
        Contender("ultralytics-pt", "ultralytics_predict.py", "yolo26n.pt", env=threads),
        Contender("ultralytics-onnx", "ultralytics_predict.py", env=threads),
        Contender("ultralytics-openvino", "ultralytics_predict.py", "yolo26n_openvino_model", env=threads),
        Contender("daft", "daft_files.py"),
        Contender("ray-data", "ray_data.py"),
        Contender("bare-loop", "bare_loop.py"),
    ]


@dataclass
class Bench:
    """Where everything is, and how a contender is run.

    Args:
        work: Folder for images, models, results and logs.
        python: The alternatives' interpreter.
        bf16: OpenVINO may use it, where the processor has it.
        names: Name of each packed image -> name of the photograph.
    """

    work: Path
    python: Path
    bf16: bool = True
    names: dict[str, str] = field(default_factory=dict)

    @property
    def photographs(self) -> set[str]:
        """Names of the photographs in use."""
        return set(self.names.values())

    def pack(self, images: int, different: int | None) -> None:
        """Write the images three times: all, a few to warm up, and each photograph once under its own name."""
        photographs = sorted((SHARED / "images/coco120/images").glob("*.jpg"))[:different]
        data = {photograph.name: photograph.read_bytes() for photograph in photographs}
        times = -(-images // len(data))
        packed = [(f"{i:03d}-{name}", name) for i in range(times) for name in data][:images]
        self.names = dict(packed)
        for folder, chosen in (("all", packed), ("small", packed[:_SMALL]), ("once", [(n, n) for n in data])):
            _write(self.work / folder, [(name, data[source]) for name, source in chosen])

    def models(self, wanted: set[str], env: dict[str, str]) -> None:
        """Put the models into the work folder, exports included."""
        for model in ("yolo26n.onnx", "yolo26n.pt"):
            shutil.copy(SHARED / "models" / model, self.work)
        if any(model.endswith("_openvino_model") for model in wanted):
            command = [self.python, HERE / "contenders/ultralytics_export.py", self.work / "yolo26n.pt"]
            with (self.work / "export.log").open("w") as log:
                subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=env)

    def environment(self) -> dict[str, str]:
        """Return the environment that all contenders have: nothing of another Ray, nobody phones home.

        All may keep their byte code: packages have it since they were installed, a work tree from its first run on.
        """
        dropped = ("RAY_", "OMP_", "BATCHDET_", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
        quiet = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "DO_NOT_TRACK": "1",
            "YOLO_OFFLINE": "true",
            "YOLO_AUTOINSTALL": "false",
        }
        return kept | quiet | {"YOLO_CONFIG_DIR": str(self.work / "yolo"), "COLUMNS": "100"}

    def run(self, one: Contender, data: str, threshold: float = SCORE_THRESHOLD) -> dict[str, Any]:
        """Run a contender to its end.

        Returns:
            ``seconds`` from start to exit, ``steady_images_per_s`` or null, ``peak_mib``, ``busy_before``; of batchdet
            also ``first_image_s``, from start until an actor began to label, its parts, and ``share`` of the ceiling.

        Raises:
            RuntimeError: It failed; the message ends with the last lines that it printed.
        """
        output = self.work / "output"
        shutil.rmtree(output, ignore_errors=True)
        ticks, log = self.work / "ticks.txt", self.work / f"{one.group}.log"
        ticks.unlink(missing_ok=True)
        images, model = self.work / data, self.work / one.model
        if one.script is None:
            job = self.work / "job.yaml"
            job.write_text(JOB.format(images=images / "shards", model=model, output=output, threshold=threshold))
            command = [sys.executable, "-m", "batchdet", "run", str(job)]
            command += [word for setting in one.settings for word in ("--set", setting)]
        else:
            command = [str(self.python), str(HERE / "contenders" / one.script), "--images", str(images / "files")]
            command += ["--model", str(model), "--output", str(output)]
        env = self.environment() | one.env | {"BENCH_TICKS": str(ticks)}
        path = [] if self.bf16 else [HERE / "no_bf16"]
        if one.script is None:
            path.append(HERE.parent)  # its Ray workers import it from here, installed or not
        env["PYTHONPATH"] = os.pathsep.join(map(str, path))
        busy, shm = busy_share(), _shm_used()
        staged: dict[str, float] = {}
        began_s: float | None = None
        peak = 0
        with log.open("w") as sink:
            started = time.perf_counter()
            process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=env, cwd=HERE.parent)
            while (rest := _LIMIT_S - (time.perf_counter() - started)) > 0:
                try:
                    process.wait(timeout=_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    if began_s is None and (output / "_batchdet").exists():
                        began_s = time.perf_counter() - started
                    family = [process.pid, *descendants(process.pid)]
                    peak = max(peak, sum(map(private_bytes, family)) + max(0, _shm_used() - shm))
                    _note_staged(output, staged)
            seconds = time.perf_counter() - started
            if rest <= 0:
                process.terminate()
                process.wait()
        if process.returncode:
            raise RuntimeError(f"exit status {process.returncode}: {' / '.join(log.read_text().splitlines()[-4:])}")
        if one.script is None:
            rows = _record(output, "lineage.json").get("segment_rows")  # a shard's last segment is smaller: no matter
            points = [(at, rows) for at in sorted(staged.values())] if rows else []
        else:
            points = [(float(at), int(n)) for at, n in map(str.split, ticks.read_text().splitlines())]
        return {
            "seconds": round(seconds, 2),
            "steady_images_per_s": steady(points),
            "peak_mib": round(peak / 2**20),
            "busy_before": round(busy, 3),
            **_own_account(output, began_s or 0.0),
        }

    def boxes(self, one: Contender, images: int | None = None) -> Boxes:
        """Read back what the last run of a contender wrote.

        Raises:
            RuntimeError: batchdet does not account for every image.
        """
        output = self.work / "output"
        if one.script is None:
            results = open_results(str(output))
            columns = ", ".join(f"d.{name}" for name in COLUMNS)
            (row,) = results.sql("SELECT count(*) FROM images WHERE status = 'ok'").fetchall()
            if images is not None and row[0] != images:
                raise RuntimeError(f"{row[0]} of {images} images are ok")
            join = "detections d JOIN images i USING (run_id, image_id)"
            table = results.sql(f"SELECT i.member AS image, {columns} FROM {join}").to_arrow_table()
        else:
            table = ds.dataset(output, format="parquet").to_table(["image", *COLUMNS])
        return by_image(table)


def _write(folder: Path, images: Sequence[tuple[str, bytes]]) -> None:
    (folder / "files").mkdir(parents=True)
    (folder / "shards").mkdir()
    for name, data in images:
        (folder / "files" / name).write_bytes(data)
    shards = max(2, len(images) // 500)
    for i in range(shards):
        with tarfile.open(folder / "shards" / f"shard-{i:03d}.tar", "w") as tar:
            for name, _ in images[i::shards]:
                tar.add(folder / "files" / name, name)


def _note_staged(output: Path, staged: dict[str, float]) -> None:
    """Note when batchdet staged each segment, while the files are there: this is its tick."""
    for file in output.glob("_batchdet/runs/*/staged/*.arrow"):
        try:
            staged.setdefault(file.name, file.stat().st_mtime)
        except OSError:
            continue


def _record(output: Path, name: str) -> dict[str, Any]:
    """Read a record of batchdet's run; nothing where there is none, as with the others."""
    for file in output.glob(f"_batchdet/runs/*/{name}"):
        return dict(json.loads(file.read_text()))
    return {}


def _own_account(output: Path, began_s: float) -> dict[str, Any]:
    """Return what batchdet says of its run itself; nothing for the others, and where it had no images to measure."""
    stats = _record(output, "stats.json")
    if not stats.get("roofline"):
        return {}
    parts, whole = stats["run"]["start_up"], stats["run"]["start_up_s"]
    return {
        "first_image_s": round(began_s + whole, 2),
        "start_up": {"imports_s": round(began_s, 2), **parts},
        "share": stats["roofline"]["share"],
        "ceiling_images_per_s": stats["roofline"]["ceiling_images_per_s"],
    }


def _shm_used() -> int:
    used = os.statvfs("/dev/shm")
    return (used.f_blocks - used.f_bfree) * used.f_frsize


def references_of(bench: Bench, truth: Path) -> dict[str, Boxes]:
    """Label each photograph once in fp32, down to a score of 0.001, on both kinds of canvas."""
    fp32 = ("model.runtime=onnxruntime", "model.precision=fp32", "model.canvas.decode=full")
    references = {}
    for shape in ("rectangle", "square"):
        reference = Contender(f"reference-{shape}", settings=(*fp32, f"model.canvas.shape={shape}"))
        bench.run(reference, "once", _LOW_SCORE)
        references[shape] = bench.boxes(reference)
        ap = average_precision(references[shape], truth, bench.photographs)
        say(f"reference, fp32 on {shape} canvases: AP {ap:.4f}")
    return references


def accuracy(bench: Bench, row: Contender, truth: Path) -> None:
    """Label each photograph once, down to a score of 0.001, computed as the timed run of a batchdet row was."""
    how = row.computed
    graphs = ", ".join(how.get("graphs", "").split())
    settings = [f"model.{key}={how[key]}" for key in ("runtime", "precision", "silu")]
    settings += [f"model.canvas.{key}={how[key]}" for key in ("decode", "fit")] + [f"model.canvas.graphs=[{graphs}]"]
    once = Contender(f"{row.name} once", settings=(*row.settings, *settings))
    bench.run(once, "once", _LOW_SCORE)
    row.report |= {"ap": round(average_precision(bench.boxes(once), truth, bench.photographs), 4), "computed": how}
    say(f"{row.name}: AP {row.report['ap']:.4f}, computed {how}")


def agree(row: Contender, references: dict[str, Boxes], names: dict[str, str], truth: Path) -> None:
    """Compare a contender's boxes with the references; the canvas that fits better is the one it seems to use.

    A box just above the threshold here may lie just below it there. So one side is always allowed scores that are lower
    by the tolerance.
    """
    fits = {}
    for shape, reference in references.items():
        low, high = (
            above(reference, SCORE_THRESHOLD - SCORE_TOLERANCE),
            above(reference, SCORE_THRESHOLD + SCORE_TOLERANCE),
        )
        copies = {name: high.get(source, np.zeros((0, 6))) for name, source in names.items()}
        fits[shape] = (share_matched(row.boxes, low, names), share_matched(copies, row.boxes))
    shape = max(fits, key=lambda each: sum(fits[each]))
    first = {source: row.boxes[name] for name, source in names.items() if name.startswith("000-") and name in row.boxes}
    row.report |= {
        "boxes": sum(map(len, row.boxes.values())),
        "canvas": shape,
        "share_of_its_boxes_in_reference": round(fits[shape][0], 4),
        "share_of_reference_in_its_boxes": round(fits[shape][1], 4),
        "ap_at_score_0.25": round(average_precision(first, truth, set(names.values())), 4),
    }


def summary(rows: Sequence[Contender], images: int) -> list[dict[str, Any]]:
    """Gather what JSON, table and plot need, ratios to the fastest alternative included."""
    for row in rows:
        seconds = [run["seconds"] for run in row.runs]
        steady = [run["steady_images_per_s"] for run in row.runs if run["steady_images_per_s"]]
        row.report |= {
            "name": row.name,
            "seconds": round(statistics.mean(seconds), 2) if seconds else None,
            "images_per_s": round(images / statistics.mean(seconds), 2) if seconds else None,
            "steady_images_per_s": round(statistics.mean(steady), 2) if steady else None,
            "peak_mib": max((run["peak_mib"] for run in row.runs), default=None),
            "runs": row.runs,
            "failure": row.failure,
        }
    others = [row for row in rows if row.script is not None and row.runs]
    if others:
        fastest = min(others, key=lambda row: row.report["seconds"])
        for row in rows:
            if row.runs:
                row.report["fastest_alternative"] = fastest.name
                row.report["ratio"] = round(fastest.report["seconds"] / row.report["seconds"], 3)
                best, worst = min(r["seconds"] for r in fastest.runs), max(r["seconds"] for r in row.runs)
                row.report["ratio_at_worst"] = round(best / worst, 3)
    return [row.report for row in rows]


def table(report: dict[str, Any]) -> str:
    """Write the Markdown that goes into the README."""
    runs = "one run" if report["repeats"] == 1 else f"{report['repeats']} runs"
    lines = [
        f"{report['images']:,} photographs ({report['bytes'] / 2**20:,.0f} MiB), {runs} each, in turn; "
        f"{one_line(report['machine'])}{'' if report['bf16'] else ', with bf16 hidden from OpenVINO'}.",
        "",
        "| | start to exit, s | images/s | steady images/s | × fastest alternative | peak MiB | its boxes in the "
        "reference, and the reverse | AP from score 0.25 | AP |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(report["contenders"], key=lambda each: -(each["images_per_s"] or 0)):
        if row["failure"]:
            lines.append(f"| {row['name']} | failed: {row['failure'].splitlines()[0][:120]} | | | | | | | |")
            continue
        seconds = ", ".join(f"{run['seconds']:.1f}" for run in row["runs"])
        steady = f"{row['steady_images_per_s']:.1f}" if row["steady_images_per_s"] else ""
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        same = (
            ""
            if "canvas" not in row
            else (
                f"{row['share_of_its_boxes_in_reference']:.1%}, {row['share_of_reference_in_its_boxes']:.1%} "
                f"({row['canvas']})"
            )
        )
        ap = [f"{row[key]:.4f}" if key in row else "" for key in ("ap_at_score_0.25", "ap")]
        cells = (row["name"], seconds, f"{row['images_per_s']:.1f}", steady, ratio, f"{row['peak_mib']:,}", same, *ap)
        lines.append(f"| {' | '.join(cells)} |")
    lines += _own_lines(report)
    shares = [run["busy_before"] for row in report["contenders"] for run in row["runs"]]
    return "\n".join([*lines, *unquiet(shares)])


def _own_lines(report: dict[str, Any]) -> list[str]:
    """Say how batchdet's own runs went, by their own account."""
    lines = []
    for row in report["contenders"]:
        for number, run in enumerate(row["runs"], 1):
            if "start_up" in run:
                part, ceiling = run["start_up"], run["ceiling_images_per_s"]
                lines.append(
                    f"- {row['name']}, run {number}: first image after {run['first_image_s']:.1f} s (imports "
                    f"{part['imports_s']:.1f}, plan {part['plan_s']:.1f}, start of Ray {part['ray_s']:.1f}, then probe "
                    f"{part['probe_s']:.1f}, then actors {part['actors_s']:.1f}, of which to load the model "
                    f"{part['load_s']:.1f}); {run['share']:.0%} of its ceiling of {ceiling:.1f} images/s"
                )
    return ["", *lines] if lines else []


def _measure(bench: Bench, rows: Sequence[Contender], options: argparse.Namespace) -> None:
    turns = [(turn, row) for turn in range(options.repeats) for row in rows]
    for number, (_turn, row) in enumerate(turns):
        if row.failure:
            continue
        left = sum(one.expected_s(options.images) + 2 for _, one in turns[number:] if not one.failure)
        say(f"[{number + 1}/{len(turns)}] {row.name} ... (about {left / 60:.0f} min left)")
        try:
            run = bench.run(row, "all")
            row.boxes = bench.boxes(row, options.images)
            row.computed = _record(bench.work / "output", "lineage.json").get("computed", {})
        except (RuntimeError, OSError, pa.ArrowException) as error:
            row.failure = str(error)
            say(f"    failed: {error}")
            continue
        row.runs.append(run)
        say(f"    {run['seconds']:.1f} s, {options.images / run['seconds']:.1f} images/s")
        if run["busy_before"] > QUIET:
            say(f"    the machine was not quiet: {run['busy_before']:.0%} busy before this run")


def _warm_up(bench: Bench, rows: Sequence[Contender]) -> None:
    for row in rows:
        if row.failure:
            continue
        try:
            row.report["small_run_s"] = bench.run(row, "small")["seconds"]
            say(f"warmed up: {row.name}, {row.report['small_run_s']:.1f} s for {_SMALL} images")
        except RuntimeError as error:
            row.failure = str(error)
            say(f"{row.name} fails, and is left out: {error}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2040, help="how many; 120 different ones, several times over")
    parser.add_argument("--photographs", type=int, help="use only so many of the 120, to try this script out")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each contender")
    parser.add_argument("--only", default="", help="names separated by commas; all of them without it")
    parser.add_argument(
        "--batchdet-set",
        nargs="+",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one more row: batchdet with these settings; may be given several times",
    )
    parser.add_argument("--without-bf16", action="store_true", help="OpenVINO as on a processor that has none")
    parser.add_argument("--python", type=Path, default=Path(".venv-bench/bin/python"), help="the alternatives' own")
    parser.add_argument("--work", type=Path, help="keep images, outputs and logs here; a temporary folder without it")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of compare.json and compare.svg")
    parser.add_argument("--readme", type=Path, default=README, help="where the table goes")
    return parser.parse_args()


def main() -> int:
    """Run it all; 1 when a contender failed."""
    options = _options()
    host = machine()
    rows = contenders(options.batchdet_set, host["cores"])
    wanted = {name for name in options.only.split(",") if name}
    if unknown := wanted - {row.group for row in rows}:
        sys.exit(f"--only: {', '.join(sorted(unknown))}: there are {', '.join(dict.fromkeys(r.group for r in rows))}")
    rows = [row for row in rows if not wanted or row.group in wanted]
    truth = SHARED / "images/coco120/instances.json"
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench((options.work or Path(temporary)).absolute(), options.python.absolute(), not options.without_bf16)
        say(f"packing {options.images:,} images and preparing models")
        bench.pack(options.images, options.photographs)
        bench.models({row.model for row in rows}, bench.environment())
        references = references_of(bench, truth)
        _warm_up(bench, rows)
        _measure(bench, rows, options)
        size = sum(file.stat().st_size for file in (bench.work / "all/files").iterdir())
        for row in rows:
            if row.runs:
                agree(row, references, bench.names, truth)
            if row.runs and row.script is None:
                accuracy(bench, row, truth)
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "images": options.images,
        "bytes": size,
        "repeats": options.repeats,
        "bf16": bench.bf16,
        "machine": host,
        "versions": {
            "batchdet": versions(sys.executable, ("batchdet", *_PACKAGES, "opencv-python-headless", "simplejpeg")),
            "alternatives": versions(bench.python, _PACKAGES),
        },
        "reference_ap": {
            shape: round(average_precision(each, truth, bench.photographs), 4) for shape, each in references.items()
        },
        "contenders": summary(rows, options.images),
    }
    name = "compare" if bench.bf16 else "compare_without_bf16"
    write_json(options.results / f"{name}.json", report)
    text = table(report)
    print(text)
    write_readme(
        options.readme,
        "compare.py" if bench.bf16 else "compare.py --without-bf16",
        f"{text}\n\n![images/s of each](results/{name}.svg)",
    )
    plot.compare(report, options.results / f"{name}.svg")
    return int(any(row.failure for row in rows))


if __name__ == "__main__":
    sys.exit(main())
