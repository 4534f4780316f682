"""What an attacker may put into images, archives, tables, lists, models, specs and outputs (ACCEPTANCE S1 to S24)."""

import ast
import contextlib
import csv
import io
import json
import os
import pickle
import re
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper

from batchdet import storage
from batchdet.credentials import find_secret, masked
from batchdet.decode.image import decode_image
from batchdet.errors import BatchdetError, ImageError, ModelError, OutputError, SpecError
from batchdet.model import onnx_file
from batchdet.model.detector import Detector
from batchdet.model.fetch import fetch_model
from batchdet.model.labels import parse_names
from batchdet.model.onnx_file import read_onnx
from batchdet.places import check_apart
from batchdet.results.open import open_results
from batchdet.results.query import query, to_csv
from batchdet.results.record import read_spec
from batchdet.results.show import render_show, show
from batchdet.results.status import render_status, status
from batchdet.results.verify import inspect_output, render_verify
from batchdet.sample.dataset import write_sample
from batchdet.source import parquet_rows
from batchdet.spec import JobSpec, ModelSpec, OutputSpec, SourceSpec
from batchdet.specfile import parse_job
from tests import tiny_onnx
from tests.broken_images import encoded, picture, png_chunk, png_claiming
from tests.cli import Command, command
from tests.e2e.conftest import clean_environment
from tests.fault_proxy import fault_proxy
from tests.ray_head import descendants, listening
from tests.s3_server import S3Server
from tests.unit.results.conftest import FakeImage, FakeOutput, some_images
from tests.unit.source.corpus import END, padded, raw_header, read_all
from tests.without_ray import without_ray

__all__ = ["command"]

RUN = "20261122-100000-aaaa"
KEY = "AKIA" + "ABCDEFGHIJKLMNOP"


def tiff_of_shared_values(tags: int, size_bytes: int) -> bytes:
    """Return a TIFF directory in which every tag's values are the same bytes of the file."""
    entries = [struct.pack("<HHII", 256, 4, 1, 8), struct.pack("<HHII", 257, 4, 1, 8)]
    entries += [struct.pack("<HHII", 300 + i, 1, size_bytes, 0) for i in range(tags)]
    head = b"II*\0" + struct.pack("<I", 8 + size_bytes) + bytes(size_bytes)
    return head + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def jpeg_of_scans(scans: int) -> bytes:
    """Return a progressive JPEG whose last scan stands there again and again."""
    data = encoded(picture(), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * scans + b"\xff\xd9"


def packed_png(kind: bytes, start: bytes) -> bytes:
    """Return a PNG with a chunk that unpacks to 100 MB."""
    import zlib

    png = encoded(picture(), "PNG")
    return png[:33] + png_chunk(kind, start + zlib.compress(bytes(100_000_000), 1)) + png[33:]


HOSTILE_IMAGES = {
    "png of 20k x 20k": lambda: png_claiming(20_000, 20_000),
    "webp with hostile exif": lambda: encoded(
        picture(), "WEBP", exif=b"Exif\0\0" + tiff_of_shared_values(900, 1 << 20)
    ),
    "tiff of shared values": lambda: tiff_of_shared_values(3000, 1 << 20),
    "packed text": lambda: packed_png(b"zTXt", b"k\0\0"),
    "packed profile": lambda: packed_png(b"iCCP", b"k\0\0"),
    "packed unicode": lambda: packed_png(b"iTXt", b"k\0\1\0\0\0"),
    "thousands of scans": lambda: jpeg_of_scans(3000),
    "a thousand pages": lambda: encoded(picture(), "TIFF", save_all=True, append_images=[picture(8, 8)] * 999),
    "an animation": lambda: encoded(picture(), "WEBP", save_all=True, append_images=[picture()] * 99),
}
_MEASURE = """
import resource, sys, time
from pathlib import Path
from batchdet.decode.image import decode_image
from batchdet.errors import ImageError
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        decode_image(path.read_bytes(), 100_000_000)
    except ImageError as error:
        print(path.name, error.code)
print("MiB", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
print("seconds", time.process_time() - start)
"""


@pytest.mark.acceptance("S1")
def test_hostile_images_take_neither_memory_nor_time(tmp_path: Path) -> None:
    for name, make in HOSTILE_IMAGES.items():
        (tmp_path / name).write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
    )
    said = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert int(said.pop("MiB")) < 100
    assert float(said.pop("seconds")) < 10
    assert said["png of 20k x 20k"] == "too_large"
    assert said["tiff of shared values"] == said["thousands of scans"] == "corrupt"
    assert "webp with hostile exif" not in said


@pytest.mark.acceptance("S1")
@pytest.mark.parametrize(
    "head", [b"8BPS", b"%!PS", b"%PDF-1.7", b"SIMPLE  =", b"\xc5\xd0\xd3\xc6", b"DDS ", b"gimp xcf"]
)
def test_other_formats_meet_no_decoder(head: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(head + bytes(4096), 100)
    assert caught.value.code == "unsupported_format"


@pytest.mark.acceptance("S2", "S3")
def test_extended_headers_fill_no_memory(tmp_path: Path) -> None:
    parts = []
    for i in range(60):
        body = f"comment{i}={'x' * 1_000_000}\n"
        record = f"{len(body) + 8} {body}".encode()
        parts.append(raw_header(b"pax", len(record), b"g") + padded(record))
    (tmp_path / "s.tar").write_bytes(b"".join(parts) + raw_header(b"a.jpg", 1) + padded(b"1") + END)
    tracemalloc.start()
    try:
        assert read_all(tmp_path / "s.tar").codes == [None]
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.acceptance("S4")
@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.pt2", "m.pkl", "m.bin", "m.onnx", "m.safetensors"])
@pytest.mark.parametrize("packed", [False, True])
def test_no_model_file_is_unpickled(tmp_path: Path, name: str, packed: bool) -> None:
    data = pickle.dumps(_Payload(tmp_path / "executed"))
    if packed:
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/version", "3\n")
        data = sink.getvalue()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ModelError):
        fetch_model(str(tmp_path / name), cache_dir=str(tmp_path / "cache"))
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(_Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").exists(), "the payload works"


def _external() -> TensorProto:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


@pytest.mark.acceptance("S5")
def test_external_data_is_found_wherever_it_hides(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = onnx.load(tiny_onnx.with_custom_operator(path))
    body = [helper.make_node("Identity", ["x"], ["y"])]
    function = helper.make_function("com.example.evil", "Evil", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    function.attribute_proto.add(name="v", type=onnx.AttributeProto.TENSOR).t.CopyFrom(_external())
    model.functions.append(function)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="keeps weights in other files"):
        read_onnx(str(path))
    model = onnx.load(tiny_onnx.end2end(path))
    model.training_info.add().algorithm.initializer.append(_external())
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="keeps weights in other files"):
        read_onnx(str(path))


@pytest.mark.acceptance("S5", "S6")
@pytest.mark.parametrize("operator", ["EPContext", "Snpe"])
def test_operators_that_load_files_are_refused(tmp_path: Path, operator: str) -> None:
    value = helper.make_tensor_value_info
    node = helper.make_node(operator, ["images"], ["output0"], domain="com.microsoft", ep_cache_context="/etc/passwd")
    ends = [value("images", 1, ["N", 3, "H", "W"])], [value("output0", 1, ["N", 300, 6])]
    graph = helper.make_graph([node], "g", *ends)
    path = tiny_onnx.save(tmp_path / "m.onnx", graph, {}, {"": 17, "com.microsoft": 1})
    with pytest.raises(ModelError, match=f"load other files .{operator}"):
        read_onnx(str(path))


@pytest.mark.acceptance("S7")
@pytest.mark.parametrize("metadata", [{"stride": "9" * 900}, {"stride": "[32, 99999999]"}, {"stride": "8193"}])
def test_metadata_cannot_ask_for_petabytes(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = tiny_onnx.end2end(tmp_path / "m.onnx", **metadata)
    with pytest.raises(ModelError, match="stride above 8192"):
        Detector(ModelSpec(uri=str(path)), str(path), "0" * 64)


@pytest.mark.acceptance("S7")
def test_inputs_initialisers_and_fields_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_onnx.end2end(tmp_path / "m.onnx", images=(64, 3, 4096, 4096))
    with pytest.raises(ModelError, match="px in all are the limit"):
        Detector(ModelSpec(uri=str(path)), str(path), "0" * 64)
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 40], raw_data=b"1234")
    value = helper.make_tensor_value_info
    ends = [value("images", 1, ["N", 3, "H", "W"])], [value("output0", 1, None)]
    graph = helper.make_graph([helper.make_node("Add", ["images", "w"], ["output0"])], "g", *ends, [weight])
    path = tiny_onnx.save(path, graph, {})
    with pytest.raises(ModelError, match="cannot load the model"):
        Detector(ModelSpec(uri=str(path)), str(path), "0" * 64)
    monkeypatch.setattr(onnx_file, "_MAX_FIELDS", 1000)
    path.write_bytes(b"\x08\x08" * 2000)
    with pytest.raises(ModelError, match="not an ONNX model"):
        read_onnx(str(path))


def _claiming(path: Path) -> Path:
    """Write a model whose initialiser has four bytes and says 4 TiB."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 40], raw_data=b"1234")
    value = helper.make_tensor_value_info
    ends = [value("images", 1, ["N", 3, "H", "W"])], [value("output0", 1, None)]
    graph = helper.make_graph([helper.make_node("Add", ["images", "w"], ["output0"])], "g", *ends, [weight])
    return tiny_onnx.save(path, graph, {})


def _long_header(path: Path) -> Path:
    """Write a safetensors file whose header says 1 TiB."""
    path = path.with_suffix(".safetensors")
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    return path


HUGE_MODELS = {
    "initialiser": _claiming,
    "constant": lambda path: tiny_onnx.folded(path, 1 << 42),
    "header": _long_header,
    "input": lambda path: tiny_onnx.end2end(path, images=(64, 3, 4096, 4096)),
}
_MODEL = """
import resource, sys
from batchdet.cli import main
try:
    main(["model", sys.argv[1], "--json"])
finally:
    whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    print("MiB", max(resource.getrusage(each).ru_maxrss for each in whose) // 1024, file=sys.stderr)
"""


@pytest.mark.acceptance("S7")
@pytest.mark.parametrize("kind", HUGE_MODELS)
def test_models_that_say_they_are_huge_take_no_memory(tmp_path: Path, kind: str) -> None:
    """The whole command, with the process that loads the model."""
    path = HUGE_MODELS[kind](tmp_path / "m.onnx")
    done = subprocess.run(
        [sys.executable, "-c", _MODEL, str(path)], capture_output=True, text=True, timeout=60, check=False,
        env=clean_environment() | {"BATCHDET_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    said, _, peak = done.stderr.rpartition("MiB")
    assert done.returncode in {2, 5}, done.stderr
    assert said.count("error: ") == 1
    assert "Traceback" not in said
    assert json.loads(done.stdout)["error"]["exit_status"] == done.returncode
    assert int(peak) < 1024


def test_labels_are_text_that_tables_can_hold() -> None:
    assert parse_names('["\\ud800", "b"]') == ("\\ud800", "b")


_EXTENSIONS = """
import os, pickle, sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
import ray.data
from batchdet.errors import BatchdetError
from tests.unit.source.corpus import read_all
folder = Path(sys.argv[1])
class Payload:
    def __reduce__(self):
        return (os.mkdir, (str(folder / "executed"),))
code = pickle.dumps(Payload())
names = ["arrow_tensor", "arrow_tensor_v2", "arrow_variable_shaped_tensor", "arrow_pickled_object"]
for name in [*(f"ray.data.{n}" for n in names), "arrow.py_extension_type"]:
    for type_, value in ((pa.binary(), code), (pa.large_binary(), code), (pa.list_(pa.int64()), [1])):
        evil = pa.field("x", type_, metadata={"ARROW:extension:name": name, "ARROW:extension:metadata": code})
        nested, inner = pa.field("x", pa.struct([evil])), pa.struct([("x", type_)])
        deep = pa.field("x", pa.list_(nested)), pa.list_(inner), [{"x": value}]
        mapped = pa.field("x", pa.map_(pa.string(), nested)), pa.map_(pa.string(), inner), [("k", {"x": value})]
        columns = ((evil, type_, value), (nested, inner, {"x": value}), deep, mapped)
        firsts = [(pa.field("image", pa.binary()), None, b"1"), (pa.field("url", pa.string()), None, "a.jpg")]
        path = [pa.field("bytes", pa.binary()), evil.with_name("path")]
        firsts += [(pa.field("image", pa.struct(path)), pa.struct([path[0], ("path", type_)]), {"path": value})]
        for field, plain_type, cell in columns:
            for first, stored, start in firsts:
                plain = pa.array([cell], plain_type), pa.array([start], stored or first.type)
                table = pa.Table.from_arrays([plain[1], plain[0]], schema=pa.schema([first, field]))
                pq.write_table(table, folder / "t.parquet")
                for more in ({}, {"id_column": "x"}, {"image_column": "x"}):
                    try:
                        for segment in read_all(folder / "t.parquet", **more).segments:
                            segment.members.to_pylist()
                    except BatchdetError:
                        pass
                    assert not (folder / "executed").exists(), (name, type_, more)
print("none")
"""


@pytest.mark.acceptance("S9")
def test_parquet_with_pickled_extension_types_runs_no_code(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _EXTENSIONS, str(tmp_path)],
        capture_output=True, text=True, timeout=120, env=environment, check=False,
    )  # fmt: skip
    assert done.stdout.strip().endswith("none"), done.stderr[-2000:]
    import ray

    assert tuple(map(int, ray.__version__.split(".")[:2])) >= (2, 55)


def test_one_image_named_thousands_of_times_fills_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "_MAX_HELD_BYTES", 8 << 20)
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array([bytes(1 << 20)], pa.binary()))
    pq.write_table(
        pa.table({"image": repeated}), tmp_path / "t.parquet", dictionary_pagesize_limit=1 << 30, store_schema=False
    )
    got = read_all(tmp_path / "t.parquet", segment_rows=100)
    assert [sum(len(d) for d in s.data if d) for s in got.segments] == [8 << 20] * 3
    assert set(got.codes) == {None, "too_large"}


_CHARACTERS = (1 << 18) - 10
BOMBS = {
    "flow sequence": "a: [" + "a," * (_CHARACTERS // 2 - 10) + "]",
    "empty lists": "a: [" + "[]," * (_CHARACTERS // 3 - 10) + "]",
    "block sequence": "- a\n" * (_CHARACTERS // 4),
    "keys": "".join(f"k{i}: 1\n" for i in range(23_000)),
    "digits": "a: " + "9" * (_CHARACTERS - 10),
    "underscores": "a: " + "1_" * (_CHARACTERS // 2 - 10),
    "question marks": "a: x" + "?sig" * (_CHARACTERS // 4 - 10),
    "schemes": "a: " + "a" * (_CHARACTERS - 20),
    "double quotes": 'a: "' + "x " * (_CHARACTERS // 2 - 10) + '"',
    "braces": "{" * 5000,
    "deep indent": "\n".join(" " * i + "a:" for i in range(600)),
    "half a surrogate": 'name: "\\ud800"',
    "a python object": '!!python/object/apply:os.system ["id"]',
    "a tag of its own": "%TAG ! tag:x,2000:\n---\nname: !foo x",
}


@pytest.mark.acceptance("S10")
@pytest.mark.parametrize("name", BOMBS)
def test_yaml_bombs_are_refused_at_once(name: str) -> None:
    start = time.process_time()
    with pytest.raises(SpecError) as caught:
        parse_job(BOMBS[name], "job.yaml")
    assert time.process_time() - start < 1
    assert len(caught.value.message) < 25_000
    assert caught.value.message.startswith("job.yaml")


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of two listening sockets, IPv4 and IPv6, that nobody may connect to."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        others = []
        with contextlib.suppress(OSError):  # where there is no IPv6
            others.append(socket.create_server(("::1", port), family=socket.AF_INET6))
        yield port
        for listening in (one, *others):
            listening.setblocking(False)
            with pytest.raises(BlockingIOError):
                listening.accept()
        for listening in others:
            listening.close()


@pytest.mark.acceptance("S11")
@pytest.mark.parametrize("allow", [(), ("http://", "https://"), ("s3://bucket/",)])
def test_listed_private_addresses_see_no_connection(tmp_path: Path, silent: int, allow: tuple[str, ...]) -> None:
    hosts = [
        "127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0.0.0.0", "[::1]", "[::]",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]",
    ]  # fmt: skip
    entries = [f"{scheme}://{host}:{silent}/a.jpg" for host in hosts for scheme in ("http", "https", "HTTP", "ftp")]
    entries += [
        f"http://user:pw@127.0.0.1:{silent}/", f"http://example.org@127.0.0.1:{silent}/", "data:image/png;base64,AA",
        f"simplecache::http://127.0.0.1:{silent}/a", f"s3://b/a::http://127.0.0.1:{silent}/", "file:///etc/passwd",
        "/etc/passwd", "../../etc/passwd", "local:///etc/passwd", f"//127.0.0.1:{silent}/a", "file://localhost/etc/passwd",
        f"zip://a::http://127.0.0.1:{silent}/", "http://169.254.169.254/latest", "http://[fd00:ec2::254]/latest",
        f"gopher://127.0.0.1:{silent}/", f"sftp://127.0.0.1:{silent}/a", f"http:127.0.0.1:{silent}/", "memory://x",
        f"http://127.0.0.1:{silent}\\@example.org/", f"http://[::ffff:127.0.0.1%25lo]:{silent}/",
    ]  # fmt: skip
    (tmp_path / "l.txt").write_text("\n".join(entries))
    codes = read_all(tmp_path / "l.txt", allow=allow).codes
    wrong = [entry for entry, code in zip(entries, codes, strict=True) if code not in {"refused_uri", "unreadable"}]
    assert wrong == []
    assert codes.count("refused_uri") >= len(entries) - 4


@pytest.mark.acceptance("S11")
@pytest.mark.timeout(20)
def test_a_listed_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"x")
    (tmp_path / "c.jpg").symlink_to("/dev/zero")
    (tmp_path / "l.txt").write_text("a.jpg\nb.jpg\nc.jpg")
    assert read_all(tmp_path / "l.txt").codes == ["refused_uri", None, "refused_uri"]


SECRET_URIS = [
    f"https://bucket.s3.amazonaws.com/a.jpg?X-Amz-Credential={KEY}&X-Amz-Signature=deadbeefcafe",
    "https://account.blob.core.windows.net/c/a.jpg?sv=2024&sig=deadbeefcafe",
    "https://storage.googleapis.com/b/a.jpg?X-Goog-Signature=deadbeefcafe",
    "https://user:deadbeefcafe@host.org/a.jpg",
    "s3://key:deadbeefcafe@bucket/a.jpg",
    f"s3://{KEY}/deadbeefcafe?token=deadbeefcafe",
]


@pytest.mark.acceptance("S12", "S13")
def test_secrets_of_listed_uris_are_written_nowhere(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("url,n\n" + "".join(f'"{uri}",{i}\n' for i, uri in enumerate(SECRET_URIS)))
    for columns in (None, ("url", "n")):
        got = read_all(tmp_path / "l.csv", columns=columns, allow=("https://", "s3://"))
        assert got.codes == ["refused_uri"] * len(SECRET_URIS)
        got.inventory.write(str(tmp_path / "inventory.parquet"))
        kept = pq.read_table(tmp_path / "inventory.parquet").to_pylist()
        for text in (repr(got.rows), repr(kept)):
            assert "deadbeefcafe?token=deadbeef" not in text
            assert KEY not in text
            assert text.count("deadbeefcafe") == text.count("/deadbeefcafe")
    assert masked("s3://bucket/design?size=3&signal=x") == "s3://bucket/design?size=3&signal=x"


@pytest.mark.acceptance("S12", "S13")
@pytest.mark.parametrize(
    ("uri", "said"),
    [
        (SECRET_URIS[0], "holds an AWS access key"),
        (SECRET_URIS[1], "holds a signed query"),
        (SECRET_URIS[3], "holds a user name and password"),
        ("s3://b/${AWS_SECRET_ACCESS_KEY}", "AWS_SECRET_ACCESS_KEY is a secret by its name"),
        ("s3://b/deadbeefcafe/x", "holds the value of AWS_SECRET_ACCESS_KEY"),
        ("s3://b/${INNOCENT}/x", "holds the value of AWS_SECRET_ACCESS_KEY"),
    ],
)
@pytest.mark.parametrize("by_option", [False, True])
def test_no_message_repeats_a_secret(monkeypatch: pytest.MonkeyPatch, uri: str, said: str, by_option: bool) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "deadbeefcafe")
    monkeypatch.setenv("INNOCENT", "deadbeefcafe")
    text = 'name: x\nsource: {uri: "%s"}\nmodel: {uri: "builtin:sample"}\noutput: {uri: /tmp/out}\n'
    with pytest.raises(SpecError, match=said) as caught:
        parse_job(text % ("x" if by_option else uri), "job.yaml", [f"source.uri={uri}"] if by_option else [])
    assert "deadbeefcafe" not in caught.value.message
    assert KEY not in caught.value.message


def test_the_search_for_secrets_spares_ordinary_texts() -> None:
    for text in ("s3://b/sk-learn/digits/image-000000000000001.jpg", "hf://datasets/o/n@main/a.jpg", "a?design=1&x=2",
                 "abfs://c@account.dfs.core.windows.net/a.jpg", "https://h.org:8080/a@2x.jpg"):  # fmt: skip
        assert find_secret(text, {"PATH": "s3://b/sk-learn", "SHORT_TOKEN": "a"}) == ""
        assert masked(text) == text


@pytest.mark.acceptance("S12")
@pytest.mark.slow
def test_secrets_are_in_no_file_of_an_output(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "SOME_PASSWORD"):
        monkeypatch.setenv(name, f"deadbeefcafe{name.lower()}")
    write_sample(str(tmp_path / "in"), 3, "folder", 4)
    names = sorted(str(p) for p in (tmp_path / "in").rglob("*.jpg"))
    (tmp_path / "in" / "l.csv").write_text("url\n" + "".join(f'"{uri}"\n' for uri in [*names, *SECRET_URIS[:5]]))
    done = run(tmp_path / "in" / "l.csv", tmp_path / "out", policy={"max_failed_fraction": 1.0})
    assert (done.images_ok, done.images_failed) == (3, 5)
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    for path in files:
        text = repr(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_text()
        assert "deadbeefcafe" not in text, path
        assert KEY not in text, path
    assert {"spec.yaml", "lineage.json", "inventory.parquet", "manifest.json"} <= {p.name for p in files}


@pytest.mark.acceptance("S12")
def test_secrets_are_in_nothing_that_is_written_or_printed(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is refused, the one after it, and all commands that look at them; without Ray."""
    names = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "RAY_AUTH_TOKEN", "SOME_PASSWORD")
    for name in names:
        monkeypatch.setenv(name, f"deadbeefcafe{name.lower()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    write_sample(str(tmp_path / "in"), 3, "folder", 4)
    uris = [*sorted(map(str, (tmp_path / "in").rglob("*.jpg"))), *SECRET_URIS[:5]]
    rows = [f'"{uri}","seen at {SECRET_URIS[n % 5]} then"' for n, uri in enumerate(uris)]
    listed = tmp_path / "in/l.csv"
    listed.write_text("url,note\n" + "\n".join(rows) + "\n")
    job, cluster, out = tmp_path / "job.yaml", tmp_path / "cluster.yaml", tmp_path / "out"
    text = "name: x\nsource: {uri: '%s', columns: [note]}\nmodel: {uri: 'builtin:sample'}\noutput: {uri: '%s'}\n"
    text += "compute: {segment_rows: 3}\n"
    job.write_text(text % (listed, out))
    cluster.write_text(text % ("s3://bucket/in/l.csv", "s3://bucket/out"))
    commands: list[tuple[int, tuple[object, ...]]] = [
        (0, ("validate", job)),
        (3, ("run", job, "--set", "policy.max_failed_fraction=0")),
        (0, ("status", out)),
        (0, ("run", job, "--verbose", "--set", "policy.max_failed_fraction=1")),
        (0, ("show", out, "--pictures", tmp_path / "pictures")),
        (0, ("status", out)),
        (0, ("query", out, "SELECT * FROM images")),
        (0, ("verify", out)),
        (0, ("gc", out, "--dry-run")),
        (0, ("render", cluster, "--target", "rayjob")),
    ]
    commands += [
        (2, ("validate", job, "--set", f"source.uri={uri}")) for uri in (*SECRET_URIS, "s3://b/${SOME_PASSWORD}")
    ]
    written = [(name, command(name, job).stdout) for name in ("plan", "validate")]
    with without_ray():
        for status_, arguments in commands:
            more = (
                ("--json",) if arguments[0] in {"validate", "plan", "run", "show", "status", "query", "verify"} else ()
            )
            for each in ((*arguments,), (*arguments, *more))[: 1 + len(more)]:
                ended = command(*each)
                assert ended.status == status_, (each, ended)
                written.append((f"{each} printed", ended.stdout + ended.stderr))
            if status_ == 3:
                written += [(str(p), _text_of(p)) for p in out.rglob("*") if p.is_file()]
                assert {"failed.csv", "refused.json"} <= {Path(name).name for name, _ in written}
    files = [p for p in (*out.rglob("*"), *(tmp_path / "pictures").rglob("*")) if p.is_file()]
    assert {"spec.yaml", "lineage.json", "inventory.parquet", "stats.json"} <= {p.name for p in files}
    for name, content in (*written, *((str(p), _text_of(p)) for p in files)):
        assert "deadbeefcafe" not in content, name
        assert KEY not in content, name


def _text_of(path: Path) -> str:
    if path.suffix == ".parquet":
        return repr(pq.read_table(path).to_pylist())
    return path.read_bytes().decode(errors="replace")


@pytest.mark.acceptance("S14")
def test_metacharacters_in_partitions_and_places_are_data(tmp_path: Path) -> None:
    evil = ["a'; DROP VIEW images; --", "../../../etc", 'x"y', "a=b", "%2e%2e", "*"]
    images = [
        FakeImage(f"{i}'.jpg", ((0, 0.5, 1, 2, 3, 4),), carried=(("camera", text),)) for i, text in enumerate(evil)
    ]
    made = FakeOutput(tmp_path / "it's [a] place")
    made.add_run(RUN, images, partition_by=("camera",), shard_uri="/data/' OR 1=1 --")
    rows = query(made.uri, "SELECT DISTINCT camera FROM detections JOIN images USING (image_id, camera)").to_pylist()
    assert {row["camera"] for row in rows} == set(evil)
    assert {p.name for p in tmp_path.iterdir()} == {"it's [a] place"}


@pytest.mark.acceptance("S15")
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM query_table('{secret}')",
        "SELECT * FROM read_json('{secret}')",
        "SELECT * FROM read_ndjson_objects('{secret}')",
        "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM read_text(''{secret}'')'))",
        "SELECT * FROM arrow_scan(1, 2, 3)",
        "SELECT * FROM read_text('memory://secret/a.txt')",
        "SELECT * FROM which_secret('s3://x', 's3')",
        "WITH x AS (INSERT INTO runs VALUES (1) RETURNING *) FROM x",
        "SELECT * FROM enable_profiling()",
        "SELECT DATE '290309-12-22' AS d",
    ],
)
def test_queries_reach_nothing_else(tmp_path: Path, sql: str) -> None:
    made = FakeOutput(tmp_path / "out")
    made.add_run(RUN, some_images(5))
    (tmp_path / "secret.txt").write_text("secret")
    with pytest.raises(SpecError) as caught:
        to_csv(query(made.uri, sql.format(secret=tmp_path / "secret.txt")))
    assert "\n" not in caught.value.message
    assert query(made.uri, "SELECT count(*) AS n FROM images").to_pylist() == [{"n": 5}]


@pytest.mark.acceptance("S16")
def test_column_names_in_csv_are_no_formulas() -> None:
    assert to_csv(pa.table({"=cmd|' /C calc'!A0": ["@x"], "\x1b[2J": ["\t=1"]})).splitlines() == [
        "'=cmd|' /C calc'!A0,\\x1b[2J",
        "'@x,\\t=1",
    ]


@pytest.mark.acceptance("S16")
def test_a_hostile_output_cannot_steer_the_terminal(tmp_path: Path) -> None:
    from rich.console import Console

    made = FakeOutput(tmp_path / "out")
    evil = "\x1b]0;title\x07\x1b[2J\r\u202e\x9b31m"
    made.add_run(RUN, [FakeImage(f"{evil}.jpg", ((0, 0.5, 1, 2, 3, 4),))], labels=[evil], shard_uri=f"/{evil}")
    records = made.run_folder(RUN)
    for name, changes in (
        ("manifest.json", {"name": evil}),
        ("lineage.json", {"model": {"uri": evil, "family": evil}}),
    ):
        (records / name).write_text(json.dumps(json.loads((records / name).read_text()) | changes))
    (records.parent / f"x{evil}").mkdir()
    console = Console(width=100, force_terminal=False, no_color=True)
    with console.capture() as capture:
        render_show(show(made.uri), console)
        render_status(status(made.uri), console)
        render_verify(inspect_output(made.uri), console)
    assert not set(capture.get()) & set(evil.replace("]0;title", "").replace("[2J", "").replace("31m", ""))


@pytest.mark.acceptance("S16")
def test_hostile_names_steer_no_terminal_and_no_table(command: Command, tmp_path: Path) -> None:
    """Files with such names go through all commands, and through a run that is refused for them; without Ray."""
    evil = ["\x1b]0;title\x07", "\x1b[2J", "=cmd|' calc'!A0", "+1", "-1+2", "@SUM(1)", "\r=1", "\t=1", "\u202e",
            "\x9b31m", "<img src=http:x>", "[red]x", "a\nb"]  # fmt: skip
    folder, out, job = tmp_path / "in", tmp_path / "out", tmp_path / "job.yaml"
    folder.mkdir()
    for n, name in enumerate(evil):
        (folder / f"{name}{n}.jpg").write_bytes(b"bad" if n % 2 else b"image")
        (folder / f"{name}{n}.psd").write_bytes(b"passed over")
    job.write_text(
        f"name: x\nsource: {{uri: '{folder}'}}\nmodel: {{uri: 'builtin:sample'}}\n"
        f"output: {{uri: '{out}'}}\ncompute: {{segment_rows: 3}}\n"
    )
    printed = [command("plan", job, "--no-measure")]
    failed = "SELECT uri, substr(uri, length(uri) - strpos(reverse(uri), '/') + 2) AS name, error_message FROM images"
    with without_ray():
        printed.append(command("run", job, "--set", "policy.max_failed_fraction=0"))
        (listed,) = out.rglob("failed.csv")
        csvs = [listed.read_text()]
        printed += [command("status", out), command("run", job, "--verbose", "--set", "policy.max_failed_fraction=1")]
    printed += [command(*each) for each in (("show", out), ("status", out), ("verify", out), ("gc", out, "--dry-run"))]
    printed += [command("query", out, failed, *more) for more in ((), ("--json",), ("--csv",))]
    assert [ended.status for ended in printed] == [0, 3, *[0] * 9]
    csvs.append(printed[-1].stdout)
    for ended in printed:
        text = ended.stdout + ended.stderr
        assert not {c for c in text if c != "\n" and (ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c == "\u202e")}, ended
    for text in csvs:
        cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
        assert len(cells) > len(evil)
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


def _spec(source: Path, out: Path) -> JobSpec:
    return JobSpec(
        name="x",
        source=SourceSpec(uri=storage.normalize(str(source))),
        model=ModelSpec(uri="builtin:sample"),
        output=OutputSpec(uri=storage.normalize(str(out))),
    )


@pytest.mark.acceptance("S20")
def test_outputs_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "away").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "images").symlink_to(tmp_path / "in")
    places = ["in", "in/sub", "x/../in", "link", "link/sub", "away", "out", "in/../in/sub/../.."]
    for place in places[:-1]:
        spec = _spec(tmp_path / "in", tmp_path / place)
        with pytest.raises(OutputError):
            check_apart(spec, spec.output.uri)
    spec = _spec(tmp_path / "in", tmp_path / "away" / "new")
    check_apart(spec, spec.output.uri)


@pytest.mark.acceptance("S20")
@pytest.mark.parametrize("place", ["in", "in/sub", "x/../in", "link", "link/sub", "away", "out", "folder/file", "file"])
def test_no_command_writes_where_an_output_leads_elsewhere(place: str, command: Command, tmp_path: Path) -> None:
    """The whole command, without Ray: nothing on the disk is changed, not even by the probes of a run."""
    write_sample(str(tmp_path / "in"), 2, "folder", 4)
    for name in ("in/sub", "elsewhere", "out"):
        (tmp_path / name).mkdir(exist_ok=True)
    for name, target in (("link", "in"), ("away", "elsewhere"), ("out/images", "in")):
        (tmp_path / name).symlink_to(tmp_path / target)
    for name in ("file", "elsewhere/precious.parquet"):
        (tmp_path / name).write_text("precious")
    (tmp_path / "folder").symlink_to(tmp_path / "file")
    job = tmp_path / "job.yaml"
    job.write_text(
        f"name: x\nsource: {{uri: '{tmp_path / 'in'}'}}\nmodel: {{uri: 'builtin:sample'}}\n"
        f"output: {{uri: '{tmp_path / place}'}}\ncompute: {{segment_rows: 3}}\n"
    )
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with without_ray():
        ended = command("run", job, "--json")
    assert (ended.status, ended.error["exit_status"]) == (2, 2)
    assert "Traceback" not in ended.stderr
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.acceptance("S20")
@pytest.mark.parametrize("value", ["../../x", "/etc", "..", ".", "a/../../b", "\0", "%2e%2e%2f"])
def test_no_partition_leaves_its_table(value: str, command: Command, tmp_path: Path) -> None:
    write_sample(str(tmp_path / "in"), 2, "folder", 4)
    names = sorted(str(p) for p in (tmp_path / "in").rglob("*.jpg"))
    pq.write_table(pa.table({"url": names, "city": [value, "Bonn"]}), tmp_path / "in/l.parquet")
    job, out = tmp_path / "job.yaml", tmp_path / "a/b/c/out"
    job.write_text(
        f"name: x\nsource: {{uri: '{tmp_path}/in/l.parquet', format: uri_list}}\nmodel: {{uri: 'builtin:sample'}}\n"
        f"output: {{uri: '{out}', partition_by: [city]}}\ncompute: {{segment_rows: 3}}\n"
    )
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    with without_ray():
        ended = command("run", job)
    assert ended.status in {0, 2}
    assert "Traceback" not in ended.stderr
    new = {p for p in tmp_path.rglob("*") if p.is_file()} - before
    assert all(p.resolve().is_relative_to(out) for p in new)
    tables = [p.relative_to(out).parts for p in new if p.suffix == ".parquet" and "_batchdet" not in p.parts]
    assert all(len(parts) == 3 and parts[1].startswith("city=") for parts in tables)
    if ended.status == 0:
        found = query(str(out), "SELECT DISTINCT city FROM images ORDER BY city").to_pylist()
        assert {row["city"] for row in found} == {value, "Bonn"}


def _damage(name: str, change: Any) -> Any:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return apply


def _part(**changes: Any) -> Any:
    def apply(folder: Path) -> None:
        raw = json.loads((folder / "manifest.json").read_text())
        raw["images"][0].update(changes)
        (folder / "manifest.json").write_text(json.dumps(raw))

    return apply


HOSTILE_RECORDS = {
    "depth": lambda folder: (folder / "manifest.json").write_text("[" * 200_000),
    "depth of lineage": lambda folder: (folder / "lineage.json").write_text("[" * 200_000),
    "sql in the run id": _damage("manifest.json", {"run_id": "x' OR 1=1; COPY (SELECT 1) TO '/tmp/x' --"}),
    "a number as run id": _damage("manifest.json", {"run_id": 5}),
    "a number as time": _damage("manifest.json", {"created_at": 5}),
    "text as count": _damage("manifest.json", {"images_listed": "a"}),
    "a count without end": _damage("manifest.json", {"images_listed": 10**30}),
    "sql in a partition": _damage("manifest.json", {"partition_by": ['a"; DROP']}),
    "an absolute path": _part(path="/etc/passwd"),
    "a path that climbs": _part(path="images/../../../etc/passwd"),
    "a path with dots for a slice": _part(path="images/../part.parquet"),
    "a path to a store": _part(path="s3://b/x.parquet"),
    "a path to another table": _part(path="detections/run_date=2026-11-22/part-0.parquet"),
    "a number as path": _part(path=5),
    "no number as size": _part(size_bytes=float("nan")),
    "stats of another shape": _damage("stats.json", {"images": 5}),
    "lineage of another shape": _damage("lineage.json", {"model": 5}),
    "a model of another shape": _damage("lineage.json", {"model": {"sha256": 5, "uri": ["x"]}}),
    "a yaml bomb": lambda folder: (folder / "spec.yaml").write_text(
        "a: &a [x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(1000))
    ),
    "an object in the spec": lambda folder: (folder / "spec.yaml").write_text('!!python/object/apply:os.system ["id"]'),
}


@pytest.mark.acceptance("S20", "S24")
@pytest.mark.parametrize("name", HOSTILE_RECORDS)
def test_records_that_somebody_else_wrote_give_typed_errors(tmp_path: Path, name: str) -> None:
    from rich.console import Console

    made = FakeOutput(tmp_path / "out")
    made.add_run(RUN, some_images(8))
    HOSTILE_RECORDS[name](made.run_folder(RUN))
    console = Console(file=io.StringIO())
    uses = [
        lambda: query(made.uri, "SELECT count(*) FROM images"),
        lambda: render_show(show(made.uri), console),
        lambda: render_status(status(made.uri), console),
        lambda: render_verify(inspect_output(made.uri), console),
        lambda: read_spec(made.uri, RUN),
        lambda: open_results(made.uri).images().to_arrow(),
    ]
    refused = 0
    for use in uses:
        try:
            use()
        except BatchdetError:
            refused += 1
    assert refused or name == "depth of lineage"


@pytest.mark.acceptance("S21")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
@pytest.mark.parametrize("part", ["", "models", "objects", "locks"])
def test_a_cache_that_somebody_else_made_is_refused(tmp_path: Path, part: str) -> None:
    cache = tmp_path / "cache"
    (cache / part).mkdir(parents=True, mode=0o700)
    cache.chmod(0o700)
    os.chown(cache / part, 12345, 12345)
    model = tiny_onnx.end2end(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="belongs to another user"):
        fetch_model(str(model), cache_dir=str(cache))


@pytest.mark.acceptance("S8", "S21")
def test_a_cached_model_that_was_changed_is_not_loaded(tmp_path: Path) -> None:
    model = tiny_onnx.end2end(tmp_path / "m.onnx")
    cache = str(tmp_path / "cache")
    local = fetch_model(str(model), cache_dir=cache)
    evil = tiny_onnx.end2end(tmp_path / "evil.onnx", [[1, 1, 2, 2, 0.9, 0]]).read_bytes()
    Path(local.path).write_bytes(evil)
    again = fetch_model(str(model), local.sha256, cache)
    assert Path(again.path).read_bytes() == model.read_bytes() != evil
    model.write_bytes(evil)
    Path(local.path).write_bytes(evil)
    with pytest.raises(ModelError, match=r"model\.sha256"):
        fetch_model(str(model), local.sha256, cache)


_SERVERS = re.compile(r"^(bind|create_server|\w*(Server|Listener))$")
_ANY_HOST = {"batchdet/cluster/render.py", "infra/kuberay/cluster.yaml"}
"""Pods of a cluster reach each other by their addresses; tokens guard them (S18)."""


def _hosts_of_servers(path: Path) -> Iterator[str]:
    """Yield on what each server listens that a source file makes, as it is written there."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if _SERVERS.match(name) and isinstance(first, ast.Tuple) and len(first.elts) == 2:
                yield ast.literal_eval(first.elts[0]) if isinstance(first.elts[0], ast.Constant) else "computed"


@pytest.mark.acceptance("S23")
def test_no_server_of_ours_listens_to_other_machines(s3: S3Server) -> None:
    """By the sources, and by the sockets of the servers that tests run."""
    repository = Path(__file__).parents[2]
    folders = ("batchdet", "benchmarks", "tests", "jobs")
    sources = [path for folder in folders for path in sorted((repository / folder).rglob("*.py"))]
    hosts = [host for path in sources for host in _hosts_of_servers(path)]
    assert len(hosts) >= 5
    assert set(hosts) <= {"127.0.0.1", "::1"}
    texts = [*sources, *(path for path in (repository / "infra").rglob("*") if path.suffix in {".yaml", ".sh"})]
    naming = {str(p.relative_to(repository)) for p in texts if "0.0.0.0" in p.read_text(encoding="utf-8")}
    assert {name for name in naming if not name.startswith("tests/")} <= _ANY_HOST
    with fault_proxy(s3):
        found = [address for address, _ in listening([s3.pid, *descendants(s3.pid), os.getpid()])]
    assert len(found) >= 3
    assert set(found) <= {"127.0.0.1", "::1"}
