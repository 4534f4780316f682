"""A Ray of a process's own, as a run without `compute.address` starts it."""

import subprocess
import sys

import pytest

_START = """
import os, sys
from pathlib import Path
from ray._private import node, utils
from batchdet.pipeline.session import ray_session
from tests.ray_head import descendants

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
"""


@pytest.mark.parametrize("speaks", ["silent", "verbose"])
def test_a_ray_of_ones_own_has_no_process_that_it_does_not_need(speaks: str) -> None:
    """Each is a Python of its own, for which the start and the end of a run would wait."""
    started = subprocess.run([sys.executable, "-c", _START, speaks], capture_output=True, text=True, timeout=120)
    assert started.returncode == 0, started.stderr
    processes = started.stdout.splitlines()
    assert any("/raylet " in process for process in processes), processes
    assert any("/gcs_server " in process for process in processes), processes
    assert not [process for process in processes if "/dashboard/dashboard.py" in process]
    assert not [process for process in processes if "/autoscaler/" in process]
    assert len([process for process in processes if "/log_monitor.py" in process]) == (speaks == "verbose")
