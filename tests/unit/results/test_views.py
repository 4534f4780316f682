"""The default view: rows of the current settings only, each image from its newest run; what is left out is counted."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchdet.errors import OutputError, SpecError
from batchdet.results.evaluate import evaluate
from batchdet.results.open import Results, open_results
from batchdet.results.query import query
from batchdet.results.show import show
from batchdet.results.status import status
from batchdet.results.totals import totals
from batchdet.stats import RunStats
from tests.unit.results.conftest import FakeImage, FakeOutput

pytestmark = pytest.mark.acceptance("R36")

FOLDER, TARS = "/data/photos", ("s3://b/0.tar", "s3://b/1.tar")
BOX = (0, 0.5, 1.0, 2.0, 30.0, 40.0)
Rows = set[tuple[str, str, str]]

_run = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from((FOLDER, *TARS)),
    st.sets(st.sampled_from(["1.jpg", "2.jpg", "3.jpg", "4.jpg"]), min_size=1),
)


def _id(n: int) -> str:
    return f"20261122-10{n:04d}-aaaa"


def naive_view(runs: list[tuple[str, str, set[str]]]) -> tuple[Rows, int]:
    """Return ``(run_id, shard, member)`` of the view, and how many images it leaves out, by going through the runs."""
    current = runs[-1][0]
    view: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    others: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for n, (name, shard, members) in enumerate(runs):
        into = view if name == current else others
        if shard == FOLDER:
            for member in members:
                into[shard, member] = {(shard, member): _id(n)}
        else:
            into[shard, ""] = {(shard, member): _id(n) for member in members}
    rows = {(run_id, *image) for images in view.values() for image, run_id in images.items()}
    return rows, sum(len(images) for place, images in others.items() if place not in view)


@settings(max_examples=40, deadline=None)
@given(st.lists(_run, min_size=1, max_size=6))
def test_the_view_is_that_of_the_current_settings(runs: list[tuple[str, str, set[str]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        output = FakeOutput(Path(folder))
        for n, (name, shard, members) in enumerate(runs):
            images = [FakeImage(member, (BOX,)) for member in sorted(members)]
            output.add_run(_id(n), images, shard_uri=shard, fingerprint=name * 64)
        expected, left_out = naive_view(runs)
        results = open_results(output.uri)
        columns = "run_id, shard_uri, member"
        assert set(results.sql(f"SELECT {columns} FROM images").fetchall()) == expected
        found = "SELECT count(*), count(DISTINCT image_id) FROM detections SEMI JOIN images USING (run_id, image_id)"
        assert list(query(output.uri, found).to_pylist()[0].values()) == [len(expected)] * 2
        assert results.left_out == left_out
        assert results.sql("SELECT count(*) FROM all_images").fetchall() == [(sum(len(m) for _, _, m in runs),)]
        stats = totals(results)
        assert stats["images"]["listed"] == stats["detections"]["total"] == len(expected)
        for n, (name, _, _) in enumerate(runs):
            asked = open_results(output.uri, settings=_id(n))
            last = max(k for k, one in enumerate(runs) if one[0] == name)
            assert set(asked.sql(f"SELECT {columns} FROM images").fetchall()) == naive_view(runs[: last + 1])[0]


@pytest.fixture
def changed(output: Any, make_images: Any) -> Any:
    """Twenty images at 0.25, then the first twelve at 0.4."""
    output.add_run(_id(0), make_images(20), fingerprint="a" * 64, score_threshold=0.25)
    output.add_run(_id(1), make_images(12), fingerprint="b" * 64, score_threshold=0.4)
    return output


def test_what_is_left_out_is_said(changed: Any) -> None:
    results = open_results(changed.uri)
    assert (results.left_out, results.images().to_arrow().num_rows) == (8, 12)
    for said in (results.left_out_note(), show(changed.uri)["left_out"], status(changed.uri)["left_out"]):
        assert said.startswith("8 images were labelled with other settings only")
        assert _id(0) in said
    assert show(changed.uri)["images_left_out"] == status(changed.uri)["images_left_out"] == 8
    assert [run["current"] for run in status(changed.uri)["runs"]] == [False, True]


def test_one_run_leaves_nothing_out(changed: Any) -> None:
    assert open_results(changed.uri, run=_id(0)).left_out_note() == ""
    assert open_results(changed.uri, settings=_id(0)).left_out == 0


def test_settings_of_a_run(changed: Any) -> None:
    asked = open_results(changed.uri, settings=_id(0))
    assert asked.manifest.run_id == _id(0)
    assert asked.images().to_arrow().num_rows == 20
    assert query(changed.uri, "SELECT count(*) AS n FROM images", settings=_id(0)).to_pylist() == [{"n": 20}]
    shown = show(changed.uri, settings=_id(0))
    assert (shown["shown_runs"], shown["other_runs"], shown["stats"]["images"]["listed"]) == ([_id(0)], [_id(1)], 20)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"settings": "20261122-999999-ffff"}, "output.unknown_settings"),
        ({"run": "yesterday"}, "output.unknown_run"),
        ({"run": _id(0), "settings": _id(1)}, "results.run_and_settings"),
    ],
)
def test_what_is_asked_for_must_be_there(changed: Any, arguments: dict[str, str], code: str) -> None:
    with pytest.raises(SpecError) as caught:
        open_results(changed.uri, **arguments)
    assert caught.value.code == code


def test_the_threshold_of_an_evaluation_is_true_for_all_its_images(changed: Any, tmp_path: Path) -> None:
    truth = tmp_path / "instances.json"
    categories = [{"id": n, "name": name} for n, name in enumerate(("car", "dog", "person"), 1)]
    images = [{"id": n, "file_name": f"{n:04d}.jpg"} for n in range(20)]
    truth.write_text(json.dumps({"images": images, "categories": categories, "annotations": []}))
    found = evaluate(changed.uri, str(truth))
    assert (found.score_threshold, found.images, found.images_of_other_settings) == (0.4, 12, 8)
    found = evaluate(changed.uri, str(truth), settings=_id(0))
    assert (found.score_threshold, found.images, found.images_of_other_settings) == (0.25, 20, 0)


def test_columns_of_other_settings_do_not_hinder_a_view(output: Any, fake_image: Any) -> None:
    output.add_run(_id(0), [fake_image("a.jpg", carried=(("lens", 3.5),))], fingerprint="a" * 64)
    output.add_run(_id(1), [fake_image("a.jpg", carried=(("lens", {"x": 1}),))], fingerprint="b" * 64)
    results = open_results(output.uri)
    assert results.images().to_arrow(["lens"]).to_pydict() == {"lens": [{"x": 1}]}
    assert results.sql("SELECT member FROM all_images").fetchall() == [("a.jpg",), ("a.jpg",)]


@pytest.mark.parametrize("first", [0, 15])
def test_totals_of_several_runs_are_those_of_their_rows(output: Any, make_images: Any, first: int) -> None:
    """With and without rows that newer ones hide."""
    output.add_run(_id(0), make_images(20))
    output.add_run(_id(1), make_images(30, seed=5, first=first and 20))
    results = open_results(output.uri)
    assert results.hides_rows == (first == 0)
    expected = RunStats.empty(("car", "dog", "person"))
    tables = (results.images().to_arrow(), results.detections().to_arrow())
    expected.add(*tables)
    found = totals(results)
    found.pop("time_by_step_s")
    wanted = expected.to_dict()
    wanted.pop("time_by_step_s")
    assert found == wanted
    assert show(output.uri)["stats"]["images"]["listed"] == results.images().to_arrow().num_rows


def test_a_damaged_record_is_counted_again(output: Any, make_images: Any) -> None:
    output.add_run(_id(0), make_images(9), shard_uri="/x")
    output.add_run(_id(1), make_images(9), shard_uri="/y")
    (output.run_folder(_id(0)) / "stats.json").write_text("{}")
    assert totals(open_results(output.uri))["images"]["listed"] == 18


def test_status_of_damaged_tables(changed: Any) -> None:
    for path in Path(changed.uri, "images").rglob("*.parquet"):
        path.write_bytes(b"nothing")
    assert status(changed.uri)["images_left_out"] is None


def test_a_view_of_one_run_only(changed: Any) -> None:
    manifests = open_results(changed.uri).runs
    with pytest.raises(OutputError):
        Results(changed.uri, manifests).only("none")
    assert Results(changed.uri, [replace(manifests[0])]).images().to_arrow().num_rows == 20
