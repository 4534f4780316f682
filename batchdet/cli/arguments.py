"""Arguments that several commands share, and the headings under which help lists commands."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from batchdet.spec import JobSpec

Job = Annotated[str, typer.Argument(metavar="JOB", help="Job spec in YAML; a path or any fsspec URI.")]
Out = Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a job; a path or any fsspec URI.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the spec, as in model.score_threshold=0.4."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Let Ray speak too.")]
RunId = Annotated[
    str | None,
    typer.Option("--run", metavar="RUN_ID", help="Only this run; default: each image's newest of the settings."),
]
Settings = Annotated[
    str | None,
    typer.Option(
        "--settings", metavar="RUN|JOB", help="The settings of this run or job file; default: those of the newest run."
    ),
]

VectorRun = Annotated[
    str | None,
    typer.Option("--run", metavar="RUN_ID", help="Only this run; default: all whose vectors can be compared."),
]
SheetDir = Annotated[
    str | None,
    typer.Option("--pictures", metavar="DIR", help="Also write them as pictures here; a path or any fsspec URI."),
]
MinScore = Annotated[
    float, typer.Option("--min-score", min=0, max=1, help="Draw only boxes with at least this score in pictures.")
]

RUN, LOOK, SET_UP, CLUSTER = "Run a job", "Look at results", "Set up", "On a cluster"
TRAIN = "Train a detector"


def load(job: str, settings: list[str] | None) -> "JobSpec":
    """Read a job spec, and let plug-in heads be imported that lie beside it."""
    from batchdet.model.families.plugin import look_beside
    from batchdet.specfile import load_job

    spec = load_job(job, settings or ())
    look_beside(job)
    return spec
