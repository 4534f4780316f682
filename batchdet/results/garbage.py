"""What no committed and no live run needs: found, listed and removed.

Nothing is removed whose run is not known: a part file whose run has left no folder, or a run with a ``_SUCCESS`` and
no manifest, may be all that is left of results. Files with other names than batchdet gives are never looked at.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from batchdet import storage
from batchdet.errors import OutputError, OutputLocked
from batchdet.failpoint import failpoint
from batchdet.results.history import Unfinished, unfinished_runs
from batchdet.results.units import format_bytes
from batchdet.storage import StoredObject
from batchdet.table.commit import complete_commit
from batchdet.table.lease import Lease, live_holder, unwritten_commit
from batchdet.table.manifest import MADE_RUN_ID, PART_NAME, RUNS_FOLDER, TABLES, committed_runs, run_folder
from batchdet.table.refusal import LEFT_BY_REFUSAL, REMOVED
from batchdet.text import counted, escape

if TYPE_CHECKING:
    from rich.console import Console

Kind = Literal["part file", "upload", "partial file", "staged", "run"]
_ORDER: Final[tuple[Kind, ...]] = ("part file", "upload", "partial file", "staged", "run")
"""Part files go first, because readers by glob see them; a run's folder goes last, because it says whose they were."""

_RUN: Final = re.compile(MADE_RUN_ID)
_OF_RUN: Final = re.compile(rf"/(?:part-|{RUNS_FOLDER}/)({MADE_RUN_ID})[-/]")
_PARTIAL: Final = re.compile(r"\.partial-[a-z0-9_]{8}")


@dataclass(frozen=True)
class Item:
    """Something that is removed whole.

    Args:
        kind: What it is; staged and run are folders.
        path: Relative to the output.
        files: Objects in it.
        size_bytes: Their bytes.
        why: Why nobody needs it.
        upload_id: Names an upload.
    """

    kind: Kind
    path: str
    files: int
    size_bytes: int
    why: str
    upload_id: str = ""


@dataclass
class Garbage:
    """What was found, and what was done about it.

    Args:
        output: The output's URI.
        removed: Whether the items are gone.
        items: What nobody needs, in the order of removal.
        kept: What is left alone although it is not committed; one sentence each.
    """

    output: str
    removed: bool
    items: list[Item] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    @property
    def files(self) -> int:
        """Objects in all items."""
        return sum(item.files for item in self.items)

    @property
    def size_bytes(self) -> int:
        """Bytes of all items."""
        return sum(item.size_bytes for item in self.items)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"files": self.files, "size_bytes": self.size_bytes}


def collect_garbage(uri: str, dry_run: bool = False, unfinished: bool = False) -> Garbage:
    """Remove what no committed run, no live run and no unfinished run that may go on needs.

    The output's lease is held meanwhile. Where a live run holds it, everything of that run is spared, and everything of
    others that might go on after it.

    Args:
        uri: The output's folder.
        dry_run: Only find it.
        unfinished: Also remove unfinished runs with which the same command could go on.

    Raises:
        OutputError: There is no output, or the records of a run cannot be read.
        OutputLocked: The lease was lost to another run meanwhile; nothing more was removed.
    """
    out = storage.normalize(uri)
    if not storage.list_names(storage.join(out, "_batchdet")):
        raise OutputError(f"{out}: no results here (no {RUNS_FOLDER}); batchdet run makes them")
    with contextlib.ExitStack() as stack:
        lease = None
        if not dry_run:
            with contextlib.suppress(OutputLocked):
                lease = stack.enter_context(Lease(out))
                complete_commit(out, lease)
        found = Garbage(out, not dry_run)
        search = _Search(out, unfinished, lease is not None, dry_run)
        found.items = sorted(search.items(), key=lambda item: (_ORDER.index(item.kind), item.path))
        found.kept = search.kept
        for item in found.items if not dry_run else ():
            if item.kind == "run":  # an owner after the check sees it, so that a collection that stalls harms no commit
                uri = storage.join(out, item.path, REMOVED)
                storage.persist(lambda uri=uri: storage.write_bytes(uri, b"{}"))  # type: ignore[misc]
            if lease:
                lease.check()
            failpoint("gc.remove")
            _remove(out, item)
    return found


def _remove(out: str, item: Item) -> None:
    uri = storage.join(out, item.path)
    if item.kind == "upload":
        fs, path = storage.filesystem(uri)
        bucket, _, key = path.partition("/")
        with storage.plain_errors(uri, "abort the upload of"):
            fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=item.upload_id)
    elif item.kind in {"staged", "run"}:
        if item.kind == "run":  # it goes before the mark
            storage.persist(lambda: storage.delete([storage.join(uri, "lineage.json")]))
        storage.persist(lambda: storage.delete_folder(uri))
    else:
        storage.persist(lambda: storage.delete([uri]))


class _Search:
    """Looks through an output once.

    Files are listed before it is asked who lives, and manifests are read after that: so what a run moved and committed
    in the meantime counts as committed, and what a run that ended in the meantime left is that run's.

    Args:
        out: The output's URI.
        unfinished: Whether unfinished runs that might go on are garbage.
        alone: Whether the lease is held here, so that nobody writes.
        dry_run: Whether nothing is going to be removed.
    """

    def __init__(self, out: str, unfinished: bool, alone: bool, dry_run: bool) -> None:
        self._out = out
        self._tables = [one for table in TABLES for one in storage.find_all(storage.join(out, table))]
        names = storage.list_names(storage.join(out, RUNS_FOLDER))
        self._folders = {n: storage.list_names(run_folder(out, n)) for n in names if _RUN.fullmatch(n)}
        holder = None if alone else live_holder(out)
        # without the lease another run may begin at any moment, or may have taken its commit point already
        self._crowded = holder is not None or not (alone or dry_run)
        self._commit = unwritten_commit(out)
        committed = committed_runs(out)
        self._committed = {m.run_id for m in committed}
        self._listed = {part.path for m in committed for part in (*m.images, *m.detections)}
        self.kept: list[str] = []
        self._spared: set[str] = set()
        self._left: dict[str, str] = {}
        """Unfinished runs of which something goes -> why."""
        self._whole: set[str] = set()
        """Those of these that go as a whole."""
        for run in unfinished_runs(out, committed):
            if run.run_id in self._folders:
                self._judge(run, holder, unfinished)
        if holder and holder.get("run_id") in self._committed:
            self._spared.add(holder["run_id"])

    def _judge(self, run: Unfinished, holder: dict[str, Any] | None, unfinished: bool) -> None:
        """Decide about one run that is not committed."""
        run_id, reason = run.run_id, ""
        if holder and holder.get("run_id") in {None, run_id}:
            who = f"process {holder.get('pid')} on {holder.get('host')}"
            reason = f"{who} is at work" + ("" if holder.get("run_id") else " and has not said on which run")
        elif self._commit and self._commit.run_id == run_id:
            reason = "it is committed but for its manifest, which the next command writes"
        elif "_SUCCESS" in self._folders[run_id]:
            reason = "it has a _SUCCESS but no manifest.json, which batchdet never leaves so; look into it"
        elif run.ended:
            self._left[run_id] = f"run {run_id} can never be committed: {run.ended}"
            self._whole.add(run_id)
        elif self._crowded:
            reason = "it is unfinished, and while another run is at work it is not touched"
        else:
            self._left[run_id] = f"run {run_id} is not committed"
            if unfinished:
                self._whole.add(run_id)
            else:
                self.kept.append(f"run {run_id}: unfinished; the same command resumes it, --unfinished removes it")
        if reason:
            self.kept.append(f"run {run_id}: {reason}")
            self._spared.add(run_id)

    def items(self) -> Iterator[Item]:
        """Yield what nobody needs."""
        yield from self._part_files()
        for run_id, names in self._folders.items():
            if run_id not in self._spared:
                yield from self._in_run(run_id, names)
        yield from self._partial_files()
        if storage.scheme(self._out) in {"s3", "s3a"}:
            yield from self._uploads()

    def _part_files(self) -> Iterator[Item]:
        for found in self._tables:
            path = self._path(found)
            match = PART_NAME.fullmatch(storage.basename(path))
            if match is None or path in self._listed or match[1] in self._spared:
                continue
            if match[1] in self._committed:
                yield Item("part file", path, 1, found.size_bytes, f"the manifest of run {match[1]} does not list it")
            elif match[1] in self._left:
                yield Item("part file", path, 1, found.size_bytes, self._left[match[1]])
            else:
                self.kept.append(f"{path}: no run {match[1]} is known here, so whose it is cannot be said")

    def _in_run(self, run_id: str, names: list[str]) -> Iterator[Item]:
        folder = run_folder(self._out, run_id)
        if run_id in self._whole:
            yield from self._folder("run", folder, self._left[run_id])
        elif run_id in self._committed:
            for name in ("staged", "parts"):
                if name in names:
                    yield from self._folder("staged", storage.join(folder, name), f"run {run_id} is committed")
            for name in sorted(LEFT_BY_REFUSAL.intersection(names)):
                found = storage.stat(storage.join(folder, name))
                yield Item("partial file", self._path(found), 1, found.size_bytes, f"run {run_id} is committed")

    def _partial_files(self) -> Iterator[Item]:
        """Find the temporary files of local writers that were killed; those of other stores are uploads."""
        if storage.scheme(self._out) != "file":
            return
        found = list(self._tables)
        for run_id in self._folders:
            if run_id not in self._spared | self._whole:
                found += storage.find_all(run_folder(self._out, run_id))
        if not self._crowded:  # the lease's own folder is left alone: others may be writing there to get it
            for folder in (self._out, storage.join(self._out, "_batchdet")):
                partial = (storage.join(folder, n) for n in storage.list_names(folder) if _PARTIAL.fullmatch(n))
                found += [storage.stat(uri) for uri in partial]
        emptied = tuple(f"{run_folder(self._out, r)}/{n}/" for r in self._committed for n in ("staged", "parts"))
        for one in found:
            if _PARTIAL.fullmatch(storage.basename(one.uri)) and not one.uri.startswith(emptied):
                yield Item("partial file", self._path(one), 1, one.size_bytes, "its writer was killed")

    def _uploads(self) -> Iterator[Item]:
        """Find uploads in parts that were begun and never completed; S3 keeps, and charges for, what has arrived."""
        fs, path = storage.filesystem(self._out)
        bucket, _, prefix = path.partition("/")
        markers: dict[str, str] = {}
        while True:
            with storage.plain_errors(self._out, "list the uploads below"):
                page = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/", **markers)
            for upload in page.get("Uploads", ()):
                key = str(upload["Key"])
                match = _OF_RUN.search(f"/{key}")
                if match is None or match[1] in self._spared or match[1] not in self._folders:
                    continue
                parts = fs.call_s3("list_parts", Bucket=bucket, Key=key, UploadId=upload["UploadId"]).get("Parts", ())
                size = sum(int(part["Size"]) for part in parts)
                why = "an upload that was never completed"
                yield Item("upload", key.removeprefix(f"{prefix}/"), len(parts), size, why, str(upload["UploadId"]))
            if not page.get("IsTruncated"):
                return
            markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _folder(self, kind: Kind, folder: str, why: str) -> Iterator[Item]:
        found = [one for one in storage.find_all(folder) if one.uri != folder]
        if found or storage.scheme(folder) == "file":  # some object stores name a prefix that nothing has any more
            path = folder.removeprefix(self._out.rstrip("/") + "/")
            yield Item(kind, path, len(found), sum(max(one.size_bytes, 0) for one in found), why)

    def _path(self, found: StoredObject) -> str:
        return found.uri.removeprefix(self._out.rstrip("/") + "/")


def render_garbage(found: Garbage, console: "Console") -> None:
    """Print what was found, reason by reason."""
    from rich.text import Text

    def line(text: str, style: str = "") -> None:
        console.print(Text(escape(text), style), soft_wrap=True)

    reasons: dict[str, list[Item]] = {}
    for item in found.items:
        reasons.setdefault(item.why, []).append(item)
    for why, items in reasons.items():
        line(why, "bold")
        for item in items:
            count = f", {counted(item.files, 'file')}" if item.files != 1 else ""
            line(f"  {item.path}  ({item.kind}{count}, {format_bytes(item.size_bytes)})")
    for text in found.kept:
        line(f"kept: {text}")
    if not found.items:
        line("nothing to remove")
        return
    what = f"{counted(found.files, 'file')}, {format_bytes(found.size_bytes)}"
    line(f"removed {what}" if found.removed else f"to remove: {what}; without --dry-run it is done")
