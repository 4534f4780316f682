"""What `plan` predicts and `run` measures: figures are there, finite and consistent; how fast is the machine's."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from batchdet.forecast import forecast
from batchdet.plan import plan_job
from batchdet.results.show import show
from batchdet.results.speed import speed_rows
from batchdet.sample.dataset import write_sample
from batchdet.table.lineage import Lineage

from .conftest import Cli, RunJob, job

pytestmark = pytest.mark.slow


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for each in value.values() for n in _numbers(each)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_plan_predicts_and_run_compares(run: RunJob, tmp_path: Path) -> None:
    made, out = write_sample(str(tmp_path / "in"), 48, "webdataset", 3), tmp_path / "out"
    spec = job(made.source_uri, out, compute={"segment_rows": 4})
    planned = forecast(plan_job(spec)).to_dict()
    assert set(planned["choices"]) == {
        "device",
        "actors",
        "batch_rows",
        "readers",
        "model",
        "canvas",
        "segment_rows",
    }
    assert planned["prediction"]["images"] == {"low": 48, "likely": 48, "high": 48}, "all of it was looked at"
    for key in ("time_s", "hours", "images_per_s", "output_bytes"):
        estimate = planned["prediction"][key]
        assert 0 < estimate["low"] < estimate["likely"] < estimate["high"] < math.inf

    done = run(made.source_uri, out, compute={"segment_rows": 4})
    stats = json.loads((out / "_batchdet/runs" / done.run_id / "stats.json").read_text())
    line, both = stats["roofline"], stats["prediction"]
    assert (line, both) == (done.measured["roofline"], done.measured["prediction"])
    assert all(math.isfinite(n) and n >= 0 for n in _numbers(line) + _numbers(both))
    alone, in_run, rates = line["alone"], line["in_run"], line["rates_images_per_s"]
    assert alone["images"] >= 3
    assert alone["decode_ms"]["mean"] + alone["model_ms"]["mean"] == pytest.approx(alone["work_ms"]["mean"])
    assert in_run["images"] == 48
    assert min(in_run[f"{step}_ms"] for step in ("read", "decode", "model", "rows", "stage", "idle")) > 0
    assert line["ceiling_images_per_s"] <= min(rates.values())
    assert line["share"] == pytest.approx(line["attained_images_per_s"] / line["ceiling_images_per_s"], abs=1e-3)
    assert line["bottleneck"] in {"model", "decode", "read", "stage", "contention", "start-up"}
    assert 0 < stats["run"]["start_up_s"] < both["actual"]["time_s"]
    parts_s = stats["run"]["start_up"]
    assert set(parts_s) == {"plan_s", "ray_s", "probe_s", "actors_s", "load_s"}
    assert sum(parts_s.values()) - parts_s["load_s"] == pytest.approx(stats["run"]["start_up_s"], abs=0.01)
    assert 0 < parts_s["load_s"] < parts_s["actors_s"]
    assert both["actual"]["images"] == 48
    parts = [part for table in ("images", "detections") for part in (out / table).rglob("*.parquet")]
    assert both["actual"]["output_bytes"] == sum(part.stat().st_size for part in parts)
    lineage = Lineage.read(str(out), done.run_id)
    assert lineage is not None
    assert lineage.prediction == both["predicted"]
    assert lineage.choices["canvas"].startswith("rectangle, 320 x 320 px")

    rows = speed_rows(show(str(out))["stats"])
    assert (line["judged"], both["within"]) == (False, None), "48 small images are labelled in a second or two"
    assert rows[0][0] == "Rate"
    assert any(name == "Start-up" and "of which to load the model" in text for name, text in rows)
    assert "Came" not in dict(rows)
    again = forecast(plan_job(spec, fresh=True), measure=False)
    if line["steady"]:
        assert again.prediction is not None
        assert again.prediction.why.startswith(f"the rate of run {done.run_id}")
    else:
        assert (again.prediction, again.why_not[:20]) == (None, "no earlier run tells")


def test_a_plan_stands_where_nothing_can_be_measured(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(b"no image")
    (tmp_path / "job.yaml").write_text(
        f"name: blind\nsource: {{uri: {tmp_path / 'in'}}}\nmodel: {{uri: 'builtin:sample'}}\n"
        f"output: {{uri: {tmp_path / 'out'}}}\npolicy: {{max_failed_fraction: 1}}\n"
    )
    planned = cli("plan", tmp_path / "job.yaml")
    assert planned.returncode == 0, planned.stderr
    assert "prediction    none of 1 image of the job can be decoded" in planned.stdout


def test_an_image_that_ends_the_process_ends_no_plan(cli: Cli, tmp_path: Path) -> None:
    write_sample(str(tmp_path / "in"), 2, "folder", 3)
    (tmp_path / "job.yaml").write_text(
        f"name: poison\nsource: {{uri: {tmp_path / 'in/images'}}}\nmodel: {{uri: 'builtin:sample'}}\n"
        f"output: {{uri: {tmp_path / 'out'}}}\n"
    )
    planned = cli("plan", tmp_path / "job.yaml", "--json", env={"BATCHDET_FAILPOINT": "probe.image=abort"})
    assert planned.returncode == 0, planned.stderr
    found = json.loads(planned.stdout)
    assert found["prediction"] is None
    assert found["prediction_note"] == "an image of the job ended or held up the process that tried it"
