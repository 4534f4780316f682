"""What a Ray of batchdet's own does without: processes for a dashboard without pages and a cluster of one fixed size.

Each is a Python of its own that imports Ray, most of them Ray Data too: with all of them it takes two cores 5 s longer
until the first image is labelled. Ray has no options for them, so functions of its own are replaced for a while. They
are private: a Ray that has not these names starts all, and `tests/e2e/test_session.py` says so.
"""

import contextlib
import os
import secrets
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final


@contextmanager
def few_daemons(verbose: bool) -> Iterator[None]:
    """Have the Ray that starts in this block do without processes that it has no use for.

    They are the head of a dashboard that has no pages, the autoscaler, and the log monitor where Ray shall not speak;
    and the agent of the dashboard is the small one of an installation without `ray[default]`. `ray.init` waits one or
    two seconds for the first, and the shutdown waits a second for the second, which waits for a GCS that has ended
    before it. `ray start` can leave some of them out, `ray.init` none.
    """
    from ray._private import node, utils

    def start_nothing(node: Any, **_: object) -> None:
        node._webui_url = None  # what `start_api_server` would set

    def no_dashboard() -> ImportError:
        return ImportError("a Ray of batchdet's own has no dashboard")

    starts = getattr(node, "Node", None)
    others: dict[tuple[Any, str], Any] = {
        (starts, "start_api_server"): start_nothing,
        (starts, "start_monitor"): start_nothing,
        (utils, "get_dashboard_dependency_error"): no_dashboard,
    }
    if not verbose:
        others[starts, "start_log_monitor"] = start_nothing
    with _replaced(others):
        yield


@contextmanager
def kept_to_this_machine() -> Iterator[None]:
    """Have the Ray that runs in this block listen on the loopback interface only, and write nothing into the home.

    Its processes inherit the environment of this block. Ray has the first setting for systems on which it knows no
    clusters: there its nodes have the address 127.0.0.1. Since 2.60 it also makes a token for each Ray that a program
    starts, and keeps it in ``~/.ray/auth_token``: a home that cannot be written would end the run, and a later
    ``ray start`` would want that token.
    """
    from ray import _raylet
    from ray._private import ray_constants

    def read_again() -> None:
        with contextlib.suppress(KeyError, AttributeError):
            vars(_raylet)["AuthenticationTokenLoader"].instance().reset_cache()

    settings = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    if "RAY_AUTH_MODE" not in os.environ:
        settings["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    names = [*settings, "RAY_AUTH_MODE"]  # which Ray sets
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(settings)
    read_again()
    try:
        with _replaced({(ray_constants, "ENABLE_RAY_CLUSTER"): False}):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        read_again()
        with contextlib.suppress(KeyError, AttributeError):
            vars(_raylet)["Config"].initialize("")  # which holds the mode


@contextmanager
def no_helpers() -> Iterator[None]:
    """Have the pipelines of Ray Data in this block do without the three actors that it keeps beside them.

    They gather statistics for the dashboard, share out the nodes of a cluster that grows among pipelines (nothing is
    read before the first answer comes), and know on which node an actor is.
    """
    others: dict[tuple[Any, str], Any] = {}
    with contextlib.suppress(ImportError, AttributeError):
        from ray.data._internal.stats import _StatsManager

        for name in ("register_dataset_to_stats_actor", "update_execution_metrics", "update_iteration_metrics"):
            others[_StatsManager, name] = staticmethod(_do_nothing)
        others[_StatsManager, "gen_dataset_id_from_stats_actor"] = staticmethod(lambda: uuid.uuid4().hex)
    with contextlib.suppress(ImportError, AttributeError, TypeError):
        from ray.data._internal.execution import streaming_executor

        others[streaming_executor, "create_cluster_autoscaler"] = _fixed_size()
    with contextlib.suppress(ImportError):
        from ray.data._internal.execution.operators import actor_pool_map_operator as pool

        others[pool, "get_or_create_actor_location_tracker"] = _Nowhere
        others[pool, "get_actor_locations"] = lambda actors: {}  # they are where they were when they started
    with _replaced(others):
        yield


def set_a_reader_apart() -> None:
    """Give one of the processes that Ray starts ahead a task, after which no actor gets it.

    Ray starts one per CPU. Actors would take them all, and wait for what is read in a process that only starts.
    """
    import ray

    ray.remote(_do_nothing).options(num_cpus=0).remote()


def _fixed_size() -> type[Any]:
    """Make the autoscaler of a cluster that stays as it is.

    Raises:
        ImportError, AttributeError: This Ray Data has no such thing.
        TypeError: It wants more of one.
    """
    import ray
    from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
    from ray.data._internal.execution.interfaces import ExecutionResources

    class FixedSize(ClusterAutoscaler):
        def __init__(self, *_: object, **__: object) -> None:
            self._total = ExecutionResources.from_resource_dict(ray.cluster_resources())  # type: ignore[no-untyped-call]

        def try_trigger_scaling(self) -> None:
            pass

        def on_executor_shutdown(self) -> None:
            pass

        def get_total_resources(self) -> Any:
            return self._total

    FixedSize()
    return FixedSize


def _do_nothing(*_: object, **__: object) -> None:
    pass


class _Nowhere:
    """Stands for the actor that workers tell where they are."""

    update_actor_location: Final = SimpleNamespace(remote=_do_nothing)


@contextmanager
def _replaced(others: Mapping[tuple[Any, str], Any]) -> Iterator[None]:
    """Set attributes while the block runs; those that are not there stay away."""
    kept = {(where, name): vars(where)[name] for where, name in others if where and name in vars(where)}
    try:
        for where, name in kept:
            setattr(where, name, others[where, name])
        yield
    finally:
        for (where, name), own in kept.items():
            setattr(where, name, own)
