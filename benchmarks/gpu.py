"""How much of a GPU a run uses: end to end, the model alone, decoding alone; by runtime, precision, batch and stage.

make bench-gpu                                                   everything; needs a GPU
make bench-gpu BENCH="--minutes 8"                               what fits into that time, the usual choices first
make bench-gpu BENCH="--models yolo26n --batches 64"             some of it
make bench-gpu BENCH="--device cpu --images 120 --batches 8"     the same code where there is no GPU

Each row is a run of a job over the photographs of the shared data, packed several times over as tar shards, on one Ray
that lives as long as this script. "End to end" counts from the first to the last tenth of the images (from the start of
labelling, model loading included, where a run has too few segments to tell). "Model alone" is one process that gives
batches of canvases to the detector, "decoding alone" all cores that decode and paint. Rows are added to those that
results/gpu.json has already, those that it has not first, so that a long list can be measured in pieces.
"""

import argparse
import itertools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from batchdet import open_results
from batchdet.decode.canvas import paint, painted
from batchdet.decode.image import decode_image
from batchdet.errors import BatchdetError
from batchdet.job import Watcher, run_job
from batchdet.machine import cpu_limit, run_limited
from batchdet.model.detector import Detector
from batchdet.model.runtimes import Device, one_line
from batchdet.pipeline.session import ray_session
from batchdet.spec import JobSpec, ModelSpec
from benchmarks.agreement import COLUMNS, average_precision, by_image
from benchmarks.compare import SHARED
from benchmarks.report import machine, say, steady, versions, write_readme
from tests.e2e.conftest import write_shards

HERE = Path(__file__).parent
_PACKAGES = ("batchdet", "onnxruntime-gpu", "onnxruntime", "tensorrt", "ray", "opencv-python-headless", "simplejpeg")
_MODEL_ALONE_S = 4.0
_LOW_SCORE = 0.001
_ALL = 100_000_000


@dataclass(frozen=True)
class Row:
    """What a row of the table is about.

    Args:
        model: A file of the shared models, without its ending.
        runtime: As in the spec.
        precision: As in the spec.
        batch_rows: As in the spec.
        decode: As in the spec.
        actors: Detector actors per GPU; in all, where there is none.
    """

    model: str
    runtime: str
    precision: str
    batch_rows: int
    decode: str
    actors: int

    @property
    def key(self) -> str:
        """Name it in JSON."""
        words = (self.model, self.runtime, self.precision, self.batch_rows, self.decode, self.actors)
        return " ".join(map(str, words))

    def job(self, device: Device, gpus: int, source: str, out: Path, threshold: float = 0.25) -> JobSpec:
        """Return the job of this row."""
        plain = {
            "name": "bench-gpu",
            "source": {"uri": source},
            "model": {
                "uri": str(SHARED / f"models/{self.model}.onnx"),
                "runtime": self.runtime,
                "precision": self.precision,
                "score_threshold": threshold,
            },
            "compute": {
                "device": device,
                "actors": self.actors * max(1, gpus),
                "batch_rows": self.batch_rows,
                "decode": self.decode,
                # canvases of five shapes share a segment, and a batch has one
                "segment_rows": max(64, 4 * self.batch_rows),
            },
            "output": {"uri": str(out)},
        }
        return JobSpec.model_validate_json(json.dumps(plain))


@dataclass
class Ticks(Watcher):
    """Notes when each segment is staged."""

    points: list[tuple[float, int]] = field(default_factory=list)

    def advance(self, images: int, failed: int, size_bytes: int) -> None:
        """Note one."""
        self.points.append((time.perf_counter(), images))


@dataclass
class Bench:
    """Where everything is.

    Args:
        work: Folder for images and outputs.
        device: ``gpu`` or ``cpu``.
        gpus: GPUs of the machine.
        images: How many are labelled in each run.
    """

    work: Path
    device: Device
    gpus: int
    images: int
    photographs: dict[str, bytes] = field(default_factory=dict)
    model_rates: dict[tuple[Any, ...], float] = field(default_factory=dict)
    decode_rates: dict[str, float] = field(default_factory=dict)
    precisions: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def pack(self) -> None:
        """Write the photographs: all of them, several times over, and once under their own names."""
        folder = SHARED / "images/coco120/images"
        self.photographs = {p.name: p.read_bytes() for p in sorted(folder.glob("*.jpg"))}
        times = -(-self.images // len(self.photographs))
        packed = [(f"{i:03d}-{name}", data) for i in range(times) for name, data in self.photographs.items()]
        write_shards(str(self.work / "all"), packed[: self.images], max(2, self.images // 500))
        write_shards(str(self.work / "once"), list(self.photographs.items()), 2)

    def detector(self, row: Row) -> Detector:
        """Load the model as an actor does."""
        spec = ModelSpec.model_validate(
            {"uri": str(SHARED / f"models/{row.model}.onnx"), "runtime": row.runtime, "precision": row.precision}
        )
        threads = round(cpu_limit()[0]) if self.device == "cpu" else 1
        return Detector(spec, spec.uri, "", self.device, threads, max(64, row.batch_rows))

    def model_alone(self, row: Row) -> float:
        """Return images/s of the detector on the canvas that most photographs have, outputs decoded."""
        key = (row.model, row.runtime, row.precision, row.batch_rows)
        if key not in self.model_rates:
            detector = self.detector(row)
            pictures = [decode_image(data, _ALL) for data in self.photographs.values()]
            boxes = [detector.letterbox(rgb.shape[1], rgb.shape[0]) for rgb in pictures]
            shapes = [box.canvas for box in boxes]
            width, height = max(set(shapes), key=shapes.count)
            chosen = [(rgb, box) for rgb, box in zip(pictures, boxes, strict=True) if box.canvas == (width, height)]
            batch = list(itertools.islice(itertools.cycle(chosen), row.batch_rows))
            canvases = np.empty((row.batch_rows, height, width, 3), np.uint8)
            for (rgb, box), canvas in zip(batch, canvases, strict=True):
                paint(rgb, box, canvas)
            letterboxes = [box for _, box in batch]
            detector.detect(canvases, letterboxes)  # the first run of all prepares things
            done, started = 0, time.perf_counter()
            while (seconds := time.perf_counter() - started) < _MODEL_ALONE_S:
                detector.detect(canvases, letterboxes)
                done += row.batch_rows
            self.model_rates[key] = done / seconds
        return self.model_rates[key]

    def decoding_alone(self, row: Row) -> float:
        """Return images/s of all cores that decode and paint."""
        if row.model not in self.decode_rates:
            detector = self.detector(Row(row.model, "onnxruntime", "fp32", 1, "actor", 1))

            def work(data: bytes) -> None:
                rgb = decode_image(data, _ALL)
                box = detector.letterbox(rgb.shape[1], rgb.shape[0])
                painted(rgb, box)

            with ThreadPoolExecutor(round(cpu_limit()[0])) as pool:
                times = max(1, min(self.images, 2000) // len(self.photographs))
                started = time.perf_counter()
                done = len(list(pool.map(work, list(self.photographs.values()) * times)))
                self.decode_rates[row.model] = done / (time.perf_counter() - started)
        return self.decode_rates[row.model]

    def average_precision(self, row: Row) -> float:
        """Return COCO's AP on the photographs, by a run of its own down to a score of 0.001."""
        key = (row.model, row.runtime, row.precision)
        if key not in self.precisions:
            out = self.work / f"ap-{len(self.precisions)}"
            run_job(row.job(self.device, self.gpus, str(self.work / "once/*.tar"), out, _LOW_SCORE))
            columns = ", ".join(f"d.{name}" for name in COLUMNS)
            join = "detections d JOIN images i USING (run_id, image_id)"
            table = open_results(str(out)).sql(f"SELECT i.member AS image, {columns} FROM {join}").to_arrow_table()
            truth = SHARED / "images/coco120/instances.json"
            self.precisions[key] = average_precision(by_image(table), truth, set(self.photographs))
        return self.precisions[key]

    def measure(self, row: Row) -> dict[str, Any]:
        """Run a row.

        Raises:
            BatchdetError: It cannot be had here.
        """
        model, decoding = self.model_alone(row), self.decoding_alone(row)
        with tempfile.TemporaryDirectory(dir=self.work) as out:
            ticks, started = Ticks(), time.perf_counter()
            run = run_job(row.job(self.device, self.gpus, str(self.work / "all/*.tar"), Path(out) / "out"), True, ticks)
            seconds = time.perf_counter() - started
        if run.images_ok != self.images:
            raise RuntimeError(f"{run.images_ok} of {self.images} images are ok")
        rate = steady(ticks.points) or self.images / seconds
        return {
            "images": self.images,
            "start_to_commit_s": round(seconds, 2),
            "images_per_s": round(rate, 1),
            "steady": steady(ticks.points) is not None,
            "model_alone_images_per_s": round(model, 1),
            "decoding_alone_images_per_s": round(decoding, 1),
            "share_of_the_slower": round(rate / min(model, decoding), 3),
            "ap": round(self.average_precision(row), 4),
        }


def device_name(device: Device) -> str:
    """Name what computes.

    Raises:
        SystemExit: There is no GPU.
    """
    if device == "cpu":
        return str(machine()["cpu"])
    status, text = run_limited(
        ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"], 30
    )
    if status:
        sys.exit(
            "bench-gpu: nvidia-smi finds no GPU on this machine; BENCH='--device cpu --images 120 --batches 8' runs "
            "the same code on the CPU"
        )
    return text.strip().splitlines()[0]


def table(report: dict[str, Any]) -> str:
    """Write the Markdown that goes into the README."""
    host = report["machine"]
    known = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        f"{report['device']}; {host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB; {known}; "
        f"{report['date']}.",
        "",
        "| model | runtime | precision | batch | decode | actors per GPU | images/s end to end | model alone | "
        "decoding alone | share of the slower | AP |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, row in report["rows"].items():
        cells = key.split()
        if "failure" in row:
            lines.append(f"| {' | '.join(cells)} | not to be had: {row['failure']} | | | | |")
            continue
        rate = f"{row['images_per_s']:,.0f}" + ("" if row["steady"] else " (with loading)")
        cells += [rate, f"{row['model_alone_images_per_s']:,.0f}", f"{row['decoding_alone_images_per_s']:,.0f}"]
        cells += [f"{row['share_of_the_slower']:.0%}", f"{row['ap']:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rows(options: argparse.Namespace) -> Iterable[Row]:
    """List what is to be measured: the first of each choice, then what differs from it in one of them, in two, ..."""
    choices = (options.models, options.runtimes, options.precisions, options.batches, options.decode, options.actors)
    places = itertools.product(*(range(len(choice)) for choice in choices))
    for numbers in sorted(places, key=lambda each: (sum(number > 0 for number in each), each)):
        yield Row(*(choice[number] for choice, number in zip(choices, numbers, strict=True)))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--images", type=int, default=12_000, help="how many; 120 different ones, several times over")
    parser.add_argument("--models", nargs="+", default=["yolo26n", "yolox_nano_416", "deimv2_atto_320"])
    parser.add_argument("--runtimes", nargs="+", help="onnxruntime tensorrt; on a CPU onnxruntime")
    parser.add_argument("--precisions", nargs="+", help="fp32 fp16; on a CPU fp32")
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 16, 128])
    parser.add_argument("--decode", nargs="+", default=["actor", "stage"])
    parser.add_argument("--actors", nargs="+", type=int, help="per GPU: 1 2; on a CPU in all: 1")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no row after so many")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of gpu.json")
    parser.add_argument("--readme", type=Path, help="where the table goes; benchmarks/README.md, on a CPU nowhere")
    options = parser.parse_args(arguments)
    on_gpu = options.device == "gpu"
    options.runtimes = options.runtimes or (["onnxruntime", "tensorrt"] if on_gpu else ["onnxruntime"])
    options.precisions = options.precisions or (["fp32", "fp16"] if on_gpu else ["fp32"])
    options.actors = options.actors or ([1, 2] if on_gpu else [1])
    options.readme = options.readme or (HERE / "README.md" if on_gpu else None)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 1 when a row could not be had."""
    options = _options(arguments)
    name = device_name(options.device)
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # Ray's workers import batchdet from here
    found = options.results / "gpu.json"
    earlier = json.loads(found.read_text()) if found.exists() else {}
    report = {
        "device": name,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(sys.executable, _PACKAGES),
        "rows": earlier.get("rows", {}) if earlier.get("device") == name else {},
    }
    options.results.mkdir(parents=True, exist_ok=True)
    wanted = sorted(rows(options), key=lambda row: "images_per_s" in report["rows"].get(row.key, {}))
    failed, until = 0, time.monotonic() + options.minutes * 60
    with tempfile.TemporaryDirectory() as work, ray_session(None) as capacity:
        bench = Bench(Path(work), options.device, int(capacity.gpus), options.images)
        bench.pack()
        for number, row in enumerate(wanted):
            if time.monotonic() > until:
                say(f"{options.minutes:g} minutes are over: {len(wanted) - number} of {len(wanted)} rows are left out")
                break
            say(f"[{number + 1}/{len(wanted)}] {row.key} on {name}")
            try:
                report["rows"][row.key] = bench.measure(row)
                say(f"    {report['rows'][row.key]['images_per_s']} images/s")
            except Exception as error:  # one row's misfortune is not the others'
                failed += 1
                why = (
                    error.message if isinstance(error, BatchdetError) else f"{type(error).__name__}: {one_line(error)}"
                )
                if "images_per_s" not in report["rows"].get(row.key, {}):
                    report["rows"][row.key] = {"failure": why}
                say(f"    not to be had: {why}")
            found.write_text(json.dumps(report, indent=1) + "\n")
    text = table(report)
    print(text)
    if options.readme:
        write_readme(options.readme, "gpu.py", text)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
