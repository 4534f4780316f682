import re
import tomllib
from pathlib import Path

import pytest

from batchdet.cluster import requirements
from batchdet.cluster.requirements import BASE, RUNTIMES, Requirement, installed_version, is_older, missing, pins

ROOT = Path(__file__).parents[3]


def floors(lines: list[str]) -> dict[str, str]:
    found = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9-]+)(\[[a-z,]+\])?>=([0-9.]+)", line)
        assert match, line
        found[match[1]] = match[3]
    return found


def test_floors_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {r.name: r.floor for r in BASE} == floors(project["dependencies"])
    extras = project["optional-dependencies"]
    for extra in ("cpu", "gpu"):
        assert {r.name: r.floor for r in RUNTIMES if r.extra == extra} == floors(extras[extra])


@pytest.mark.acceptance("S22")
@pytest.mark.parametrize(
    ("name", "fixed"),
    [
        ("onnx", "1.21"),  # CVE-2026-27489, 34446, 34447: external data that leaves the model's folder
        ("torch", "2.11"),  # CVE-2026-24747 (2.10) and PYSEC-2026-139, which names 2.10 as the last one affected
        ("transformers", "5.3"),  # CVE-2026-4372, 5241, 1839: a config.json that runs code
        ("pillow", "12.2"),  # CVE-2026-42308
        ("pyarrow", "23.0.1"),  # CVE-2026-25087: use after free while an Arrow file is read
        ("opencv-python-headless", "4.12"),  # CVE-2025-53644: a JPEG that writes out of bounds
        ("ray", "2.55"),  # a Parquet file that runs code in 2.49 to 2.54; CVE-2026-27482 (2.54)
    ],
)
def test_floors_stand_above_versions_with_known_faults(name: str, fixed: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    found = [match[1] for line in lines if (match := re.match(rf"{name}(?:\[\w+\])?>=([0-9.]+)", line))]
    assert found, name
    for floor in found:
        assert not is_older(floor, fixed)


@pytest.mark.parametrize(
    ("version", "floor", "older"),
    [
        ("1.9", "1.10", True),
        ("1.10", "1.9", False),
        ("2.0.0", "2", False),
        ("2", "2.0.1", True),
        ("2.13.0+cpu", "2.13", False),
        ("3.0rc1", "3.0", False),
        ("", "1.0", True),
    ],
)
def test_is_older(version: str, floor: str, older: bool) -> None:
    assert is_older(version, floor) is older


def test_missing_names_what_is_absent_and_what_is_old() -> None:
    assert missing([]) == []
    wanted = [Requirement("no-such-package-at-all", "1"), Requirement("pydantic", "999"), Requirement("pydantic", "1")]
    assert missing(wanted) == [
        "no-such-package-at-all",
        f"pydantic ({installed_version('pydantic')} found, 999 needed)",
    ]


def test_a_distribution_may_stand_in_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "opencv-python":
            return "5.0"
        raise requirements.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(requirements.metadata, "version", version)
    assert installed_version("opencv-python-headless") == "5.0"
    assert installed_version("duckdb") is None


def test_pins_are_the_versions_here_without_ray() -> None:
    lines = pins("cpu")
    assert f"duckdb=={installed_version('duckdb')}" in lines
    assert not any(line.startswith(("ray", "onnxruntime-gpu")) for line in lines)
    assert any(line.startswith("onnxruntime-gpu") for line in pins("gpu"))
