"""A store that misbehaves: throttled, cut, silent, full, or changing under a run. Source and output lie behind it.

The oracle is an undisturbed run over the same source: each listed image exactly one row, the same detections.
"""

import itertools
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc
import pytest

from batchdet import storage
from batchdet.errors import OutputError
from batchdet.job import run_job
from batchdet.results.verify import inspect_output
from batchdet.sample.dataset import write_sample
from batchdet.spec import JobSpec
from batchdet.storage import backoff
from batchdet.table.manifest import committed_runs
from tests.driver import Driver, Tables, assert_whole, read_tables, run_to_end
from tests.e2e.conftest import Cli, job, yaml_of
from tests.fault.s3_session import S3Session
from tests.fault_proxy import FaultProxy, fault_proxy
from tests.s3_server import S3Server

pytestmark = pytest.mark.slow

IMAGES = 16
BUCKET = "storage-faults"
SOURCES = {"folder": f"s3://{BUCKET}/folder/images", "tar": f"s3://{BUCKET}/tar/shards/*.tar"}
ANY_SOURCE = rf"^/{BUCKET}/(folder/images|tar/shards)/"
SEED = int(os.environ.get("BATCHDET_SEED", "2026"))
CHOSEN_SOURCE = random.Random(SEED).choice(list(SOURCES))
"""The one of ``make test`` where tests for each of them take long."""


@pytest.fixture(scope="module")
def proxy(s3: S3Server) -> Iterator[FaultProxy]:
    s3.bucket(BUCKET)
    for name, format in (("folder", "folder"), ("tar", "webdataset")):
        write_sample(f"s3://{BUCKET}/{name}", IMAGES, format, 5, shard_rows=8)
    with fault_proxy(s3, SEED) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_rule_is_left(proxy: FaultProxy) -> Iterator[None]:
    yield
    proxy.clear()


@pytest.fixture(scope="module")
def session(proxy: FaultProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Session]:
    # a user's own setting goes before batchdet's: time-outs fire sooner than by default
    env = {"FSSPEC_S3": '{"config_kwargs": {"read_timeout": 2}}'}
    with S3Session(proxy, tmp_path_factory.mktemp("session"), env) as running:
        yield running


@pytest.fixture(scope="module")
def truth(session: S3Session) -> dict[str, Tables]:
    """What undisturbed runs give, by source."""
    tables = {}
    for name in SOURCES:
        spec = spec_of(name, "truth")
        assert session.run(spec).status == 0
        tables[name] = read_tables(spec.output.uri)
    assert tables["folder"].detections.num_rows > IMAGES
    return tables


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> str:
    """Each of the sources."""
    return request.param  # type: ignore[no-any-return]


def spec_of(source: str, out: str, **policy: object) -> JobSpec:
    """A job over one of the sources, with its own output."""
    compute = {"segment_rows": 4, "actors": 1}
    return job(SOURCES[source], f"s3://{BUCKET}/out/{source}/{out}", compute=compute, policy=policy)


def local(spec: JobSpec, out: Path) -> JobSpec:
    """The same job with its output on a disk."""
    return spec.model_copy(update={"output": spec.output.model_copy(update={"uri": str(out)})})


def is_one_sentence(text: str, *parts: str) -> bool:
    """Tell whether an error names what it should, in one line and without a traceback."""
    return all(part in text for part in parts) and "Traceback" not in text and "\n" not in text.strip()


@pytest.mark.acceptance("R11")
def test_throttled_reads_and_writes_succeed(session: S3Session, proxy: FaultProxy, truth: dict[str, Tables]) -> None:
    spec = spec_of("folder", "throttled")
    rules = [proxy.add("slow_down", fraction=1 / 2, path=path) for path in (ANY_SOURCE, "/staged/")]
    rules.append(proxy.add("slow_down", count=3, path="/manifest.json"))
    assert session.run(spec).status == 0
    assert all(rule.hits for rule in rules)
    assert_whole(spec.output.uri, truth["folder"])


@pytest.mark.fault
@pytest.mark.timeout(900)
@pytest.mark.acceptance("R11")
def test_a_store_that_throttles_two_thirds_of_everything(
    source: str, session: S3Session, proxy: FaultProxy, truth: dict[str, Tables]
) -> None:
    spec = spec_of(source, "throttled-all")
    asked = len(proxy.requests)
    rule = proxy.add("slow_down", fraction=2 / 3)
    assert session.run(spec).status == 0
    answered = len(proxy.requests) - asked - rule.hits
    assert answered < rule.hits < 4 * answered, "each refusal costs one more request, not a storm of them"
    proxy.clear()
    assert_whole(spec.output.uri, truth[source])


@pytest.mark.acceptance("R12")
def test_a_dead_store_is_one_sentence(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff.retry, "__defaults__", (backoff.Patience(2.0, 1.0),))
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    spec = spec_of("folder", "dead")
    rule = proxy.add("slow_down")
    with pytest.raises(OutputError) as caught:
        run_job(spec)
    parts = (proxy.endpoint, "cannot be written", spec.output.uri, "503 SlowDown", "tried for")
    assert is_one_sentence(caught.value.message, *parts)
    assert 2 <= rule.hits < 20


@pytest.mark.fault
@pytest.mark.timeout(900)
@pytest.mark.acceptance("R12")
def test_a_store_that_is_dead_from_the_start_ends_the_command_within_a_minute(
    proxy: FaultProxy, tmp_path: Path, truth: dict[str, Tables]
) -> None:
    spec = spec_of("folder", "dead-from-the-start")
    path = yaml_of(spec, tmp_path)
    with proxy.fault("slow_down"):
        ended = run_to_end(["run", path], tmp_path, env=proxy.env, deadline_s=70)
    assert ended.returncode == 2
    assert is_one_sentence(ended.stderr, proxy.endpoint, "cannot be written", spec.output.uri, "503 SlowDown")
    assert run_to_end(["run", path], tmp_path, env=proxy.env).returncode == 0
    assert_whole(spec.output.uri, truth["folder"])


@pytest.mark.fault
@pytest.mark.timeout(900)
@pytest.mark.acceptance("R12")
@pytest.mark.parametrize(("what", "action"), [(ANY_SOURCE, "read"), ("/staged/", "write"), ("", "")])
def test_a_store_that_dies_in_the_middle_ends_the_run_within_three_minutes(
    what: str, action: str, proxy: FaultProxy, tmp_path: Path, truth: dict[str, Tables]
) -> None:
    spec = spec_of("folder", f"dead-in-the-middle-{action}")
    path, here = yaml_of(spec, tmp_path), tmp_path / "here"
    with Driver(["run", path], tmp_path, f"run.lineage.after=pause:{here}", proxy.env) as driver:
        driver.wait_for(here, 180)
        with proxy.fault("slow_down", path=what):
            here.unlink()
            assert driver.wait(180) == 2, driver.stderr
        error = driver.stderr.splitlines()[-1]
        assert is_one_sentence(error, proxy.endpoint, f"cannot {action}", f"s3://{BUCKET}/", "503 SlowDown"), error
        assert "Traceback" not in driver.stderr
    assert committed_runs(spec.output.uri) == []
    assert run_to_end(["run", path], tmp_path, env=proxy.env).returncode == 0
    assert_whole(spec.output.uri, truth["folder"])


@pytest.mark.acceptance("R13")
@pytest.mark.parametrize(
    "source",
    [pytest.param(name, marks=[] if name == CHOSEN_SOURCE else pytest.mark.fault) for name in SOURCES],
)
def test_bodies_that_are_cut_off_are_asked_for_again(
    source: str, session: S3Session, proxy: FaultProxy, truth: dict[str, Tables]
) -> None:
    spec = spec_of(source, "cut")
    rules = [
        proxy.add("cut", count=2, method="GET", path=ANY_SOURCE),  # of a few tar shards hardly more is asked for
        proxy.add("cut", fraction=1 / 2, method="GET", path="/staged/"),
    ]
    assert session.run(spec).status == 0
    assert all(rule.hits for rule in rules)
    proxy.clear()
    assert_whole(spec.output.uri, truth[source])


@pytest.mark.acceptance("R14")
def test_short_bodies_with_a_consistent_length_are_asked_for_again(
    source: str, session: S3Session, proxy: FaultProxy, truth: dict[str, Tables]
) -> None:
    spec = spec_of(source, "short")
    rules = [proxy.add("short", count=2, method="GET", path=path) for path in (ANY_SOURCE, "/staged/.*arrow")]
    assert session.run(spec).status == 0
    assert [rule.hits for rule in rules] == [2, 2]
    proxy.clear()
    assert_whole(spec.output.uri, truth[source])


@pytest.mark.acceptance("R14")
def test_a_body_that_stays_short_is_an_error_row_and_never_wrong_boxes(
    session: S3Session, proxy: FaultProxy, truth: dict[str, Tables]
) -> None:
    spec = spec_of("folder", "stays-short", max_failed_fraction=0.1)
    image = truth["folder"].images["uri"][3].as_py()
    rule = proxy.add("short", method="GET", path=storage.basename(image))
    outcome = session.run(spec)
    assert (outcome.status, outcome.ok, outcome.failed) == (0, IMAGES - 1, 1)
    assert rule.hits >= 4
    proxy.clear()
    only_these_failed(spec, truth["folder"], {image: "size_mismatch"})


def only_these_failed(spec: JobSpec, truth: Tables, codes: dict[str, str]) -> None:
    """Assert that these images are failed rows, all others as in an undisturbed run, and that counts reconcile."""
    assert inspect_output(spec.output.uri).problems == []
    tables = read_tables(spec.output.uri)
    failed = tables.images.filter(pc.equal(tables.images["status"], "failed"))
    assert dict(zip(failed["uri"].to_pylist(), failed["error_code"].to_pylist(), strict=True)) == codes
    ids = failed["image_id"]
    for got, want in ((tables.images, truth.images), (tables.detections, truth.detections)):
        others = [t.filter(pc.invert(pc.is_in(t["image_id"], ids.combine_chunks()))) for t in (got, want)]
        assert others[0].equals(others[1])
    assert not pc.any(pc.is_in(tables.detections["image_id"], ids.combine_chunks())).as_py()


@pytest.mark.acceptance("R15")
def test_lost_replies_leave_one_object_and_one_commit(
    session: S3Session, proxy: FaultProxy, truth: dict[str, Tables]
) -> None:
    spec = spec_of("folder", "lost-replies")
    paths = ["/lease/", "/staged/", r"/images/.*part-", "/stats.json", "/manifest.json", "_SUCCESS$"]
    rules = [proxy.add("lose_reply", method="PUT", path=f"/lost-replies/.*{path}", count=1) for path in paths]
    rules += [proxy.add("lose_reply", method="DELETE", count=1), proxy.add("lose_reply", path=r"\?delete$", count=1)]
    assert session.run(spec).status == 0
    assert [rule.hits for rule in rules] == [1] * len(rules)
    assert len(committed_runs(spec.output.uri)) == 1
    assert_whole(spec.output.uri, truth["folder"])
    left = [o.uri for o in storage.find_all(spec.output.uri)]
    assert not [uri for uri in left if "/staged/" in uri or "/parts/" in uri]
    assert len([uri for uri in left if "/lease/" in uri]) <= 1


@pytest.mark.acceptance("R16", "R17")
def test_objects_that_change_or_vanish_after_the_listing_are_error_rows(
    session: S3Session, s3: S3Server, truth: dict[str, Tables], tmp_path: Path
) -> None:
    names = storage.list_objects(SOURCES["folder"])
    source = f"s3://{BUCKET}/changing"
    for obj in names:
        storage.write_bytes(f"{source}/{storage.basename(obj.uri)}", storage.read_bytes(obj.uri))
    compute = {"segment_rows": 4, "actors": 1}
    specs = [
        job(source, f"s3://{BUCKET}/out/changing-{name}", compute=compute, policy={"max_failed_fraction": 0.5})
        for name in ("clean", "disturbed")
    ]
    assert session.run(specs[0]).status == 0
    clean = read_tables(specs[0].output.uri)
    spec, here = specs[1], tmp_path / "here"
    session.begin(spec, here)
    session.wait_for(here)
    larger, same_size, gone = (o.uri for o in storage.list_objects(source)[2:5])
    storage.write_bytes(larger, storage.read_bytes(larger) + b"more")
    storage.write_bytes(same_size, bytes(storage.stat(same_size).size_bytes))
    storage.delete([gone])
    here.unlink()
    outcome = session.outcome()
    assert (outcome.status, outcome.ok, outcome.failed) == (0, IMAGES - 3, 3)
    only_these_failed(spec, clean, dict.fromkeys((larger, same_size, gone), "unreadable"))
    assert outcome.wall_s < 30, "what has changed is not asked for again and again"
    again = session.run(spec)
    assert (again.status, again.ok, again.failed) == (0, 1, 1), (
        "what changed is new to the next run: zeros are no image"
    )
    assert inspect_output(spec.output.uri).problems == []


@pytest.mark.acceptance("R18")
def test_time_outs_fire_while_a_store_is_silent_and_the_run_goes_on(
    session: S3Session, proxy: FaultProxy, truth: dict[str, Tables], tmp_path: Path
) -> None:
    spec, here = spec_of("folder", "silent"), tmp_path / "here"
    session.begin(spec, here)
    session.wait_for(here)
    rule = proxy.add("stall")
    here.unlink()
    proxy.wait(lambda: rule.hits > 12)  # a segment has four images: the first requests have timed out
    proxy.clear()
    assert session.outcome().status == 0
    assert_whole(spec.output.uri, truth["folder"])


@pytest.mark.fault
@pytest.mark.timeout(900)
@pytest.mark.acceptance("R18")
def test_a_store_that_is_stopped_for_a_minute(s3: S3Server, tmp_path: Path, truth: dict[str, Tables]) -> None:
    spec, here = spec_of("folder", "stopped"), tmp_path / "here"
    with Driver(["run", yaml_of(spec, tmp_path)], tmp_path, f"run.lineage.after=pause:{here}", s3.env) as driver:
        driver.wait_for(here, 180)
        os.kill(s3.pid, signal.SIGSTOP)
        wake = threading.Timer(60, os.kill, (s3.pid, signal.SIGCONT))
        wake.start()
        try:
            here.unlink()
            assert driver.wait(120) == 0, driver.stderr
        finally:
            wake.join()
    assert_whole(spec.output.uri, truth["folder"])


@pytest.mark.fault
@pytest.mark.acceptance("R19")
def test_a_disk_that_fills_up_in_the_middle(
    session: S3Session, truth: dict[str, Tables], small_disk: Path, tmp_path: Path
) -> None:
    spec = local(spec_of("folder", ""), small_disk / "out")
    path, here, filler = yaml_of(spec, tmp_path), tmp_path / "here", small_disk / "filler"
    with Driver(["run", path], tmp_path, f"run.lineage.after=pause:{here}") as driver:
        driver.wait_for(here, 180)
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            file.writelines(itertools.repeat(bytes(4096)))
        here.unlink()
        assert driver.wait() == 2, driver.stderr
        assert "Traceback" not in driver.stderr
        error = driver.stderr.splitlines()[-1]
        assert is_one_sentence(error, str(small_disk / "out"), "cannot write", "No space left on device"), error
    assert committed_runs(spec.output.uri) == []
    assert not list((small_disk / "out").glob("images/**/*.parquet"))
    filler.unlink()
    assert session.run(spec).status == 0
    assert_whole(small_disk / "out", truth["folder"])


@pytest.mark.acceptance("R19")
def test_a_full_disk_is_one_sentence_and_status_2(cli: Cli, tmp_path: Path, proxy: FaultProxy) -> None:
    path = yaml_of(local(spec_of("folder", ""), tmp_path / "out"), tmp_path)
    ended = cli("run", path, env={"BATCHDET_FAILPOINT": "storage.write=disk_full"})
    assert ended.returncode == 2
    assert is_one_sentence(ended.stderr, f"{tmp_path}/out", "cannot be written", "No space left on device"), (
        ended.stderr
    )
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []
