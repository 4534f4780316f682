"""Commands that look at results."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from batchdet.cli.application import app, fail
from batchdet.cli.arguments import LOOK, Json, MinScore, Out, RunId, Settings, SheetDir, VectorRun
from batchdet.cli.output import console, print_json
from batchdet.errors import BatchdetError
from batchdet.text import escape

if TYPE_CHECKING:
    from batchdet.results.pictures import Chosen, OtherFile

_MOST_PICTURES = 60


@app.command(rich_help_panel=LOOK)
def show(
    out: Out,
    run_id: RunId = None,
    settings: Settings = None,
    pictures: Annotated[
        str | None,
        typer.Option("--pictures", metavar="DIR", help="Also write annotated pictures here; a path or any fsspec URI."),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many pictures.")] = 6,
    min_score: MinScore = 0.4,
    as_json: Json = False,
) -> None:
    """Show the current settings, or one run: counts by class, failures, scores, sizes, rate."""
    from batchdet.results.show import render_show
    from batchdet.results.show import show as describe

    found = describe(out, run_id, settings)
    if pictures is not None:
        from batchdet.results.pictures import write_pictures

        written = write_pictures(out, pictures, run_id, count, min_score=min_score, settings=settings)
        found["pictures"] = written.to_dict()
        for sentence in written.skipped:
            print(f"no picture: {escape(sentence)}", file=sys.stderr)
    if as_json:
        print_json(found)
    else:
        render_show(found, console())
        if pictures is not None:
            print(f"pictures: {written.summary()}")


@app.command(rich_help_panel=LOOK)
def query(
    out: Out,
    sql: Annotated[
        str,
        typer.Argument(metavar="SQL", help="One SELECT over images, detections, runs, all_images and all_detections."),
    ],
    run_id: RunId = None,
    settings: Settings = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for spreadsheets.")] = False,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="Print at most this many rows as a table.")] = 40,
) -> None:
    """Ask the tables in SQL (DuckDB): rows of the current settings, each image, or shard, from its newest run."""
    from batchdet.results.open import open_results
    from batchdet.results.query import query_results, render_table, to_csv, to_json

    results = open_results(out, run_id, settings)
    table = query_results(results, sql, max_rows=None if as_json or as_csv else rows + 1)
    if as_json:
        print(to_json(table))
    elif as_csv:
        print(to_csv(table), end="")
    else:
        render_table(table, rows, console())
    if note := results.left_out_note():
        print(note, file=sys.stderr)


@app.command(rich_help_panel=LOOK)
def status(out: Out, as_json: Json = False) -> None:
    """List the runs of an output, committed or not."""
    from batchdet.results.status import render_status
    from batchdet.results.status import status as describe

    found = describe(out)
    print_json(found) if as_json else render_status(found, console())


@app.command(rich_help_panel=LOOK)
def verify(
    out: Out,
    run_id: Annotated[
        str | None, typer.Option("--run", metavar="RUN_ID", help="A certain run; default: every committed run.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Hash every committed file and recount every total; exit 6 when something is wrong."""
    from batchdet.progress import counting
    from batchdet.results.verify import inspect_output, render_verify

    with counting("bytes", 1) as progress:
        report = inspect_output(out, run_id, progress)
    try:
        report.raise_problems()
    except BatchdetError as error:
        fail(error, as_json, report.to_dict())
    print_json(report.to_dict()) if as_json else render_verify(report, console())


@app.command(rich_help_panel=LOOK)
def evaluate(
    out: Out,
    truth: Annotated[str, typer.Option("--truth", metavar="JSON", help="Ground truth, COCO instances.json.")],
    run_id: RunId = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Compare detections with ground truth: AP as COCO defines it."""
    from batchdet.results.evaluate import evaluate as score
    from batchdet.results.evaluate import render_evaluation

    found = score(out, truth, run_id, settings)
    print_json(found.to_dict()) if as_json else render_evaluation(found, console())


@app.command(rich_help_panel=LOOK)
def similar(
    out: Out,
    image: Annotated[str, typer.Argument(metavar="IMAGE_ID|FILE", help="An image of the tables, or any image file.")],
    box: Annotated[
        int, typer.Option("--box", min=0, help="Where boxes have vectors: the rank by score of the one meant.")
    ] = 0,
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="How many.")] = 10,
    run_id: VectorRun = None,
    settings: Settings = None,
    pictures: SheetDir = None,
    min_score: MinScore = 0.4,
    as_json: Json = False,
) -> None:
    """Find the images, or boxes, most like one (of a run with model.features)."""
    from batchdet.results.similar import find_similar, render_similar

    found = find_similar(out, image, box, top, run_id, settings)
    print_json(found.to_dict()) if as_json else render_similar(found, console())
    _note_passed_over(found.passed_over)
    if pictures is not None:
        _write_sheet(out, pictures, run_id, settings, min_score, found.pictures())


@app.command(rich_help_panel=LOOK)
def duplicates(
    out: Out,
    min_similarity: Annotated[
        float, typer.Option("--min-similarity", min=0, max=1, help="From this cosine on, images count as the same.")
    ] = 0.97,
    run_id: VectorRun = None,
    settings: Settings = None,
    pictures: SheetDir = None,
    min_score: MinScore = 0.4,
    as_json: Json = False,
) -> None:
    """List groups of images that are all but the same (of a run with model.features: image)."""
    from batchdet.progress import counting
    from batchdet.results.duplicates import find_duplicates, render_duplicates
    from batchdet.results.pictures import Chosen

    with counting("comparing", 1) as progress:
        found = find_duplicates(out, min_similarity, run_id, settings, progress)
    print_json(found.to_dict()) if as_json else render_duplicates(found, console())
    _note_passed_over(found.passed_over)
    if pictures is not None:
        members = [Chosen(member.run_id, member.image_id) for group in found.groups for member in group]
        _write_sheet(out, pictures, run_id, settings, min_score, members[:_MOST_PICTURES])


def _note_passed_over(runs: tuple[str, ...]) -> None:
    if runs:
        print(f"left out, as their vectors are of another model or made otherwise: {', '.join(runs)}", file=sys.stderr)


def _write_sheet(
    out: str,
    folder: str,
    run: str | None,
    settings: str | None,
    min_score: float,
    chosen: "Sequence[Chosen | OtherFile]",
) -> None:
    from batchdet.results.pictures import write_pictures

    written = write_pictures(out, folder, run, min_score=min_score, chosen=chosen, settings=settings)
    for sentence in written.skipped:
        print(f"no picture: {escape(sentence)}", file=sys.stderr)
    print(f"pictures: {written.summary()}", file=sys.stderr)
