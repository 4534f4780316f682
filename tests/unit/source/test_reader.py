from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchdet.errors import ImageError
from batchdet.records.segment import Segment
from batchdet.source.reader import read_image
from batchdet.spec import SourceSpec
from tests.unit.source.corpus import Result, image, read_all, write_tar


@pytest.fixture
def formats(tmp_path: Path) -> dict[str, Path]:
    """The same eight images in every format."""
    names = [f"{i}.jpg" for i in range(8)]
    (tmp_path / "folder").mkdir()
    (tmp_path / "tar").mkdir()
    for i, name in enumerate(names):
        (tmp_path / "folder" / name).write_bytes(image(i))
    write_tar(tmp_path / "tar/0.tar", [(n, image(i)) for i, n in enumerate(names[:5])])
    write_tar(tmp_path / "tar/1.tar.gz", [(n, image(i)) for i, n in enumerate(names[5:], 5)], packed=True)
    pq.write_table(pa.table({"image": [image(i) for i in range(8)], "name": names}), tmp_path / "p.parquet")
    structs = [{"bytes": image(i), "path": n} for i, n in enumerate(names)]
    pq.write_table(pa.table({"image": structs}), tmp_path / "hf.parquet")
    (tmp_path / "l.csv").write_text("url\n" + "\n".join(f"folder/{n}" for n in names))
    pq.write_table(pa.table({"image": [f"folder/{n}" for n in names]}), tmp_path / "uris.parquet")
    return {
        "folder": tmp_path / "folder", "tar": tmp_path / "tar", "parquet": tmp_path / "p.parquet",
        "hf": tmp_path / "hf.parquet", "csv": tmp_path / "l.csv", "uris": tmp_path / "uris.parquet",
    }  # fmt: skip


def test_every_format_gives_the_same_images(formats: dict[str, Path]) -> None:
    got = {name: read_all(path, segment_rows=3) for name, path in formats.items()}
    want = [image(i) for i in range(8)]
    assert {name: result.data for name, result in got.items()} == dict.fromkeys(formats, want)
    assert {code for result in got.values() for code in result.codes} == {None}


def test_every_image_can_be_read_again(formats: dict[str, Path]) -> None:
    for path in formats.values():
        got: Result = read_all(path)
        source = SourceSpec(uri=str(path))
        for row, data in zip(got.rows, got.data, strict=True):
            again = read_image(source, row["uri"], row["shard_uri"], row["member"], row["position"])
            assert again == data


def test_image_that_is_gone_cannot_be_read_again(formats: dict[str, Path]) -> None:
    source = SourceSpec(uri="x")
    tar, table = str(formats["tar"] / "0.tar"), str(formats["parquet"])
    folder, csv = str(formats["folder"]), str(formats["csv"])
    cases = [
        (f"{tar}#no.jpg", tar, "no.jpg", 0, "unreadable"),
        (f"{tar}x#0.jpg", f"{tar}x", "0.jpg", 0, "unreadable"),
        (f"{table}#99", table, "99", 99, "unreadable"),
        (f"{folder}/no.jpg", folder, "no.jpg", 0, "unreadable"),
        ("/etc/passwd", csv, "/etc/passwd", 0, "refused_uri"),
    ]
    for uri, shard_uri, member, position, code in cases:
        with pytest.raises(ImageError) as caught:
            read_image(source, uri, shard_uri, member, position)
        assert caught.value.code == code


def test_segments_travel(formats: dict[str, Path]) -> None:
    for path in formats.values():
        for segment in read_all(path, segment_rows=3).segments:
            (again,) = Segment.from_rows(segment.to_row())
            assert again.members.equals(segment.members)
            assert [bytes(d) for d in again.data] == [bytes(d) for d in segment.data]
