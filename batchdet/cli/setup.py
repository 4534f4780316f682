"""Commands that help to set up."""

from typing import Annotated

import typer

from batchdet.cli.application import app
from batchdet.cli.arguments import SET_UP, Json, Set, load
from batchdet.cli.output import console, print_json


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
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Also check what this job needs.")] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Check this machine: packages, processors, memory, runtimes, credentials, output."""
    from batchdet.cluster.doctor import doctor as examine
    from batchdet.cluster.doctor import render_doctor

    checks = examine(load(job, set_) if job else None)
    print_json([check.to_dict() for check in checks]) if as_json else render_doctor(checks, console())
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(5)
