"""Commands that run a job, or say what it would do."""

import json
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from batchdet.cli.application import app
from batchdet.cli.arguments import RUN, Job, Json, Out, Set, Verbose, load
from batchdet.cli.output import console, print_facts, print_json
from batchdet.text import counted, escape

if TYPE_CHECKING:
    from batchdet.spec import JobSpec

_DONE: Final = {
    "committed": "",
    "derived": "derived without the model, ",
    "made_current": "makes its settings current, ",
}
"""What a run says of itself -> what is printed before its counts."""


@app.command(rich_help_panel=RUN)
def run(
    job: Job,
    set_: Set = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Label everything again, whatever earlier runs hold.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Label what is new and commit it; after a crash the same command resumes."""
    _run(load(job, set_), fresh, as_json, verbose)


@app.command(rich_help_panel=RUN)
def label(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Images: a folder, glob, tar shards, Parquet files or a list.")
    ],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="The detector, or builtin:sample.")],
    out: Annotated[str, typer.Option("--out", metavar="OUT", help="Folder of the tables; any fsspec URI.")],
    set_: Set = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Label everything again, whatever earlier runs hold.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Label images without writing a job file: writes one beside OUT (OUT.yaml) and runs it."""
    from batchdet.draft import job_of_arguments

    with job_of_arguments(source, model, out, set_ or ()) as path:
        print(f"job: {escape(path)}", file=sys.stderr, flush=True)
        _run(load(path, None), fresh, as_json, verbose, path)


def _run(spec: "JobSpec", fresh: bool, as_json: bool, verbose: bool, path: str | None = None) -> None:
    from batchdet.job import run_job
    from batchdet.progress import hushed, watcher_for
    from batchdet.results.quarantine import quarantine_to_dict
    from batchdet.results.speed import speed_rows

    with hushed(verbose), watcher_for() as watcher:
        done = run_job(spec, fresh=fresh, watcher=watcher, verbose=verbose)
    if as_json:
        print_json(
            {
                "run_id": done.run_id,
                "status": done.status,
                "output": done.output,
                **({"job": path} if path else {}),
                "images_ok": done.images_ok,
                "images_failed": done.images_failed,
                "wall_s": round(done.wall_s, 3),
                "earlier_runs": [run.run_id for run in done.earlier],
                "quarantine": quarantine_to_dict(done.quarantine),
                **done.measured,
            }
        )
    elif done.status != "nothing_new":
        for each in (*done.earlier, done):
            images = counted(each.images_ok + each.images_failed, "image")
            detections = counted(sum(p.rows for p in each.manifest.detections), "detection")
            failed = f"{each.images_failed:,} failed"
            print(f"run {each.run_id}: {_DONE[each.status]}{images} ({failed}), {detections} in {each.wall_s:.1f} s")
        print_facts([(name.lower(), text) for name, text in speed_rows(done.measured)])
        print(f"tables: {done.output}\nlook:   batchdet show {shlex.quote(done.output)}")


@app.command(rich_help_panel=RUN)
def plan(
    job: Job,
    set_: Set = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ignore what earlier runs hold.")] = False,
    no_measure: Annotated[
        bool, typer.Option("--no-measure", help="Do not try the model on some of the images to predict time and size.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what a run would do and take, without doing it: lists the source, fetches and tries the model."""
    from batchdet.forecast import forecast
    from batchdet.plan import plan_job
    from batchdet.results.speed import prediction_rows
    from batchdet.source.listing import in_words

    plan = plan_job(load(job, set_), fresh)
    if not no_measure and plan.finished_run_id is None and plan.derivation is None:
        print("trying the model on some of the images ...", file=sys.stderr, flush=True)
    outlook = forecast(plan, not no_measure)
    planned = plan.to_dict() | outlook.to_dict()
    if as_json:
        print_json(planned)
        return
    print_facts(
        [
            ("job", planned["name"]),
            ("source", f"{planned['source']} ({planned['format']})"),
            (
                "to do",
                f"{counted(planned['objects'], 'object')}, {planned['size_bytes'] / 1e6:.1f} MB, "
                f"in {counted(planned['shards'], 'shard')}"
                + (f", {counted(planned['images'], 'image')}" if planned["images"] is not None else ""),
            ),
            *([("passed over", in_words(plan.passed_over))] if plan.passed_over else []),
            *([("note", plan.note)] if plan.note else []),
            ("done already", counted(planned["known_objects"], "object") if planned["known_objects"] else "nothing"),
            ("carried over", ", ".join(planned["carried_columns"]) or "no columns"),
            ("model", f"sha256 {planned['model_sha256'][:16]}..."),
            *([("warning", plan.warning)] if plan.warning else []),
            ("tables", f"{planned['output']}, partitioned by {', '.join(planned['partition_by']) or 'nothing'}"),
            (
                "a run would",
                f"resume {planned['resume_run_id']}"
                if planned["resume_run_id"]
                else "make these settings current again, without labelling"
                if planned["makes_current"]
                else f"do nothing: {planned['finished_run_id']} holds all of it"
                if planned["finished_run_id"]
                else "derive rows without the model"
                if planned["derived_from"]
                else "start anew",
            ),
            *([("because", planned["why"])] if planned["why"] else []),
            *(
                [("after that", f"label {counted(later, 'object', 'other')}")]
                if (later := planned["later_objects"])
                else []
            ),
            *(("refused", f"run {run_id}: {message}") for run_id, message in planned["refused_runs"].items()),
            *([("quarantine", warning)] if (warning := planned["quarantine"]["warning"]) else []),
            *(("" if i else "chosen", f"{key}: {choice}") for i, (key, choice) in enumerate(outlook.choices.items())),
            *(prediction_rows(outlook.prediction.to_dict()) if outlook.prediction else []),
            *([("prediction", outlook.why_not)] if outlook.why_not else []),
        ]
    )


@app.command(rich_help_panel=RUN)
def validate(
    job: Job,
    set_: Set = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also look at source, model, classes and output, without labelling.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a job spec, line by line; with --deep also what it names."""
    from batchdet.readiness import check

    spec = load(job, set_)
    findings = check(spec) if deep else []
    if as_json:
        found = {finding.name: finding.found for finding in findings}
        print_json(json.loads(spec.model_dump_json()) | ({"found": found} if deep else {}))
    else:
        print_facts([(finding.name, finding.found) for finding in findings])
        print(f"{job}: a valid job spec ({spec.name})")


@app.command(rich_help_panel=RUN)
def gc(
    out: Out,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also remove unfinished runs that could still go on.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove what no committed, live or unfinished run needs, and list it."""
    from batchdet.results.garbage import collect_garbage, render_garbage

    found = collect_garbage(out, dry_run, unfinished)
    print_json(found.to_dict()) if as_json else render_garbage(found, console())
