"""Real models on two photographs give what they gave when the golden file was written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden.models import FILE, MODELS, PHOTOGRAPHS, TOLERANCE, compute

GOLDEN: dict[str, Any] = json.loads(FILE.read_text())


@pytest.mark.parametrize("model", MODELS)
def test_detections(model: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHDET_CACHE", str(tmp_path / "cache"))
    found = compute(shared, model)
    for name in PHOTOGRAPHS:
        mine, golden = (np.array(rows, np.float64).reshape(-1, 6) for rows in (found[name], GOLDEN[model][name]))
        assert mine[:, 5].tolist() == golden[:, 5].tolist()
        np.testing.assert_allclose(mine[:, 4], golden[:, 4], atol=TOLERANCE["score"])
        np.testing.assert_allclose(mine[:, :4], golden[:, :4], atol=TOLERANCE["box_px"])


def test_the_bus_and_its_passengers_are_there() -> None:
    for model in MODELS:
        classes = [row[5] for row in GOLDEN[model]["bus.jpg"]]
        assert classes.count(5) == 1
        assert classes.count(0) >= 3
