"""Minutes of seeded mixed faults: one job again and again, and after each time nothing is lost, doubled or wrong.

2,040 photographs in tar shards lie on a real S3 server behind a proxy that throttles, cuts bodies, loses replies,
stalls and hangs up. Meanwhile drivers and detector actors are killed, or stopped for a while; if a driver is stopped,
another one takes the output over, and the first wakes up. Whenever a driver has ended before its job was done, the same
command is given again. The finished tables are compared, row for row, with those of an undisturbed run.

make soak MINUTES=10 SEED=1
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from batchdet import storage  # noqa: E402
from batchdet.table.lease import live_holder  # noqa: E402
from tests.driver import Driver, Late, assert_whole, count, read_tables  # noqa: E402
from tests.e2e.conftest import write_shards  # noqa: E402
from tests.fault_proxy import FaultProxy, fault_proxy  # noqa: E402
from tests.s3_server import s3_server  # noqa: E402

JOB = """name: soak
source: {uri: "%s/in/*.tar"}
model: {uri: "%s/yolo26n.onnx", precision: fp32, canvas: {size_px: 320}}
output: {uri: "%s"}
compute: {segment_rows: 16}
"""
MOST_DRIVER_KILLS = 3
STOPPED_SHARE = 0.4
"""Of the disturbances of drivers and actors; the others are kills."""
TAKEOVER_S = 32.0
"""A lease is stale after 20 s; then the rival plans and begins."""
MOST_ERRORS = 10
ROUND_LIMIT_S = 900.0
SAY_EVERY_S = 15.0


@dataclass
class Figures:
    """What happened, over all rounds.

    Args:
        images: Images that the source lists.
        rounds: Jobs done.
        driver_kills: Drivers killed.
        driver_errors: How drivers ended by themselves before their job was done: last line -> how often.
        actor_kills: Detector actors killed.
        driver_stops: Drivers stopped until another one had taken the output over.
        actor_stops: Detector actors stopped for a while.
        storage_faults: What the proxy did, by kind.
        images_lost: Listed images without a row.
        images_twice: Rows beyond the first of an image.
        images_wrong: Images whose row or detections are not those of an undisturbed run.
        images_decoded: By all drivers of all rounds.
        orphans: Processes of a killed driver's Ray that did not end by themselves.
        problems: What else the oracle said.
    """

    images: int = 0
    rounds: int = 0
    driver_kills: int = 0
    driver_errors: Counter[str] = field(default_factory=Counter)
    actor_kills: int = 0
    driver_stops: int = 0
    actor_stops: int = 0
    storage_faults: Counter[str] = field(default_factory=Counter)
    images_lost: int = 0
    images_twice: int = 0
    images_wrong: int = 0
    images_decoded: int = 0
    orphans: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def repeated(self) -> float:
        """Images decoded beyond need, as a share of those needed."""
        return self.images_decoded / max(1, self.rounds * self.images) - 1

    @property
    def good(self) -> bool:
        """Whether every promise held."""
        wrong = self.images_lost or self.images_twice or self.images_wrong or self.orphans or self.problems
        return self.rounds > 0 and not wrong


class Soak:
    """One source, one truth, many rounds.

    Args:
        folder: For specs, counts and what drivers print.
        base: Where source and outputs are, in the store.
        proxy: Stands before the store.
        shared: The folder of models and photographs.
        seed: Of every choice.
        copies: Of the 120 photographs, a shard each.
    """

    def __init__(self, folder: Path, base: str, proxy: FaultProxy, shared: Path, seed: int, copies: int) -> None:
        self.figures = Figures()
        self.drivers: list[Driver] = []
        self._folder, self._base, self._proxy, self._seed = folder, base, proxy, seed
        self._decoded = folder / "decoded"
        photographs = [(p.name, p.read_bytes()) for p in sorted((shared / "images/coco120/images").glob("*.jpg"))]
        files = [(f"{copy:02d}-{name}", data) for copy in range(copies) for name, data in photographs]
        write_shards(f"{base}/in", files, copies)
        storage.write_bytes(f"{base}/yolo26n.onnx", (shared / "models/yolo26n.onnx").read_bytes())
        self.figures.images = len(files)
        _say(f"{len(files)} photographs in {copies} shards; an undisturbed run first")
        began = time.monotonic()
        driver = self._start("truth")
        if driver.wait(ROUND_LIMIT_S):
            raise SystemExit(f"the undisturbed run failed: {driver.stderr}")
        self._undisturbed_s = time.monotonic() - began
        self._truth = read_tables(f"{base}/truth")
        assert_whole(f"{base}/truth", self._truth)
        assert self._truth.images.num_rows == count(self._decoded) == len(files)
        _say(f"undisturbed: {self._undisturbed_s:.0f} s, {self._truth.detections.num_rows} detections")
        self._decoded.unlink()

    def run(self, minutes: float) -> None:
        """Go round after round; none begins after so many minutes."""
        self._began, self._until = time.monotonic(), time.monotonic() + 60 * minutes
        while time.monotonic() < self._until:
            self._round(f"round-{self.figures.rounds + 1}")
        self._wait_for_orphans()

    def _start(self, name: str) -> Driver:
        job = self._folder / f"{name}.yaml"
        job.write_text(JOB % (self._base, self._base, f"{self._base}/{name}"))
        driver = Driver(["run", job], self._folder / name, f"decode=count:{self._decoded}", self._proxy.env)
        self.drivers.append(driver)
        return driver

    def _round(self, name: str) -> None:
        figures, began, requests = self.figures, time.monotonic(), len(self._proxy.requests)
        chance = random.Random(f"{self._seed} {name}")
        self._disturb_the_store(chance)
        kills_left, errors = chance.randint(1, MOST_DRIVER_KILLS), 0
        while (status := self._harassed(name, self._start(name), chance, kills_left > 0)) != 0:
            if status == -signal.SIGKILL:
                kills_left -= 1
                continue
            errors += 1
            last = _last_line(self.drivers[-1])
            figures.driver_errors[f"{status}: {last}"] += 1
            if status < 0 or not last.startswith("error: "):
                figures.problems.append(f"{name}: a driver ended with {status}, in no documented way: {last}")
            if errors == MOST_ERRORS:
                self._proxy.clear()
            if errors > MOST_ERRORS or time.monotonic() - began > ROUND_LIMIT_S:
                figures.problems.append(f"{name}: no end after {errors} errors")
                break
        figures.storage_faults.update(r.fault for r in self._proxy.requests[requests:] if r.fault)
        self._proxy.clear()
        figures.rounds += 1
        figures.images_decoded = count(self._decoded)
        self._judge(name)
        storage.delete_folder(f"{self._base}/{name}")
        _say(f"{name}: {time.monotonic() - began:.0f} s, {self._sofar()}")

    def _disturb_the_store(self, chance: random.Random) -> None:
        add = self._proxy.add
        add("slow_down", fraction=chance.uniform(0.05, 0.25))
        add("internal_error", fraction=0.02)
        add("cut", method="GET", fraction=chance.uniform(0.02, 0.08))
        add("lose_reply", method="PUT|POST|DELETE", fraction=chance.uniform(0.02, 0.08))
        add("refuse", fraction=0.02)
        add("stall", fraction=0.003, stall_s=chance.uniform(3, 20))

    def _harassed(self, name: str, driver: Driver, chance: random.Random, kill: bool) -> int:
        """Disturb actors now and then, and the driver at some time if it may be; return how the last driver ended."""
        actor_every_s = chance.uniform(0.1, 0.4) * self._undisturbed_s
        kill_at = driver.started + chance.uniform(1, 1.1 * self._undisturbed_s) if kill else float("inf")
        next_actor, said = driver.started + actor_every_s, driver.started
        stopped: dict[int, float] = {}
        while driver.returncode is None:
            now = time.monotonic()
            for pid in [pid for pid, until in stopped.items() if now >= until]:
                del stopped[pid]
                _signal(pid, signal.SIGCONT)
            if now >= kill_at and chance.random() < STOPPED_SHARE and (rival := self._outlived(name, driver)):
                driver, kill_at = rival, float("inf")
            elif now >= kill_at or now > driver.started + ROUND_LIMIT_S:
                if now < kill_at:
                    self.figures.problems.append(f"a driver does not end: {driver.stderr[-500:]}")
                self.figures.driver_kills += 1
                driver.kill()
            elif now >= next_actor and (actors := driver.actors()):
                pid, next_actor = chance.choice(actors), now + actor_every_s
                if chance.random() < STOPPED_SHARE:
                    stopped[pid] = now + chance.uniform(1, 20)
                    self.figures.actor_stops += _signal(pid, signal.SIGSTOP)
                else:
                    self.figures.actor_kills += _signal(pid, signal.SIGKILL)
            if now - said >= SAY_EVERY_S:
                said = now
                self.figures.images_decoded = count(self._decoded)
                _say(self._sofar())
            time.sleep(0.1)
        for pid in stopped:
            _signal(pid, signal.SIGCONT)
        return driver.wait()

    def _outlived(self, name: str, driver: Driver) -> Driver | None:
        """Stop a driver that holds the output, start another one, and let the first wake up; None if it holds none."""
        holder = live_holder(f"{self._base}/{name}")
        if holder is None or not _signal(int(holder["pid"]), signal.SIGSTOP):
            return None
        self.figures.driver_stops += 1
        rival = self._start(name)
        until = time.monotonic() + TAKEOVER_S
        while rival.returncode is None and time.monotonic() < until:
            time.sleep(0.1)
        _signal(int(holder["pid"]), signal.SIGCONT)
        status = driver.wait()
        if status and not _last_line(driver).startswith("error: "):
            self.figures.problems.append(f"{name}: a driver that woke up ended with {status}: {_last_line(driver)}")
        return rival

    def _judge(self, name: str) -> None:
        """Compare the finished tables with the truth; count what differs."""
        try:
            found = read_tables(f"{self._base}/{name}")
        except (storage.StorageError, pa.ArrowInvalid) as error:
            self.figures.problems.append(f"{name}: {error}")
            return
        ids = found.images["image_id"]
        distinct = pc.count_distinct(ids).as_py()
        self.figures.images_twice += len(ids) - distinct
        self.figures.images_lost += pc.sum(pc.invert(pc.is_in(self._truth.images["image_id"], ids))).as_py()
        self.figures.images_wrong += len(
            _different(found.images, self._truth.images) | _different(found.detections, self._truth.detections)
        )
        try:
            assert_whole(f"{self._base}/{name}", self._truth)
        except AssertionError as error:
            self.figures.problems.append(f"{name}: {error}"[:1000])

    def _wait_for_orphans(self) -> None:
        for driver in self.drivers:
            try:
                driver.wait_for_orphans(120, agents=True)
            except Late as error:
                self.figures.orphans += len(driver.family())
                self.figures.problems.append(str(error))

    def _sofar(self) -> str:
        figures, elapsed_s = self.figures, time.monotonic() - self._began
        return (
            f"{elapsed_s / 60:.1f} min, ETA {max(0.0, self._until - time.monotonic()) / 60:.1f} min; "
            f"{figures.rounds} rounds, {figures.images_decoded / elapsed_s:.1f} images/s; "
            f"kills: {figures.driver_kills} drivers, {figures.actor_kills} actors; "
            f"stops: {figures.driver_stops} drivers, {figures.actor_stops} actors; "
            f"{sum(figures.driver_errors.values())} errors; "
            f"{figures.images_lost} lost, {figures.images_twice} twice, {figures.images_wrong} wrong"
        )


def _different(these: pa.Table, those: pa.Table) -> set[str]:
    """Return the image ids of rows that stand in one of two tables only."""
    rows = [{tuple(row.values()) for row in table.to_pylist()} for table in (these, those)]
    place = these.column_names.index("image_id")
    return {row[place] for row in rows[0] ^ rows[1]}


def _last_line(driver: Driver) -> str:
    return (driver.stderr.splitlines() or ["nothing said"])[-1]


def _signal(pid: int, number: signal.Signals) -> bool:
    """Send a signal; tell whether there was a process of this number."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    """Soak, print the figures and write them down; 1 when a promise did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--copies", type=int, default=17, help="of the 120 photographs")
    parser.add_argument("--result", type=Path, default=REPOSITORY / "benchmarks/results/soak.json")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that nothing stays behind
    shared = Path(os.environ.get("BATCHDET_SHARED", REPOSITORY.parent / "shared")).resolve()
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="batchdet-soak-") as name,
        s3_server() as server,
        fault_proxy(server, arguments.seed) as proxy,
    ):
        soak = Soak(Path(name), server.bucket("soak"), proxy, shared, arguments.seed, arguments.copies)
        try:
            soak.run(arguments.minutes)
        finally:
            for driver in soak.drivers:
                driver.__exit__(None, None, None)
    figures = soak.figures
    result = {
        "seed": arguments.seed,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "good": figures.good,
        **vars(figures),
        "images_repeated_share": round(figures.repeated, 4),
    }
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    _say(json.dumps(result, indent=1))
    return 0 if figures.good else 1


if __name__ == "__main__":
    sys.exit(main())
