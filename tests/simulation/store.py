"""A simulated object store behind the scheme ``sim``: strongly consistent, as S3 is, and with faults from a seed.

The protocol relies on three guarantees of a store, and has them here: an object can be read once its write was
answered; a listing holds every object whose write was answered before; of several conditional writes of one name one
succeeds. Everything else may fail: requests and replies are lost, requests arrive after their client gave up.
"""

import datetime
import errno
import io
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from fsspec.spec import AbstractFileSystem

from tests.simulation.schedule import Actor, Killed, Schedule, current

T = TypeVar("T")
_CHANGES = frozenset({"create", "write", "copy", "delete"})
_AT_CHANGES, _AT_LOOKS = 3.0, 0.5
"""How much more probable faults are there; what happens before a look mostly equals what happens before a change."""


class Observer(Protocol):
    """Is told of each change of the store, at the moment at which it happens."""

    def before_write(self, path: str, data: bytes) -> None: ...

    def before_delete(self, path: str) -> None: ...


@dataclass(frozen=True)
class Rates:
    """How probable each fault is at a request.

    Args:
        lost_request: The request never arrives.
        lost_reply: It is carried out, and the reply is lost.
        late: The client gives up, and the request arrives up to a minute later.
        slow: The reply takes up to 15 s.
        stop: The process stops for 5 to 90 s, before or after the request.
        crash: The process is killed, before or after the request.
        stale_listing: A listing lacks the writes of the last seconds. S3 never does this.
    """

    lost_request: float = 0.003
    lost_reply: float = 0.003
    late: float = 0.002
    slow: float = 0.004
    stop: float = 0.004
    crash: float = 0.002
    stale_listing: float = 0.0

    def scaled(self, factor: float) -> "Rates":
        """Return all rates times a factor."""
        return Rates(**{name: value * factor for name, value in vars(self).items()})


@dataclass
class Store:
    """The objects, and the way to them.

    Args:
        schedule: Gives each request its moment.
        rates: Of faults.
        observer: Is told of changes.
        conditional: Whether conditional writes are honoured.
    """

    schedule: Schedule
    rates: Rates
    observer: Observer
    conditional: bool = True
    objects: dict[str, bytes] = field(default_factory=dict)
    written_s: dict[str, float] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    trace: list[tuple[float, str, str, str, str]] = field(default_factory=list)

    def request(self, kind: str, path: str, effect: Callable[[], T]) -> T:
        """Carry out a request of the current actor, with what may happen to it."""
        actor = current()
        if actor is None:
            return effect()
        self.requests += 1
        schedule, process = self.schedule, actor.process
        fault = "" if process.immune else self._fault(kind)
        moment = schedule.rng.random()
        if fault in {"crash", "stop"} and moment < 0.5:
            self._hit(actor, fault, kind, path)
        schedule.wait(schedule.now_s + 0.02 + 0.08 * schedule.rng.random())
        if fault == "lost_request":
            self._note(actor, kind, path, fault)
            self._fail(schedule.rng.uniform(0.1, 5.0))
        if fault == "late":
            self._note(actor, kind, path, fault)
            schedule.push(schedule.now_s + schedule.rng.uniform(0.0, 60.0), lambda: self._arrive(kind, path, effect))
            self._fail(schedule.rng.uniform(0.1, 20.0))
        self._note(actor, kind, path, fault)
        try:
            result = effect()
        finally:
            if fault in {"crash", "stop"} and moment >= 0.5:
                self._hit(actor, fault, kind, path)
        if fault == "lost_reply":
            self._fail(schedule.rng.uniform(0.1, 5.0))
        if fault == "slow":
            schedule.wait(schedule.now_s + schedule.rng.uniform(1.0, 15.0))
        return result

    def _fault(self, kind: str) -> str:
        point = self.schedule.rng.random() / (_AT_CHANGES if kind in _CHANGES else _AT_LOOKS)
        for name, rate in vars(self.rates).items():
            if point < rate:
                if name == "late" and kind not in _CHANGES:
                    return ""
                if name == "stale_listing" and kind != "list":
                    return ""
                self.faults[name] += 1
                return name
            point -= rate
        return ""

    def _hit(self, actor: Actor, fault: str, kind: str, path: str) -> None:
        schedule, process = self.schedule, actor.process
        self._note(actor, kind, path, f"{fault}!")
        if fault == "crash":
            schedule.kill(process)
            raise Killed
        process.stopped_until_s = schedule.now_s + schedule.rng.uniform(5.0, 90.0)
        schedule.wait(schedule.now_s)

    def _fail(self, after_s: float) -> None:
        self.schedule.wait(self.schedule.now_s + after_s)
        raise OSError(errno.ETIMEDOUT, "no reply")

    def _arrive(self, kind: str, path: str, effect: Callable[[], Any]) -> None:
        self.trace.append((self.schedule.now_s, "(late)", kind, path, ""))
        with suppress(OSError):
            effect()

    def _note(self, actor: Actor, kind: str, path: str, fault: str) -> None:
        self.trace.append((self.schedule.now_s, actor.process.name, kind, path, fault))

    def put(self, path: str, data: bytes, create: bool = False) -> None:
        """Write an object."""
        if create and self.conditional and path in self.objects:
            raise FileExistsError(errno.EEXIST, "exists", path)
        self.observer.before_write(path, data)
        self.objects[path] = data
        self.written_s[path] = self.schedule.now_s

    def remove(self, path: str) -> None:
        """Delete an object, if it is there."""
        if path in self.objects:
            self.observer.before_delete(path)
            del self.objects[path]

    def get(self, path: str) -> bytes:
        """Read an object."""
        if path not in self.objects:
            raise FileNotFoundError(errno.ENOENT, "no such object", path)
        return self.objects[path]

    def below(self, prefix: str) -> list[str]:
        """List the objects below a prefix."""
        prefix = prefix.rstrip("/") + "/"
        return [path for path in self.objects if path.startswith(prefix)]


_stores: list[Store] = []


@contextmanager
def serving(store: Store) -> Iterator[None]:
    """Make a store the one behind ``sim://`` while the block runs."""
    _stores.append(store)
    try:
        yield
    finally:
        _stores.pop()


class SimulatedFileSystem(AbstractFileSystem):
    """The fsspec face of the store."""

    protocol = "sim"
    cachable = False

    @property
    def _store(self) -> Store:
        return _stores[-1]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("sim://").strip("/")

    def _info(self, path: str) -> dict[str, Any]:
        data = self._store.get(path)
        return {"name": path, "size": len(data), "type": "file", "ETag": f'"{hash(data):x}"'}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)

        def look() -> dict[str, Any]:
            if path not in self._store.objects and self._store.below(path):
                return {"name": path, "size": 0, "type": "directory"}
            return self._info(path)

        return self._store.request("info", path, look)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)

        def look() -> list[str]:
            below = self._store.below(path)
            if not below:
                raise FileNotFoundError(errno.ENOENT, "no such folder", path)
            start = len(path) + 1
            return sorted({posixpath.join(path, name[start:].split("/", 1)[0]) for name in below})

        assert not detail
        return self._store.request("list", path, look)

    def find(self, path: str, maxdepth: Any = None, withdirs: bool = False, detail: bool = False, **_: Any) -> Any:
        path = self._strip_protocol(path)
        return self._store.request(
            "list", path, lambda: {name: self._info(name) for name in sorted(self._store.below(path))}
        )

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        path = self._strip_protocol(path)
        return self._store.request("read", path, lambda: self._store.get(path)[start:end])

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        path = self._strip_protocol(path)
        kind = "create" if mode == "create" else "write"
        self._store.request(kind, path, lambda: self._store.put(path, bytes(value), mode == "create"))

    def put_file(self, lpath: str, rpath: str, *_: Any, **__: Any) -> None:
        with open(lpath, "rb") as file:
            file.seek(0)
            self.pipe_file(rpath, file.read())

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        self._store.request("copy", target, lambda: self._store.put(target, self._store.get(source)))

    def rm_file(self, path: str) -> None:
        path = self._strip_protocol(path)
        self._store.request("delete", path, lambda: self._store.remove(path))

    def rm(self, path: str, recursive: bool = False, maxdepth: Any = None) -> None:
        path = self._strip_protocol(path)
        for each in self._store.request("list", path, lambda: sorted(self._store.below(path))):
            self.rm_file(each)

    def modified(self, path: str) -> Any:
        """Return when an object was written; DuckDB asks for it."""
        return datetime.datetime.fromtimestamp(self._store.written_s[self._strip_protocol(path)], datetime.UTC)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        assert mode == "rb"
        return io.BytesIO(self.cat_file(path))

    def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return self._open(path, mode)
