"""What an output holds: every run, its state, and what comes next."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from batchdet import storage
from batchdet.errors import OutputError
from batchdet.results.history import Unfinished, unfinished_runs
from batchdet.results.open import Results
from batchdet.results.quarantine import current_quarantine, quarantine_to_dict
from batchdet.results.record import read_record
from batchdet.results.units import format_bytes
from batchdet.table.lease import RENEW_S, last_holder, live_holder
from batchdet.table.manifest import Manifest, committed_runs, list_runs
from batchdet.table.refusal import read_refusal
from batchdet.table.staging import staged_folder
from batchdet.text import counted, escape

if TYPE_CHECKING:
    from rich.console import Console

_READERS: Final = 8
_WATCH_S: Final = 2 * RENEW_S + 2
"""An owner on another machine that renews nothing for so long is taken for ended."""
_OWNER: Final = ("user", "host", "pid", "since", "run_id")
_STYLES: Final = {"committed": "green", "running": "cyan", "refused": "red", "interrupted": "yellow"}
_WIDEST: Final = 1000
"""Names are folded to fit the terminal; ids and numbers never are, and it wraps what is wider still."""


def status(uri: str) -> dict[str, Any]:
    """Describe every run of an output.

    Args:
        uri: The output's folder.

    Returns:
        ``output``; ``held_by``, the process that holds it now, or None; ``runs``, oldest first;
        ``images_left_out`` that were labelled with other settings only, null if the tables cannot be read; the same in
        words; and ``quarantine``, see :func:`batchdet.results.quarantine.quarantine_to_dict`. Each run has ``state``
        (``committed``, ``running``, ``refused`` or ``interrupted``), counts, sizes and age. A committed one has
        ``current``, whether its settings are; a refused one has ``refused`` with ``code`` and ``message``.

    Raises:
        OutputError: There is no run.
    """
    out = storage.normalize(uri)
    run_ids = list_runs(out)
    holder = live_holder(out, _WATCH_S)
    if not run_ids and holder is None:
        raise OutputError(
            f"{out}: no results here (no _batchdet/runs); batchdet run makes them", code="output.empty", key=out
        )
    committed = committed_runs(out)
    last = last_holder(out) or {}
    live_id = holder.get("run_id") if holder else None
    with ThreadPoolExecutor(_READERS) as pool:
        unfinished = unfinished_runs(out, committed)
        uncommitted = list(pool.map(lambda run: _uncommitted(run, last, run.run_id == live_id), unfinished))
    current = committed[-1].fingerprint if committed else ""
    runs = [*(_committed(m, current) for m in committed), *uncommitted]
    return {
        "output": out,
        "held_by": {key: holder.get(key) for key in _OWNER} if holder else None,
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
        "shards_quarantined": len(manifest.quarantine),
        "detections": sum(p.rows for p in manifest.detections),
        "part_files": len(parts),
        "size_bytes": sum(p.size_bytes for p in parts),
    }


def _uncommitted(run: Unfinished, last: Mapping[str, Any], is_live: bool) -> dict[str, Any]:
    """Describe a run that is not committed.

    Args:
        run: The run.
        last: What the process says that held the output last.
        is_live: Whether that process lives and works on this run.
    """
    lineage = read_record(run.out, run.run_id, "lineage.json")
    staged = storage.find_all(staged_folder(run.out, run.run_id))
    started_at = str(lineage.get("started_at", ""))
    refusal = None if is_live else read_refusal(run.out, run.run_id)
    told = last if last.get("run_id") == run.run_id else {}
    if is_live:
        what_next = "it is running"
    elif run.ended:
        what_next = f"no command resumes it ({run.ended}); batchdet gc removes it"
    else:
        what_next = "the same command resumes it"
    return {
        "run_id": run.run_id,
        "name": str(lineage.get("name", "")),
        "state": "running" if is_live else "refused" if refusal else "interrupted",
        "at": started_at,
        "age_s": _age_s(started_at),
        "images_done": _number(told.get("images_done")),
        "images_total": _number(told.get("images_total")),
        "staged_files": len(staged),
        "staged_bytes": sum(max(one.size_bytes, 0) for one in staged),
        "refused": asdict(refusal) if refusal else None,
        "next": what_next,
    }


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


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
        state = Text(run["state"], _STYLES[run["state"]])
        if run["state"] == "committed":
            if not run["current"]:
                state = Text("other settings", "dim")
            if bad := run["shards_quarantined"]:
                state.append(f", {counted(bad, 'shard')} quarantined", "yellow")
            counts = (f"{run[key]:,}" for key in ("images_listed", "images_failed", "detections"))
            table.add_row(*head, state, *counts, format_bytes(run["size_bytes"]), age)
        else:
            table.add_row(*head, state, _progress(run), "", "", format_bytes(run["staged_bytes"]), age)
    console.print(Text(escape(found["output"]), style="bold"), soft_wrap=True)
    least, most = console.measure(table, options=console.options.update(width=_WIDEST))
    table.width = max(min(most, console.width), least)
    console.print(table, crop=False)
    console.print()
    if found["left_out"]:
        console.print(Text(f"{found['left_out']}."), soft_wrap=True)
    for run in found["runs"]:
        if run["state"] != "committed":
            console.print(Text(escape(_sentence(run, found["held_by"]))), soft_wrap=True)
    if (holder := found["held_by"]) and holder["run_id"] not in {run["run_id"] for run in found["runs"]}:
        console.print(Text(escape(f"{_holding(holder)} holds the output and has not begun to label.")), soft_wrap=True)
    if warning := found["quarantine"]["warning"]:
        console.print(Text(escape(f"warning: {warning}"), "yellow"), soft_wrap=True)


def _progress(run: Mapping[str, Any]) -> str:
    if run["images_done"] is None:
        return ""
    return f"{run['images_done']:,}" + (f" of {run['images_total']:,}" if run["images_total"] is not None else "")


def _sentence(run: Mapping[str, Any], holder: Mapping[str, Any] | None) -> str:
    """Say how it stands with a run that is not committed."""
    staged = f"{counted(run['staged_files'], 'segment')} staged"
    if run["state"] == "running" and holder:
        done = f"{_progress(run)} images labelled" if run["images_done"] is not None else staged
        return f"Run {run['run_id']} is running ({_holding(holder)}): {done}."
    if run["refused"]:
        return f"Run {run['run_id']} was refused: {run['refused']['message']}; {run['next']}."
    return f"Run {run['run_id']} was interrupted ({staged}); {run['next']}."


def _holding(holder: Mapping[str, Any]) -> str:
    who = f" of {holder['user']}" if holder["user"] else ""
    since = f" since {str(holder['since']).replace('T', ' ').replace('Z', ' UTC')}" if holder["since"] else ""
    return f"process {holder['pid']}{who} on {holder['host']}{since}"


def format_age(seconds: float) -> str:
    """Write an age for a person, in its largest unit: ``12 s``, ``3 min``, ``2 h``, ``5 d``."""
    for unit, size_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size_s:
            return f"{seconds / size_s:.0f} {unit}"
    return f"{seconds:.0f} s"
