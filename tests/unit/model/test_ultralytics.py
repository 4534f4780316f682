"""Checkpoints of Ultralytics: their export, by a stand-in for the package, and by the package where it is."""

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchdet.errors import MissingExtra, ModelError, SpecError
from batchdet.model.detector import open_detector
from batchdet.model.fetch import fetch_model
from batchdet.model.format import Format
from batchdet.model.ultralytics import PYTHON
from batchdet.spec import ModelSpec
from tests import coco120, tiny_onnx

STAND_IN = """
import os, pickle, shutil
__version__ = "9.9.9"
class Head:
    one2one_cv2 = None
    cv2 = object()
class YOLO:
    def __init__(self, path, task=None):
        open(os.environ["STAND_IN_LOG"], "a").write("loaded\\n")
        self.said = pickle.load(open(path, "rb"))
        self.task = self.said.get("task", "detect")
        head = Head()
        if self.said.get("end2end"):
            head.one2one_cv2 = object()
        if self.said.get("stripped"):
            head.cv2 = None
        self.model = type("Net", (), {"model": type("Layers", (), {"model": [head]})().model})()
    def export(self, **asked):
        print("progress that nobody reads")
        if "nms" in asked:
            open(os.environ["STAND_IN_LOG"], "a").write(f"nms {asked['nms']}\\n")
        if self.said.get("fails"):
            raise RuntimeError("no\\nway")
        if self.said.get("dies"):
            os._exit(9)
        assert asked["format"] == "onnx" and asked["dynamic"] is True
        shutil.copy(self.said["onnx"], "here.onnx")
        return "here.onnx"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a stand-in for the package, that this interpreter's children import."""
    info = tmp_path / "packages" / "ultralytics-9.9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ultralytics\nVersion: 9.9.9\n")
    (info.parent / "ultralytics.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(info.parent))
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("BATCHDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(PYTHON, raising=False)
    return tmp_path


def checkpoint(place: Path, **said: Any) -> str:
    onnx = tiny_onnx.end2end(place / "made.onnx", names="['cat', 'dog']", license="AGPL-3.0", author="Ultralytics")
    path = place / "m.pt"
    path.write_bytes(pickle.dumps({"onnx": str(onnx), **said}))
    return str(path)


def log(place: Path) -> list[str]:
    return (place / "log").read_text().split("\n")[:-1] if (place / "log").exists() else []


def test_a_checkpoint_is_exported_once_and_known_by_its_own_digest(place: Path) -> None:
    uri = checkpoint(place)
    local = fetch_model(uri, trusted=True)
    assert local.format is Format.ONNX
    assert Path(local.path).read_bytes() == (place / "made.onnx").read_bytes()
    assert fetch_model(uri, local.sha256, trusted=True) == local
    assert log(place) == ["loaded"]
    detector = open_detector(ModelSpec(uri=uri, trusted=True, sha256=local.sha256))
    assert detector.card.sha256 == local.sha256
    assert (detector.card.licence, detector.card.code_licence) == ("AGPL-3.0", "AGPL-3.0")
    with pytest.raises(ModelError, match=r"model\.sha256"):
        fetch_model(uri, "0" * 64, trusted=True)


def test_an_export_that_was_changed_is_made_again(place: Path) -> None:
    uri = checkpoint(place)
    local = fetch_model(uri, trusted=True)
    Path(local.path).write_bytes(tiny_onnx.classifier(place / "other.onnx").read_bytes())
    assert fetch_model(uri, trusted=True) == local
    assert Path(local.path).read_bytes() == (place / "made.onnx").read_bytes()
    assert log(place) == ["loaded", "loaded"]


@pytest.mark.parametrize(
    ("said", "head", "asked"),
    [
        ({}, "auto", []),
        ({}, "one_to_many", []),
        ({"end2end": True}, "auto", ["nms False"]),
        ({"end2end": True}, "end2end", ["nms False"]),
        ({"end2end": True}, "one_to_many", ["nms None"]),
    ],
)
def test_heads(place: Path, said: Any, head: Any, asked: list[str]) -> None:
    fetch_model(checkpoint(place, **said), trusted=True, head=head)
    assert log(place) == ["loaded", *asked]


@pytest.mark.parametrize(
    ("said", "head", "words"),
    [
        ({}, "end2end", "it has no head end2end; model.head may be auto or one_to_many"),
        ({"end2end": True, "stripped": True}, "one_to_many", "no head one_to_many; model.head may be auto or end2end"),
        ({"task": "segment"}, "auto", "it is made for the task 'segment', not for detection"),
        ({"fails": True}, "auto", "cannot be exported by Ultralytics: RuntimeError: no way"),
        ({"dies": True}, "auto", "the process ended with 9"),
    ],
)
def test_what_cannot_be_exported(place: Path, said: Any, head: Any, words: str) -> None:
    uri = checkpoint(place, **said)
    with pytest.raises(ModelError, match=words) as caught:
        fetch_model(uri, trusted=True, head=head)
    assert str(caught.value).startswith(f"model.uri: {uri}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.acceptance("S4")
def test_an_untrusted_checkpoint_reaches_no_process(place: Path) -> None:
    with pytest.raises(ModelError, match=r"can run code of its own .* set model\.trusted: true"):
        fetch_model(checkpoint(place))
    assert log(place) == []


def test_without_the_package(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = checkpoint(place)
    monkeypatch.setenv(PYTHON, str(place / "nowhere"))
    with pytest.raises(MissingExtra, match=f"{PYTHON}: .*nowhere cannot be run"):
        fetch_model(uri, trusted=True)
    if importlib.util.find_spec("ultralytics") is None:
        monkeypatch.delenv(PYTHON)
        monkeypatch.delenv("PYTHONPATH")
        with pytest.raises(MissingExtra, match=r"pip install 'ultralytics>="):
            fetch_model(uri, trusted=True)


def test_other_files_have_no_choice_of_heads(place: Path) -> None:
    path = tiny_onnx.end2end(place / "m.onnx")
    with pytest.raises(SpecError, match=r"model\.head: end2end, but .* is an ONNX file, which has but one; take auto"):
        fetch_model(str(path), head="end2end")


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name a Python that has the real package."""
    bench = Path(__file__).parents[3] / ".venv-bench" / "bin" / "python"
    python = os.environ.get(PYTHON) or (str(bench) if bench.exists() else sys.executable)
    if subprocess.run([python, "-c", "import ultralytics"], capture_output=True, check=False).returncode:
        pytest.skip(f"no Python with the package ultralytics: name one in {PYTHON}, or run make bench, which makes one")
    monkeypatch.setenv(PYTHON, python)
    monkeypatch.setenv("BATCHDET_CACHE", str(tmp_path / "cache"))
    return python


def test_the_real_checkpoint_and_its_onnx_file_find_the_same(real: str, shared: Path) -> None:
    """The checkpoint keeps in half precision the weights of which the ONNX file was made; nothing else differs."""
    spec = ModelSpec(uri=str(shared / "models" / "yolo26n.pt"), trusted=True)
    published = shared / "models" / "yolo26n.onnx"
    ours, theirs = (_weights(path) for path in (fetch_model(spec.uri, trusted=True).path, published))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        if weight.dtype == np.float32:
            np.testing.assert_array_equal(ours[name], weight.astype(np.float16).astype(np.float32), err_msg=name)
    one, other = open_detector(spec), open_detector(ModelSpec(uri=str(published)))
    assert one.labels == other.labels
    assert one.family is other.family
    found, wanted = (coco120.as_rows(coco120.detect_all(each, shared, first=30), 0.25) for each in (one, other))
    assert coco120.matched(wanted, found) > 0.95
    with pytest.raises(ModelError, match="it has no head one_to_many"):  # it was saved without
        open_detector(spec.model_copy(update={"head": "one_to_many"}))


def _weights(path: Path | str) -> dict[str, Any]:
    onnx = pytest.importorskip("onnx")
    return {item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}


def test_both_heads_of_a_checkpoint_that_has_them(real: str, tmp_path: Path) -> None:
    path = tmp_path / "fresh.pt"
    code = f"from ultralytics import YOLO; YOLO('yolo26n.yaml').save({str(path)!r})"
    subprocess.run([real, "-c", code], check=True, capture_output=True, cwd=tmp_path)
    families = {}
    for head in ("auto", "end2end", "one_to_many"):
        detector = open_detector(ModelSpec(uri=str(path), trusted=True, head=head))  # type: ignore[arg-type]
        families[head] = (detector.family.name, detector.signature.outputs[0].shape)
    anchors = sum((640 // s) ** 2 for s in (8, 16, 32))
    assert families["auto"] == families["end2end"] == ("yolo_end2end", (1, 300, 6))
    assert families["one_to_many"] == ("yolo_dense", (1, 84, anchors))
