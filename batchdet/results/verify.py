"""Whether committed runs are still what they were: every byte against the manifest, every count against the others."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from batchdet import storage
from batchdet.errors import OutputError, VerificationError
from batchdet.results.open import Results, open_results, reason
from batchdet.results.units import format_bytes
from batchdet.table.manifest import MANIFEST_DAMAGED, TABLES, Manifest, PartFile, committed_runs, run_folder
from batchdet.text import counted, escape

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[int, int], None]

_HASHERS: Final = 4
_BLOCK_BYTES: Final = 4 * 1024 * 1024
_SHOWN_PROBLEMS: Final = 5


@dataclass
class VerifyReport:
    """What was looked at and what was found wrong.

    Args:
        output: The output's URI.
        runs: The runs looked at, oldest first.
        files: Part files hashed.
        size_bytes: Their bytes.
        images: Rows of the images tables.
        detections: Rows of the detections tables.
        problems: One sentence each; empty when all is well.
        warnings: Likewise, of what does not touch the runs.
    """

    output: str
    runs: list[str] = field(default_factory=list)
    files: int = 0
    size_bytes: int = 0
    images: int = 0
    detections: int = 0
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def raise_problems(self) -> None:
        """Raise when something is wrong.

        Raises:
            VerificationError: There are problems; the message names the first ones, ``report`` holds everything.
        """
        if not self.problems:
            return
        shown = "; ".join(self.problems[:_SHOWN_PROBLEMS])
        more = f"; and {len(self.problems) - _SHOWN_PROBLEMS} more" if len(self.problems) > _SHOWN_PROBLEMS else ""
        error = VerificationError(f"{self.output}: {shown}{more}")
        error.report = self  # type: ignore[attr-defined]
        raise error


def verify(uri: str, run: str | None = None, progress: Progress | None = None) -> VerifyReport:
    """Check committed runs and raise when something is wrong with them.

    Args:
        uri: The output's folder.
        run: Only this run; null checks every committed run.
        progress: Called with the bytes hashed so far and the bytes in all, by one thread at a time.

    Raises:
        OutputError: There is no such output or run.
        VerificationError: A file or a count is wrong; the message names it, ``report`` holds everything.
    """
    report = inspect_output(uri, run, progress)
    report.raise_problems()
    return report


def inspect_output(uri: str, run: str | None = None, progress: Progress | None = None) -> VerifyReport:
    """Check committed runs and report what is wrong; arguments as in :func:`verify`.

    Raises:
        OutputError: There is no such output or run.
    """
    try:
        results = open_results(uri, run)
    except OutputError as error:
        if error.code != MANIFEST_DAMAGED:
            raise
        return VerifyReport(storage.normalize(uri), problems=[error.message])
    report = VerifyReport(results.uri)
    count = _counter(progress, sum(p.size_bytes for m in results.runs for p in (*m.images, *m.detections)))
    for manifest in results.runs:
        parts = (*manifest.images, *manifest.detections)
        report.runs.append(manifest.run_id)
        report.files += len(parts)
        report.size_bytes += sum(part.size_bytes for part in parts)
        report.images += sum(part.rows for part in manifest.images)
        report.detections += sum(part.rows for part in manifest.detections)
        damaged = _check_files(results.uri, parts, count)
        stats = _check_records(results.uri, manifest, report.problems)
        report.problems += damaged
        if not damaged:
            report.problems += _check_counts(Results(results.uri, [manifest]), manifest, stats)
    report.warnings += _strangers(results.uri)
    return report


def _counter(progress: Progress | None, total_bytes: int) -> Callable[[int], None]:
    """Return a function that adds bytes, from any thread, and tells of the sum."""
    lock, done_bytes = threading.Lock(), 0

    def count(more_bytes: int) -> None:
        nonlocal done_bytes
        with lock:
            done_bytes += more_bytes
            if progress:
                progress(done_bytes, total_bytes)

    return count


def _check_files(out: str, parts: tuple[PartFile, ...], count: Callable[[int], None]) -> list[str]:
    with ThreadPoolExecutor(_HASHERS, thread_name_prefix="verify") as pool:
        found = pool.map(lambda part: _check_file(storage.join(out, part.path), part, count), parts)
        return [problem for problem in found if problem]


def _check_file(uri: str, part: PartFile, count: Callable[[int], None]) -> str | None:
    """Compare one part file's size, digest and rows with the manifest."""
    digest, size_bytes = hashlib.sha256(), 0
    try:
        with storage.open_read(uri) as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                size_bytes += len(block)
                count(len(block))
            if size_bytes != part.size_bytes:
                return f"{part.path}: {size_bytes} bytes, the manifest says {part.size_bytes}"
            if digest.hexdigest() != part.sha256:
                return f"{part.path}: sha256 is {digest.hexdigest()[:16]}…, the manifest says {part.sha256[:16]}…"
            file.seek(0)
            rows = pq.read_metadata(file).num_rows
    except storage.NotFound:
        return f"{part.path}: missing, the manifest lists it"
    except storage.StorageError as error:
        return error.message
    except pa.ArrowInvalid as error:
        return f"{part.path}: not a Parquet file: {error}"
    return None if rows == part.rows else f"{part.path}: {rows} rows, the manifest says {part.rows}"


def _check_records(out: str, manifest: Manifest, problems: list[str]) -> dict[str, Any]:
    """Compare all records with the digests in the manifest; return the statistics if they can be read."""
    stats: dict[str, Any] = {}
    digests = {"spec.yaml": manifest.spec_sha256, "stats.json": manifest.stats_sha256}
    later = {"lineage.json": manifest.lineage_sha256, "inventory.parquet": manifest.inventory_sha256}
    digests |= {name: sha256 for name, sha256 in later.items() if sha256}  # earlier versions did not note them
    for name, sha256 in digests.items():
        uri = storage.join(run_folder(out, manifest.run_id), name)
        try:
            data = storage.read_bytes(uri)
        except storage.NotFound:
            problems.append(f"{uri}: missing")
            continue
        except storage.StorageError as error:
            problems.append(error.message)
            continue
        if hashlib.sha256(data).hexdigest() != sha256:
            problems.append(f"{uri}: its sha256 is not the one in the manifest")
        elif name == "stats.json":
            stats = json.loads(data)
    return stats


def _check_counts(results: Results, manifest: Manifest, stats: Mapping[str, Any]) -> list[str]:
    import duckdb

    try:
        return [f"run {manifest.run_id}: {text}" for text in _conservation(results, manifest, stats)]
    except duckdb.Error as error:
        return [f"run {manifest.run_id}: the tables cannot be read: {reason(error)}"]


def _conservation(results: Results, manifest: Manifest, stats: Mapping[str, Any]) -> Iterator[str]:
    """Check that nothing is lost, doubled or made up, by counting with DuckDB."""
    ((rows, ok, failed, ids, claimed, foreign),) = results.sql(
        "SELECT count(*), count(*) FILTER (status = 'ok'), count(*) FILTER (status = 'failed'), "
        "count(DISTINCT image_id), coalesce(sum(detection_count), 0)::BIGINT, "
        f"count(*) FILTER (run_id <> '{manifest.run_id}') FROM images"
    ).fetchall()
    if rows != manifest.images_listed or ok + failed != rows:
        yield f"{manifest.images_listed} images were listed, {rows} rows hold {ok} ok and {failed} failed"
    if (ok, failed) != (manifest.images_ok, manifest.images_failed):
        yield f"the manifest says {manifest.images_ok} ok and {manifest.images_failed} failed, rows {ok} and {failed}"
    if ids != rows:
        yield f"{rows - ids} image ids occur more than once"
    if foreign:
        yield f"{foreign} images carry the id of another run"
    ((detections,),) = results.sql("SELECT count(*) FROM detections").fetchall()
    if claimed != detections:
        yield f"images claim {claimed} detections, the table holds {detections}"
    ((orphans, miscounted),) = results.sql(
        "SELECT count(*) FILTER (i.image_id IS NULL), "
        "count(*) FILTER (i.image_id IS NOT NULL AND i.detection_count <> coalesce(d.n, 0)) FROM "
        "(SELECT image_id, count(*) AS n FROM detections GROUP BY ALL) d FULL JOIN images i USING (image_id)"
    ).fetchall()
    if orphans:
        yield f"detections of {orphans} images have no row in images"
    if miscounted:
        yield f"{miscounted} images have another detection_count than rows in detections"
    if stats:
        yield from _recount(results, stats)


def _recount(results: Results, stats: Mapping[str, Any]) -> Iterator[str]:
    """Compare the statistics with a recount of the rows."""
    try:
        images, by_class = stats["images"], stats["detections"]["by_class"]
        said = {
            "images": {key: images[key] for key in ("listed", "ok", "failed", "with_detections", "size_bytes")},
            "images.by_error_code": images["by_error_code"],
            "detections.by_class": {label: one["count"] for label, one in by_class.items() if one["count"]},
            "detections.total": stats["detections"]["total"],
        }
    except (KeyError, TypeError, AttributeError) as error:
        yield f"stats.json lacks {error}"
        return
    (counts,) = results.sql(
        "SELECT count(*) AS listed, count(*) FILTER (status = 'ok') AS ok, count(*) FILTER (status = 'failed') AS "
        "failed, count(*) FILTER (detection_count > 0) AS with_detections, "
        "coalesce(sum(size_bytes) FILTER (size_bytes >= 0), 0)::BIGINT AS size_bytes FROM images"
    ).to_arrow_table().to_pylist()  # fmt: skip
    codes = "SELECT coalesce(error_code, 'unknown'), count(*) FROM images WHERE status = 'failed' GROUP BY ALL"
    labels = dict(results.sql("SELECT label, count(*) FROM detections GROUP BY ALL").fetchall())
    found = {
        "images": counts,
        "images.by_error_code": dict(results.sql(codes).fetchall()),
        "detections.by_class": labels,
        "detections.total": sum(labels.values()),
    }
    for name, value in found.items():
        if value != said[name]:
            yield f"stats.json says {name} {said[name]}, a recount gives {value}"


def _strangers(out: str) -> list[str]:
    """Find files among the tables that no manifest lists; readers by glob would see them."""
    listed = {part.path for m in committed_runs(out) for part in (*m.images, *m.detections)}
    root = out.rstrip("/") + "/"
    found = (one.uri.removeprefix(root) for name in TABLES for one in storage.find_all(storage.join(out, name)))
    return [f"{path}: no committed run lists this file" for path in found if path not in listed]


def render_verify(report: VerifyReport, console: "Console") -> None:
    """Print a report."""
    from rich.text import Text

    for word, style, texts in (("problem", "red", report.problems), ("warning", "yellow", report.warnings)):
        for text in texts:
            console.print(Text.assemble((f"{word}: ", style), escape(text)), soft_wrap=True)
    what = (
        f"{counted(len(report.runs), 'run')}, {counted(report.files, 'part file')} "
        f"({format_bytes(report.size_bytes)}), {counted(report.images, 'image')}, "
        f"{counted(report.detections, 'detection')}"
    )
    verdict = counted(len(report.problems), "problem") if report.problems else "all is well"
    console.print(Text(f"{what}: {verdict}"), soft_wrap=True)
