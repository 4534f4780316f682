"""What a file is, told by its bytes; folders and what stands in them."""

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from batchdet.errors import ModelError, SpecError
from batchdet.model.cache import digest_of
from batchdet.model.fetch import fetch_model
from batchdet.model.format import Format, archive_texts, format_of, safetensors_texts
from batchdet.model.huggingface import read_folder
from tests import tiny_onnx

PROCESSOR = {"size": {"height": 64, "width": 96}, "do_normalize": False, "rescale_factor": 0.5}


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def safetensors(header: Any, data: bytes = bytes(8)) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


WEIGHTS = safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})


def zipped(*names: str, **texts: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
        for name, text in texts.items():
            archive.writestr(f"m/extra/{name.replace('_', '.')}", text)
    return sink.getvalue()


def folder(path: Path, config: Any = None, processor: Any = None, weights: bytes | None = WEIGHTS) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "detr", "id2label": {"0": "cat"}} | (config or {})))
    (path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | (processor or {})))
    if weights is not None:
        (path / "model.safetensors").write_bytes(weights)
    return path


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (zipped("m/code/__torch__.py", "m/constants.pkl", "m/data.pkl"), Format.TORCHSCRIPT),
        (zipped("m/models/model.json", "m/archive_format"), Format.EXPORTED),
        (zipped("m/data.pkl", "m/version"), Format.PICKLE),
        (b"\x80\x02\x8a\nl\xfc\x9c", Format.PICKLE),
        (b"\x80\x05\x95", Format.PICKLE),
        (safetensors({"__metadata__": {"batchdet": "{}"}}), Format.NET),
        (b"\x08\x08\x12\x07pytorch", Format.ONNX),
        (b"hello", Format.ONNX),
        (b"", Format.ONNX),
    ],
)
def test_a_format_is_told_by_its_bytes(content: bytes, kind: Format, tmp_path: Path) -> None:
    path = tmp_path / "model.whatever"
    path.write_bytes(content)
    assert format_of(str(path)) is kind


def test_an_onnx_file_is_one(tmp_path: Path) -> None:
    assert format_of(str(tiny_onnx.end2end(tmp_path / "m.pt"))) is Format.ONNX


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xd8\xff\xe0" + bytes(100), "a JPEG picture"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG picture"),
        (b"GIF89a" + bytes(100), "a GIF picture"),
        (b"RIFF\0\0\0\0WEBPVP8 " + bytes(100), "a WebP picture"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"<!DOCTYPE html><html>404", "a web page"),
        (b"<html>404</html>", "a web page"),
        (b"name: first\nsource: photos\n", "a text file"),
        ("Köln, Łódź\n".encode(), "a text file"),
        (b"\0\0\0\x18ftypmp42" + bytes(100), "a video"),
        (bytes(257) + b"ustar" + bytes(250), "a tar archive"),
        (zipped("hello.txt"), "a zip archive"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        fetch_model(str(path), cache_dir=str(tmp_path / "cache"))
    assert (caught.value.code, caught.value.key, caught.value.exit_status) == ("model.not_a_model", "model.uri", 2)
    assert f"{path} is {words}" in caught.value.message


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "m.zip").write_bytes(zipped("hello.txt"))
    with pytest.raises(SpecError, match=r"m\.zip is a zip archive that PyTorch has not written, not a model"):
        format_of(str(tmp_path / "m.zip"))


def test_texts_of_archives(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(
        zipped("m/models/model.json", metadata_json='{"stride": 16, "names": {"0": "cat"}, "author": "me"}')
    )
    assert archive_texts(str(path)) == {"stride": "16", "names": '{"0": "cat"}', "author": "me"}
    path.write_bytes(zipped("m/models/model.json", config_txt="[1]"))
    with pytest.raises(ModelError, match="is no JSON object: found list"):
        archive_texts(str(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (struct.pack("<Q", 1 << 40) + b"{}", "cut off or no safetensors file: its header says 1099511627776 bytes"),
        (safetensors({"w": {"data_offsets": [0, 9]}}), "the tensor 'w' would lie outside the file"),
        (safetensors({"w": {"data_offsets": [-1, 4]}}), "the tensor 'w' would lie outside the file"),
        (safetensors({"w": 3}), "is no safetensors file"),
        (safetensors([]), "is no safetensors file"),
        (struct.pack("<Q", 2) + b"{]", "is no safetensors file"),
    ],
)
@pytest.mark.acceptance("S7")
def test_lengths_of_safetensors_are_checked(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=words):
        safetensors_texts(str(tmp_path / "m.safetensors"))


def test_a_folder_is_fetched_whole_and_by_content(tmp_path: Path, cache: str) -> None:
    path = folder(tmp_path / "model")
    (path / "README.md").write_text("not taken")
    (path / "pytorch_model.bin").write_bytes(b"not taken")
    local = fetch_model(str(path), cache_dir=cache)
    assert local.format is Format.HUGGINGFACE
    assert sorted(p.name for p in Path(local.path).iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    assert digest_of(local.path) == local.sha256
    assert local.size_bytes == sum(p.stat().st_size for p in Path(local.path).iterdir())
    for uri in (str(path), str(path / "model.safetensors"), f"file://{path}"):
        assert fetch_model(uri, local.sha256, cache) == local
        assert fetch_model(uri, cache_dir=cache) == local
    (path / "config.json").write_text(json.dumps({"model_type": "yolos"}))
    assert fetch_model(str(path), cache_dir=cache).sha256 != local.sha256


@pytest.mark.acceptance("S8")
@pytest.mark.parametrize("harm", ["change", "add", "link"])
def test_a_cached_folder_that_was_changed_is_fetched_again(harm: str, tmp_path: Path, cache: str) -> None:
    path = folder(tmp_path / "model")
    local = fetch_model(str(path), cache_dir=cache)
    inside = Path(local.path)
    if harm == "change":
        (inside / "config.json").write_text("{}")
    elif harm == "add":
        (inside / "more.py").write_text("print('hello')")
    else:
        (inside / "config.json").unlink()
        (inside / "config.json").symlink_to(path / "config.json")
    assert fetch_model(str(path), local.sha256, cache) == local
    assert digest_of(local.path) == local.sha256
    assert not (inside / "more.py").exists()
    assert not (inside / "config.json").is_symlink()


def test_weights_in_several_files(tmp_path: Path, cache: str) -> None:
    path = folder(tmp_path / "model", weights=None)
    shard = "model-00001-of-00002.safetensors"
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(SpecError, match=f"{shard}.*does not exist"):
        fetch_model(str(path), cache_dir=cache)
    (path / shard).write_bytes(WEIGHTS)
    assert (Path(fetch_model(str(path), cache_dir=cache).path) / shard).is_file()
    for odd in ("../../etc/passwd", "model.bin", 3):
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": odd}}))
        with pytest.raises(ModelError, match="files of weights are called model-00001-of-00002"):
            fetch_model(str(path), cache_dir=cache)


@pytest.mark.acceptance("S4")
def test_pickled_weights_of_a_folder_are_refused(tmp_path: Path, cache: str) -> None:
    path = folder(tmp_path / "model", weights=None)
    (path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    for trusted in (False, True):
        with pytest.raises(ModelError, match=r"has no model\.safetensors; pickles .* are never loaded: convert"):
            fetch_model(str(path), cache_dir=cache, trusted=trusted)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "the key auto_map, which asks for code of its own"),
        ({"backbone_config": {"auto_map": {"AutoModel": "evil"}}}, "the key auto_map"),
        ({"quantization_config": {"quant_method": "x"}}, "the key quantization_config"),
        ({"attn_implementation": "someone/kernels"}, "wants the code 'someone/kernels'"),
        ({"model_type": "llama"}, "model_type is 'llama'; detectors that batchdet knows are rt_detr"),
        ({"model_type": None}, "model_type is None"),
    ],
)
@pytest.mark.acceptance("S4")
def test_what_a_configuration_may_not_want(config: Any, words: str, tmp_path: Path, cache: str) -> None:
    path = folder(tmp_path / "model", config)
    with pytest.raises(ModelError, match=words) as caught:
        fetch_model(str(path), cache_dir=cache, trusted=True)
    assert str(caught.value).startswith(f"model.uri: {path} config.json")


@pytest.mark.parametrize(
    ("processor", "words"),
    [
        ({"size": {"height": 0, "width": 3}}, "whole numbers from 1 to 8192"),
        ({"size": {"max_height": 10, "max_width": 10}}, "known are height and width, or shortest_edge"),
        ({"size": None}, "known are height and width"),
        ({"size": {"shortest_edge": 30, "longest_edge": 20}}, "known are height and width"),
        ({"do_resize": False}, "do_resize false"),
        ({"do_normalize": True}, "image_mean is None; 3 numbers are wanted"),
        ({"do_normalize": True, "image_mean": [0, 0, 0], "image_std": [1, 0, 1]}, "must be positive"),
        ({"resample": 0}, "resample is 0; known are 2"),
        ({"rescale_factor": "x"}, "rescale_factor is 'x'; 1 numbers"),
    ],
)
def test_preprocessing_that_is_not_understood(processor: Any, words: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "model", processor=processor)
    with pytest.raises(ModelError, match=words):
        read_folder(str(path))


def test_preprocessing_comes_from_the_folder(tmp_path: Path) -> None:
    one = read_folder(str(folder(tmp_path / "one")))
    assert one.size == (64, 96)
    assert (one.preprocess.scale, one.preprocess.letterbox, one.preprocess.mean) == (0.5, "stretch", (0, 0, 0))
    usual = {"size": 600, "max_size": 1000, "do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}
    other = read_folder(str(folder(tmp_path / "other", {"model_type": "yolos"}, usual)))
    assert other.size is None
    assert other.preprocess.std == (1.0, 2.0, 3.0)
    assert (other.preprocess.shortest_px, other.preprocess.longest_px, other.preprocess.multiple_px) == (600, 1000, 16)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_files_of_a_folder_that_are_broken(name: str, tmp_path: Path, cache: str) -> None:
    path = folder(tmp_path / "model")
    for content, words in (
        (b"{", "is no JSON"),
        (b"[]", "is a JSON list"),
        (b'"' + b"x" * 20_000_000 + b'"', "has more than"),
    ):
        (path / name).write_bytes(content)
        with pytest.raises(ModelError, match=f"{name} {words}"):
            fetch_model(str(path), cache_dir=cache)


def test_a_folder_that_is_no_model_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        fetch_model(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert (caught.value.code, caught.value.exit_status) == ("model.not_a_model", 2)
