"""Commands that help to set up."""

import os
import shlex
from typing import Annotated

import typer

from batchdet.cli.application import app
from batchdet.cli.arguments import SET_UP, Json, Set, load
from batchdet.cli.output import console, print_json
from batchdet.errors import SpecError
from batchdet.text import escape


@app.command(rich_help_panel=SET_UP)
def init(
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="The job file to write; a path.")] = "job.yaml",
) -> None:
    """Ask five questions, check each answer, and write a job file."""
    from batchdet import storage
    from batchdet.cli.questions import ask_for_job

    path = storage.normalize(file)
    in_the_way = SpecError(
        f"{file} exists and is not overwritten; name another file: batchdet init FILE", code="job.file_exists", key=file
    )
    if os.path.lexists(path):
        raise in_the_way
    text = ask_for_job(file)
    if not storage.create(path, text.encode()):
        raise in_the_way
    print(f"\n{text}\nwritten to {escape(path)}\nnext: batchdet run {escape(shlex.quote(file))}")


@app.command(rich_help_panel=SET_UP)
def schema(
    table: Annotated[bool, typer.Option("--table", help="Print a Markdown table of all keys instead.")] = False,
) -> None:
    """Print the JSON Schema of job specs, for editors."""
    from batchdet.spec import JobSpec
    from batchdet.spec_reference import spec_table

    print(spec_table(), end="") if table else print_json(JobSpec.model_json_schema())


@app.command(rich_help_panel=SET_UP)
def doctor(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Also check its source, model and output.")] = None,
    set_: Set = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Also ask a cluster's dashboard, such as http://head:8265.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check this machine: packages, processors, memory, runtimes, credentials; and a job's source, model, output."""
    from batchdet.cluster.doctor import Check, render_doctor
    from batchdet.cluster.doctor import doctor as examine
    from batchdet.readiness import look

    spec = load(job, set_) if job else None
    checks = examine(spec, address)
    for finding in look(spec) if spec else ():
        if finding.error is None:
            checks.append(Check(finding.name, "ok", finding.found))
        else:
            what, _, advice = finding.error.message.partition("; ")
            checks.append(Check(finding.name, "fail", what, advice, finding.error.exit_status))
    print_json([check.to_dict() for check in checks]) if as_json else render_doctor(checks, console())
    failed = [check.exit_status for check in checks if check.state == "fail"]
    if failed:
        raise typer.Exit(failed[0])
