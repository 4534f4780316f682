"""Files of the user's folder that are named like modules: no command executes them, nor does any of its processes."""

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchdet.sample.dataset import write_sample
from tests import tiny_onnx

from .conftest import Cli, job, yaml_of

pytestmark = pytest.mark.slow

_OPTIONAL = {"pytz", "lz4", "tensorrt", "cupy", "dask", "modin", "ultralytics", "torchvision", "scipy", "sklearn"}
"""Packages that are not installed here, and that an installed one may look for."""


def _names() -> Iterator[str]:
    installed = {name for name in importlib.metadata.packages_distributions() if name.isidentifier()}
    frozen = {"runpy", "importlib", "types", "warnings", "contextlib"}  # what `python -m` itself loads, before batchdet
    yield from sorted((sys.stdlib_module_names | installed | _OPTIONAL) - frozen - {"batchdet", "__main__"})


HEAD = """
import numpy as np
from batchdet.plugin import Head, Preprocess


class Mine(Head):
    preprocess = Preprocess(colours="BGR", scale=1.0)
    labels = ("a",)

    def decode(self, outputs, canvas):
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with a job, its head, its images, and a file of each module's name that notes who executed it."""
    write_sample(str(tmp_path / "images"), 6, "folder", 3)
    (tmp_path / "notes").mkdir()
    for name in _names():
        text = f"import os, sys\nopen({str(tmp_path / 'notes' / name)!r}, 'a').write(' '.join(sys.orig_argv))\n"
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "my_head.py").write_text(HEAD)
    model = tiny_onnx.centre_net(tmp_path / "centre.onnx")
    yaml_of(job(tmp_path / "images", tmp_path / "labels", model, model_={"family": "my_head:Mine"}), tmp_path)
    return tmp_path


@pytest.mark.acceptance("S25")
def test_the_head_is_the_one_file_of_the_folder_that_any_command_executes(cli: Cli, hostile: Path) -> None:
    for command in (
        ["validate", "job.yaml"],
        ["plan", "job.yaml"],
        ["run", "job.yaml"],
        ["doctor"],
        ["show", "labels"],
        ["query", "labels", "SELECT count(*) FROM images"],
        ["model", "builtin:sample"],
    ):
        done = cli(*command, cwd=hostile)
        executed = {note.name: note.read_text()[:200] for note in sorted((hostile / "notes").iterdir())}
        assert not executed, command
        assert done.returncode == 0, (command, done.stderr)
