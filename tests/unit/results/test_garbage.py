"""What gc finds among files of every kind, and what it leaves alone."""

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from batchdet import storage
from batchdet.cli import app
from batchdet.errors import OutputError
from batchdet.results.garbage import collect_garbage, render_garbage
from batchdet.results.verify import inspect_output

FIRST, SECOND, THIRD = "20261122-100000-aaaa", "20261123-100000-bbbb", "20261124-100000-cccc"


def put(path, data=b"12345"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def everything(output):
    return sorted(str(p.relative_to(output.folder)) for p in output.folder.rglob("*") if p.is_file())


@pytest.fixture
def littered(output, make_images):
    """One committed run, a run that can never be committed, and what killed processes left."""
    output.add_run(FIRST, make_images(9))
    (output.folder / "_batchdet/lease").mkdir()
    put(output.run_folder(FIRST) / "staged/00ff-00000-last.arrow")
    put(output.run_folder(FIRST) / "parts/images/run_date=2026-11-22/part-x.parquet")
    output.add_run(SECOND, make_images(9), commit=False)
    put(output.folder / "images/run_date=2026-11-22/.partial-abcd_123")
    put(output.folder / ".partial-abcdefgh")
    return output


def test_all_kinds_are_found_and_nothing_else(littered):
    before = everything(littered)
    found = collect_garbage(littered.uri, dry_run=True)
    assert everything(littered) == before
    assert [(item.kind, item.path.split("/")[0], item.files) for item in found.items] == [
        ("part file", "detections", 1),
        ("part file", "images", 1),
        ("partial file", ".partial-abcdefgh", 1),
        ("partial file", "images", 1),
        ("staged", "_batchdet", 1),
        ("staged", "_batchdet", 1),
        ("run", "_batchdet", 3),
    ]
    assert "can never be committed: its lineage.json or inventory.parquet is missing or damaged" in found.items[0].why
    sizes = {path: (littered.folder / path).stat().st_size for path in before}
    removed = collect_garbage(littered.uri)
    assert removed.items == found.items
    gone = set(before) - set(everything(littered))
    assert removed.files == len(gone) == 9
    assert removed.size_bytes == sum(sizes[path] for path in gone)
    assert not littered.run_folder(SECOND).exists()
    report = inspect_output(littered.uri)
    assert (report.problems, report.warnings) == ([], [])
    assert collect_garbage(littered.uri).items == []


def test_what_batchdet_did_not_make_stays(littered):
    others = [
        put(littered.folder / path)
        for path in (
            "notes.txt",
            "images/readme.md",
            "images/part-0.parquet",
            f"images/old-part-{SECOND}-00000.parquet",
            f"detections/part-{SECOND}-00000.parquet.bak",
            f"detections/part-{THIRD}-00000.parquet",
            "_batchdet/runs/mine/staged/x.arrow",
            ".partial-report.pdf",
        )
    ]
    found = collect_garbage(littered.uri)
    assert all(path.exists() for path in others)
    assert found.kept == [
        f"detections/part-{THIRD}-00000.parquet: no run {THIRD} is known here, so whose it is cannot be said"
    ]


def test_a_part_file_that_its_manifest_does_not_list(output, make_images):
    manifest = output.add_run(FIRST, make_images(9))
    put(output.folder / f"images/run_date=2026-11-22/part-{FIRST}-00077.parquet")
    (item,) = collect_garbage(output.uri).items
    assert item.path.endswith("-00077.parquet")
    assert f"the manifest of run {FIRST} does not list it" == item.why
    assert all((output.folder / part.path).exists() for part in (*manifest.images, *manifest.detections))


def test_a_lost_manifest_is_no_reason_to_delete_tables(output, make_images):
    output.add_run(FIRST, make_images(9))
    put(output.run_folder(FIRST) / "_SUCCESS")
    (output.run_folder(FIRST) / "manifest.json").unlink()
    before = everything(output)
    found = collect_garbage(output.uri, unfinished=True)
    assert (found.items, len(found.kept)) == ([], 1)
    assert "has a _SUCCESS but no manifest.json" in found.kept[0]
    assert set(before) <= set(everything(output))


def test_a_damaged_manifest_stops_it(littered):
    put(littered.run_folder(FIRST) / "manifest.json", b"{")
    before = everything(littered)
    with pytest.raises(OutputError, match="not a manifest"):
        collect_garbage(littered.uri)
    assert set(before) <= set(everything(littered))


def test_no_output(tmp_path):
    with pytest.raises(OutputError, match="no results here"):
        collect_garbage(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_incomplete_uploads_on_s3(output, make_images, s3):
    output.add_run(FIRST, make_images(9))
    output.add_run(SECOND, make_images(9), commit=False)
    bucket = s3.bucket("garbage")
    root = f"{bucket}/labels"
    for one in storage.find_all(output.uri):
        storage.write_bytes(root + one.uri.removeprefix(output.uri), storage.read_bytes(one.uri))
    fs, _ = storage.filesystem(root)

    def begin(key):
        upload_id = fs.call_s3("create_multipart_upload", Bucket="garbage", Key=key)["UploadId"]
        fs.call_s3("upload_part", Bucket="garbage", Key=key, UploadId=upload_id, PartNumber=1, Body=b"x" * 1000)

    ours = [f"_batchdet/runs/{SECOND}/staged/0.arrow", f"images/run_date=2026-11-22/part-{SECOND}-00009.parquet"]
    others = ["labels/mine.bin", f"labels2/images/part-{SECOND}-00000.parquet"]
    for key in (*(f"labels/{key}" for key in ours), *others):
        begin(key)
    found = collect_garbage(root)
    assert [(i.path, i.files, i.size_bytes) for i in found.items if i.kind == "upload"] == [(k, 1, 1000) for k in ours]
    left = fs.call_s3("list_multipart_uploads", Bucket="garbage")["Uploads"]
    assert sorted(upload["Key"] for upload in left) == sorted(others)
    assert not any(SECOND in one.uri for one in storage.find_all(root))
    assert inspect_output(root).problems == []
    assert collect_garbage(root).items == []


def test_what_is_printed(littered):
    console = Console(width=80, no_color=True, force_terminal=False)
    with console.capture() as capture:
        render_garbage(collect_garbage(littered.uri, dry_run=True), console)
    lines = capture.get().splitlines()
    assert f"run {FIRST} is committed" in lines
    assert f"  _batchdet/runs/{FIRST}/staged  (staged, 5 B)" in lines
    assert lines[-1].startswith("to remove: 9 files, ")
    done = CliRunner().invoke(app, ["gc", littered.uri, "--json"])
    assert json.loads(done.stdout)["files"] == 9
    assert CliRunner().invoke(app, ["gc", littered.uri]).stdout == "nothing to remove\n"
