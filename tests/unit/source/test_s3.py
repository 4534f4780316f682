"""Sources in a real S3 server."""

import json
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from batchdet import storage
from batchdet.errors import SourceError
from batchdet.source.inventory import list_inventory, plan_shards
from batchdet.source.reader import read_image, read_segments
from batchdet.spec import SourceSpec
from tests.s3_server import S3Server
from tests.unit.source.corpus import image, read_all, tar_bytes

NAMES = [f"{i:02d}.jpg" for i in range(12)]


@pytest.fixture(scope="module")
def bucket(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same images as tar shards, folder, Parquet and list."""
    uri = s3.bucket("source-test")
    for i, name in enumerate(NAMES):
        storage.write_bytes(f"{uri}/folder/{name}", image(i))
    members = [(name, image(i)) for i, name in enumerate(NAMES)]
    storage.write_bytes(f"{uri}/shards/0.tar", tar_bytes(members[:7]))
    storage.write_bytes(f"{uri}/shards/1.tar", tar_bytes(members[7:]))
    table = tmp_path_factory.mktemp("s3") / "a.parquet"
    pq.write_table(pa.table({"image": [d for _, d in members], "n": range(12)}), table, row_group_size=5)
    storage.write_bytes(f"{uri}/table/a.parquet", table.read_bytes())
    lines = [json.dumps({"uri": f"../folder/{n}" if i % 2 else f"{uri}/folder/{n}"}) for i, n in enumerate(NAMES)]
    storage.write_bytes(f"{uri}/lists/l.jsonl", "\n".join(lines).encode())
    return uri


@pytest.mark.parametrize("what", ["folder", "folder/*.jpg", "shards", "shards/*.tar", "table", "lists/l.jsonl"])
def test_every_format(bucket: str, what: str) -> None:
    got = read_all(f"{bucket}/{what}", segment_rows=5)
    assert got.codes == [None] * 12
    assert got.data == [image(i) for i in range(12)]
    row = got.rows[3]
    source = SourceSpec(uri=f"{bucket}/{what}")
    assert read_image(source, row["uri"], row["shard_uri"], row["member"], row["position"]) == image(3)
    assert row["uri"].startswith("s3://source-test/")


def test_etags_are_those_of_the_store(bucket: str) -> None:
    inventory = list_inventory(SourceSpec(uri=f"{bucket}/shards"))
    assert all(len(etag) >= 32 for etag in inventory.objects["etag"].to_pylist())


@pytest.mark.parametrize("what", ["folder", "shards", "table"])
def test_object_that_changed_or_vanished(bucket: str, what: str) -> None:
    copy = f"{bucket}/changing-{what}"
    for obj in storage.find_all(f"{bucket}/{what}"):
        storage.write_bytes(f"{copy}/{storage.basename(obj.uri)}", storage.read_bytes(obj.uri))
    source = SourceSpec(uri=copy)
    inventory = list_inventory(source)
    first = inventory.objects["uri"][0].as_py()

    def codes() -> list[str | None]:
        shard = plan_shards(inventory)[0]
        segments = read_segments(shard, source, inventory.carried, 100, 1 << 30)
        return [c for s in segments for c in s.members["error_code"].to_pylist()]

    data = storage.read_bytes(first)
    storage.write_bytes(first, bytes(reversed(data)))
    lasting = {"unreadable", "size_mismatch"} if what == "folder" else {"shard_unreadable"}
    assert codes()[0] in lasting
    storage.write_bytes(first, data + b"more")
    assert codes()[0] in lasting
    storage.delete([first])
    assert codes()[0] in lasting
    assert codes()[1:] == ([None] * 11 if what == "folder" else [])


@pytest.mark.parametrize(
    ("uri", "match"),
    [
        ("s3://no-such-bucket-here", r"does not exist; there is no bucket of that name at http://127\.0\.0\.1"),
        ("s3://no-such-bucket-here/x/*.tar", "no-such-bucket-here"),
        ("s3://no-such-bucket-here/x", "does not exist"),
        ("s3://source-test/no/such", r"does not exist; check the path"),
        ("s3://source-test/nothing", r"does not exist; s3://source-test holds .*folder"),
        ("s3://source-test/shard", r"does not exist; did you mean 'shards'\?"),
        ("s3://source-test/folder/*.png", "matches no file"),
    ],
)
def test_what_is_not_there(bucket: str, uri: str, match: str) -> None:
    start = time.perf_counter()
    with pytest.raises(SourceError, match=match):
        list_inventory(SourceSpec(uri=uri))
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    "uri", ["s3://source-test/folder", "s3://source-test/shards/0.tar", "s3://source-test/s*/*.tar"]
)
def test_wrong_key(bucket: str, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    start = time.perf_counter()
    try:
        with pytest.raises(SourceError, match=r"source\.uri: .*permission denied .*; check the credentials") as caught:
            list_inventory(SourceSpec(uri=uri))
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
    assert "wrong" not in caught.value.message
    assert time.perf_counter() - start < 10


def test_no_server(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    s3fs.S3FileSystem.clear_instance_cache()
    start = time.perf_counter()
    try:
        with pytest.raises(SourceError, match=r"source\.uri: .*Could not connect to the endpoint URL"):
            list_inventory(SourceSpec(uri="s3://source-test/folder"))
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
    assert time.perf_counter() - start < 20


def test_several_blocks(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    members = [(f"{i}.jpg", os.urandom(40_000)) for i in range(20)]
    storage.write_bytes(f"{bucket}/big/a.tar", tar_bytes(members))
    monkeypatch.setattr("batchdet.source.stream.BlockStream.__init__.__defaults__", (65_536,))
    got = read_all(f"{bucket}/big/a.tar", segment_rows=3)
    assert got.by_member == dict(members)


def test_keys_are_names_whatever_they_hold(s3: S3Server) -> None:
    uri = s3.bucket("source-names")
    names = ["q?versionId=abc.jpg", "ends in a space.jpg ", "_under/x.jpg", "100%25.jpg", "+ # [1]*.jpg"]
    for i, name in enumerate(names):
        storage.write_bytes(f"{uri}/in/{name}", image(i))
    got = read_all(f"{uri}/in")
    listed = {name: image(i) for i, name in enumerate(names) if not name.endswith(" ")}
    assert got.by_member == listed
    assert got.inventory.passed_over == {".jpg ": 1}
    storage.write_bytes(f"{uri}/l.txt", "\n".join(f"in/{name}" for name in names).encode())
    got = read_all(f"{uri}/l.txt")
    assert got.codes == [None] * 5
    assert got.data[0] == image(0)
