"""What the README shows is true."""

import re
from pathlib import Path

import pytest
import yaml

from batchdet.spec_reference import spec_table
from batchdet.specfile import parse_job

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_table_of_keys_is_the_specs_own() -> None:
    assert spec_table() in README, "run `batchdet schema --table` and put its output into README.md"


def test_job_specs_in_the_readme_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET", "photos")
    blocks = [block for block in re.findall(r"```yaml\n(.*?)```", README, re.S) if block.startswith("name:")]
    assert blocks
    for block in blocks:
        parse_job(block, "README.md")


def test_files_named_in_the_readme_exist() -> None:
    named = set(re.findall(r"\]\(([A-Za-z][^)#]*)\)", README)) | set(re.findall(r"`(jobs/[a-z0-9_]+\.yaml)`", README))
    assert {name for name in named if "://" not in name and not (ROOT / name).exists()} == set()


def test_make_targets_named_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z-]+)", README)) <= targets


def test_every_error_code_is_explained() -> None:
    from batchdet.records.schema import ERROR_CODES

    assert {code for code in ERROR_CODES if f"`{code}`" not in README} == set()


def test_jobs_are_yaml() -> None:
    for path in (ROOT / "jobs").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["name"]
