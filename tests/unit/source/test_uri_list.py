import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchdet.errors import SourceError
from batchdet.source.inventory import list_inventory, plan_shards
from batchdet.source.reader import read_segments
from batchdet.spec import SourceSpec
from tests.unit.source.corpus import image, read_all


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    (tmp_path / "img").mkdir()
    names = [f"img/{i}.jpg" for i in range(5)]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(image(i))
    return names


def _write(folder: Path, kind: str, names: list[str]) -> Path:
    path = folder / f"list.{kind}"
    if kind == "csv":
        path.write_text("url,n\n" + "".join(f"{name},{i}\n" for i, name in enumerate(names)))
    elif kind == "tsv":
        path.write_text("n\turl\n" + "".join(f"{i}\t{name}\n" for i, name in enumerate(names)))
    elif kind in {"jsonl", "ndjson"}:
        path.write_text("\n".join(json.dumps({"url": name, "n": i}) for i, name in enumerate(names)))
    elif kind == "parquet":
        pq.write_table(pa.table({"url": names, "n": range(len(names))}), path)
    else:
        path.write_text("\r\n".join(names) + "\n\n")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "ndjson", "parquet", "txt"])
@pytest.mark.parametrize("absolute", [False, True])
def test_every_kind_of_list(tmp_path: Path, pictures: list[str], kind: str, absolute: bool) -> None:
    names = [f"{tmp_path}/{name}" for name in pictures] if absolute else pictures
    path = _write(tmp_path, kind, names)
    got = read_all(path, segment_rows=2)
    assert got.inventory.format == "uri_list"
    assert got.members == names
    assert got.data == [image(i) for i in range(5)]
    assert got.rows[3]["uri"] == f"{tmp_path}/img/3.jpg"
    assert got.rows[3]["shard_uri"] == str(path)
    assert got.rows[3]["size_bytes"] == 200
    if kind != "txt":
        assert [r["n"] for r in got.rows] == list(range(5))
        assert got.segments[0].members.schema.field("n").type == pa.int64()


def test_several_lists_are_sliced_apart(tmp_path: Path, pictures: list[str]) -> None:
    for part in ("a", "b"):
        (tmp_path / f"{part}.csv").write_text("path,x\n" + "".join(f"{n},{part}\n" for n in pictures))
    got = read_all(f"{tmp_path}/*.csv", slice_rows=3)
    assert len(got.segments) == 4
    assert [r["shard_uri"] for r in got.rows] == [f"{tmp_path}/a.csv"] * 5 + [f"{tmp_path}/b.csv"] * 5
    assert got.codes == [None] * 10
    assert [r["position"] for r in got.rows] == list(range(10))


def test_duplicates_and_empty_entries(tmp_path: Path, pictures: list[str]) -> None:
    (tmp_path / "l.csv").write_text(f"url,n\n{pictures[0]},1\n,2\n{pictures[0]},3\n{pictures[1]},4\n")
    got = read_all(tmp_path / "l.csv", slice_rows=2)
    assert got.members == [pictures[0], "#1", f"{pictures[0]}#2", pictures[1]]
    assert got.codes == [None, "null_image", "duplicate_member", None]
    assert [r["n"] for r in got.rows] == [1, 2, 3, 4]


def test_id_column_names_the_images(tmp_path: Path, pictures: list[str]) -> None:
    (tmp_path / "l.jsonl").write_text(
        "\n".join(json.dumps({"url": n, "key": k}) for n, k in zip(pictures, [7, 8, 7, 9, 10], strict=True))
    )
    got = read_all(tmp_path / "l.jsonl", id_column="key")
    assert got.members == ["7", "8", "7#2", "9", "10"]
    assert got.codes == [None, None, "duplicate_member", None, None]


def test_csv_types_are_those_that_all_values_have(tmp_path: Path, pictures: list[str]) -> None:
    rows = ["url,code,n,f,b,mixed,none,quoted,image_id"]
    rows += [f'{p},00{i},{i},{i}.5,{"true" if i else "false"},{"x" if i == 4 else i},,"a,""b""",{i}' for i, p in
             enumerate(pictures)]  # fmt: skip
    (tmp_path / "l.csv").write_text("\ufeff" + "\n".join(rows))
    schema = read_all(tmp_path / "l.csv").inventory.carried
    assert dict(zip(schema.names, map(str, schema.types), strict=True)) == {
        "code": "string", "n": "int64", "f": "double", "b": "bool", "mixed": "string", "none": "string",
        "quoted": "string", "source_image_id": "int64",
    }  # fmt: skip
    row = read_all(tmp_path / "l.csv").rows[1]
    assert (row["code"], row["quoted"], row["none"]) == ("001", 'a,"b"', None)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("l.csv", "url,n\na,1,2\n", "cannot be read as a list: .*Expected 2 columns, got 3"),
        ("l.csv", "a,b\nx,y\n", r"2 columns of .* could hold the images \(a, b\)"),
        ("l.csv", "url,uri,path\nx,y,z\n", r"2 columns of .* \(url, uri\)"),
        ("l.csv", "image,file_name\nx,y\n", r"\(image, file_name\)"),
        ("l.csv", "n,m\n1,2\n", r"no column of .* \(it has n, m\)"),
        ("l.csv", "url,n,n\nx,1,2\n", "2 columns named 'n'"),
        ("l.jsonl", '{"url": "a"}\n{"url": \n', "cannot be read as a list"),
        ("l.jsonl", '{"url": "a"}\n{"url": 5}\n', "cannot be read as a list"),
    ],
)
def test_bad_lists_are_one_clear_sentence(tmp_path: Path, name: str, content: str, match: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=match):
        list_inventory(SourceSpec(uri=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("name", "content"), [("l.csv", ""), ("l.csv", "url,n\n"), ("l.txt", "\n \n"), ("l.jsonl", "")]
)
def test_a_list_may_name_no_image(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    found = list_inventory(SourceSpec(uri=str(tmp_path / name)))
    assert (found.format, found.objects.num_rows, found.carried.names) == ("uri_list", 0, ["n"] * ("n" in content))


def test_of_several_lists_an_empty_one_does_not_decide_the_columns(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_text("url,other\n")
    (tmp_path / "1.csv").write_text("url,n\na.jpg,1\n")
    found = list_inventory(SourceSpec(uri=f"{tmp_path}/*.csv"))
    assert found.carried == pa.schema([("n", pa.int64())])


def test_list_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(b"url\n\xff\xfe.jpg\n")
    with pytest.raises(SourceError, match=r"l\.csv is not UTF-8 text \(byte 4\)"):
        list_inventory(SourceSpec(uri=str(tmp_path / "l.csv")))


def test_lists_whose_columns_differ(tmp_path: Path, pictures: list[str]) -> None:
    (tmp_path / "a.csv").write_text(f"url,n,s\n{pictures[0]},1,x\n")
    (tmp_path / "b.csv").write_text(f"s,url\ny,{pictures[1]}\n")
    got = read_all(f"{tmp_path}/*.csv")
    assert [(r["n"], r["s"]) for r in got.rows] == [(1, "x"), (None, "y")]
    (tmp_path / "c.csv").write_text(f"url,n\n{pictures[2]},many\n")
    assert [r["n"] for r in read_all(f"{tmp_path}/*.csv").rows] == ["1", None, "many"]


def test_columns_narrow(tmp_path: Path, pictures: list[str]) -> None:
    (tmp_path / "l.csv").write_text(f"url,a,b\n{pictures[0]},1,2\n")
    assert read_all(tmp_path / "l.csv", columns=("b",)).inventory.carried.names == ["b"]
    assert read_all(tmp_path / "l.csv", columns=()).inventory.carried.names == []
    assert read_all(tmp_path / "l.csv", columns=("url", "a")).rows[0]["url"] == pictures[0]
    with pytest.raises(SourceError, match="no column 'c'"):
        read_all(tmp_path / "l.csv", columns=("c",))


@pytest.mark.acceptance("S11")
def test_refused_and_missing_entries_fail_alone(tmp_path: Path, pictures: list[str]) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside.jpg"
    outside.write_bytes(b"secret")
    (tmp_path / "img/link.jpg").symlink_to(outside)
    entries = [
        pictures[0], str(outside), f"../{outside.name}", f"file://{outside}", "img/link.jpg", "img/missing.jpg",
        "data:image/png;base64,AAAA", "http://169.254.169.254/latest/meta-data", "memory://x.jpg",
        "simplecache::s3://b/x.jpg", "FILE:///etc/passwd", "local:///etc/passwd", pictures[1],
    ]  # fmt: skip
    (tmp_path / "l.txt").write_text("\n".join(entries))
    try:
        got = read_all(tmp_path / "l.txt")
    finally:
        outside.unlink()
    assert got.codes == [None, *["refused_uri"] * 4, "unreadable", *["refused_uri"] * 6, None]
    assert b"secret" not in got.data


@pytest.mark.acceptance("S11")
def test_refused_entries_open_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        connected.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    entries = ["http://127.0.0.1:1/a.jpg", "https://example.com/a.jpg", "ftp://example.com/a.jpg", "//host/a.jpg"]
    (tmp_path / "l.txt").write_text("\n".join(entries))
    assert read_all(tmp_path / "l.txt").codes == ["refused_uri"] * 4
    assert connected == []


@pytest.mark.parametrize(
    ("header", "want"),
    [
        ("file_name,image_url", "image_url"), ("path,URL", "URL"), ("key,filepath,image", "filepath"),
        ("key,file_name", "file_name"), ("s3_path,uri,file", "uri"), ("caption,key", "key"),
    ],
)  # fmt: skip
def test_the_most_telling_name_is_the_uri(tmp_path: Path, pictures: list[str], header: str, want: str) -> None:
    names = header.split(",")
    (tmp_path / "l.csv").write_text(header + "\n" + ",".join(pictures[0] if n == want else "x" for n in names))
    got = read_all(tmp_path / "l.csv")
    assert got.data == [image(0)]
    assert len(got.inventory.carried) == len(names) - 1


def test_done_segments_are_not_fetched(tmp_path: Path, pictures: list[str]) -> None:
    path = _write(tmp_path, "csv", pictures)
    source = SourceSpec(uri=str(path))
    inventory = list_inventory(source)
    (shard,) = plan_shards(inventory)
    (tmp_path / pictures[0]).unlink()
    segments = list(read_segments(shard, source, inventory.carried, 2, 1 << 30, frozenset({0})))
    assert [s.segment_index for s in segments] == [1, 2]
    assert [r["n"] for s in segments for r in s.members.to_pylist()] == [2, 3, 4]


def test_too_large_is_not_fetched(tmp_path: Path, pictures: list[str]) -> None:
    path = _write(tmp_path, "txt", pictures)
    assert read_all(path, max_image_bytes=100).codes == ["too_large"] * 5
