"""The schedule: threads that run one at a time, in an order that a seed decides, on a simulated clock.

Each thread of the code under test is an actor of a process. It holds the baton until it waits: for a request to the
store, a sleep, a lock or an event. Then the actor whose time comes first has it. Nothing else runs meanwhile, so that
one seed gives one order of all requests.
"""

import heapq
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_local = threading.local()


class Killed(BaseException):
    """The process of this thread has been killed; no code of batchdet catches it."""


class Hang(AssertionError):
    """The schedule does not end."""


@dataclass(eq=False)
class Process:
    """A process of the simulation.

    Args:
        name: For the trace.
        host: The machine it runs on.
        pid: Its number there.
        skew_s: How far its wall clock is ahead.
        immune: Whether no fault happens to it.
        dead: Whether it was killed or has ended.
        stopped_until_s: The time at which a stopped process continues.
    """

    name: str
    host: str
    pid: int
    skew_s: float = 0.0
    immune: bool = False
    dead: bool = False
    stopped_until_s: float = 0.0
    actors: "list[Actor]" = field(default_factory=list)


class Actor:
    """One thread of a process."""

    def __init__(self, process: Process, target: Callable[[], Any]) -> None:
        self.process = process
        self.baton = threading.Semaphore(0)
        self.turn = 0
        self.waits_for_ever = False
        self.ended = False
        self._target = target

    def start(self, schedule: "Schedule", at_s: float) -> None:
        """Let it begin at a moment."""
        thread = threading.Thread(target=self._run, args=(schedule,), daemon=True)
        self.process.actors.append(self)
        schedule.actors.append(self)
        schedule.threads.append(thread)
        schedule.push(at_s, self)
        thread.start()

    def _run(self, schedule: "Schedule") -> None:
        self.baton.acquire()
        _local.actor = self
        try:
            if not self.process.dead:
                self._target()
        except Killed:
            pass
        except BaseException as error:
            schedule.crashes.append(error)
        finally:
            self.ended = True
            for waiter in schedule.joining.pop(self, []):
                schedule.wake(waiter)
            schedule.pass_on()


def current() -> Actor | None:
    """Return the actor that runs this code, or None outside of the simulation."""
    return getattr(_local, "actor", None)


class Schedule:
    """Who runs when.

    Args:
        seed: Decides everything.
        most_turns: A schedule that takes more turns hangs.
    """

    def __init__(self, seed: int, most_turns: int = 20_000) -> None:
        self.rng = random.Random(seed)
        self.now_s = 0.0
        self.turns = 0
        self.actors: list[Actor] = []
        self.threads: list[threading.Thread] = []
        self.crashes: list[BaseException] = []
        self.joining: dict[Actor, list[Actor]] = {}
        self._most_turns = most_turns
        self._queue: list[tuple[float, int, Any, int]] = []
        self._pushed = 0
        self._done = threading.Semaphore(0)
        self._over = False

    def push(self, at_s: float, what: Actor | Callable[[], None]) -> None:
        """Let an actor continue, or something happen, at a moment."""
        self._pushed += 1
        heapq.heappush(self._queue, (at_s, self._pushed, what, what.turn if isinstance(what, Actor) else 0))

    def wake(self, actor: Actor) -> None:
        """Let a waiting actor continue now."""
        actor.turn += 1
        actor.waits_for_ever = False
        self.push(self.now_s, actor)

    def wait(self, until_s: float | None) -> None:
        """Give the baton away until a moment; None waits until another actor wakes this one."""
        actor = current()
        assert actor is not None
        if actor.process.dead:
            raise Killed
        actor.turn += 1
        if until_s is None:
            actor.waits_for_ever = True
        else:
            self.push(until_s, actor)
        following = self._next()
        if following is not actor:
            if following is None:
                self._finish()
            else:
                following.baton.release()
            actor.baton.acquire()
        if actor.process.dead:
            raise Killed

    def pass_on(self) -> None:
        """Give the baton away for good."""
        following = self._next()
        if following is None:
            self._finish()
        else:
            following.baton.release()

    def run(self) -> None:
        """Run until every actor has ended.

        Raises:
            Hang: They do not end.
        """
        following = self._next()
        if following is not None:
            following.baton.release()
            self._done.acquire()
        stuck = [actor.process.name for actor in self.actors if not actor.ended]
        too_long = self.turns >= self._most_turns
        if stuck:
            self._unwind()
            kind = f"more than {self._most_turns} turns" if too_long else "they wait for each other"
            raise Hang(f"{', '.join(stuck)}: {kind}")
        for thread in self.threads:
            thread.join(10)

    def kill(self, process: Process) -> None:
        """Kill a process: none of its threads does anything more."""
        process.dead = True
        for actor in process.actors:
            if not actor.ended and actor is not current():
                self.wake(actor)

    def _next(self) -> Actor | None:
        while self._queue:
            at_s, _, what, turn = heapq.heappop(self._queue)
            if isinstance(what, Actor):
                if turn != what.turn or what.ended:
                    continue
                process = what.process
                if process.stopped_until_s > max(at_s, self.now_s) and not process.dead:
                    self.push(process.stopped_until_s, what)
                    continue
            self.now_s = max(self.now_s, at_s)
            self.turns += 1
            if self.turns >= self._most_turns and not self._over:
                return None
            if isinstance(what, Actor):
                what.waits_for_ever = False
                return what
            what()
        return None

    def _finish(self) -> None:
        self._done.release()

    def _unwind(self) -> None:
        """End what hangs, so that no thread is left."""
        self._over = True
        self._queue.clear()
        for actor in self.actors:
            actor.process.dead = True
            if not actor.ended:
                self.wake(actor)
        following = self._next()
        if following is not None:
            following.baton.release()
            self._done.acquire(timeout=10)


class Threading:
    """Stands for the module ``threading`` in the code under test."""

    def __init__(self, schedule: Schedule) -> None:
        outer = schedule

        class Lock:
            def __init__(self) -> None:
                self._holder: Actor | None = None
                self._waiting: list[Actor] = []

            def __enter__(self) -> bool:
                me = current()
                while self._holder is not None:
                    assert me is not None
                    self._waiting.append(me)
                    outer.wait(None)
                self._holder = me
                return True

            def __exit__(self, *exception: object) -> None:
                self._holder = None
                for actor in self._waiting:
                    outer.wake(actor)
                self._waiting = []

        class Event:
            def __init__(self) -> None:
                self._is_set = False
                self._waiting: list[Actor] = []

            def set(self) -> None:
                self._is_set = True
                for actor in self._waiting:
                    outer.wake(actor)
                self._waiting = []

            def wait(self, timeout: float | None = None) -> bool:
                me = current()
                if not self._is_set and me is not None:
                    self._waiting.append(me)
                    outer.wait(None if timeout is None else outer.now_s + timeout)
                    if me in self._waiting:
                        self._waiting.remove(me)
                return self._is_set

        class Thread:
            def __init__(self, target: Callable[[], Any], name: str = "", daemon: bool = True) -> None:
                me = current()
                assert me is not None
                self._actor = Actor(me.process, target)

            def start(self) -> None:
                self._actor.start(outer, outer.now_s)

            def join(self, timeout: float | None = None) -> None:
                me = current()
                if not self._actor.ended and me is not None:
                    outer.joining.setdefault(self._actor, []).append(me)
                    outer.wait(None if timeout is None else outer.now_s + timeout)
                    waiting = outer.joining.get(self._actor, [])
                    if me in waiting:
                        waiting.remove(me)

        self.Lock, self.Event, self.Thread = Lock, Event, Thread


class Clock:
    """Stands for the module ``time`` in the code under test."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def monotonic(self) -> float:
        return self._schedule.now_s

    time = monotonic

    def sleep(self, seconds: float) -> None:
        self._schedule.wait(self._schedule.now_s + seconds)
