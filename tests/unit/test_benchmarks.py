"""What the benchmarks share; the benchmarks themselves are run by hand (`make bench` and its neighbours)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.report import HERE, markdown, steady, write_readme


@pytest.mark.parametrize("points", [[], [(0.0, 8)] * 3])
def test_too_few_points_have_no_steady_rate(points: list[tuple[float, int]]) -> None:
    assert steady(points) is None


def test_the_steady_rate_leaves_a_slow_start_and_a_slow_end_out() -> None:
    middle = [(10 + i / 4, 8) for i in range(100)]
    assert steady([(0.0, 8), *middle[::-1], (99.0, 8)]) == pytest.approx(32, rel=0.01)


def test_a_table_groups_digits_and_leaves_what_is_not_known_empty() -> None:
    text = markdown(("n", "s", "what"), [(100_000, 0.01234, "x"), (1, 1234.5, None)])
    assert text.splitlines() == [
        "| n | s | what |",
        "| --- | --- | --- |",
        "| 100,000 | 0.0123 | x |",
        "| 1 | 1,234 |  |",
    ]


def test_a_table_replaces_what_its_script_wrote_and_nothing_else(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    for script, text in [("a.py", "old"), ("b.py", "kept"), ("a.py", "new")]:
        write_readme(readme, script, text)
    assert readme.read_text().split("\n") == [
        *("", "", "<!-- a.py writes from here -->", "new", "<!-- to here -->"),
        *("", "<!-- b.py writes from here -->", "kept", "<!-- to here -->", ""),
    ]


def test_bf16_is_hidden_from_all_that_import_openvino() -> None:
    pytest.importorskip("openvino")
    code = (
        "import importlib.util; importlib.util.find_spec('openvino'); import openvino; "
        "from batchdet.model.runtimes.openvino import has_bf16; print(has_bf16(), openvino.Core.compile_model.__name__)"
    )
    path = os.pathsep.join([str(HERE / "no_bf16"), str(HERE.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "compile_in_fp32"]
