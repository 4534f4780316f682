"""Verification: whatever is changed after the commit is found and named (ACCEPTANCE R33)."""

import hashlib
import json
import pickle
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from batchdet.errors import OutputError, VerificationError
from batchdet.results.verify import inspect_output, render_verify, verify

FIRST, SECOND = "20261122-100000-aaaa", "20261123-100000-bbbb"


@pytest.fixture
def filled(output, make_images):
    output.add_run(FIRST, make_images(20))
    return output


def rewrite(output, manifest, table, change, parts=None):
    """Change the rows of a table and make size, digest and row count in the manifest agree with them."""
    new = []
    for number, part in enumerate(getattr(manifest, table)):
        path = output.folder / part.path
        if parts is None or number in parts:
            pq.write_table(change(pq.read_table(path, partitioning=None)), path)
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        new.append(replace(part, rows=pq.read_metadata(path).num_rows, size_bytes=len(data), sha256=digest))
    output.change_manifest(manifest, **{table: tuple(new)})
    return replace(manifest, **{table: tuple(new)})


def problems(output):
    found = inspect_output(output.uri).problems
    if found:
        with pytest.raises(VerificationError):
            verify(output.uri)
    return "\n".join(found)


def test_all_is_well(filled, make_images):
    filled.add_run(SECOND, make_images(12, first=12))
    hashed = []
    report = verify(filled.uri, progress=lambda done, of: hashed.append((done, of)))
    assert report.problems == report.warnings == []
    assert report.runs == [FIRST, SECOND]
    assert report.images == 32
    assert hashed == sorted(hashed)
    assert len(hashed) >= report.files
    assert {of for _, of in hashed} == {hashed[-1][0]} == {report.size_bytes}
    assert json.loads(json.dumps(report.to_dict()))["files"] == report.files
    assert verify(filled.uri, run=SECOND).images == 12


@pytest.mark.parametrize("table", ["images", "detections"])
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_one_flipped_bit_names_the_file(filled, table, place):
    path = next(iter(sorted((filled.folder / table).rglob("*.parquet"))))
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationError, match=rf"{path.name}: sha256 is") as caught:
        verify(filled.uri)
    assert caught.value.exit_status == 6
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert len(caught.value.report.problems) == 1


def test_a_missing_and_a_shortened_file_are_named(filled):
    first, second = sorted((filled.folder / "images").rglob("*.parquet"))[:2]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-5])
    text = problems(filled)
    assert f"{first.name}: missing" in text
    assert f"{second.name}: " in text
    assert "bytes, the manifest says" in text


@pytest.mark.acceptance("R43")
@pytest.mark.parametrize("name", ["spec.yaml", "stats.json", "lineage.json", "inventory.parquet", "manifest.json"])
def test_damage_in_any_record_names_it(filled, name):
    path = filled.run_folder(FIRST) / name
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", bytes([whole[0] ^ 1]) + whole[1:], b"\xff" * len(whole)):
        path.write_bytes(damaged)
        text = problems(filled)
        assert name in text
        assert "Traceback" not in text
        assert "\n" not in text
    path.write_bytes(whole)
    assert verify(filled.uri)
    if name == "manifest.json":
        return
    path.unlink()
    assert f"{name}: missing" in problems(filled)


def test_a_wrong_row_count_in_the_manifest(output, make_images):
    manifest = output.add_run(FIRST, make_images(20))
    part = manifest.detections[0]
    output.change_manifest(manifest, detections=(replace(part, rows=part.rows + 1), *manifest.detections[1:]))
    assert f"{part.rows} rows, the manifest says {part.rows + 1}" in problems(output)


class TestConservation:
    """Counts that do not add up, with digests that do."""

    @pytest.fixture
    def manifest(self, output, make_images):
        return output.add_run(FIRST, make_images(20))

    def test_a_lost_image(self, output, manifest):
        rewrite(output, manifest, "images", lambda t: t.slice(1), parts=[0])
        assert "20 images were listed, 19 rows" in problems(output)

    def test_an_image_twice(self, output, manifest):
        rewrite(output, manifest, "images", lambda t: pa.concat_tables([t, t.slice(0, 1)]), parts=[0])
        assert "1 image ids occur more than once" in problems(output)

    def test_a_lost_detection(self, output, manifest):
        rewrite(output, manifest, "detections", lambda t: t.slice(1), parts=[0])
        text = problems(output)
        assert "detections, the table holds" in text
        assert "1 images have another detection_count than rows in detections" in text

    def test_a_detection_moved_to_another_image(self, output, manifest):
        def move(table):
            ids = table["image_id"].to_pylist()
            return table.set_column(1, table.schema.field(1), pa.array(["0" * 32, *ids[1:]]))

        rewrite(output, manifest, "detections", move, parts=[0])
        assert "detections of 1 images have no row in images" in problems(output)

    def test_a_failed_image_called_ok(self, output, manifest):
        def mend(table):
            return table.set_column(
                table.schema.get_field_index("status"), table.schema.field("status"), pa.array(["ok"] * len(table))
            )

        rewrite(output, manifest, "images", mend)
        assert "the manifest says 18 ok and 2 failed, rows 20 and 0" in problems(output)

    def test_rows_of_another_run(self, output, manifest):
        rewrite(output, manifest, "images", lambda t: t.set_column(0, t.schema.field(0), pa.array(["x"] * len(t))))
        assert "20 images carry the id of another run" in problems(output)

    def test_a_changed_label_is_not_what_the_statistics_say(self, output, manifest):
        def rename(table):
            return table.set_column(4, table.schema.field(4), pa.array(["bus"] * len(table)))

        rewrite(output, manifest, "detections", rename)
        assert "stats.json says detections.by_class" in problems(output)

    def test_statistics_that_are_none(self, output, manifest):
        data = b'{"images": {}}'
        (output.run_folder(FIRST) / "stats.json").write_bytes(data)
        output.change_manifest(manifest, stats_sha256=hashlib.sha256(data).hexdigest())
        assert "stats.json lacks" in problems(output)


def test_files_that_no_run_lists_are_warned_of(filled):
    (filled.folder / "detections" / "run_date=2026-11-22" / "part-stray.parquet").write_bytes(b"x")
    (report := inspect_output(filled.uri))
    assert report.problems == []
    assert report.warnings == [
        "detections/run_date=2026-11-22/part-stray.parquet: no committed run lists this file",
    ]


def test_a_report_is_printed(filled):
    (filled.folder / "images" / "stray.parquet").write_bytes(b"x")
    next(iter((filled.folder / "images").rglob("part-*.parquet"))).unlink()
    console = Console(width=90, no_color=True, force_terminal=False)
    with console.capture() as capture:
        render_verify(inspect_output(filled.uri), console)
    text = capture.get()
    assert "problem: images/" in text
    assert "warning: images/stray.parquet" in text
    assert "20 images" in text
    assert text.rstrip().endswith("1 problem")


def test_no_output(tmp_path):
    with pytest.raises(OutputError, match="no results here"):
        verify(str(tmp_path))
