"""Full disks under the folder for temporary files and the model cache: named, and the same command resumes."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from batchdet import storage
from batchdet.errors import OutputError
from batchdet.model.cache import default_cache_dir
from batchdet.model.detector import open_detector
from batchdet.model.fetch import fetch_model
from batchdet.pipeline.attempts import Attempts
from batchdet.results.open import open_results
from batchdet.spec import ModelSpec
from batchdet.table.parts import PartWriter
from tests import tiny_onnx
from tests.cli import Command, command
from tests.e2e.conftest import REPOSITORY, clean_environment
from tests.fault.processes import write_job
from tests.small_disk import PAGE_BYTES, fill, small_disk

__all__ = ["command"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 256) as folder:
        yield folder


@pytest.fixture
def temporary(disk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    return disk


def noise(rows: int) -> pa.Table:
    return pa.table({"n": np.random.default_rng(0).integers(0, 1 << 60, rows)})


@pytest.mark.acceptance("R19")
@pytest.mark.parametrize("spare_pages", [0, 1, 100])
def test_a_part_file_that_finds_no_room(temporary: Path, tmp_path: Path, spare_pages: int) -> None:
    """The disk is full before the first byte, at the footer, or at a later row group."""
    filler = fill(temporary, spare_pages)

    def write() -> int:
        writer = PartWriter(str(tmp_path / "out"), "images", "r", noise(0).schema, (), 10**9)
        for _ in range(2):
            writer.add(noise(128 * 1024))
        return sum(part.rows for part in writer.close({}))

    with pytest.raises(storage.DiskFull) as full:
        write()
    assert (full.value.code, full.value.key, full.value.exit_status) == ("storage.disk_full", str(temporary), 2)
    assert "TMPDIR" in str(full.value.hint)
    assert not list((tmp_path / "out").rglob("*.parquet"))
    assert sorted(temporary.iterdir()) == [filler]


def test_a_part_file_that_finds_no_room_only_at_its_end(temporary: Path, tmp_path: Path) -> None:
    writer = PartWriter(str(tmp_path / "out"), "images", "r", noise(0).schema, (), 10**9)
    writer.add(noise(100))
    fill(temporary)
    with pytest.raises(storage.DiskFull):
        writer.close({})


@pytest.mark.acceptance("R19")
def test_a_run_whose_folder_for_temporary_files_is_full_resumes(disk: Path, tmp_path: Path) -> None:
    job = write_job(tmp_path, 9)
    filler = fill(disk, 1)  # Python looks for a folder in which it can write a few bytes

    def run() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "tests.without_ray", "cli", "run", str(job)],
            cwd=REPOSITORY, env=clean_environment() | {"TMPDIR": str(disk)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    ended = run()
    assert ended.returncode == 2, ended.stderr
    assert f"error: {disk}: cannot write: No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr
    with pytest.raises(OutputError):
        open_results(str(tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("_SUCCESS"))
    filler.unlink()
    ended = run()
    assert ended.returncode == 0, ended.stderr
    assert open_results(str(tmp_path / "out")).sql("SELECT count(*) FROM images").fetchall() == [(9,)]


def test_no_folder_for_temporary_files_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/no/where", "/no/such"])
    with pytest.raises(storage.StorageError, match="/no/where") as missing:
        storage.temporary_folder()
    assert (missing.value.code, missing.value.key) == ("storage.no_temporary_folder", "TMPDIR")


def test_notes_of_attempts_that_find_no_room(temporary: Path) -> None:
    notes = Attempts("run")
    fill(temporary)
    with pytest.raises(storage.DiskFull) as full, notes.of("segment"):
        pass
    assert full.value.key == str(temporary)


@pytest.mark.acceptance("R19")
@pytest.mark.parametrize("spare_pages", [0, 1, 8])
def test_a_model_cache_that_is_full(
    disk: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, spare_pages: int
) -> None:
    model = tiny_onnx.end2end(tmp_path / "m.onnx", padding="x" * 20 * PAGE_BYTES)
    monkeypatch.setenv("BATCHDET_CACHE", str(disk / "cache"))
    filler = fill(disk, spare_pages)
    ended = command("model", model, "--json")
    assert ended.status == 5
    assert (ended.error["code"], ended.error["key"]) == ("model.cache", "BATCHDET_CACHE")
    assert f"{disk}/cache" in ended.error["message"]
    assert "make room" in ended.error["message"]
    assert not [p for p in (disk / "cache").rglob("*") if p.is_file() and "locks" not in p.parts]
    filler.unlink()
    assert command("model", model, "--json").status == 0


def test_graphs_that_cannot_be_kept_are_compiled_all_the_same(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("BATCHDET_CACHE", str(disk / "cache"))
    spec = ModelSpec(uri=str(tiny_onnx.end2end(tmp_path / "m.onnx")), runtime="openvino")
    local = fetch_model(spec.uri)
    fill(disk)
    known = spec.model_copy(update={"sha256": local.sha256})  # nothing need be fetched
    assert open_detector(known).card.sha256 == local.sha256
    assert not [p for p in Path(default_cache_dir(), "engines").rglob("*") if p.is_file()]
