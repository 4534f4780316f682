import hashlib
import multiprocessing
import os
import stat
from pathlib import Path

import fsspec
import pytest

from batchdet import storage
from batchdet.errors import ModelError, SpecError
from batchdet.model.cache import LocalModel, default_cache_dir, engine_folder, read_engine, write_engine
from batchdet.model.fetch import fetch_model
from tests import tiny_onnx


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_onnx.end2end(tmp_path / "model.onnx")


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "deep" / "cache")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_copied_under_its_digest(model: Path, cache: str) -> None:
    local = fetch_model(str(model), cache_dir=cache)
    assert local == LocalModel(f"{cache}/models/{digest(model)}.onnx", digest(model), model.stat().st_size)
    assert Path(local.path).read_bytes() == model.read_bytes()
    assert fetch_model(f"file://{model}", local.sha256, cache) == local
    assert sorted(os.listdir(f"{cache}/models")) == [f"{local.sha256}.onnx"]


@pytest.mark.acceptance("S21")
def test_the_cache_is_private(model: Path, cache: str) -> None:
    old = os.umask(0)
    try:
        local = fetch_model(str(model), cache_dir=cache)
    finally:
        os.umask(old)
    for folder in (cache, f"{cache}/models", f"{cache}/locks"):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(local.path).st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o770])
@pytest.mark.acceptance("S21")
def test_a_cache_that_others_may_enter_is_refused(model: Path, cache: str, mode: int) -> None:
    os.makedirs(cache)
    os.chmod(cache, mode)
    with pytest.raises(ModelError, match=f"open to other users .*chmod 700 {cache}"):
        fetch_model(str(model), cache_dir=cache)


@pytest.mark.acceptance("S21")
def test_a_cache_that_is_a_link_is_refused(model: Path, cache: str, tmp_path: Path) -> None:
    os.makedirs(os.path.dirname(cache))
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    os.symlink(tmp_path / "elsewhere", cache)
    with pytest.raises(ModelError, match="is not a folder"):
        fetch_model(str(model), cache_dir=cache)


@pytest.mark.acceptance("S21")
def test_a_cache_of_another_user_is_refused(model: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_model(str(model), cache_dir=cache)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ModelError, match="belongs to another user"):
        fetch_model(str(model), cache_dir=cache)


def test_a_cache_that_cannot_be_made_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot be written .* BATCHDET_CACHE"):
        fetch_model(str(model), cache_dir=str(tmp_path / "file" / "cache"))


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("BATCHDET_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() == "/home/someone/.cache/batchdet"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert default_cache_dir() == "/var/cache/batchdet"
    monkeypatch.setenv("BATCHDET_CACHE", "/scratch/models")
    assert default_cache_dir() == "/scratch/models"


@pytest.mark.acceptance("S8")
def test_a_wrong_digest_is_refused_and_nothing_is_kept(model: Path, cache: str) -> None:
    with pytest.raises(ModelError, match=rf"model\.sha256: .*{digest(model)}.* wants {'0' * 64}"):
        fetch_model(str(model), "0" * 64, cache)
    assert os.listdir(f"{cache}/models") == []


@pytest.mark.acceptance("S8", "S21")
def test_a_cached_file_that_was_changed_is_fetched_again(model: Path, cache: str) -> None:
    local = fetch_model(str(model), cache_dir=cache)
    Path(local.path).write_bytes(b"changed")
    assert fetch_model(str(model), local.sha256, cache) == local
    assert Path(local.path).read_bytes() == model.read_bytes()


@pytest.mark.acceptance("S21")
def test_a_cached_file_that_is_a_link_is_not_followed(model: Path, cache: str, tmp_path: Path) -> None:
    local = fetch_model(str(model), cache_dir=cache)
    os.unlink(local.path)
    os.symlink(model, local.path)
    fetch_model(str(model), local.sha256, cache)
    assert not os.path.islink(local.path)


def test_with_a_digest_the_source_is_not_needed_twice(model: Path, cache: str) -> None:
    local = fetch_model(str(model), cache_dir=cache)
    model.unlink()
    assert fetch_model(str(model), local.sha256, cache) == local


def test_a_local_file_that_changed_is_seen_even_with_its_old_time(model: Path, cache: str) -> None:
    before, info = fetch_model(str(model), cache_dir=cache), model.stat()
    tiny_onnx.end2end(model, [[8, 8, 24, 24, 0.8, 1]])
    assert model.stat().st_size == info.st_size
    os.utime(model, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert fetch_model(str(model), cache_dir=cache).sha256 == digest(model) != before.sha256


def test_from_a_store(model: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/models/a.onnx", model.read_bytes())
    real, reads = storage.open_read, []

    def counted(uri: str) -> object:
        reads.append(uri)
        return real(uri)

    monkeypatch.setattr(storage, "open_read", counted)
    tag = ["one"]
    size = model.stat().st_size
    monkeypatch.setattr(storage, "stat", lambda uri: storage.StoredObject(uri, size, tag[0]))
    for _ in range(3):
        assert fetch_model("memory://models/a.onnx", cache_dir=cache).sha256 == digest(model)
    assert len(reads) == 1
    tag[0] = "two"
    fetch_model("memory://models/a.onnx", cache_dir=cache)
    assert len(reads) == 2


def test_a_body_that_is_shorter_than_listed_is_refused(
    model: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "stat", lambda uri: storage.StoredObject(uri, model.stat().st_size + 9, ""))
    with pytest.raises(ModelError, match=r"bytes arrived, .* were listed"):
        fetch_model(str(model), cache_dir=cache)
    assert os.listdir(f"{cache}/models") == []


def _fetch(arguments: tuple[str, str]) -> str:
    return fetch_model(arguments[0], cache_dir=arguments[1]).sha256


def test_processes_that_fetch_at_the_same_time(model: Path, cache: str) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert set(pool.map(_fetch, [(str(model), cache)] * 6)) == {digest(model)}
    assert os.listdir(f"{cache}/models") == [f"{digest(model)}.onnx"]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("{}/nothing.onnx", r"model\.uri: .*nothing\.onnx does not exist"),
        ("memory://nowhere/nothing.onnx", r"model\.uri: memory://nowhere/nothing\.onnx does not exist"),
        ("builtin:other", r"there is no builtin:other; the embedded model is builtin:sample"),
        ("nosuchscheme://x/y.onnx", r"model\.uri: .*nosuchscheme"),
    ],
)
def test_what_is_not_there(uri: str, words: str, tmp_path: Path, cache: str) -> None:
    with pytest.raises(SpecError, match=words):
        fetch_model(uri.format(tmp_path), cache_dir=cache)


def test_a_folder(tmp_path: Path, cache: str) -> None:
    with pytest.raises(SpecError, match=r"is a folder without config\.json; name a model file in it, or a"):
        fetch_model(str(tmp_path), cache_dir=cache)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("yolo.pt", "which can run code of its own while it is loaded; set model.trusted: true if you trust"),
        ("yolo.PTH", "which can run code of its own while it is loaded; set model.trusted: true if you trust"),
        ("model.engine", "is of a format that batchdet does not read; take the ONNX file"),
    ],
)
@pytest.mark.acceptance("S4")
def test_other_formats_are_told_the_way(name: str, words: str, tmp_path: Path, cache: str) -> None:
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(ModelError, match=words):
        fetch_model(str(tmp_path / name), cache_dir=cache)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\x08" + b"hello, world. " * 50, "looks like text"),
        (b"PK\x03\x04" + bytes(100), "is cut off or damaged: File is not a zip file"),
        (b"\x80\x02}q\x00.", r"is a PyTorch checkpoint \(pickle\), which can run code of its own"),
        (b"\x20" + bytes(7) + b"{" + b"x" * 40, "is no safetensors file"),
        (b"\xff" * 7 + b"\x00{}", "is cut off or no safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (bytes(range(256)) * 20, "is not an ONNX model"),
    ],
)
def test_files_that_are_no_model(content: bytes, words: str, tmp_path: Path, cache: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=words) as caught:
        fetch_model(str(path), cache_dir=cache)
    assert str(caught.value).startswith(f"model.uri: {path} ")
    assert "\n" not in str(caught.value)


def test_what_is_kept_of_a_model_is_read_without_waiting_and_never_damaged(tmp_path: Path) -> None:
    root = str(tmp_path / "cache")
    assert read_engine("k", "graph", root) is None
    with engine_folder("k", root) as folder:
        write_engine(folder, "graph", b"compiled")
        assert read_engine("k", "graph", root) == b"compiled", "although the folder is held"
    assert read_engine("other", "graph", root) is None
    file = tmp_path / "cache/engines/k/graph"
    whole = file.read_bytes()
    for damaged in (b"", whole[:10], whole[:-1], whole[:-1] + b"D", b"compiled"):
        file.write_bytes(damaged)
        assert read_engine("k", "graph", root) is None
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(ModelError, match="open to other users"):
        read_engine("k", "graph", root)
