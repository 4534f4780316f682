"""Which earlier runs a forecast goes by."""

from types import SimpleNamespace
from typing import Any

import pytest

from batchdet import forecast

COMPUTED = {
    "runtime": "openvino",
    "precision": "bf16",
    "graphs": "640x480",
    "fit": "loose",
    "silu": "rational",
    "decode": "full",
}


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ({}, True),
        ({"graphs": "640x480 480x640"}, True),
        ({"precision": "fp32"}, False),
        ({"silu": "exact"}, False),
        ({"fit": "tight"}, False),
        ({"decode": "reduced"}, False),
        ({"runtime": "onnxruntime"}, False),
    ],
)
def test_a_run_counts_that_computed_the_same_way(
    changed: dict[str, str], counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: dict[str, Any] = {
        "stats.json": {"roofline": {"pool": {"device": "cpu"}}},
        "lineage.json": {"computed": COMPUTED},
    }
    monkeypatch.setattr(forecast, "read_record", lambda out, run_id, name: records[name])
    monkeypatch.setattr(forecast.Past, "read", lambda run_id, size_bytes, stats: run_id)
    manifest = SimpleNamespace(fingerprint="f", run_id="r", images=[], detections=[])
    plan: Any = SimpleNamespace(
        spec=SimpleNamespace(output=SimpleNamespace(uri="out")), fingerprint="f", committed=[manifest]
    )
    model: Any = SimpleNamespace(computed=COMPUTED | changed)
    assert list(forecast._past(plan, model, "cpu")) == (["r"] if counts else [])
    assert list(forecast._past(plan, model, "gpu")) == []


def test_a_run_is_judged_if_it_labels_for_long_enough() -> None:
    cases = [(9.9, 1.0), (10.0, 10.0), (60.0, 61.0), (600.0, 20.0)]
    assert [forecast._is_judged(labelling_s, start_up_s) for labelling_s, start_up_s in cases] == [
        False,
        True,
        False,
        True,
    ]
