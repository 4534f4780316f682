"""A Ray of a process's own, as a run without `compute.address` starts it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_START = """
import os, sys
from pathlib import Path
from ray._private import node, utils
from batchdet.pipeline.session import ray_session
from tests.ray_head import descendants, listening

def own():
    names = "start_api_server", "start_monitor", "start_log_monitor"
    return [*(getattr(node.Node, name) for name in names), utils.get_dashboard_dependency_error]

before = own()
with ray_session(None, verbose=sys.argv[1] == "verbose"):
    import ray

    @ray.remote
    def answer():
        return 42

    assert ray.get(answer.remote()) == 42
    assert own() == before, "Ray is left as it was"
    pids = descendants(os.getpid())
    print(*(Path(f"/proc/{pid}/cmdline").read_text().replace("\\0", " ") for pid in pids), sep="\\n")
    print("listens:", *(address for address, _ in listening([os.getpid(), *pids])))
print("environment:", *(name for name in os.environ if name.startswith("RAY_AUTH") or "CLUSTER" in name))
"""


def _printed(script: str, *arguments: str, env: dict[str, str] | None = None) -> list[str]:
    """Run a script in a process of its own, which starts a Ray; return the lines that it prints."""
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120, env=env
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


@pytest.mark.acceptance("S27")
@pytest.mark.parametrize("speaks", ["silent", "verbose"])
def test_a_ray_of_ones_own_has_no_process_that_it_does_not_need(speaks: str) -> None:
    """Each is a Python of its own, for which the start and the end of a run would wait.

    Nor does it open a port to other machines, or need a home that can be written.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    *processes, listens, environment = _printed(_START, speaks, env=env | {"HOME": "/proc/nowhere"})
    addresses = listens.split()[1:]
    assert len(addresses) >= 5
    assert set(addresses) == {"127.0.0.1"}
    assert environment == "environment:", "this process is left as it was"
    assert any("/raylet " in process for process in processes), processes
    assert any("/gcs_server " in process for process in processes), processes
    assert not [process for process in processes if "/dashboard/dashboard.py" in process]
    assert not [process for process in processes if "/autoscaler/" in process]
    assert len([process for process in processes if "/log_monitor.py" in process]) == (speaks == "verbose")


_PIPELINE = """
import ray.data
from batchdet.pipeline.session import ray_session
from ray.data._internal.execution import streaming_executor
from ray.data._internal.execution.operators import actor_pool_map_operator as pool
from ray.data._internal.stats import _StatsManager
from ray.util import list_named_actors

class Double:
    def __call__(self, rows):
        return {"id": 2 * rows["id"]}

def own():
    stats = [vars(_StatsManager)[name] for name in vars(_StatsManager) if "metrics" in name or "actor" in name]
    return [*stats, streaming_executor.create_cluster_autoscaler, pool.get_or_create_actor_location_tracker]

before = own()
with ray_session(None):
    rows = ray.data.range(40, override_num_blocks=8)
    rows = rows.map_batches(Double, compute=ray.data.ActorPoolStrategy(size=2), num_cpus=0.5)
    print(sum(row["id"] for row in rows.take_all()))
    print(list_named_actors(all_namespaces=True))
assert own() == before, "Ray Data is left as it was"
"""


def test_a_pipeline_on_a_ray_of_ones_own_has_no_actor_beside_it() -> None:
    """Three of Ray Data's own would import it first, and reading would wait for the answer of one."""
    assert _printed(_PIPELINE)[-2:] == ["1560", "[]"]


_WORKERS = """
from batchdet.pipeline.session import ray_session

with ray_session(None):
    import ray

    @ray.remote
    def imported():
        import sys
        return "batchdet.pipeline.ray_data" in sys.modules

    print(ray.get(imported.remote()))
"""


def test_workers_of_a_ray_of_ones_own_import_the_pipeline_when_they_start() -> None:
    """They do so while the trial is under way; actors that import it first come seconds later."""
    assert _printed(_WORKERS)[-1:] == ["True"]


_READER = """
import os, sys, time
from pathlib import Path
from batchdet.pipeline import own_ray
from batchdet.pipeline.session import ray_session
from tests.ray_head import descendants

kept = Path(sys.argv[1])

def tell(kept=kept):
    kept.with_suffix(".part").write_text(str(os.getpid()))
    kept.with_suffix(".part").rename(kept)

with ray_session(None) as capacity:
    import ray
    from batchdet.pipeline.ray_data import get_ready

    @ray.remote(num_cpus=1)
    class Actor:
        def pid(self):
            return os.getpid()

    first = descendants(os.getpid())
    own_ray._do_nothing = tell  # its first task
    get_ready(True)
    actors = [Actor.remote() for _ in range(int(capacity.cpus))]
    pids = ray.get([actor.pid.remote() for actor in actors])
    deadline = time.monotonic() + 60
    while not kept.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    pid = int(kept.read_text())
    print(pid in first and pid not in pids)
"""


def test_one_of_the_first_workers_is_kept_for_reading(tmp_path: Path) -> None:
    """Without that the actors take all that Ray starts ahead, and a reader starts when it is wanted."""
    assert _printed(_READER, str(tmp_path / "kept"))[-1:] == ["True"]
