import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from batchdet import packages
from batchdet.errors import MissingExtra
from batchdet.packages import install_command, missing_extra, requirements_of

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_requirements_are_those_of_the_project() -> None:
    for extra in ("cpu", "gpu", "torch", "evaluate"):
        assert list(requirements_of(extra)) == [re.split(r"[^\w.-]", line)[0] for line in EXTRAS[extra]]
    assert requirements_of("cpu,evaluate") == requirements_of("cpu") | requirements_of("evaluate")
    assert requirements_of("nothing") == {}


def test_a_command_names_what_is_missing_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_installed", lambda name: name == "onnxruntime")
    of = requirements_of("cpu")
    assert install_command("cpu") == f"pip install '{of['openvino']}' '{of['onnx']}'"
    assert install_command("cpu", "onnxruntime").startswith(f"pip install '{of['onnxruntime']}' ")


def test_a_package_shipped_without_its_metadata_names_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.metadata, "requires", unknown)
    error = missing_extra("model.runtime: it needs", "cpu", "openvino")
    assert isinstance(error, MissingExtra)
    assert (error.code, error.key) == ("package.missing", "openvino")
    assert "pip install openvino (" in error.message


_TEXTS = (".py", ".md", ".yaml", ".toml", ".txt", ".cpu", ".gpu", "Makefile")


def test_no_text_installs_batchdet_from_an_index() -> None:
    """The name is not ours there: whoever owns it would be installed."""
    named = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    wrong = re.compile(r"""pip\d? install [^\n]*?(?<![/\w.-])["']?batchdet(\[|["'`\s),]|$)""", re.M)
    texts = {name: ROOT / name for name in named if name.endswith(_TEXTS) and (ROOT / name) != Path(__file__)}
    assert [name for name, path in texts.items() if path.exists() and wrong.search(path.read_text())] == []
    for bad in ('pip install "batchdet[cpu]"', "pip install batchdet", "pip install -U 'batchdet[gpu]'"):
        assert wrong.search(bad)
    for good in (
        "pip install '.[cpu]'",
        "pip install dist/batchdet-0.1.0-py3-none-any.whl",
        "pip install x # batchdet",
    ):
        assert not wrong.search(good.partition(" #")[0])
