"""Plug-in heads: a user's class reads the outputs, and what is wrong with it is said by its line."""

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchdet.errors import ModelError, SpecError
from batchdet.geometry.letterbox import Letterbox
from batchdet.model.detector import open_detector
from batchdet.model.families import FAMILIES, DecodeSettings
from batchdet.model.families.plugin import PluginError, load_plugin, look_beside, plugin_sha256, plugin_to_ship
from batchdet.model.preprocess import Preprocess
from batchdet.spec import FAMILIES as SPEC_FAMILIES
from batchdet.spec import JobSpec, ModelSpec
from batchdet.specfile import parse_job
from tests import tiny_onnx

JOBS = Path(__file__).parents[3] / "jobs"
JOB = "name: x\nsource: {uri: a}\noutput: {uri: b}\nmodel:\n  uri: m.onnx\n  family: %s\n"


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a module into a folder from which Python imports."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name: str, text: str) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text("from batchdet.plugin import Head, Preprocess\nimport numpy as np\n" + text)
        return path

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def head(body: str, more: str = "") -> str:
    begin = f"class Mine(Head):\n    labels = ('a', 'b', 'c')\n{more}"
    return f"{begin}    def decode(self, outputs, canvas):\n        {body}\n"


def decode(name: str, outputs: Any = None, **settings: Any) -> Any:
    box = Letterbox.centred((128, 64), (64, 64))
    family = load_plugin(name)
    return family.decode(outputs or {"o": np.zeros((1, 2))}, [box], DecodeSettings(**settings))[0]


def test_the_example_finds_what_is_bright_and_what_is_dark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(JOBS)
    path = tiny_onnx.centre_net(tmp_path / "centre.onnx")
    detector = open_detector(ModelSpec(uri=str(path), family="centre_head:CentreHead", score_threshold=0.5))
    assert detector.labels == ("dark thing", "bright thing")
    assert detector.card.family_reason == "a plug-in that the spec names"
    pixels = np.full((1, 320, 640, 3), 114, np.uint8)
    pixels[0, 40:44, 80:84] = 255
    pixels[0, 200:204, 400:404] = 20
    (found,) = detector.detect(pixels, [Letterbox.centred((640, 320), (640, 320))])
    assert found.class_ids.tolist() == [1, 0]
    np.testing.assert_allclose(found.boxes_xyxy, [[70, 34, 94, 50], [390, 194, 414, 210]], atol=1e-3)
    assert len((JOBS / "centre_head.py").read_text().splitlines()) < 60


def test_batchdet_does_the_rest(beside: Any) -> None:
    rows = "[[0, 16, 8, 24], [1, 16, 9, 24], [40, 30, 60, 40], [0, 0, 64, 64]]"
    beside("plug_rest", head(f"return {rows}, [0.3, 0.6, 0.9, 0.1], [1, 1, 2, 0]"))
    found = decode("plug_rest:Mine")
    assert found.class_ids.tolist() == [2, 1, 1]
    np.testing.assert_allclose(found.boxes_xyxy[0], [80, 28, 120, 48])
    assert decode("plug_rest:Mine", class_ids=(1,), max_detections=1).scores.tolist() == [np.float32(0.6)]
    beside("plug_nms", head(f"return {rows}, [0.3, 0.6, 0.9, 0.1], [1, 1, 2, 0]", "    nms = True\n"))
    assert decode("plug_nms:Mine").class_ids.tolist() == [2, 1]
    for n, empty in enumerate(
        ("np.zeros((0, 4)), np.zeros(0), np.zeros(0)", "[], [], []", "np.zeros((1, 0, 4)), (), []")
    ):
        beside(f"plug_none{n}", head(f"return {empty}"))
        assert len(decode(f"plug_none{n}:Mine")) == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 3", "decode returned int; it must return boxes"),
        ("return [[1, 2]], [0.5], [1]", r"decode returned int64 \[1, 2\], float64 \[1\], int64 \[1\]"),
        ("return [[1, 2, 3, 4]], [0.5], [0.5]", "integer class numbers"),
        ("return [[1, 2, 3, 4]], [0.5, 0.1], [1]", "it must return boxes"),
        ("return [[1, 2, 3, 4], [1]], [0.5, 0.1], [1]", "decode returned tuple"),
        ("return [[1, 2, 3, 4]], [4.5], [1]", r"decode returned scores from 4.5 to 4.5, which must lie in 0\.\.1"),
        ("return [[1, 2, 3, 4]], [np.nan], [1]", "decode returned scores from nan"),
        ("return [[1, 2, 3, 4]], [0.5], [3]", "class numbers from 3 to 3, which must be from 0 to 2"),
        ("return [[1, 2, 3, 4]], [0.5], [-1]", "class numbers from -1 to -1"),
        ("return outputs['heat']", r"plug_bad\.py, line 6: KeyError: 'heat'"),
        ("return np.zeros(3) @ np.zeros(4)", r"plug_bad\.py, line 6: ValueError: "),
    ],
)
def test_a_head_that_is_wrong_is_told_so(body: str, words: str, beside: Any) -> None:
    beside("plug_bad", head(body))
    with pytest.raises(PluginError, match=words) as caught:
        decode("plug_bad:Mine")
    assert str(caught.value).startswith("model.family: plug_bad:Mine: ")
    assert "\n" not in str(caught.value)


def test_a_head_that_exits_does_not_end_the_job_in_silence(beside: Any) -> None:
    beside("plug_exit", head("raise SystemExit(0)"))
    with pytest.raises(PluginError, match=r"plug_exit.py, line 6: SystemExit: 0"):
        decode("plug_exit:Mine")


def test_outputs_without_the_axis_of_images_are_told(beside: Any) -> None:
    beside("plug_axis", head("return np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)"))
    with pytest.raises(PluginError, match=r"the model's output rows is \[7, 4\] for 1 images; its first axis"):
        decode("plug_axis:Mine", {"rows": np.zeros((7, 4))})


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("import nothing_like_this", PluginError, "plug_import.py, line 3: ModuleNotFoundError"),
        ("x = 1 / 0", PluginError, "plug_import.py, line 3: ZeroDivisionError"),
        ("x = (", PluginError, "plug_import.py, line 3: SyntaxError: '.' was never closed$"),
        ("raise SystemExit(0)", PluginError, "plug_import.py, line 3: SystemExit: 0"),
        (head("return 1").replace("('a', 'b', 'c')", "None"), PluginError, "labels a tuple of texts"),
        (head("return 1").replace("('a', 'b', 'c')", "'abc'"), PluginError, "labels a tuple of texts"),
        ("x = 1", SpecError, "plug_import.py has no class Mine"),
        ("class Mine: pass", SpecError, "has a Mine that is no batchdet.plugin.Head"),
        ("class Mine(Head): pass", PluginError, "TypeError: .*abstract"),
        (head("return 1", "    preprocess = 3\n"), PluginError, "preprocess must be a Preprocess"),
    ],
)
def test_modules_that_do_not_load(text: str, error: type[Exception], words: str, beside: Any) -> None:
    beside("plug_import", text)
    with pytest.raises(error, match=words):
        load_plugin("plug_import:Mine")


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(SpecError, match=r"there is no module nowhere\.at\.all; it must lie beside the job file, or be"):
        load_plugin("nowhere.at.all:Mine")


@pytest.mark.parametrize("package", [False, True])
def test_a_head_beside_its_job_is_loaded_by_its_file(
    package: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHDET_PLUGINS", "")
    name = f"plug_beside_{package}".lower()
    text = "from batchdet.plugin import Head\n" + head("return np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)")
    (tmp_path / "colorsys.py").write_text("raise SystemExit('executed')")
    if package:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        (tmp_path / name / "inner.py").write_text("import colorsys\n" + text)
    else:
        (tmp_path / f"{name}.py").write_text("import colorsys\n" + text)
    look_beside(str(tmp_path / "job.yaml"))
    module = f"{name}.inner" if package else name
    assert load_plugin(f"{module}:Mine").labels == ("a", "b", "c")
    assert str(tmp_path) not in sys.path
    with pytest.raises(SpecError, match="has no class Mine"):
        load_plugin("colorsys:Mine")  # the standard library's goes first
    for loaded in [each for each in sys.modules if each.partition(".")[0] == name]:
        del sys.modules[loaded]


def test_a_head_that_fails_ends_the_job_before_it_begins(beside: Any, tmp_path: Path) -> None:
    """It must not look like a model that takes only one image at once, or like images that are to blame."""
    beside("plug_fails", head("raise ValueError('no')"))
    path = tiny_onnx.centre_net(tmp_path / "centre.onnx")
    with pytest.raises(ModelError, match=r"plug_fails\.py, line 6: ValueError: no"):
        open_detector(ModelSpec(uri=str(path), family="plug_fails:Mine"))


def test_a_model_file_cannot_name_a_plug_in(beside: Any, tmp_path: Path) -> None:
    beside("plug_meta", "raise SystemExit('executed')")
    path = tiny_onnx.constant(tmp_path / "m.onnx", {"o": np.zeros((1, 7), np.float32)}, family="plug_meta:Mine")
    with pytest.raises(ModelError, match="the model's metadata names the family 'plug_meta:Mine'; known are"):
        open_detector(ModelSpec(uri=str(path)))


def test_its_source_decides_results(beside: Any, tmp_path: Path) -> None:
    path = beside("plug_digest", head("return 1"))
    before = plugin_sha256("plug_digest:Mine")
    assert plugin_sha256("plug_digest:Mine") == before
    path.write_text(path.read_text() + "# changed\n")
    assert plugin_sha256("plug_digest:Mine") != before
    package = tmp_path / "plug_pack"
    package.mkdir()
    (package / "__init__.py").touch()
    path.replace(package / "inner.py")
    whole = plugin_sha256("plug_pack.inner:Mine")
    (package / "other.py").write_text("x = 1")
    assert plugin_sha256("plug_pack.inner:Mine") != whole
    assert plugin_to_ship("plug_pack.inner:Mine") == package
    assert plugin_to_ship("auto") is plugin_to_ship("detr") is None


def test_names_of_families() -> None:
    assert set(SPEC_FAMILIES) == set(FAMILIES)
    for name in ("auto", "yolox", "my.package:Head"):
        assert parse_job(JOB % f"'{name}'", "job.yaml").model.family == name
    with pytest.raises(SpecError, match=r"job.yaml:6: model\.family: found \"yolo_dens\"; did you mean yolo_dense\?"):
        parse_job(JOB % "yolo_dens", "job.yaml")
    with pytest.raises(SpecError, match=r"known are auto, .*, and MODULE:CLASS for your own"):
        parse_job(JOB % "'3:x'", "job.yaml")
    schema = JobSpec.model_json_schema()["$defs"]["ModelSpec"]["properties"]["family"]
    assert schema["anyOf"][0]["enum"] == ["auto", *FAMILIES]


def test_an_installed_package_offers_its_own(beside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    beside("plug_point", head("return np.zeros((0, 4)), np.zeros(0), np.zeros(0)"))
    real = importlib.metadata.entry_points
    point = importlib.metadata.EntryPoint("mine", "plug_point:Mine", "batchdet.families")

    def offered(**wanted: Any) -> Any:
        if wanted.get("group") != "batchdet.families":
            return real(**wanted)
        return [point] if wanted.get("name") in (None, "mine") else []

    monkeypatch.setattr(importlib.metadata, "entry_points", offered)
    assert parse_job(JOB % "mine", "job.yaml").model.family == "mine"
    assert load_plugin("mine").labels == ("a", "b", "c")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("colours='rgb'", "did you mean 'RGB'"),
        ("colours='BRG'", "Preprocess.colours"),
        ("letterbox='resize'", "Preprocess.letterbox is 'resize'; it must be one of 'centred', 'top_left'"),
        ("letterbox='center'", "did you mean 'centred'"),
        ("letterbox='topleft'", "did you mean 'top_left'"),
        ("resample='bicubik'", "did you mean 'bicubic'"),
        ("scale=0", "Preprocess.scale"),
        ("scale='1/255'", "Preprocess.scale"),
        ("pad_value=300", "Preprocess.pad_value"),
        ("mean=0.5", "Preprocess.mean"),
        ("mean=(0.5, float('nan'), 0.5)", "Preprocess.mean"),
        ("std=(1, 1)", "Preprocess.std"),
        ("std=(1, 0, 1)", "Preprocess.std"),
        ("letterbox='edges'", "shortest_px"),
        ("color='RGB'", "color"),
    ],
)
def test_words_of_the_preprocessing_are_checked(beside: Any, arguments: str, words: str) -> None:
    path = beside("plug_words", head("return 1", f"    preprocess = Preprocess({arguments})\n"))
    with pytest.raises(PluginError) as caught:
        load_plugin("plug_words:Mine")
    assert words in caught.value.message
    assert f"{path}, line 5" in caught.value.message
    assert caught.value.exit_status == 5


def test_usual_preprocessing_is_taken() -> None:
    for arguments in ({"mean": [0.5] * 3, "std": (1, 2, 3)}, {"letterbox": "stretch", "resample": "bicubic"}):
        Preprocess(**arguments)  # type: ignore[arg-type]
    Preprocess(letterbox="edges", shortest_px=800, longest_px=1333)
