"""The images of one setting, or of one run, at a glance: classes, scores, failures, time, and where the tables are."""

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from batchdet import storage
from batchdet.errors import OutputError
from batchdet.results.open import open_results
from batchdet.results.quarantine import find_quarantine, quarantine_to_dict
from batchdet.results.record import read_record
from batchdet.results.speed import speed_rows
from batchdet.results.totals import totals
from batchdet.results.units import format_bytes, format_duration
from batchdet.spec import JobSpec
from batchdet.table.manifest import TABLES, committed_runs
from batchdet.text import counted, escape

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_BAR_WIDTH: Final = 24
_MAX_CLASSES: Final = 20
_MAX_LABEL: Final = 30
_CLASS_NUMBERS_WIDTH: Final = 48
"""Columns of a terminal that numbers and gaps take beside label and bar, as long as counts are below ten million."""


def show(uri: str, run: str | None = None, settings: str | JobSpec | None = None) -> dict[str, Any]:
    """Gather what there is to say of the images of one setting, or of one run.

    Args:
        uri: The output's folder.
        run: Only this run; null takes each image from its newest run of the settings.
        settings: Whose settings; as in :func:`batchdet.open_results`.

    Returns:
        ``output``, ``run`` (the newest of those shown), ``shown_runs``, ``other_runs``, ``images_left_out`` (labelled
        with other settings only), ``lineage`` of ``run``, ``stats`` of all that is shown (see
        :meth:`RunStats.to_dict`), ``tables``, a ``query`` to try, and ``quarantine``: the shards that are in
        quarantine at these settings.

    Raises:
        OutputError: There is no such output or run.
    """
    results = open_results(uri, run, settings)
    manifest, shown = results.manifest, [m.run_id for m in results.viewed]
    committed = results.runs if run is None else committed_runs(results.uri)  # one run's results know of no other
    tables = {}
    for name in TABLES:
        parts = [part for m in results.viewed for part in getattr(m, name)]
        tables[name] = {
            "glob": storage.join(results.uri, name, "**", "*.parquet"),
            "rows": sum(p.rows for p in parts),
            "part_files": len(parts),
            "size_bytes": sum(p.size_bytes for p in parts),
        }
    sql = "SELECT label, count(*) AS boxes FROM detections GROUP BY ALL ORDER BY boxes DESC"
    return {
        "output": results.uri,
        "run": {
            "run_id": manifest.run_id,
            "name": manifest.name,
            "created_at": manifest.created_at,
            "fingerprint": manifest.fingerprint,
            "partition_by": list(manifest.partition_by),
        },
        "shown_runs": shown,
        "other_runs": [m.run_id for m in committed if m.run_id not in shown],
        "images_left_out": results.left_out,
        "left_out": results.left_out_note(),
        "lineage": read_record(results.uri, manifest.run_id, "lineage.json"),
        "stats": totals(results),
        "tables": tables,
        "query": f'batchdet query {shlex.quote(results.uri)} "{sql}"',
        "quarantine": quarantine_to_dict(find_quarantine(results.uri, results.viewed)),
    }


def render_show(shown: Mapping[str, Any], console: "Console") -> None:
    """Print what :func:`show` gathered, in 80 columns or more, with or without colour.

    Raises:
        OutputError: The run's records are not what batchdet writes.
    """
    try:
        _render(shown, console)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        out, run_id = shown["output"], shown["run"]["run_id"]
        raise OutputError(
            f"{out}: stats.json or lineage.json of run {run_id} is not what batchdet writes "
            f"({type(error).__name__}: {error}); see batchdet verify {out}"
        ) from error


def _render(shown: Mapping[str, Any], console: "Console") -> None:
    run, stats = shown["run"], shown["stats"]
    when = run["created_at"].replace("T", " ").replace("Z", " UTC")
    console.print()
    _line(console, f"{run['name']}  ·  run {run['run_id']}  ·  {when}", style="bold")
    if len(shown["shown_runs"]) > 1:
        _line(
            console, f"{len(shown['shown_runs'])} runs of the same settings, each image from its newest.", style="dim"
        )
    if shown["other_runs"]:
        others = len(shown["other_runs"])
        _line(console, f"The output holds {counted(others, 'committed run', 'other')}.", style="dim")
    if shown["left_out"]:
        _line(console, f"{shown['left_out']}.", style="yellow")
    console.print()
    console.print(_facts(shown))
    if stats.get("detections", {}).get("total"):
        console.print(_classes(stats["detections"]["by_class"], stats["detections"]["total"], console.width))
    console.print()
    for name, table in shown["tables"].items():
        files = f"{counted(table['part_files'], 'file')}, {format_bytes(table['size_bytes'])}"
        _line(console, f"{name:<11}{table['glob']}  ({counted(table['rows'], 'row')}, {files})")
    console.print()
    if warning := shown.get("quarantine", {}).get("warning"):
        _line(console, f"warning: {warning}", style="yellow")
    _line(console, f"Try:  {shown['query']}")


def _line(console: "Console", text: str, style: str = "") -> None:
    from rich.text import Text

    console.print(Text(escape(text), style=style), soft_wrap=True)


def _facts(shown: Mapping[str, Any]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in _fact_rows(shown):
        grid.add_row(name, Text(escape(text)))
    return grid


def _fact_rows(shown: Mapping[str, Any]) -> list[tuple[str, str]]:
    stats, model = shown["stats"], shown["lineage"].get("model", {})
    rows = []
    if model:
        how = ", ".join(str(model[key]) for key in ("family", "runtime", "precision", "canvas") if model.get(key))
        rows.append(("Model", f"{model.get('uri', '?')}  ({how})" if how else f"{model.get('uri', '?')}"))
        rows += [("", f"sha256 {model['sha256'][:12]}…")] if model.get("sha256") else []
    if images := stats.get("images"):
        rows += _image_rows(images)
    detections = stats.get("detections")
    if detections and images:
        mean = detections["total"] / images["ok"] if images["ok"] else 0.0
        rows.append(
            (
                "Detections",
                f"{detections['total']:,} in {counted(images['with_detections'], 'image')}, {mean:.2f} per image",
            )
        )
    if detections and detections["total"]:
        rows.append(("Score", f"0 {sparkline(detections['score']['counts'])} 1"))
        sizes = detections["box_size_coco"]
        shares = ", ".join(f"{name} {count / detections['total']:.1%}" for name, count in sizes.items())
        rows.append(("Box size", f"{shares}   (area up to 32², 96² px)"))
    return rows + _time_rows(stats)


def _image_rows(images: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("Images", f"{images['listed']:,} listed = {images['ok']:,} ok + {images['failed']:,} failed")]
    if images["by_error_code"]:
        codes = sorted(images["by_error_code"].items(), key=lambda item: (-item[1], item[0]))
        rows.append(("Failed", ", ".join(f"{code} {count:,}" for code, count in codes)))
    width, height = images["width_px"], images["height_px"]
    if width["images"]:
        span = f"{width['min']:,}-{width['max']:,} x {height['min']:,}-{height['max']:,} px"
        rows.append(("Image size", f"{span}, mean {width['mean']:,.0f} x {height['mean']:,.0f}"))
    return rows


def _time_rows(stats: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    run = {**stats, **stats.get("run", {})}
    if run.get("wall_s"):
        rate = f", {run['images_per_s']:,.1f} images/s" if run.get("images_per_s") else ""
        rows.append(("Time", f"{format_duration(run['wall_s'])}{rate}"))
    steps = {step: seconds for step, seconds in stats.get("time_by_step_s", {}).items() if seconds > 0}
    total = sum(steps.values())
    if total:
        shares = "  ".join(f"{step} {seconds / total:.0%}" for step, seconds in steps.items())
        rows.append(("Work by step", f"{shares}   (of {format_duration(total)} in all)"))
    return rows + speed_rows(stats)


def _classes(by_class: Mapping[str, Mapping[str, Any]], total: int, width: int) -> "Table":
    """Make the table of classes; the bars take what a narrow terminal leaves them."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = sorted((item for item in by_class.items() if item[1]["count"]), key=lambda item: -item[1]["count"])
    never = len(by_class) - len(found)
    rest = [f"{len(found) - _MAX_CLASSES} more classes"] if len(found) > _MAX_CLASSES else []
    rest += [f"{counted(never, 'class')} never found"] if never else []
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption="; ".join(rest) or None, caption_justify="left")
    table.add_column("class", overflow="fold", max_width=_MAX_LABEL)
    for name in ("boxes", "images", "mean score", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    labels = [len(escape(label)) for label, _ in found[:_MAX_CLASSES]]
    bar_width = min(width - min(max(labels), _MAX_LABEL) - _CLASS_NUMBERS_WIDTH, _BAR_WIDTH)
    if bar_width > 1:
        table.add_column("", no_wrap=True, style="cyan")
    highest = found[0][1]["count"]
    for label, one in found[:_MAX_CLASSES]:
        numbers = (f"{one['count']:,}", f"{one['images']:,}", f"{one['mean_score']:.3f}", f"{one['count'] / total:.1%}")
        bars = [bar(one["count"], highest, bar_width)] if bar_width > 1 else []
        table.add_row(Text(escape(label)), *numbers, *bars)
    return table


def sparkline(counts: Sequence[int]) -> str:
    """Draw a histogram as one character per bin; a bin that holds anything is never blank."""
    highest = max(counts, default=0)
    steps = len(_BLOCKS) - 1
    return "".join(_BLOCKS[-(-count * steps // highest) if highest else 0] for count in counts)


def bar(count: int, highest: int, width: int = _BAR_WIDTH) -> str:
    """Draw a bar in eighths of a character; anything above 0 can be seen."""
    eighths = max(round(count / highest * width * 8), 1) if count else 0
    return "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")
