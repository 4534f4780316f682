import os
from pathlib import Path

import pytest

import batchdet
from batchdet.cluster import bundle as bundle_module
from batchdet.cluster.bundle import build_bundle
from batchdet.errors import SpecError
from batchdet.specfile import parse_job


def write_job(folder: Path, source: str = "s3://b/s", model: str = "builtin:sample", output: str = "s3://b/o") -> str:
    path = folder / "job.yaml"
    path.write_text(f"name: j\nsource: {{uri: '{source}'}}\nmodel: {{uri: '{model}'}}\noutput: {{uri: '{output}'}}\n")
    return str(path)


def test_the_package_travels_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    made = build_bundle(out, write_job(tmp_path))
    package = Path(batchdet.__file__).parent
    wanted = {
        str(path.relative_to(package))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    shipped = {str(path.relative_to(out / "batchdet")) for path in (out / "batchdet").rglob("*") if path.is_file()}
    assert shipped == wanted
    assert {"py.typed", "model/embedded/sample.onnx"} <= shipped
    assert made.notes == ()
    assert sorted(os.listdir(out)) == ["batchdet", "job.yaml"]


def test_a_local_model_travels_and_its_uri_follows(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "my model.onnx").write_bytes(b"model")
    (tmp_path / "names.txt").write_text("cat\n")
    job = write_job(tmp_path, model=str(tmp_path / "my model.onnx"))
    made = build_bundle(out, job, [f"model.labels={tmp_path}/names.txt"])
    spec = parse_job((out / "job.yaml").read_text(), "job.yaml")
    assert spec.model.uri == "shipped/my-model.onnx"
    assert spec.model.labels == "shipped/names.txt"
    assert (out / spec.model.uri).read_bytes() == b"model"
    assert (out / "shipped/names.txt").read_text() == "cat\n"
    assert [note.split(":")[0] for note in made.notes] == ["model.uri", "model.labels"]


def test_local_folders_become_absolute_and_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(tmp_path)
    made = build_bundle(out, write_job(tmp_path, source="images", output="/labels"))
    assert made.job.spec.source.uri == f"{tmp_path}/images"
    assert made.job.spec.output.uri == "/labels"
    assert [note.split(" is ")[0] for note in made.notes] == ["source.uri", "output.uri"]


def test_variables_are_told_unless_they_go_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET", "value-of-this-machine")
    job = write_job(tmp_path, source="s3://${BUCKET}/s", output="${PLACE}/o")
    for name, env, told in (("a", [], "--env BUCKET --env PLACE"), ("b", ["BUCKET"], "--env PLACE")):
        out = tmp_path / name
        out.mkdir()
        made = build_bundle(out, job, (), env)
        assert len(made.notes) == 1
        assert made.notes[0].endswith(told)
        assert "value-of-this-machine" not in (out / "job.yaml").read_text() + made.notes[0]
    out = tmp_path / "c"
    out.mkdir()
    assert build_bundle(out, job, (), ["BUCKET", "PLACE"]).notes == ()


def test_a_missing_or_huge_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match=r"model.uri: there is no file .*none.onnx"):
        build_bundle(tmp_path, write_job(tmp_path, model=str(tmp_path / "none.onnx")))
    monkeypatch.setattr(bundle_module, "MAX_MODEL_BYTES", 4)
    (tmp_path / "big.onnx").write_bytes(b"12345")
    with pytest.raises(SpecError, match="has 5 bytes and at most 4 travel"):
        build_bundle(tmp_path, write_job(tmp_path, model=str(tmp_path / "big.onnx")))


def test_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    out.mkdir()
    (tmp_path / "a/file").write_bytes(b"model")
    (tmp_path / "b/file").write_bytes(b"labels")
    job = write_job(tmp_path, model=str(tmp_path / "a/file"))
    spec = build_bundle(out, job, [f"model.labels={tmp_path}/b/file"]).job.spec
    assert (out / spec.model.uri).read_bytes() == b"model"
    assert (out / str(spec.model.labels)).read_bytes() == b"labels"


def test_a_hugging_face_folder_travels_without_what_is_not_taken_of_it(tmp_path: Path) -> None:
    out, model = tmp_path / "out", tmp_path / "rt_detr"
    out.mkdir()
    model.mkdir()
    taken = {"config.json", "model.safetensors", "preprocessor_config.json"}
    for name in taken | {"pytorch_model.bin", "modeling.py"}:
        (model / name).write_text(name)
    made = build_bundle(out, write_job(tmp_path, model=str(model)))
    assert made.job.spec.model.uri == "shipped/rt_detr"
    assert set(os.listdir(out / "shipped" / "rt_detr")) == taken
    assert made.notes == (f"model.uri: {model} ({sum(map(len, taken))} bytes) is shipped along",)
    (model / "config.json").unlink()
    with pytest.raises(SpecError, match="there is no file"):
        build_bundle(tmp_path, write_job(tmp_path, model=str(model)))


@pytest.mark.parametrize("package", [False, True])
def test_a_plug_in_head_travels(package: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    out, name = tmp_path / "out", f"shipped_head_{package}"
    out.mkdir()
    code = "from batchdet.plugin import Head\nclass Mine(Head):\n    def decode(self, outputs, canvas): ...\n"
    module = tmp_path / name / "inner.py" if package else tmp_path / f"{name}.py"
    module.parent.mkdir(exist_ok=True)
    module.write_text(code)
    path = f"{name}.inner:Mine" if package else f"{name}:Mine"
    build_bundle(out, write_job(tmp_path), [f"model.family='{path}'"])
    assert (out / module.relative_to(tmp_path)).read_text() == code
