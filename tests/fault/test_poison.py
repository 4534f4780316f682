"""Images that abort the decoder, hang it, or take all memory: failed rows, and everything else is done."""

from pathlib import Path

import pytest

from batchdet import open_results
from batchdet.results.verify import inspect_output
from tests.e2e.conftest import Cli, job, sample_images, write_shards, yaml_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes]]:
    return sample_images(tmp_path_factory.mktemp("poison"), 30, 5)


@pytest.mark.fault
@pytest.mark.acceptance("R20", "R21")
@pytest.mark.parametrize("decode", ["actor", pytest.param("stage", marks=pytest.mark.fault)])
@pytest.mark.parametrize(
    "poison",
    [
        {4: b"ABORTS"},
        pytest.param({3: b"ABORTS", 4: b"ABORTS", 14: b"HANGS", 22: b"EATS"}, marks=pytest.mark.fault),
    ],
)
def test_poison_becomes_a_failed_row_and_all_others_are_done(
    images: list[tuple[str, bytes]], cli: Cli, tmp_path: Path, poison: dict[int, bytes], decode: str
) -> None:
    files = [(name, data + poison.get(i, b"")) for i, (name, data) in enumerate(images)]
    glob = write_shards(str(tmp_path / "in"), files, 2)
    compute = {"segment_rows": 5, "image_timeout_s": 12, "image_memory_bytes": 300_000_000}
    path = yaml_of(job(glob, tmp_path / "out", compute=compute, policy={"max_failed_fraction": 0.5}), tmp_path)
    rules = "decode?ABORTS=abort;decode?HANGS=hang;decode?EATS=eat"
    done = cli("run", path, "--set", f"compute.decode={decode}", env={"BATCHDET_FAILPOINT": rules})
    assert done.returncode == 0, done.stderr
    rows = {row["member"]: row for row in open_results(str(tmp_path / "out")).images().to_arrow().to_pylist()}
    assert len(rows) == 30
    codes = {name: row["error_code"] for name, row in rows.items() if row["status"] == "failed"}
    expected = {b"ABORTS": "crashed", b"HANGS": "timed_out", b"EATS": "out_of_memory"}
    assert codes == {images[i][0]: expected[kind] for i, kind in poison.items()}
    assert inspect_output(str(tmp_path / "out")).problems == []
    # the neighbours are labelled as if nothing had been
    clean = cli("run", path, "--set", f"output.uri={tmp_path / 'clean'}")
    assert clean.returncode == 0, clean.stderr
    sql = "SELECT * EXCLUDE run_id FROM detections WHERE image_id NOT IN (SELECT unnest(?)) ORDER BY ALL"
    bad = [rows[images[i][0]]["image_id"] for i in poison]
    found, truth = (
        open_results(str(tmp_path / out)).connection.execute(sql, [bad]).fetchall() for out in ("out", "clean")
    )
    assert found == truth
    assert len(truth) > 20
    for screen in (done.stderr, done.stdout):
        for noise in ("raylet", "core_worker", "Traceback", "Fatal Python error", "died"):
            assert noise not in screen
