"""One schedule: drivers, garbage collection and a reader on one output, with a seed's faults, and its judgement."""

import contextlib
import contextvars
import datetime as real_datetime
import pkgutil
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import fsspec
import pyarrow as pa

from batchdet.errors import BatchdetError, OutputError
from batchdet.job import run_job
from batchdet.results.garbage import collect_garbage
from batchdet.results.open import open_results
from batchdet.results.verify import inspect_output
from tests.simulation.oracle import Oracle
from tests.simulation.schedule import Actor, Clock, Hang, Process, Schedule, Threading, current
from tests.simulation.store import Rates, SimulatedFileSystem, Store, serving
from tests.without_ray import job

OUT, SOURCE = "sim://out", "sim://src"
_FIRST, _LATER = 5, 2
"""Images from the beginning, and those that arrive in some schedules."""
USUAL = Rates()
_BEGAN = real_datetime.datetime(2026, 11, 30, 12, tzinfo=real_datetime.UTC)

fsspec.register_implementation("sim", SimulatedFileSystem, clobber=True)


@dataclass
class Outcome:
    """What a schedule led to.

    Args:
        seed: It decides the whole schedule.
        problems: Rules that were broken; empty if all is well.
        faults: How many of each kind happened.
        requests: Requests to the store.
        commits: Committed runs.
        takeovers: Numbers of the lease that another owner took.
        errors: What commands ended with, by code.
        trace: The requests, if asked for.
    """

    seed: int
    problems: list[str]
    faults: Counter[str]
    requests: int
    commits: int
    takeovers: int
    errors: Counter[str]
    trace: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = "\n  ".join(self.problems[:10])
        return f"seed {self.seed}: {len(self.problems)} problems\n  {lines}"


def simulate(seed: int, rates: Rates = USUAL, conditional: bool = True, verify: bool = False) -> Outcome:
    """Run one schedule and judge it.

    Args:
        seed: Decides the order, the faults and the commands.
        rates: Of faults, before the seed scales them.
        conditional: Whether the store honours conditional writes.
        verify: Whether the product's own verification judges the end, too.
    """
    schedule = Schedule(seed)
    rng = schedule.rng
    oracle = Oracle()
    rates = rates.scaled(rng.choice([0.3, 1.0, 2.5]))
    store = Store(schedule, rates, oracle, conditional, oracle.objects)
    scene = _Scene(schedule, store, oracle)
    with _simulated(schedule), serving(store):
        scene.set_up()
        try:
            schedule.run()
            scene.finish(verify)
        except Hang as error:
            oracle.problems.append(f"it hangs: {error}")
    for error in schedule.crashes:
        oracle.problems.append(f"a command ends with {type(error).__name__}: {error}")
    return Outcome(
        seed,
        oracle.problems,
        store.faults,
        store.requests,
        len(oracle.manifests),
        len({one.owner for one in oracle.taken}) - 1,
        scene.errors,
        [f"{at:9.3f} {who:10} {kind:7} {path} {fault}" for at, who, kind, path, fault in store.trace],
    )


class _Scene:
    """The commands of one schedule."""

    def __init__(self, schedule: Schedule, store: Store, oracle: Oracle) -> None:
        self._schedule, self._store, self._oracle = schedule, store, oracle
        self.errors: Counter[str] = Counter()
        self._images = _FIRST

    def set_up(self) -> None:
        """Begin the commands."""
        rng = self._schedule.rng
        for n in range(_FIRST):
            self._add_image(n)
        hosts = rng.choice([1, 3])
        start_s = 0.0
        for n in range(rng.choice([1, 2, 2, 3])):
            process = Process(f"driver-{n}", f"host-{rng.randrange(hosts)}", 100 + n, rng.choice([0.0, -50.0, 50.0]))
            self._start(process, start_s, lambda: self._command(rng.choice(["wait", "fail"])))
            start_s += rng.choice([0.0, 5.0, 25.0]) + rng.random()
        if rng.random() < 0.3:
            process = Process("gc", f"host-{rng.randrange(hosts)}", 200)
            unfinished = rng.random() < 0.5
            self._start(process, rng.uniform(0.0, 60.0), lambda: self._collect(unfinished))
        if rng.random() < 0.3:
            reader = Process("reader", "host-r", 300, immune=True)
            self._start(reader, 0.0, self._read)
        if rng.random() < 0.3:
            self._schedule.push(rng.uniform(0.0, 60.0), self._add_later_images)

    def finish(self, verify: bool) -> None:
        """Give the command once more without faults, collect the garbage, and judge what is there."""
        oracle = self._oracle
        final = Process("final", "host-f", 900, immune=True)
        self._start(final, self._schedule.now_s, self._last)
        self._schedule.run()
        oracle.check_numbers()
        oracle.check_rows({uri: row for uri, row in truth().items() if int(uri[-5]) < self._images})
        oracle.check_files()
        if verify and not oracle.problems:
            report = inspect_output(OUT)
            oracle.problems += [f"verify: {text}" for text in report.problems]

    def _start(self, process: Process, at_s: float, target: Callable[[], None]) -> None:
        def run() -> None:
            try:
                target()
            except BatchdetError as error:
                self.errors[error.code or type(error).__name__] += 1
                if process.immune and process.name == "final":
                    self._oracle.problems.append(f"the last command fails: {error}")
            finally:
                process.dead = process.dead or not process.immune

        Actor(process, run).start(self._schedule, at_s)

    def _command(self, when_locked: str) -> None:
        run_job(_job(when_locked))

    def _last(self) -> None:
        run_job(_job("wait"))
        collect_garbage(OUT, unfinished=True)

    def _collect(self, unfinished: bool) -> None:
        collect_garbage(OUT, unfinished=unfinished)

    def _read(self) -> None:
        """Poll, and compare what is seen with what there was."""
        seen: set[str] = set()
        for _ in range(15):
            self._schedule.wait(self._schedule.now_s + self._schedule.rng.uniform(1.0, 10.0))
            before = set(self._oracle.manifests)
            try:
                now = {manifest.run_id for manifest in open_results(OUT).runs}
            except OutputError:
                now = set()
            after = set(self._oracle.manifests)
            if not seen | before <= now <= after:
                self._oracle.problems.append(f"a reader sees {now}; committed were {before}, then {after}")
            seen = now

    def _add_image(self, n: int) -> None:
        self._store.put(f"src/img-{n}.jpg", b"empty" if n == 1 else f"image {n}".encode())

    def _add_later_images(self) -> None:
        for n in range(_FIRST, _FIRST + _LATER):
            self._add_image(n)
        self._images = _FIRST + _LATER


@cache
def truth() -> dict[str, tuple[Any, ...]]:
    """Return the rows of an undisturbed run over all images, by URI."""
    schedule, oracle = Schedule(0), Oracle()
    store = Store(schedule, Rates().scaled(0.0), oracle, True, oracle.objects)
    scene = _Scene(schedule, store, oracle)
    with _simulated(schedule), serving(store):
        for n in range(_FIRST + _LATER):
            scene._add_image(n)
        scene._start(Process("truth", "host", 1, immune=True), 0.0, scene._last)
        schedule.run()
    assert not schedule.crashes, schedule.crashes
    assert not scene.errors, scene.errors
    return oracle.rows()


@cache
def _job(when_locked: str) -> Any:
    return job(SOURCE, OUT, compute={"segment_rows": 2}, policy={"when_locked": when_locked})


class _Inline:
    """Stands for a pool of threads: each call is made at once, outside of the caller's context."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> "_Inline":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, call: Callable[..., Any], *each: Any) -> Iterator[Any]:
        return iter([contextvars.Context().run(call, *arguments) for arguments in zip(*each, strict=False)])

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            result = contextvars.Context().run(call, *arguments)
        except Exception as error:
            failure = error

            def fail() -> Any:
                raise failure

            return SimpleNamespace(result=fail)
        return SimpleNamespace(result=lambda: result)

    def shutdown(self, *_: Any, **__: Any) -> None:
        pass


@contextlib.contextmanager
def _simulated(schedule: Schedule) -> Iterator[None]:
    """Put the simulated clock, threads, machine and chance in the place of the real ones."""
    names = random.Random(schedule.rng.random())
    clock = Clock(schedule)

    class Now(real_datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            actor = current()
            skew_s = actor.process.skew_s if actor else 0.0
            return _BEGAN + real_datetime.timedelta(seconds=schedule.now_s + skew_s)

    def process_state(pid: int) -> tuple[str, str]:
        me = current()
        assert me is not None
        for actor in schedule.actors:
            process = actor.process
            if (process.pid, process.host) == (pid, me.process.host) and not process.dead:
                return ("T" if process.stopped_until_s > schedule.now_s else "S"), "1"
        return "", ""

    def this_process() -> dict[str, Any]:
        me = current()
        assert me is not None
        return {"host": me.process.host, "boot": me.process.host, "pid": me.process.pid, "started": "1"}

    unique = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=f"{names.getrandbits(128):032x}"))
    stand_ins = {
        "batchdet.storage.backoff.time": clock,
        "batchdet.storage.backoff.random": names,
        "batchdet.table.lease.time": clock,
        "batchdet.table.lease.threading": Threading(schedule),
        "batchdet.table.lease.uuid": unique,
        "batchdet.table.lease._this_process": this_process,
        "batchdet.table.lease._process": process_state,
        "batchdet.table.lineage.datetime": Now,
        "batchdet.table.lineage.secrets": SimpleNamespace(token_hex=lambda n: f"{names.getrandbits(8 * n):0{2 * n}x}"),
        "batchdet.places.uuid": unique,
        "batchdet.job.time": clock,
    }
    with contextlib.ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(patch(name, stand_in))
        yield


_SAME_EACH_TIME = ("batchdet.plan.licences_of", "batchdet.job.versions", "batchdet.job.dump_job")
"""Pure functions that would take most of the time of a schedule."""


def _remembered(name: str) -> Callable[..., Any]:
    call, known = pkgutil.resolve_name(name), {}

    def remember(*arguments: Any) -> Any:
        key = repr(arguments)
        if key not in known:
            known[key] = call(*arguments)
        return known[key]

    return remember


def _cached_properties() -> Iterator[Any]:
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("batchdet.")]
    classes = {one for module in modules for one in vars(module).values() if isinstance(one, type)}
    for each in classes:
        if each.__module__.startswith("batchdet."):
            yield from (one for one in vars(each).values() if isinstance(one, cached_property) and hasattr(one, "lock"))


@contextlib.contextmanager
def simulated_process() -> Iterator[None]:
    """Do once what all schedules share: pools run inline, and two images are a shard."""
    from tests.without_ray import without_ray

    pa.set_cpu_count(1)
    with contextlib.ExitStack() as stack:
        stack.enter_context(without_ray())
        for name, module in list(sys.modules.items()):
            if name.startswith("batchdet.") and hasattr(module, "ThreadPoolExecutor"):
                stack.enter_context(patch(f"{name}.ThreadPoolExecutor", _Inline))
        for property_ in _cached_properties():  # in Python 3.11 processes of the simulation would share their locks
            stack.enter_context(patch.object(property_, "lock", contextlib.nullcontext()))
        stack.enter_context(patch("batchdet.plan.SLICE_ROWS", 3))
        for name in _SAME_EACH_TIME:
            stack.enter_context(patch(name, _remembered(name)))
        yield
