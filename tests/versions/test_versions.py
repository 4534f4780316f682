"""Outputs that other versions made are read, resumed, verified and collected by today's code (see make.py there)."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from batchdet import storage
from batchdet.job import Run, Watcher, run_job
from batchdet.results.garbage import collect_garbage, render_garbage
from batchdet.results.open import open_results
from batchdet.results.query import query
from batchdet.results.show import render_show, show
from batchdet.results.status import render_status, status
from batchdet.results.verify import inspect_output
from batchdet.specfile import parse_job
from batchdet.table import lease
from batchdet.table.manifest import committed_runs, list_runs
from tests import without_ray
from tests.driver import read_tables
from tests.versions.make import IMAGES, JOB, ROOT, Store, open_store

pytestmark = pytest.mark.acceptance("R44")
OUT = f"{ROOT}/out"
VERSIONS = sorted(path.name.removesuffix(".tar.xz") for path in Path(__file__).parent.glob("*.tar.xz"))
OTHER_FINGERPRINT = {"2026-11-23-11c2f0d"}
"""Versions whose runs are read, but whose settings were digested in another way; the next run labels everything."""
LEFT = {"labelling": IMAGES - 3, "moved": 0, "committing": 0, "committed": 0}
"""What a killed driver left -> images that nobody had labelled."""


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A version; a lease of another machine is watched for a moment."""
    monkeypatch.setattr(lease.Lease.__init__, "__defaults__", (None, 0.5, 0.2))
    monkeypatch.setattr(lease.live_holder, "__defaults__", (0.2,))
    yield str(request.param)
    Store.store.clear()


def unpack(version: str, left: str) -> None:
    """Put a source, its model and one of the outputs into the store."""
    store = open_store()
    places = {"source": f"{ROOT}/in/", "model": f"{ROOT}/model.onnx", left: f"{OUT}/"}
    with tarfile.open(Path(__file__).with_name(f"{version}.tar.xz")) as archive:
        for member in archive:
            part, _, path = member.name.partition("/")
            if part in places:
                content = archive.extractfile(member)
                assert content is not None
                store.pipe_file(places[part] + path, content.read())
    if left == "first":
        store.rm_file(f"{ROOT}/in/c.tar")


def view() -> list[pa.Table]:
    """Return what readers see, whichever run has it."""
    results = open_results(OUT)
    keys = (["image_id"], ["image_id", "detection_index"])
    tables = zip((results.images().to_arrow(), results.detections().to_arrow()), keys, strict=True)
    own = ("run_id", "run_date")
    return [
        table.select([n for n in table.schema.names if n not in own]).sort_by([(key, "ascending") for key in by])
        for table, by in tables
    ]


def view_of(version: str, left: str) -> list[pa.Table]:
    unpack(version, left)
    return view()


class Listening(Watcher):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.said = ""

    def say(self, text: str) -> None:
        self.said += f"{text}\n"


def run() -> tuple[Run, str]:
    """Run the job; return what it did and what it said."""
    without_ray.labelled.clear()
    watcher = Listening()
    with without_ray.without_ray():
        return run_job(parse_job(JOB, "job.yaml"), watcher=watcher), watcher.said


def said() -> str:
    """Return what each command that only looks says of the output."""
    console = Console(file=io.StringIO(), width=200)
    render_show(show(OUT), console)
    render_status(status(OUT), console)
    render_garbage(collect_garbage(OUT, dry_run=True), console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def copy_to(folder: Path) -> None:
    """Copy the output to a disk."""
    for found in storage.find_all(OUT):
        target = folder / found.uri.removeprefix(f"{OUT}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(storage.read_bytes(found.uri))


def test_there_are_versions() -> None:
    assert len(VERSIONS) >= 3


def test_whole_runs_are_read_verified_and_continued(version: str, tmp_path: Path) -> None:
    unpack(version, "whole")
    results = open_results(OUT)
    images, detections = results.images().to_arrow(), results.detections().to_arrow()
    assert sorted(set(images["status"].to_pylist())) == ["failed", "ok"]
    assert images.num_rows == 3 * IMAGES
    copy_to(tmp_path)
    counts = query(str(tmp_path), "SELECT count(*), sum(detection_count) FROM images")
    assert [column[0].as_py() for column in counts.columns] == [3 * IMAGES, detections.num_rows]
    assert inspect_output(str(tmp_path)).problems == []
    assert inspect_output(OUT).problems == []
    assert f"{3 * IMAGES} listed" in said()
    assert collect_garbage(OUT).items == []
    before = read_tables(OUT)
    done, words = run()
    if version in OTHER_FINGERPRINT:
        assert "an earlier build of batchdet" in words
        assert (done.status, len(without_ray.labelled)) == ("committed", 3 * IMAGES)
        assert open_results(OUT).images().to_arrow().num_rows == 3 * IMAGES
        assert inspect_output(OUT).problems == []
    else:
        assert (done.status, without_ray.labelled) == ("nothing_new", [])
        assert read_tables(OUT) == before


def test_a_shard_that_could_not_be_read_is_labelled_now(version: str) -> None:
    unpack(version, "first")
    assert "1 shard is in quarantine" in said()
    assert inspect_output(OUT).problems == []
    done, _ = run()
    assert (done.status, done.quarantine) == ("committed", ())
    shards = {uri.partition("#")[0] for uri in without_ray.labelled}
    assert shards == {f"{ROOT}/in/{name}.tar" for name in ("ab" if version in OTHER_FINGERPRINT else "b")}
    assert "in quarantine" not in said()
    assert inspect_output(OUT).problems == []
    assert open_results(OUT).images().to_arrow().num_rows == 2 * IMAGES


@pytest.mark.parametrize("left", LEFT)
def test_killed_runs_are_resumed(version: str, left: str) -> None:
    truth = view_of(version, "whole")
    unpack(version, left)
    begun = list_runs(OUT)
    assert begun[-1] in said()
    assert len(committed_runs(OUT)) == (2 if left == "committed" else 1)
    done, words = run()
    assert done.status in {"committed", "nothing_new"}
    if version in OTHER_FINGERPRINT:
        assert "an earlier build of batchdet" in words
        assert len(without_ray.labelled) == 3 * IMAGES
        assert len(list_runs(OUT)) == 3
    else:
        assert len(without_ray.labelled) == LEFT[left]
        assert list_runs(OUT) == begun
    collect_garbage(OUT, unfinished=True)
    assert len(list_runs(OUT)) == len(committed_runs(OUT))
    assert view() == truth
    assert inspect_output(OUT).problems == []
    assert not [o.uri for o in storage.find_all(OUT) if "/staged/" in o.uri or "/parts/" in o.uri]


@pytest.mark.parametrize("left", LEFT)
def test_killed_runs_are_collected(version: str, left: str) -> None:
    unpack(version, left)
    before = view()
    found = collect_garbage(OUT, unfinished=True)
    committed = committed_runs(OUT)
    assert list_runs(OUT) == [run.run_id for run in committed]
    assert found.removed
    assert found.items or len(committed) == 2
    assert inspect_output(OUT).problems == []
    assert collect_garbage(OUT).items == []
    assert len(committed) == 2 or view() == before
