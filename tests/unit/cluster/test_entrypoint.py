import subprocess
import sys
from pathlib import Path

import pytest

from batchdet.cluster import entrypoint
from batchdet.cluster.requirements import Requirement


def test_all_is_there() -> None:
    assert entrypoint.complaint() == ""


def test_what_is_missing_is_said_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(entrypoint, "BASE", (Requirement("no-such-package", "1"), Requirement("pydantic", "1")))
    with pytest.raises(SystemExit) as exit_:
        entrypoint.check_python()
    assert exit_.value.code == 5
    said = capsys.readouterr().err
    assert said.startswith("batchdet: the cluster's Python")
    assert "lacks no-such-package: use an image" in said
    assert said.count("\n") == 1


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrypoint, "FLOOR_PYTHON", (99, 0))
    assert "batchdet needs 3.11" in entrypoint.complaint()


def test_a_submitted_job_is_told_before_anything_else_is_imported() -> None:
    """``-S`` leaves site-packages out: a Python as bare as a cluster's."""
    root = str(Path(entrypoint.__file__).parents[2])
    env = {"PYTHONPATH": root, "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
    done = subprocess.run(
        [sys.executable, "-S", "-m", "batchdet", "run", "job.yaml"],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith("batchdet: the cluster's Python")
    assert "typer" in done.stderr
    assert done.stderr.count("\n") == 1


def test_only_the_standard_library_is_imported_before_the_look() -> None:
    for name in ("entrypoint", "requirements"):
        text = (Path(entrypoint.__file__).parent / f"{name}.py").read_text()
        imports = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
        assert imports <= {*sys.stdlib_module_names, "batchdet"}
