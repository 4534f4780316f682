import pytest

from batchdet.errors import ClusterError
from batchdet.pipeline.resources import READER_CPUS, choose_segment_rows, plan_workers
from batchdet.pipeline.session import Capacity, usable_cpus
from batchdet.roofline import Alone, Spread
from batchdet.spec import ComputeSpec


def cluster(*cpus: float, gpus: tuple[float, ...] | float = 0) -> Capacity:
    by_node = gpus if isinstance(gpus, tuple) else (float(gpus), *[0.0] * (len(cpus) - 1))
    return Capacity(sum(cpus), sum(by_node), len(cpus), cpus, by_node)


@pytest.mark.parametrize("cpus", [(1,), (2,), (2, 2), (4, 16), (64,)])
def test_cpu_actors_leave_room_for_readers_on_every_node(cpus: tuple[float, ...]) -> None:
    workers = plan_workers(ComputeSpec(), cluster(*cpus), "cpu", "why")
    assert workers.actors == sum(cpus)
    for node in cpus:
        assert node * workers.actor_cpus + READER_CPUS <= node
    assert workers.choices["device"] == "cpu: why"


@pytest.mark.parametrize(("gpus", "cpus", "actors"), [(1, 4, "auto"), (1, 1, "auto"), (8, 64, "auto"), (2, 16, 6)])
def test_gpu_actors_fit(gpus: int, cpus: float, actors: str | int) -> None:
    compute = ComputeSpec.model_validate({"actors": actors})
    workers = plan_workers(compute, cluster(cpus, gpus=gpus), "gpu", "why")
    assert workers.actors * workers.actor_gpus <= gpus
    assert workers.actors * workers.actor_cpus + READER_CPUS <= cpus
    assert workers.threads >= 1


@pytest.mark.parametrize(("gpus", "actors", "share", "per_device"), [(2, 3, 0.5, 2), (2, 5, 0.33, 3), (2, 2, 1.0, 1)])
def test_actors_fit_gpus_that_they_do_not_divide(gpus: int, actors: int, share: float, per_device: int) -> None:
    workers = plan_workers(ComputeSpec(actors=actors), cluster(32, gpus=gpus), "gpu", "why")
    assert workers.actor_gpus == share
    assert gpus * int(1 / share) >= actors, "each finds room on one GPU"
    assert workers.pool.per_device == per_device


def test_the_gpu_node_with_the_fewest_cores_decides() -> None:
    workers = plan_workers(ComputeSpec(), cluster(4, 96, gpus=(8, 0)), "gpu", "why")
    assert workers.actors == 8, "half a core per GPU is not enough for two"
    assert 8 * workers.actor_cpus + 2 * READER_CPUS <= 4


@pytest.mark.parametrize(
    ("cpus", "gpus", "actors"), [((8,), (1,), 2), ((3,), (1,), 1), ((64, 8), (8, 4), 12), ((64, 16, 2), (8, 4, 0), 24)]
)
def test_two_actors_share_a_gpu_where_there_are_cores_for_them(
    cpus: tuple[float, ...], gpus: tuple[float, ...], actors: int
) -> None:
    workers = plan_workers(ComputeSpec(), cluster(*cpus, gpus=gpus), "gpu", "why")
    assert workers.actors == actors
    assert workers.threads >= 2, "one computes while the other prepares"
    assert workers.choices["actors"].startswith(f"{actors}: ")


@pytest.mark.parametrize(
    ("cpus", "gpus", "stage"),
    [((8,), (1,), False), ((8, 24), (1, 0), True), ((192,), (8,), False), ((64,), (1,), True)],
)
def test_a_stage_decodes_where_cores_would_be_idle(
    cpus: tuple[float, ...], gpus: tuple[float, ...], stage: bool
) -> None:
    workers = plan_workers(ComputeSpec(), cluster(*cpus, gpus=gpus), "gpu", "why")
    assert bool(workers.decoders) == stage
    assert workers.choices["decode"].startswith("stage" if stage else "actor")
    for asked in ("actor", "stage"):
        workers = plan_workers(ComputeSpec(decode=asked), cluster(*cpus, gpus=gpus), "gpu", "why")
        assert bool(workers.decoders) == (asked == "stage")
        assert "decode" not in workers.choices


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("cpus", [(1,), (2,), (5,), (4, 16), (64, 3)])
def test_both_stages_fit_however_ray_packs_them(cpus: tuple[float, ...], device: str) -> None:
    """The worst way: all that asks for cores on the first node that has room for it, the largest requests last."""
    compute = ComputeSpec(decode="stage")
    workers = plan_workers(compute, cluster(*cpus, gpus=1 if device == "gpu" else 0), device, "why")  # type: ignore[arg-type]
    assert workers.decoders >= 1
    free = list(cpus)
    asked = [workers.decoder_cpus] * workers.decoders + [workers.actor_cpus] * workers.actors + [READER_CPUS]
    for request in asked:
        place = next((i for i, left in enumerate(free) if left + 1e-9 >= request), None)
        assert place is not None, f"{request} CPUs do not fit {free}"
        free[place] -= request


@pytest.mark.parametrize(
    ("compute", "capacity", "device", "sentence"),
    [
        (
            {"actors": 3},
            cluster(2),
            "cpu",
            "compute.actors: 3 actors need a CPU core each, the cluster has 2 on 1 node",
        ),
        (
            {"actors": 2, "decode": "stage"},
            cluster(2),
            "cpu",
            "compute.actors: 2 actors need a CPU core each and the decode stage one, the cluster has 2 on 1 node",
        ),
        ({}, cluster(0.5), "cpu", "the cluster has 0.5 CPUs"),
        ({}, cluster(8), "gpu", "compute.device: gpu, but the cluster has no GPU"),
        ({"actors": 99}, cluster(64, gpus=1), "gpu", "compute.actors: 99 actors on 1 GPUs are more than 10 per GPU"),
        ({"actors": 8}, cluster(1, gpus=8), "gpu", "compute.actors: 8 GPU actors need at least 0.2 CPUs each"),
    ],
)
def test_a_cluster_too_small_is_said(compute: object, capacity: Capacity, device: str, sentence: str) -> None:
    with pytest.raises(ClusterError, match=f"^{sentence}"):
        plan_workers(ComputeSpec.model_validate(compute), capacity, device, "why")  # type: ignore[arg-type]


def test_usable_cpus() -> None:
    assert usable_cpus() >= 1


def alone(decode_ms: float, model_ms: float, read_ms: float = 0.5) -> Alone:
    spread = {
        name: Spread(mean, 0.1)
        for name, mean in {
            "decode_ms": decode_ms,
            "model_ms": model_ms,
            "work_ms": decode_ms + model_ms,
            "stored_bytes": 1e5,
            "detections": 5.0,
        }.items()
    }
    return Alone("cpu", 1, 8, 4, read_ms, sampled_bytes=1e6, carried_bytes=0.0, **spread)


@pytest.mark.parametrize(
    ("read_ms", "cpus", "readers"),
    [(0.3, 2, 1), (4.0, 2, 1), (5.1, 2, 2), (500.0, 2, 2), (0.3, 64, 2), (3.0, 64, 20), (500.0, 64, 64)],
)
def test_there_are_as_many_readers_as_images_need(read_ms: float, cpus: int, readers: int) -> None:
    found = plan_workers(ComputeSpec(), cluster(cpus), "cpu", "why", alone(5, 25, read_ms))
    assert found.readers == readers
    assert found.choices["readers"] == f"{readers}: reading takes {read_ms:.1f} ms an image, an actor 30.0"


@pytest.mark.parametrize(
    ("work_ms", "cpus", "images", "rows", "why"),
    [
        (30, 2, 100_000, 64, "about 1.5 s of an actor, at 30 ms an image"),
        (45, 2, None, 32, "about 1.5 s of an actor, at 45 ms an image"),
        (0.1, 2, 10**7, 1024, "between 8 and 1024"),
        (5000, 2, 100_000, 8, "between 8 and 1024"),
        (30, 2, 400, 32, "so that 2 actors share few images"),
        (30, 64, 3000, 8, "so that 64 actors share few images"),
        (30, 64, 3, 8, "between 8 and 1024"),
    ],
)
def test_segments_keep_an_actor_busy_for_a_while(
    work_ms: float, cpus: int, images: int | None, rows: int, why: str
) -> None:
    times = alone(work_ms / 5, work_ms * 4 / 5)
    workers = plan_workers(ComputeSpec(), cluster(cpus), "cpu", "why", times)
    assert choose_segment_rows(workers, times, images) == (rows, why)


def test_segments_where_nothing_was_measured() -> None:
    workers = plan_workers(ComputeSpec(), cluster(2), "cpu", "why")
    assert choose_segment_rows(workers, None, None) == (64, "nothing tells how long images take")
    assert "readers" not in workers.choices


def test_segments_of_gpus_hold_whole_batches_and_canvases_few() -> None:
    fast = alone(4, 0.5)
    whole = plan_workers(ComputeSpec(decode="actor"), cluster(8, gpus=1), "gpu", "why", fast)
    assert choose_segment_rows(whole, fast, 100_000)[0] == 1024
    assert choose_segment_rows(whole, fast, 100)[0] == 2 * whole.batch_rows
    stage = plan_workers(ComputeSpec(decode="stage"), cluster(8, gpus=1), "gpu", "why", fast)
    assert choose_segment_rows(stage, fast, 100_000)[0] == 128
