import pytest

from batchdet import storage
from batchdet.errors import OutputError
from batchdet.table.lineage import deciding_settings, fingerprint, new_run_id, run_date
from batchdet.table.manifest import TABLES, Manifest, PartFile, committed_runs, list_runs

from .test_commit import spec_for


def test_json_round_trip() -> None:
    parts = [PartFile(f"{table}/run_date=2026-11-23/part-0.parquet", 3, 100, "0" * 64) for table in TABLES]
    manifest = Manifest("r", "n", "t", 1, "f", "i", ("run_date",), 3, 2, 1, (parts[0],), (parts[1],) * 2, "s", "t")
    assert Manifest.from_json(manifest.to_json(), "x") == manifest


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"images": 1}', b"\xff"])
def test_not_a_manifest(data: bytes) -> None:
    with pytest.raises(OutputError, match=r"^x: not a manifest of batchdet"):
        Manifest.from_json(data, "x")


def test_runs_without_manifest_are_not_committed() -> None:
    out = "memory://manifest-test"
    storage.write_bytes(f"{out}/_batchdet/runs/a/spec.yaml", b"x")
    assert list_runs(out) == ["a"]
    assert committed_runs(out) == []


def test_run_ids_sort_by_time_and_carry_the_date() -> None:
    name = new_run_id()
    assert len(name) == 20
    assert run_date("20261123-120000-abcd") == "2026-11-23"


def test_a_run_id_sorts_after_all_earlier_ones_whatever_the_clock_says() -> None:
    ids: list[str] = ["a-foreign-run", "99991231-235959-abcd"]
    for _ in range(20):
        ids.append(new_run_id(ids))
        assert len(ids[-1]) == 20
    assert ids[2:] == sorted(ids[2:])
    assert new_run_id(["20991231-235959-ffff", "20260101-000000-0000"]).startswith("21000101-000000-")


def test_fingerprint_changes_with_results_only() -> None:
    base = spec_for("/out")
    same = [
        base.model_copy(update={"name": "other"}),
        spec_for("/elsewhere"),
        base.model_copy(update={"source": base.source.model_copy(update={"uri": "/other"})}),
        base.model_copy(update={"compute": base.compute.model_copy(update={"actors": 7, "segment_rows": 9})}),
    ]
    assert {fingerprint(s, "folder", "m", "") for s in same} == {fingerprint(base, "folder", "m", "")}
    other = [
        (base.model_copy(update={"model": base.model.model_copy(update={"score_threshold": 0.5})}), "m", ""),
        (base.model_copy(update={"model": base.model.model_copy(update={"classes": ("a",)})}), "m", ""),
        (base.model_copy(update={"source": base.source.model_copy(update={"max_pixels": 10})}), "m", ""),
        (base, "n", ""),
        (base, "m", "labels"),
    ]
    found = {fingerprint(s, "folder", m, labels) for s, m, labels in other}
    assert len(found | {fingerprint(base, "folder", "m", ""), fingerprint(base, "parquet", "m", "")}) == len(other) + 2


def test_a_fingerprint_stays_from_version_to_version() -> None:
    """Else an upgrade labels everything again. Who changes a default must change what is digested, too."""
    base = spec_for("/out")
    assert fingerprint(base, "folder", "m", "") == "3f4baa944fff4d1b71940b15372cc327c72b40c864f4106f2fb1cae39490bb07"
    assert deciding_settings(base, only_changed=True) == {"source": {}, "model": {}}
    assert deciding_settings(base) == {
        "source": {
            "image_column": None,
            "id_column": None,
            "columns": None,
            "allow": [],
            "max_pixels": 100_000_000,
            "max_image_bytes": 268_435_456,
        },
        "model": {
            "trusted": False,
            "head": "auto",
            "family": "auto",
            "runtime": "auto",
            "precision": "auto",
            "silu": "auto",
            "preprocess": {"colours": None, "scale": None, "mean": None, "std": None, "letterbox": None},
            "canvas": {"size_px": None, "shape": "auto", "graphs": "auto", "fit": "auto", "decode": "auto"},
            "score_threshold": 0.25,
            "iou_threshold": 0.7,
            "max_detections": 300,
            "classes": None,
            "features": "none",
            "features_from": "auto",
            "features_type": "float32",
            "features_normalised": False,
        },
    }
