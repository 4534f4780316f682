"""How many images/s the control plane sustains, and where it saturates: the real pipeline with detectors that sleep.

make bench-control-plane                                                 all points; about 15 minutes on 2 cores
make bench-control-plane CONTROL_PLANE="--actors 4 --seconds 10"         one small point

A Ray cluster of several nodes on this machine, on the loopback interface, with logical GPUs; on it `run_job`: the real
listing, readers, segments, actors, staging and commit. Only the detector is replaced, where workers load it: it sleeps
as long as a GPU of a given rate would take, and finds seven objects in each image. The images are tiny.

The steady rate is that of segments reported to the driver, from the first tenth of the images to the last, with all
actors up. All nodes, readers and actors share the cores of this machine with the driver, so what is attained is a lower
bound. The CPU seconds of each kind of process, taken over the same time, tell what a real cluster would have to pay
where: only the driver's and the head's cannot be spread over more nodes.
"""

import argparse
import dataclasses
import itertools
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from batchdet.job import Watcher, run_job
from batchdet.machine import cpu_limit, free_swap_bytes, memory_bytes, private_bytes
from batchdet.specfile import parse_job
from benchmarks import plot
from benchmarks.growth import in_a_process, write_shards
from benchmarks.report import (
    README,
    RESULTS,
    busy_share,
    machine,
    markdown,
    one_line,
    say,
    steady,
    unquiet,
    write_json,
    write_readme,
)
from benchmarks.sleeping_detector import DETECTIONS, RATE
from tests.ray_head import descendants

JOB = """name: control-plane
source: {{uri: "{folder}/in/shard-*.tar"}}
model: {{uri: "builtin:sample"}}
output: {{uri: "{folder}/out"}}
compute: {{device: gpu, segment_rows: {segment_rows}}}
"""
_FIXED_MIB, _ACTOR_MIB = 3000, 130
"""What a cluster and each of its actors take, until it is measured."""
_NODE_GPUS = 64
"""Simulated GPUs of a node at most; a node of its own costs 0.3 GiB."""
_ACTOR_CPUS = 0.25
_STORE_BYTES = 300 * 2**20
_SPARE_MIB = 6 * 1024
_MOST_IMAGES_PER_S = 2500
"""How much is attained at most, by experience; it only says how many images are worth preparing."""
_START_LIMIT_S = 1200
_END_LIMIT_S = 60
_RETURNED = 0.95
"""Share of the idle machine's free memory that must be free again before the next cluster starts."""
_SATURATED = 0.9
POINTS = [(8, 64), (32, 64), (128, 64), (256, 64), (32, 8), (32, 256), (32, 1024), (128, 256), (128, 1024)]
"""Simulated actors, images per segment."""


@dataclass(frozen=True)
class Look:
    """What the cluster's processes have used so far.

    Args:
        at: Seconds, of no certain beginning.
        cpu_s: CPU seconds of each process.
        own_bytes: Memory that each one has to itself.
        shm_bytes: In use of /dev/shm, where Ray keeps objects.
    """

    at: float
    cpu_s: dict[int, float]
    own_bytes: dict[int, int]
    shm_bytes: int


@dataclass
class Watch(Watcher):
    """Notes when segments are reported, and looks at all processes after a tenth and nine tenths of the images.

    Args:
        images: Of the job.
    """

    images: int
    points: list[tuple[float, int]] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    kinds: dict[int, str] = field(default_factory=dict)
    done: int = 0
    committing_at: float = 0.0

    def advance(self, images: int, failed: int, size_bytes: int) -> None:
        """Note a segment."""
        self.points.append((time.perf_counter(), images))
        self.done += images
        if self.done >= (0.1, 0.9, 2)[len(self.looks)] * self.images:
            self.looks.append(look())
            if len(self.looks) == 2:
                self.kinds = {pid: kind_of(pid) for pid in self.looks[1].cpu_s}

    def committing(self, images: int) -> None:
        """Note when the commit begins."""
        self.committing_at = self.committing_at or time.perf_counter()


def look() -> Look:
    """Look at this process and those below it."""
    cpu_s, own_bytes = {}, {}
    for pid in (os.getpid(), *descendants(os.getpid())):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        cpu_s[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        own_bytes[pid] = private_bytes(pid)
    return Look(time.perf_counter(), cpu_s, own_bytes, _shm_bytes())


def kind_of(pid: int) -> str:
    """Say what a process is: driver, actors, readers, raylets, gcs or agents."""
    if pid == os.getpid():
        return "driver"
    try:
        name = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
    except OSError:
        return "agents"
    if "DetectorActor" in name:
        return "actors"
    if name.startswith("ray::"):
        return "agents" if "Agent" in name else "readers"
    return {"raylet": "raylets", "gcs_server": "gcs"}.get(Path(name).name, "agents")


def _shm_bytes() -> int:
    used = os.statvfs("/dev/shm")
    return (used.f_blocks - used.f_bfree) * used.f_frsize


@contextmanager
def cluster(actors: int, readers: int) -> Iterator[int]:
    """Run a Ray of several nodes on this machine, connected, that has a logical GPU for each actor.

    Yields:
        How many nodes it has.
    """
    import ray
    from ray.cluster_utils import Cluster
    from ray.data import DataContext

    nodes = max(2, -(-actors // _NODE_GPUS))
    gpus = -(-actors // nodes)
    one = {
        "num_cpus": int(_ACTOR_CPUS * gpus) + 1 + -(-readers // 10),
        "num_gpus": gpus,
        "object_store_memory": _STORE_BYTES,
        "node_ip_address": "127.0.0.1",
        "include_dashboard": False,
    }
    DataContext.get_current().wait_for_min_actors_s = _START_LIMIT_S  # the rate is measured with all of them
    started = Cluster()
    try:
        for _ in range(nodes):
            started.add_node(**one)
        hook = {"worker_process_setup_hook": "benchmarks.sleeping_detector.simulate"}
        ray.init(
            address=started.address,
            runtime_env=hook,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address="127.0.0.1",
        )
        yield nodes
    finally:
        ray.shutdown()
        started.shutdown()


def measure(actors: int, segment_rows: int, rate: float, seconds: float, readers: int) -> dict[str, Any]:
    """Run a job on a cluster of simulated GPUs. To be called in a process of its own."""
    from batchdet.pipeline import resources

    os.environ |= {
        RATE: str(rate),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps Ray's servers on the loopback interface
        "RAY_DATA_LOG_LEVEL": "ERROR",
        "RAY_memory_monitor_refresh_ms": "0",  # it would end actors where memory is full and the rest is swapped
    }
    planned = resources.plan_workers

    def with_few_readers(*arguments: Any) -> resources.Workers:
        # as many readers as a cluster has would only fight for this machine's cores; actors ask for CPUs alone, because
        # Ray Data (2.60) refuses num_gpus where batch_size is None
        return dataclasses.replace(planned(*arguments), readers=readers, actor_cpus=_ACTOR_CPUS - 0.05, actor_gpus=0.0)

    resources.plan_workers = with_few_readers
    wanted = seconds * min(actors * rate, _MOST_IMAGES_PER_S)
    shard_images = max(1, round(min(2048, wanted / (4 * readers)) / segment_rows)) * segment_rows
    shards = max(2 * readers, round(wanted / shard_images))
    busy = busy_share()
    with tempfile.TemporaryDirectory(prefix="bdc-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        os.environ["RAY_TMPDIR"] = name  # in /tmp: Ray's sockets lie below it and their paths have at most 107 bytes
        write_shards(folder / "in", shard_images, shards)
        shm = _shm_bytes()
        with cluster(actors, readers) as nodes:
            watch = Watch(shards * shard_images)
            began = time.perf_counter()
            run = run_job(
                parse_job(JOB.format(folder=folder, segment_rows=segment_rows), "control-plane"), watcher=watch
            )
            ended = time.perf_counter()
        assert run.images_ok == watch.images, f"{run.images_ok} of {watch.images} images are ok"
    first, last = watch.looks
    steady_s, images = last.at - first.at, 0.8 * watch.images
    used, most = Counter[str](), Counter[str]()
    for pid, kind in watch.kinds.items():
        used[kind] += last.cpu_s[pid] - first.cpu_s.get(pid, 0.0)
        most[kind] = max(most[kind], last.own_bytes[pid])
    images_per_s = steady(watch.points) or images / steady_s
    return {
        "actors": actors,
        "nodes": nodes,
        "segment_rows": segment_rows,
        "offered_images_per_s": round(actors * rate),
        "images_per_s": round(images_per_s, 1),
        "segments_per_s": round(images_per_s / segment_rows, 2),
        "images": watch.images,
        "start_s": round(watch.points[0][0] - began, 1),
        "steady_s": round(steady_s, 1),
        "commit_s": round(ended - watch.committing_at, 2),
        "busy_cores": {kind: round(cpu_s / steady_s, 3) for kind, cpu_s in used.items()},
        "cpu_s_per_1000_images": {kind: round(1000 * cpu_s / images, 4) for kind, cpu_s in used.items()},
        "cpu_s_per_1000_segments": {
            kind: round(1000 * cpu_s * segment_rows / images, 3) for kind, cpu_s in used.items()
        },
        "largest_mib": {kind: round(most / 2**20) for kind, most in most.items()},
        "all_mib": sum(last.own_bytes.values()) >> 20,
        "busy_before": round(busy, 3),
        "object_store_mib": round(max(0, last.shm_bytes - shm) / 2**20),
    }


def wait_for_memory(idle_bytes: int) -> None:
    """Wait until the cluster of the point before has given its memory back, a minute at most."""
    until = time.monotonic() + _END_LIMIT_S
    while memory_bytes()[1] < _RETURNED * idle_bytes and time.monotonic() < until:
        time.sleep(1)


def most_actors(points: Sequence[dict[str, Any]]) -> int:
    """Return how many actors the machine's free memory holds, by what they took so far.

    Swap counts: most of an actor that sleeps is modules that nobody touches.
    """
    fixed, each = float(_FIXED_MIB), float(_ACTOR_MIB)
    if len({point["actors"] for point in points}) > 1:
        each, fixed = np.polyfit([p["actors"] for p in points], [p["all_mib"] for p in points], 1)
    return max(1, int(((memory_bytes()[1] + free_swap_bytes()) / 2**20 - _SPARE_MIB - fixed) / each))


def table(report: dict[str, Any]) -> str:
    """Write the Markdown that goes into the README."""
    rows = [
        (
            p["actors"],
            p["nodes"],
            p["segment_rows"],
            p["offered_images_per_s"],
            p["images_per_s"],
            p["segments_per_s"],
            *(p["busy_cores"].get(kind, 0.0) for kind in ("driver", "raylets", "readers", "actors")),
            p["cpu_s_per_1000_segments"]["driver"],
            round(1000 / max(1e-9, p["cpu_s_per_1000_images"]["driver"])),
            p["largest_mib"]["driver"],
        )
        for p in report["points"]
    ]
    header = ("actors", "nodes", "images a segment", "offered images/s", "attained images/s", "segments/s")
    header = (*header, "cores busy: driver", "raylets", "readers", "actors", "driver, CPU s for 1,000 segments")
    header = (*header, "images/s for a core of the driver", "driver, MiB")
    lines = [
        f"{report['images_per_s']:g} images/s for each actor, {DETECTIONS} objects in each image, {report['readers']} "
        f"readers, all on {one_line(report['machine'])}.",
        "",
        markdown(header, rows),
        "",
        *(f"- {line}" for line in report["findings"]),
        *unquiet([point["busy_before"] for point in report["points"]]),
        "",
        "![attained over offered](results/control_plane.svg)",
    ]
    return "\n".join(lines)


def findings(points: Sequence[dict[str, Any]], cores: int) -> list[str]:
    """Say for each size of segments where the attained rate falls behind the offered one, and what was busy then."""
    said = []
    for rows in sorted({point["segment_rows"] for point in points}):
        line = sorted((p for p in points if p["segment_rows"] == rows), key=lambda p: p["offered_images_per_s"])
        behind = [p for p in line if p["images_per_s"] < _SATURATED * p["offered_images_per_s"]]
        if not behind:
            most = line[-1]["offered_images_per_s"]
            said.append(f"Segments of {rows}: not saturated at {most:,} images/s, the most that was offered.")
            continue
        point, best = behind[0], max(line, key=lambda p: p["images_per_s"])
        busy = sum(point["busy_cores"].values())
        if point["busy_cores"]["driver"] >= _SATURATED:
            what = f"the driver ({point['busy_cores']['driver']:.2f} cores)"
        elif busy >= _SATURATED * cores:
            what = (
                f"this machine ({busy:.2f} of {cores} cores, {point['busy_cores']['driver']:.2f} of them the driver's)"
            )
        else:
            what = f"neither the driver nor the machine ({busy:.2f} of {cores} cores): waiting between processes"
        said.append(
            f"Segments of {rows}: saturated at {point['offered_images_per_s']:,} images/s offered ({point['actors']} "
            f"actors); at most {best['images_per_s']:,.0f} images/s, {best['segments_per_s']:,.1f} segments/s. What is "
            f"full: {what}."
        )
    return said


def main() -> None:
    """Measure all points, each on a cluster of its own; write JSON, picture and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", help="simulated actors; without it a chosen set of points")
    parser.add_argument("--segment-rows", type=int, nargs="+", default=[64], help="images per segment, with --actors")
    parser.add_argument("--rate", type=float, default=100.0, help="images/s of each actor")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each point is to take, about")
    parser.add_argument("--readers", type=int, default=4, help="shards read at the same time")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of control_plane.json and its picture")
    parser.add_argument("--readme", type=Path, default=README, help="where the table goes")
    options = parser.parse_args()
    points = list(itertools.product(options.actors, options.segment_rows)) if options.actors else POINTS
    measured: dict[tuple[int, int], dict[str, Any]] = {}
    idle_bytes, fitted = memory_bytes()[1], []
    for number, (actors, segment_rows) in enumerate(points):
        wait_for_memory(idle_bytes)
        most = most_actors(list(measured.values()))
        fitted.append(most)
        point = min(actors, most), segment_rows
        say(f"[{number + 1}/{len(points)}] {actors} actors ({most} fit the memory), segments of {segment_rows}")
        if point not in measured:
            measured[point] = in_a_process(measure, *point, options.rate, options.seconds, options.readers)
            say(f"    {measured[point]}")
    cores = round(cpu_limit()[0])
    said = findings(list(measured.values()), cores)
    if any(actors > most for (actors, _), most in zip(points, fitted, strict=True)):
        least = min(most for (actors, _), most in zip(points, fitted, strict=True) if actors > most)
        said.append(f"More than {least} actors do not fit the memory of this machine, of which 6 GiB are left free.")
    report = {
        "machine": machine(),
        "images_per_s": options.rate,
        "readers": options.readers,
        "findings": said,
        "points": list(measured.values()),
    }
    write_json(options.results / "control_plane.json", report)
    plot.control_plane(report, options.results / "control_plane.svg")
    text = table(report)
    write_readme(options.readme, "control_plane.py", text)
    print(text)


if __name__ == "__main__":
    main()
