"""Who works with how much: actors, readers that are sure to fit the cluster together.

Ray Data starts a stage only when its logical resources are free. Actors that take every core leave none for reading,
and the job waits for ever without a word. So an actor asks for a little less than its core, and readers
for small fractions; before anything starts the sum is compared with each node.

Where a stage of its own decodes, its actors take the cores, and GPU actors ask for none: they fit wherever their GPU
is, even where Ray has filled that node with decoders before.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from batchdet.errors import ClusterError
from batchdet.model.runtimes import Device
from batchdet.pipeline.session import Capacity
from batchdet.roofline import Alone, Pool
from batchdet.spec import ComputeSpec
from batchdet.text import counted

ACTOR_CPUS: Final = 0.8
READER_CPUS: Final = 0.1
_SPARE_CPUS: Final = 2 * READER_CPUS
_READERS_MARGIN: Final = 3
"""Readers can bring so many times what the actors take; each is a process that takes seconds to start."""
_GPU_ACTOR_MAX_CPUS: Final = 8
_GPU_ACTOR_MIN_THREADS: Final = 2
"""One computes, and mostly waits for the GPU, while the other prepares."""
_CPUS_FOR_TWO: Final = 4
"""Cores per GPU from which on a second actor has something to do its work with."""
_CPU_ACTORS_FED: Final = 8
"""A core that decodes feeds at least so many that compute."""
CPU_BATCH_ROWS: Final = 8
GPU_BATCH_ROWS: Final = 64
_SEGMENT_MS: Final = 1500
"""What the driver does for a segment (5 to 20 ms) is little beside it, and what a crash repeats is, too."""
_SEGMENT_ROWS: Final = 64
"""Where nothing tells how long images take."""
_SEGMENTS_PER_ACTOR: Final = 4
"""So that actors end at about the same time."""
_SEGMENT_MIN_ROWS: Final = 8
_SEGMENT_MAX_ROWS: Final = 1024
_PAINTED_MAX_ROWS: Final = 128
"""Where canvases travel: a segment of 640 x 640 px takes 157 MB of the object store."""


@dataclass(frozen=True)
class Workers:
    """The pool that a run uses.

    Args:
        device: ``cpu`` or ``gpu``.
        actors: Detector actors.
        actor_cpus: Logical CPUs that each one asks Ray for.
        actor_gpus: GPUs that each one asks for.
        threads: Threads that each one uses.
        readers: Shards read at the same time.
        batch_rows: Images given to the model at once.
        choices: What ``auto`` chose -> why.
        decoders: Actors of the decode stage; 0 where detector actors decode.
        decoder_cpus: Logical CPUs that each of those asks for.
    """

    device: Device
    actors: int
    actor_cpus: float
    actor_gpus: float
    threads: int
    readers: int
    batch_rows: int
    choices: dict[str, str]
    decoders: int = 0
    decoder_cpus: float = 0.0

    @property
    def per_gpu(self) -> int:
        """Actors that take turns on a device; 1 on CPUs."""
        return math.floor(1 / self.actor_gpus + 0.01) if 0 < self.actor_gpus < 1 else 1

    @property
    def pool(self) -> Pool:
        """The same, as the roofline sees it."""
        decoders = self.decoders or (self.actors * self.threads if self.device == "gpu" else 0)
        return Pool(self.device, self.actors, decoders, self.readers, self.per_gpu)


def plan_workers(
    compute: ComputeSpec, capacity: Capacity, device: Device, reason: str, alone: Alone | None = None
) -> Workers:
    """Size the pool.

    Args:
        compute: What the spec says.
        capacity: What the cluster has.
        device: ``cpu`` or ``gpu``.
        reason: Why that device.
        alone: What images take on a worker; None when that is not known.

    Raises:
        ClusterError: The cluster is too small; the message says what is needed and what there is.
    """
    choices = {"device": f"{device}: {reason}"}
    if capacity.cpus < 1:
        raise ClusterError(
            f"the cluster has {capacity.cpus:g} CPUs on {counted(capacity.nodes, 'node')}; at least 1 is needed"
        )
    workers = (_gpu_workers if device == "gpu" else _cpu_workers)(compute, capacity, choices)
    if alone is None:
        return workers
    read_ms, actor_ms = alone.read_ms, workers.pool.actor_ms(alone.decode_ms.mean, alone.model_ms.mean)
    readers = min(workers.readers, max(1, math.ceil(_READERS_MARGIN * workers.actors * read_ms / actor_ms)))
    why = f"reading takes {read_ms:.1f} ms an image, an actor {actor_ms:.1f}"
    return replace(workers, readers=readers, choices=choices | {"readers": f"{readers}: {why}"})


def _cpu_workers(compute: ComputeSpec, capacity: Capacity, choices: dict[str, str]) -> Workers:
    room = _cores(capacity)
    kept = 1 if compute.decode == "stage" and room > 1 else 0  # on a single core both stages share it
    actors = room - max(kept, kept * room // _CPU_ACTORS_FED) if compute.actors == "auto" else compute.actors
    if actors > room - kept:
        decoding = " and the decode stage one" if kept else ""
        raise ClusterError(
            f"compute.actors: {actors} actors need a CPU core each{decoding}, the cluster has {room} on "
            f"{counted(capacity.nodes, 'node')}; lower it, or take auto"
        )
    if compute.actors == "auto":
        choices["actors"] = f"{actors}: one per CPU core" + (" that the decode stage leaves" if kept else "")
    batch_rows = CPU_BATCH_ROWS if compute.batch_rows == "auto" else compute.batch_rows
    if compute.batch_rows == "auto":
        choices["batch_rows"] = f"{batch_rows}: on a CPU larger batches only cost memory"
    workers = Workers("cpu", actors, ACTOR_CPUS, 0.0, 1, max(2, actors), batch_rows, choices)
    if compute.decode != "stage":
        return workers
    share = ACTOR_CPUS if kept else ACTOR_CPUS / 2
    return replace(workers, actor_cpus=share, decoders=max(1, min(room - actors, actors)), decoder_cpus=share)


def gpu_batch_rows(compute: ComputeSpec) -> int:
    """Say how many images a GPU is given at once."""
    return GPU_BATCH_ROWS if compute.batch_rows == "auto" else compute.batch_rows


def largest_batch(compute: ComputeSpec) -> int:
    """Say how many images a run of the model may be given, in whatever process of a job: TensorRT builds for that."""
    return max(GPU_BATCH_ROWS, gpu_batch_rows(compute))


def choose_segment_rows(workers: Workers, alone: Alone | None, images: int | None) -> tuple[int, str]:
    """Choose how many images make a segment.

    Args:
        workers: The pool.
        alone: What images take on a worker; None when that is not known.
        images: Images of the job; None when only reading can tell.

    Returns:
        A power of two, and why.
    """
    if alone is None:
        rows, why = _SEGMENT_ROWS, "nothing tells how long images take"
    else:
        each_ms = workers.pool.actor_ms(alone.decode_ms.mean, alone.model_ms.mean)
        rows, why = (
            _near(_SEGMENT_MS / each_ms),
            f"about {_SEGMENT_MS / 1e3:g} s of an actor, at {each_ms:.3g} ms an image",
        )
    least = 2 * workers.batch_rows if workers.device == "gpu" else _SEGMENT_MIN_ROWS
    if images is not None and images < rows * workers.actors * _SEGMENTS_PER_ACTOR:
        rows, why = (
            images // (workers.actors * _SEGMENTS_PER_ACTOR),
            f"so that {workers.actors} actors share few images",
        )
        rows = 2 ** int(math.log2(max(1, rows)))
    most = _PAINTED_MAX_ROWS if workers.decoders else _SEGMENT_MAX_ROWS
    bounded = min(max(rows, least), most)
    return bounded, why if bounded == rows else f"between {least} and {most}"


def _near(number: float) -> int:
    """Return the nearest power of two."""
    return int(2 ** max(0, round(math.log2(max(number, 1)))))


def _cores(capacity: Capacity) -> int:
    return sum(math.floor(cpus) for cpus in capacity.cpus_by_node)


def _gpu_workers(compute: ComputeSpec, capacity: Capacity, choices: dict[str, str]) -> Workers:
    gpus = int(capacity.gpus)
    if gpus < 1:
        raise ClusterError(
            f"compute.device: gpu, but the cluster has no GPU on its {counted(capacity.nodes, 'node')}; "
            "add a GPU node, or take device: cpu"
        )
    nodes = [(c, g) for c, g in zip(capacity.cpus_by_node, capacity.gpus_by_node, strict=True) if g >= 1]
    per_gpu = 2 if min(c / g for c, g in nodes) >= _CPUS_FOR_TWO else 1
    actors = per_gpu * gpus if compute.actors == "auto" else compute.actors
    if compute.actors == "auto":
        why = "one prepares while the other computes" if per_gpu == 2 else f"fewer than {_CPUS_FOR_TWO} cores per GPU"
        choices["actors"] = f"{actors}: {('one', 'two')[per_gpu - 1]} per GPU, {why}"
    share = math.floor(100 / math.ceil(actors / gpus)) / 100  # so many fit each GPU
    if share < 0.1:
        raise ClusterError(
            f"compute.actors: {actors} actors on {gpus} GPUs are more than 10 per GPU; lower it, or take auto"
        )
    # the GPU node with the fewest CPU cores per actor decides, because an actor must fit wherever there is a GPU
    cpus = min((c - _SPARE_CPUS) / math.ceil(g / share) for c, g in nodes)
    if cpus < 0.2:
        raise ClusterError(
            f"compute.actors: {actors} GPU actors need at least 0.2 CPUs each to decode, beside {_SPARE_CPUS} for "
            f"readers; the smallest GPU node has {min(c for c, _ in nodes):g} CPUs; lower it, or add "
            "CPU cores"
        )
    threads = max(_GPU_ACTOR_MIN_THREADS, min(_GPU_ACTOR_MAX_CPUS, math.floor(cpus)))
    batch_rows = gpu_batch_rows(compute)
    if compute.batch_rows == "auto":
        choices["batch_rows"] = f"{batch_rows}: fills a GPU with a small detector"
    room, used = _cores(capacity), actors * threads
    stage = compute.decode == "stage" or (compute.decode == "auto" and room >= 2 * used)
    if compute.decode == "auto":
        choices["decode"] = f"{'stage' if stage else 'actor'}: {room} cores, of which GPU actors can use {used}"
    workers = Workers("gpu", actors, min(cpus, 0.8 * threads), share, threads, max(2, actors), batch_rows, choices)
    if not stage:
        return workers
    return replace(
        workers,
        actor_cpus=0.0,
        threads=_GPU_ACTOR_MIN_THREADS,
        decoders=max(1, room - actors),
        decoder_cpus=ACTOR_CPUS,
    )
