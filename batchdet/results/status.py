"""What an output holds: every run, committed or not, and how to go on."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from batchdet import storage
from batchdet.errors import OutputError
from batchdet.results.history import Unfinished, unfinished_runs
from batchdet.results.open import Results
from batchdet.results.quarantine import current_quarantine, quarantine_to_dict
from batchdet.results.record import read_record
from batchdet.results.units import format_bytes
from batchdet.table.manifest import Manifest, committed_runs, list_runs
from batchdet.table.staging import staged_folder
from batchdet.text import escape

if TYPE_CHECKING:
    from rich.console import Console

_READERS: Final = 8
_WIDEST: Final = 1000
"""Names are folded to fit the terminal; ids and numbers never are, and it wraps what is wider still."""


def status(uri: str) -> dict[str, Any]:
    """Describe every run of an output.

    Args:
        uri: The output's folder.

    Returns:
        ``output``; ``runs``, oldest first, each with ``state`` (committed or uncommitted), counts, sizes, age and,
        if it is committed, whether its settings are ``current``; ``images_left_out`` that were labelled with other
        settings only, null if the tables cannot be read; the same in words; and ``quarantine``, see
        :func:`batchdet.results.quarantine.quarantine_to_dict`.

    Raises:
        OutputError: There is no run.
    """
    out = storage.normalize(uri)
    run_ids = list_runs(out)
    if not run_ids:
        raise OutputError(f"{out}: no results here (no _batchdet/runs); batchdet run makes them")
    committed = committed_runs(out)
    with ThreadPoolExecutor(_READERS) as pool:
        uncommitted = list(pool.map(_uncommitted, unfinished_runs(out, committed)))
    current = committed[-1].fingerprint if committed else ""
    runs = [*(_committed(m, current) for m in committed), *uncommitted]
    return {
        "output": out,
        "runs": sorted(runs, key=lambda run: str(run["run_id"])),
        **_left_out(out, committed),
        "quarantine": quarantine_to_dict(current_quarantine(out, committed) if committed else ()),
    }


def _left_out(out: str, committed: Sequence[Manifest]) -> dict[str, Any]:
    if not committed:
        return {"images_left_out": 0, "left_out": ""}
    try:
        results = Results(out, committed)
        return {"images_left_out": results.left_out, "left_out": results.left_out_note()}
    except OutputError:  # verify tells which files are damaged
        return {"images_left_out": None, "left_out": ""}


def _committed(manifest: Manifest, current: str) -> dict[str, Any]:
    parts = (*manifest.images, *manifest.detections)
    return {
        "run_id": manifest.run_id,
        "name": manifest.name,
        "state": "committed",
        "current": manifest.fingerprint == current,
        "at": manifest.created_at,
        "age_s": _age_s(manifest.created_at),
        "images_listed": manifest.images_listed,
        "images_ok": manifest.images_ok,
        "images_failed": manifest.images_failed,
        "detections": sum(p.rows for p in manifest.detections),
        "part_files": len(parts),
        "size_bytes": sum(p.size_bytes for p in parts),
    }


def _uncommitted(run: Unfinished) -> dict[str, Any]:
    lineage = read_record(run.out, run.run_id, "lineage.json")
    staged = storage.find_all(staged_folder(run.out, run.run_id))
    started_at = str(lineage.get("started_at", ""))
    can = "the same batchdet run command goes on with it"
    return {
        "run_id": run.run_id,
        "name": str(lineage.get("name", "")),
        "state": "uncommitted",
        "at": started_at,
        "age_s": _age_s(started_at),
        "staged_files": len(staged),
        "staged_bytes": sum(max(one.size_bytes, 0) for one in staged),
        "go_on": f"no command goes on with it ({run.ended}); batchdet gc removes it" if run.ended else can,
    }


def _age_s(at: str) -> float | None:
    try:
        then = datetime.fromisoformat(at)
    except ValueError:
        return None
    return max(round((datetime.now(UTC) - then.replace(tzinfo=then.tzinfo or UTC)).total_seconds(), 1), 0.0)


def render_status(found: Mapping[str, Any], console: "Console") -> None:
    """Print what :func:`status` found, newest run first."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold underline")
    table.add_column("run", no_wrap=True)
    table.add_column("name", overflow="fold", min_width=8)
    table.add_column("state", no_wrap=True)
    for name in ("images", "failed", "boxes", "size", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in reversed(found["runs"]):
        head = (Text(run["run_id"]), Text(escape(run["name"])))
        age = "" if run["age_s"] is None else format_age(run["age_s"])
        if run["state"] == "committed":
            counts = (f"{run[key]:,}" for key in ("images_listed", "images_failed", "detections"))
            state = Text("committed", "green") if run["current"] else Text("other settings", "dim")
            table.add_row(*head, state, *counts, format_bytes(run["size_bytes"]), age)
        else:
            table.add_row(*head, Text("uncommitted", "yellow"), "", "", "", format_bytes(run["staged_bytes"]), age)
    console.print(Text(escape(found["output"]), style="bold"), soft_wrap=True)
    least, most = console.measure(table, options=console.options.update(width=_WIDEST))
    table.width = max(min(most, console.width), least)
    console.print(table, crop=False)
    console.print()
    if found["left_out"]:
        console.print(Text(f"{found['left_out']}."), soft_wrap=True)
    for run in found["runs"]:
        if run["state"] == "uncommitted":
            segments = f"{run['staged_files']:,} segment{'s' * (run['staged_files'] != 1)} staged"
            text = f"Run {run['run_id']} is not committed ({segments}); {run['go_on']}."
            console.print(Text(text), soft_wrap=True)
    if warning := found["quarantine"]["warning"]:
        console.print(Text(escape(f"warning: {warning}"), "yellow"), soft_wrap=True)


def format_age(seconds: float) -> str:
    """Write an age for a person, in its largest unit: ``12 s``, ``3 min``, ``2 h``, ``5 d``."""
    for unit, size_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size_s:
            return f"{seconds / size_s:.0f} {unit}"
    return f"{seconds:.0f} s"
