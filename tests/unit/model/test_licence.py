"""Licences: what a card says, what a plan warns of, and what the base install needs."""

import importlib.metadata
import re
from pathlib import Path

import pytest

from batchdet.model.fetch import BUILTIN_SAMPLE, fetch_model
from batchdet.model.format import Format
from batchdet.model.licence import Licences, licences, licences_of
from tests import tiny_onnx

ULTRALYTICS = {"author": "Ultralytics", "license": "AGPL-3.0 License (https://ultralytics.com/license)"}


@pytest.mark.parametrize(
    ("kind", "texts", "weights", "code", "warned"),
    [
        (Format.ONNX, {}, "", "", False),
        (Format.ONNX, {"licence": "MIT"}, "MIT", "", False),
        (Format.ONNX, ULTRALYTICS, ULTRALYTICS["license"], ULTRALYTICS["license"], True),
        (Format.ONNX, {"license": "MIT", "code_license": "agpl-3.0"}, "MIT", "agpl-3.0", True),
        (Format.HUGGINGFACE, {}, "", "Apache-2.0 (Hugging Face transformers)", False),
        (Format.NET, {"license": "CC-BY-4.0"}, "CC-BY-4.0", "Apache-2.0 (batchdet)", False),
    ],
)
def test_what_is_known(kind: Format, texts: dict[str, str], weights: str, code: str, warned: bool) -> None:
    found = licences(kind, texts)
    assert (found.weights, found.code) == (weights, code)
    assert bool(found.warning) is warned


def test_a_warning_is_one_sentence_with_both() -> None:
    text = Licences("AGPL-3.0", "").warning
    assert text.startswith("the model is under the AGPL (weights: AGPL-3.0; code: not stated in the file): ")
    assert "\n" not in text


def test_of_files(tmp_path: Path) -> None:
    path = tiny_onnx.end2end(tmp_path / "m.onnx", **ULTRALYTICS)
    assert licences_of(fetch_model(str(path), cache_dir=str(tmp_path / "cache"))).warning
    assert licences_of(fetch_model(BUILTIN_SAMPLE)).weights == "Apache-2.0"


@pytest.mark.acceptance("S22")
def test_nothing_in_the_base_install_is_under_the_agpl() -> None:
    """Of the package and all that it needs, with the extras that users of a CPU or a GPU take."""
    todo, seen = [("batchdet", extra) for extra in ("", "cpu", "evaluate", "torch", "huggingface")], set()
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or Python
        about = distribution.metadata
        stated = [about.get("License-Expression") or about.get("License", "")[:200], *about.get_all("Classifier", [])]
        assert not any(re.search("AGPL|Affero", text) for text in stated), f"{name}: {stated}"
        for line in distribution.requires or []:
            wanted = re.match(r"[\w.-]+", line)
            assert wanted
            condition = line.partition(";")[2]
            extras = re.findall(r"extra == ['\"]([\w-]+)", condition)
            if not extras or extra in extras:
                todo.append((wanted[0], ""))
    names = {name.lower() for name, _ in seen}
    assert {"ray", "torch", "numpy", "onnxruntime"} <= names
    assert not names & {"ultralytics", "ultralytics-thop"}
