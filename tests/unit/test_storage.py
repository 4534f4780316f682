import os
import pickle
import socket
import stat as stat_module
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from batchdet import storage
from batchdet.errors import MissingExtra
from batchdet.storage import NotFound, SizeMismatch, StorageError, StoredObject, TransientError
from tests.clock import Clock, stop_the_clock
from tests.s3_server import S3Server


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return stop_the_clock(monkeypatch)


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://storage-test"
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize(
    ("uri", "want"),
    [
        ("/a/b/", "/a/b"), ("/a/../b", "/b"), ("file:///a/b", "/a/b"), ("FILE:///a", "/a"), ("/", "/"),
        ("s3://b/x/", "s3://b/x"), ("S3://B/x", "s3://B/x"), ("s3://b/a//b", "s3://b/a//b"),
    ],
)  # fmt: skip
def test_one_spelling(uri: str, want: str) -> None:
    assert storage.normalize(uri) == want
    assert storage.normalize(want) == want


def test_relative_and_home_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/x")
    assert storage.normalize("a/b") == f"{tmp_path}/a/b"
    assert storage.normalize("~/a") == "/home/x/a"


def test_parts() -> None:
    assert storage.scheme("S3://b") == "s3"
    assert storage.scheme("/a") == "file"
    assert storage.join("s3://b/", "c", "d") == "s3://b/c/d"
    assert storage.join("/", "c") == "/c"
    assert storage.basename("s3://b/c/") == "c"
    assert [storage.is_glob(name) for name in ("a*", "a[1]", "a?", "a")] == [True, True, True, False]


def test_chains_are_never_followed(tmp_path: Path) -> None:
    fs, path = storage.filesystem(f"{tmp_path}/simplecache::memory:")
    assert type(fs) is LocalFileSystem
    assert path == f"{tmp_path}/simplecache::memory:"
    with pytest.raises(StorageError, match="no known scheme"):
        storage.filesystem("simplecache::memory://x")


def test_unknown_scheme_and_missing_package() -> None:
    with pytest.raises(StorageError, match="s4://b: 's4' is no known scheme"):
        storage.filesystem("s4://b")
    with pytest.raises(MissingExtra, match="pip install gcsfs"):
        storage.filesystem("gs://b")


def test_listing_has_hidden_names_too(tmp_path: Path) -> None:
    for name in ["a", "sub/b", ".hidden", "_SUCCESS", "_tmp/c", ".git/d", "_keep.jpg", "sub/_keep.jpg"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    names = [os.path.relpath(o.uri, tmp_path) for o in storage.list_objects(str(tmp_path))]
    assert names == [".git/d", ".hidden", "_SUCCESS", "_keep.jpg", "_tmp/c", "a", "sub/_keep.jpg", "sub/b"]
    assert len(storage.find_all(str(tmp_path))) == 8
    assert storage.list_names(str(tmp_path)) == [".git", ".hidden", "_SUCCESS", "_keep.jpg", "_tmp", "a", "sub"]


def test_listing_follows_links_and_no_loops(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "a/b").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/far").write_bytes(b"1234")
    (tmp_path / "elsewhere/_hidden").write_bytes(b"")
    (data / "a/near").write_bytes(b"12")
    for name, target in [
        ("file", "elsewhere/far"), ("dangling", "nowhere"), ("folder", "elsewhere"), ("up", "data"),
        ("a/b/higher", "data/a"), ("a/b/across", "elsewhere"), ("_no", "elsewhere/far"),
    ]:  # fmt: skip
        (data / name).symlink_to(tmp_path / target)
    (tmp_path / "elsewhere/back").symlink_to(data)
    os.utime(tmp_path / "elsewhere/far", (5, 5))
    want = {"a/b/across/far": 4, "a/near": 2, "dangling": -1, "file": 4, "folder/far": 4, "_no": 4}
    want |= {"a/b/across/_hidden": 0, "folder/_hidden": 0}
    found = storage.list_objects(str(data))
    assert {os.path.relpath(o.uri, data): o.size_bytes for o in found} == want
    assert next(o for o in found if o.uri.endswith("/file")).etag == "mtime:5.0"
    assert storage.stat(f"{data}/file") == next(o for o in found if o.uri.endswith("/file"))
    assert [o.uri for o in storage.list_objects(f"{data}/**/far")] == [f"{data}/a/b/across/far", f"{data}/folder/far"]
    assert [o.uri for o in storage.list_objects(f"{data}/f*")] == [f"{data}/file"]
    assert [o.uri for o in storage.list_objects(f"{data}/up/a/n*")] == [f"{data}/up/a/near"]
    assert not [o for o in storage.find_all(str(data)) if "across/" in o.uri], "an output's links lead to other data"


def test_folder_that_may_not_be_read_is_an_error_and_one_that_has_gone_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1", "b/c/2", "b/3"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"1")
    scandir = os.scandir
    raised: list[OSError] = []

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("b/c"):
            raise raised[0]
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for uri in (str(tmp_path), f"{tmp_path}/*/c/*", f"{tmp_path}/**/2"):
        raised[:] = [PermissionError(13, "Permission denied", f"{tmp_path}/b/c")]
        with pytest.raises(StorageError, match=f"^{tmp_path}/b/c: cannot list: permission denied"):
            storage.list_objects(uri)
        raised[:] = [FileNotFoundError(2, "No such file or directory", f"{tmp_path}/b/c")]
        storage.list_objects(uri)
    assert [os.path.relpath(o.uri, tmp_path) for o in storage.list_objects(str(tmp_path))] == ["a/1", "b/3"]


def test_listing_one_object_a_glob_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "a[1].tar").write_bytes(b"123")
    (tmp_path / "b.tar").write_bytes(b"1")
    (tmp_path / "empty").mkdir()
    (found,) = storage.list_objects(f"{tmp_path}/a[1].tar")
    assert (found.uri, found.size_bytes) == (f"{tmp_path}/a[1].tar", 3)
    assert found.etag.startswith("mtime:")
    assert [o.uri for o in storage.list_objects(f"{tmp_path}/b*.tar")] == [f"{tmp_path}/b.tar"]
    assert storage.list_objects(f"{tmp_path}/c*") == []
    assert storage.list_objects(f"{tmp_path}/empty") == []
    with pytest.raises(NotFound, match="cannot list: no such object, folder or bucket"):
        storage.list_objects(f"{tmp_path}/no")
    assert storage.list_names(f"{tmp_path}/no") == []
    assert storage.find_all(f"{tmp_path}/no") == []


def test_listing_keeps_the_scheme(memory: str) -> None:
    storage.write_bytes(f"{memory}/x/a", b"1")
    assert [o.uri for o in storage.list_objects(f"{memory}/x")] == ["memory://storage-test/x/a"]


@pytest.mark.parametrize("kind", ["local", "memory", "s3"])
def test_write_read_stat_delete(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    base = {"local": str(tmp_path), "memory": "memory://storage-test/rw"}.get(kind)
    if base is None:
        base = request.getfixturevalue("s3").bucket("storage-rw")
    uri = f"{base}/deep/er/x.bin"
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"first")
    storage.write_bytes(uri, b"second")
    assert storage.read_bytes(uri) == b"second"
    assert storage.read_bytes(uri, 6) == b"second"
    found = storage.stat(uri)
    assert (found.uri, found.size_bytes) == (uri, 6)
    assert storage.exists(uri)
    assert [storage.is_folder(u) for u in (f"{base}/deep", uri)] == [True, False]
    assert storage.read_object(found) == b"second"
    assert storage.read_range(found, 1, 3) == b"ec"
    assert storage.read_range(found, 3, 3) == b""
    with storage.open_read(uri) as file:
        assert file.read(3) == b"sec"
        assert (file.seek(1), file.read()) == (1, b"econd")
    with pytest.raises(StorageError), storage.open_read(f"{base}/deep") as file:
        file.read(1)
    storage.write_bytes(f"{base}/deep/y.bin", b"12")
    storage.move(f"{base}/deep/y.bin", f"{base}/deep/z/y.bin")
    storage.move(f"{base}/deep/z/y.bin", f"{base}/deep/y.bin")
    assert storage.read_bytes(f"{base}/deep/y.bin") == b"12"
    assert [storage.create(f"{base}/deep/new", data) for data in (b"1", b"2")] == [True, False]
    assert storage.read_bytes(f"{base}/deep/new") == b"1"
    storage.delete([f"{base}/deep/new"])
    storage.delete_folder(f"{base}/deep/z")
    assert storage.list_names(f"{base}/deep") == ["er", "y.bin"]
    storage.write_bytes(f"{base}/deep/empty.bin", b"")
    assert storage.read_object(storage.stat(f"{base}/deep/empty.bin")) == b""
    storage.delete([uri, uri])
    assert not storage.exists(uri)
    storage.delete_folder(f"{base}/deep")
    storage.delete_folder(f"{base}/deep")
    assert storage.find_all(base) == []
    with pytest.raises(NotFound, match=r"cannot read: no such object"):
        storage.read_bytes(uri)


def test_local_files_have_ordinary_permissions(tmp_path: Path) -> None:
    storage.write_bytes(f"{tmp_path}/x", b"1")
    (tmp_path / "y").write_bytes(b"1")
    modes = {stat_module.S_IMODE((tmp_path / name).stat().st_mode) for name in "xy"}
    assert len(modes) == 1


@pytest.mark.parametrize("listed", [3, 5, 0, 400])
def test_other_sizes_than_listed_are_found_out(tmp_path: Path, memory: str, listed: int, clock: Clock) -> None:
    for base in (str(tmp_path), memory):
        storage.write_bytes(f"{base}/x", b"1234")
        with pytest.raises(SizeMismatch, match=f"bytes arrived, {listed} were listed"):
            storage.read_bytes(f"{base}/x", listed)


def test_body_cut_short_is_found_out(memory: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{memory}/x", b"1234")
    real = MemoryFileSystem.cat_file
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *args, **kwargs: real(*args, **kwargs)[:2])
    with pytest.raises(SizeMismatch, match="2 bytes arrived, 4 were listed"):
        storage.read_bytes(f"{memory}/x")
    with pytest.raises(SizeMismatch, match="2 bytes arrived, 4 were asked for at 0") as caught:
        storage.read_range(StoredObject(f"{memory}/x", 4, ""), 0, 4)
    assert caught.value.data == b"12"


def test_object_that_changed_is_found_out(tmp_path: Path, s3: S3Server) -> None:
    bucket = s3.bucket("storage-changed")
    for base in (str(tmp_path), bucket):
        storage.write_bytes(f"{base}/x", b"1234")
        listed = storage.stat(f"{base}/x")
        assert storage.read_object(listed) == b"1234"
        storage.write_bytes(f"{base}/x", b"5678")
        if base == str(tmp_path):
            os.utime(tmp_path / "x", (1, 1))
        with pytest.raises(StorageError, match="has changed since it was listed"):
            storage.read_object(listed)


def test_retry_waits_longer_and_longer(clock: Clock) -> None:
    calls: list[int] = []

    def call() -> str:
        calls.append(1)
        if len(calls) < 4:
            raise TransientError("again")
        return "done"

    assert storage.retry(call) == "done"
    assert len(clock.slept) == 3
    for pause, mean in zip(clock.slept, (0.2, 0.4, 0.8), strict=True):
        assert mean * 0.5 <= pause <= mean * 1.5


def test_retry_gives_up_at_its_deadline_and_says_so(clock: Clock) -> None:
    def call() -> None:
        clock.now_s += 1.0
        raise TransientError("the store is away")

    for patient, patience_s in ((storage.retry, 40.0), (storage.persist, 75.0)):
        clock.slept.clear()
        started = clock.now_s
        with pytest.raises(TransientError, match=r"^the store is away \(tried for \d+ s\)$"):
            patient(call)
        assert patience_s - 5 < clock.now_s - started <= patience_s + 1, "the last call begins before the deadline"
        assert max(clock.slept) <= 3


def test_one_deadline_for_all_layers(clock: Clock) -> None:
    calls: list[float] = []

    def call() -> None:
        calls.append(clock.now_s)
        raise TransientError("503")

    with pytest.raises(TransientError, match=r"503 \(tried for"):
        storage.persist(lambda: storage.retry(lambda: storage.persist(call)))
    assert calls[-1] - calls[0] <= 75
    assert len(calls) == len(clock.slept) + 1, "only the outermost layer calls again"


def test_a_wrong_size_is_believed_after_a_few_tries(clock: Clock) -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        raise SizeMismatch("2 of 4 bytes", b"12")

    with pytest.raises(SizeMismatch) as caught:
        storage.persist(call)
    assert (len(calls), caught.value.data) == (4, b"12")
    assert sum(clock.slept) < 3


@pytest.mark.parametrize("uri", ["http://127.0.0.1:{port}/x", "http://no-such-host.invalid/x"])
def test_an_address_where_nobody_listens_is_given_up_soon(clock: Clock, uri: str) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and nobody listens
        started = clock.now_s
        with pytest.raises(TransientError, match=r"\(tried for \d+ s\)$"):
            storage.list_names(uri.format(port=held.getsockname()[1]))
    assert 5 < clock.now_s - started <= 11


def test_retry_leaves_other_errors_alone(clock: Clock) -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        raise NotFound("x")

    with pytest.raises(NotFound, match=r"^x$"):
        storage.retry(call)
    assert (len(calls), clock.slept) == (1, [])


@pytest.mark.parametrize(
    ("uri", "error", "kind", "text"),
    [
        ("s3://b/x", FileNotFoundError(), NotFound, "no such object"),
        ("s3://b/x", PermissionError(13, "Forbidden"), StorageError, r"denied \(Forbidden\); check the credentials"),
        ("/x", PermissionError(13, "Permission denied"), StorageError, "check the file's permissions"),
        ("/x", IsADirectoryError(21, "Is a directory"), StorageError, "it is a folder$"),
        (
            "/x/y",
            NotADirectoryError(20, "Not a directory"),
            StorageError,
            "a part of its path is a file, not a folder$",
        ),
        ("/x", FileExistsError(17, "File exists"), StorageError, "a file of that name is in the way$"),
        ("s3://b/x", OSError(5, "a\nb"), TransientError, "cannot read: a b$"),
        ("/x", OSError(5, "io"), TransientError, "io"),
        ("/x", OSError(40, "Too many levels"), StorageError, "Too many levels"),
        ("/x", OSError("no number"), StorageError, "no number"),
        ("/x", OSError(28, "No space left on device"), storage.DiskFull, "No space left on device; make room there"),
        ("s3://b/x", TimeoutError(), TransientError, "TimeoutError"),
    ],
)
def test_errors_in_plain_words(
    uri: str, error: Exception, kind: type[StorageError], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with pytest.raises(StorageError, match=text) as caught, storage.plain_errors(uri, "read"):
        raise error
    assert type(caught.value) is kind
    assert caught.value.message.startswith(f"{uri}: cannot read: ")


def test_failures_of_a_store_name_its_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    text = r"^s3://b/x: cannot list at http://127\.0\.0\.1:1: OSError: slow down$"
    with pytest.raises(TransientError, match=text), storage.plain_errors("s3://b/x", "list"):
        raise OSError("slow down")


def test_other_errors_pass_through() -> None:
    with pytest.raises(ZeroDivisionError), storage.plain_errors("/x", "read"):
        raise ZeroDivisionError


@pytest.mark.parametrize("error", [StorageError("a"), NotFound("b"), TransientError("c"), SizeMismatch("d", b"12")])
def test_errors_pickle(error: StorageError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert again.message == error.message
    assert getattr(again, "data", None) == getattr(error, "data", None)
