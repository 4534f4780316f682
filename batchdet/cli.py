"""The command line. Each command reads its arguments, calls one function and prints what it returns."""

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

import batchdet
from batchdet.errors import BatchdetError, Interrupted, ModelError, SpecError
from batchdet.failpoint import failpoint

if TYPE_CHECKING:
    from batchdet.spec import JobSpec

app = typer.Typer(
    name="batchdet",
    help="Label very large image sets with an object detector, on a cluster, so that the result can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done; 2 wrong spec or argument; 3 too many failed images; 4 output locked; "
    "5 the cluster cannot do it; 6 verification failed; 130/143 interrupted.",
)

Job = Annotated[str, typer.Argument(metavar="JOB", help="Job spec in YAML; a path or any fsspec URI.")]
Out = Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a job; a path or any fsspec URI.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the spec, as in model.score_threshold=0.4."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Let Ray speak too.")]
RunId = Annotated[str | None, typer.Option("--run", metavar="RUN_ID", help="A certain run; default: the newest.")]

VectorRun = Annotated[
    str | None,
    typer.Option("--run", metavar="RUN_ID", help="Only this run; default: all whose vectors can be compared."),
]
SheetDir = Annotated[
    str | None,
    typer.Option("--pictures", metavar="DIR", help="Also write them as pictures here; a path or any fsspec URI."),
]

_MOST_PICTURES = 60
_RUN, _LOOK, _SET_UP, _CLUSTER = "Run a job", "Look at results", "Set up", "On a cluster"
_TRAIN = "Train a detector"


def _load(job: str, settings: list[str] | None) -> "JobSpec":
    from batchdet.specfile import load_job

    spec = load_job(job, settings or ())
    _beside(job)
    return spec


def _beside(job: str) -> None:
    """Let plug-in heads be imported that lie beside the job file."""
    folder = os.path.dirname(os.path.abspath(job))
    if "://" not in job and folder not in sys.path:
        sys.path.append(folder)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"batchdet {batchdet.__version__}")
        raise typer.Exit


@app.command(rich_help_panel=_RUN)
def run(
    job: Job,
    set_: Set = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Label everything again, whatever earlier runs hold.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Label what is new and commit it; after a crash the same command goes on."""
    from batchdet.job import run_job
    from batchdet.progress import hushed, watcher_for
    from batchdet.results.speed import speed_rows

    spec = _load(job, set_)
    with hushed(verbose), watcher_for() as watcher:
        done = run_job(spec, fresh=fresh, watcher=watcher, verbose=verbose)
    if as_json:
        _print_json(
            {
                "run_id": done.run_id,
                "status": done.status,
                "output": done.output,
                "images_ok": done.images_ok,
                "images_failed": done.images_failed,
                "wall_s": round(done.wall_s, 3),
                **done.measured,
            }
        )
    elif done.status == "committed":
        total = done.images_ok + done.images_failed
        print(
            f"run {done.run_id}: {total} images ({done.images_failed} failed), "
            f"{sum(p.rows for p in done.manifest.detections)} detections in {done.wall_s:.1f} s"
        )
        _print_facts([(name.lower(), text) for name, text in speed_rows(done.measured)])
        print(f"tables: {done.output}\nlook:   batchdet show {done.output}")


@app.command(rich_help_panel=_RUN)
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

    plan = plan_job(_load(job, set_), fresh)
    if not no_measure and plan.finished_run_id is None:
        print("trying the model on some of the images ...", file=sys.stderr, flush=True)
    outlook = forecast(plan, not no_measure)
    planned = plan.to_dict() | outlook.to_dict()
    if as_json:
        _print_json(planned)
        return
    _print_facts(
        [
            ("job", planned["name"]),
            ("source", f"{planned['source']} ({planned['format']})"),
            (
                "to do",
                f"{planned['objects']} objects, {planned['size_bytes'] / 1e6:.1f} MB, in {planned['shards']} shards"
                + (f", {planned['images']} images" if planned["images"] is not None else ""),
            ),
            ("done already", f"{planned['known_objects']} objects" if planned["known_objects"] else "nothing"),
            ("carried over", ", ".join(planned["carried_columns"]) or "no columns"),
            ("model", f"sha256 {planned['model_sha256'][:16]}..."),
            *([("warning", plan.warning)] if plan.warning else []),
            ("tables", f"{planned['output']}, partitioned by {', '.join(planned['partition_by']) or 'nothing'}"),
            (
                "a run would",
                f"go on with {planned['resume_run_id']}"
                if planned["resume_run_id"]
                else f"do nothing: {planned['finished_run_id']} holds all of it"
                if planned["finished_run_id"]
                else "start anew",
            ),
            *([("because", planned["why"])] if planned["why"] else []),
            *([("left for later", f"{planned['later_objects']} new objects")] if planned["later_objects"] else []),
            *(("" if i else "chosen", f"{key}: {choice}") for i, (key, choice) in enumerate(outlook.choices.items())),
            *(prediction_rows(outlook.prediction.to_dict()) if outlook.prediction else []),
            *([("prediction", outlook.why_not)] if outlook.why_not else []),
        ]
    )


def _print_facts(facts: list[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        print(f"{name.ljust(width)}  {_plain(value)}")  # labels and columns are other people's texts


@app.command(rich_help_panel=_RUN)
def validate(job: Job, set_: Set = None, as_json: Json = False) -> None:
    """Check a job spec, line by line, without touching source, model or cluster."""
    spec = _load(job, set_)
    if as_json:
        _print_json(json.loads(spec.model_dump_json()))
    else:
        print(f"{job}: a valid job spec ({spec.name})")


@app.command(rich_help_panel=_LOOK)
def show(
    out: Out,
    run_id: RunId = None,
    pictures: Annotated[
        str | None,
        typer.Option("--pictures", metavar="DIR", help="Also write annotated pictures here; a path or any fsspec URI."),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many pictures.")] = 6,
    min_score: Annotated[
        float, typer.Option("--min-score", min=0, max=1, help="Draw only boxes with at least this score.")
    ] = 0.4,
    as_json: Json = False,
) -> None:
    """Show a run: counts by class, failures, scores, sizes, rate."""
    from batchdet.results.show import render_show
    from batchdet.results.show import show as describe

    found = describe(out, run_id)
    if pictures is not None:
        from batchdet.results.pictures import write_pictures

        written = write_pictures(out, pictures, found["run"]["run_id"], count, min_score=min_score)
        found["pictures"] = written.to_dict()
        for sentence in written.skipped:
            print(f"no picture: {_plain(sentence)}", file=sys.stderr)
    if as_json:
        _print_json(found)
    else:
        render_show(found, _console())
        if pictures is not None:
            print(f"pictures: {written.summary()}")


def _console() -> Any:
    from rich.console import Console

    return Console()


@app.command(rich_help_panel=_LOOK)
def query(
    out: Out,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT over the views images, detections and runs.")],
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for spreadsheets.")] = False,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="Print at most this many rows as a table.")] = 40,
) -> None:
    """Ask the tables in SQL (DuckDB): committed rows only, each image, or shard, from its newest run."""
    from batchdet.results.query import query as ask
    from batchdet.results.query import render_table, to_csv, to_json

    table = ask(out, sql, max_rows=None if as_json or as_csv else rows + 1)
    if as_json:
        print(to_json(table))
    elif as_csv:
        print(to_csv(table), end="")
    else:
        render_table(table, rows, _console())


@app.command(rich_help_panel=_LOOK)
def status(out: Out, as_json: Json = False) -> None:
    """List the runs of an output, committed or not."""
    from batchdet.results.status import render_status
    from batchdet.results.status import status as describe

    found = describe(out)
    _print_json(found) if as_json else render_status(found, _console())


@app.command(rich_help_panel=_LOOK)
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
    if as_json:
        _print_json(report.to_dict())
    elif not report.problems:
        render_verify(report, _console())
    report.raise_problems()


@app.command(rich_help_panel=_RUN)
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
    _print_json(found.to_dict()) if as_json else render_garbage(found, _console())


@app.command(rich_help_panel=_LOOK)
def evaluate(
    out: Out,
    truth: Annotated[str, typer.Option("--truth", metavar="JSON", help="Ground truth, COCO instances.json.")],
    run_id: Annotated[
        str | None,
        typer.Option("--run", metavar="RUN_ID", help="A certain run; default: every image's newest rows."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare detections with ground truth: AP as COCO defines it."""
    from batchdet.results.evaluate import evaluate as score
    from batchdet.results.evaluate import render_evaluation

    found = score(out, truth, run_id)
    _print_json(found.to_dict()) if as_json else render_evaluation(found, _console())


@app.command(rich_help_panel=_LOOK)
def similar(
    out: Out,
    image: Annotated[str, typer.Argument(metavar="IMAGE_ID|FILE", help="An image of the tables, or any image file.")],
    box: Annotated[
        int, typer.Option("--box", min=0, help="Where boxes have vectors: the rank by score of the one meant.")
    ] = 0,
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="How many.")] = 10,
    run_id: VectorRun = None,
    pictures: SheetDir = None,
    as_json: Json = False,
) -> None:
    """Find the images, or boxes, most like one (of a run with model.features)."""
    from batchdet.results.similar import find_similar, render_similar

    found = find_similar(out, image, box, top, run_id)
    _print_json(found.to_dict()) if as_json else render_similar(found, _console())
    _note_passed_over(found.passed_over)
    if pictures is not None:
        _write_sheet(out, pictures, [(n.run_id, n.image_id, n.detection_index) for n in found.neighbours])


@app.command(rich_help_panel=_LOOK)
def duplicates(
    out: Out,
    min_similarity: Annotated[
        float, typer.Option("--min-similarity", min=0, max=1, help="From this cosine on, images count as the same.")
    ] = 0.97,
    run_id: VectorRun = None,
    pictures: SheetDir = None,
    as_json: Json = False,
) -> None:
    """List groups of images that are all but the same (of a run with model.features: image)."""
    from batchdet.progress import counting
    from batchdet.results.duplicates import find_duplicates, render_duplicates

    with counting("comparing", 1) as progress:
        found = find_duplicates(out, min_similarity, run_id, progress)
    _print_json(found.to_dict()) if as_json else render_duplicates(found, _console())
    _note_passed_over(found.passed_over)
    if pictures is not None:
        members = [member for group in found.groups for member in group]
        _write_sheet(out, pictures, [(m.run_id, m.image_id, None) for m in members[:_MOST_PICTURES]])


def _note_passed_over(runs: tuple[str, ...]) -> None:
    if runs:
        print(f"left out, as their vectors are of another model or made otherwise: {', '.join(runs)}", file=sys.stderr)


def _write_sheet(out: str, folder: str, chosen: list[tuple[str, str, int | None]]) -> None:
    from batchdet.results.pictures import write_pictures

    written = write_pictures(
        out, folder, min_score=0.0 if any(c[2] is not None for c in chosen) else 0.4, chosen=chosen
    )
    for sentence in written.skipped:
        print(f"no picture: {_plain(sentence)}", file=sys.stderr)
    print(f"pictures: {written.summary()}", file=sys.stderr)


@app.command(rich_help_panel=_SET_UP)
def model(
    uri: Annotated[str, typer.Argument(help="A model file or folder, any fsspec URI, or builtin:sample.")],
    family: Annotated[str, typer.Option("--family", help="As model.family of a job.")] = "auto",
    trusted: Annotated[
        bool, typer.Option("--trusted", help="As model.trusted of a job: load files that can run code of their own.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what a model is: its anatomy, family, inputs, outputs, labels, canvas, licence."""
    from batchdet.model.detector import open_detector
    from batchdet.spec import ModelSpec

    _beside("job.yaml")
    try:
        spec = ModelSpec(uri=uri, family=family, trusted=trusted)
    except ValueError as error:
        raise SpecError(f"--family {family}: {str(error).splitlines()[2].strip().partition(' [')[0]}") from error
    detector = open_detector(spec)
    card = detector.card
    try:
        anatomy = detector.anatomy
    except ModelError as error:  # a file that does not show its parts is a model all the same
        print(f"no anatomy: {_plain(error.message)}", file=sys.stderr)
        anatomy = None
    if as_json:
        _print_json(card.to_dict() | {"anatomy": anatomy and anatomy.to_dict()})
    else:
        if anatomy is not None:
            print("\n".join(map(_plain, anatomy.describe())), end="\n\n")
        _print_facts(card.describe())


@app.command(rich_help_panel=_TRAIN)
def train(
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder of the training; empty or not there.")],
    data: Annotated[
        str | None, typer.Option("--data", metavar="DIR|JSON", help="Truth in COCO JSON, or a folder that holds one.")
    ] = None,
    images: Annotated[
        str | None, typer.Option("--images", metavar="DIR", help="Folder of the images; default: the data's own.")
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            "--val", metavar="SHARE|JSON", help="Images to measure on: a share held back [0.2], or a COCO JSON."
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option("--init", metavar="CHECKPOINT", help="Begin with these weights: *.safetensors or builtin:sample."),
    ] = None,
    backbone: Annotated[str | None, typer.Option("--backbone", help="csp, resnet or vit [csp].")] = None,
    neck: Annotated[str | None, typer.Option("--neck", help="pan or fpn [pan].")] = None,
    head: Annotated[str | None, typer.Option("--head", help="one_to_one [one_to_one].")] = None,
    width: Annotated[
        float | None, typer.Option("--width", help="Factor on the channels of all parts, 0.25 to 8 [1].")
    ] = None,
    freeze: Annotated[
        str | None, typer.Option("--freeze", help="backbone: it keeps the weights of --init; or none [none].")
    ] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the images [30].")] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Train for so long, in place of --epochs.")] = None,
    batch_rows: Annotated[
        int | None, typer.Option("--batch-rows", help="Images in a batch, over all workers [16].")
    ] = None,
    canvas: Annotated[
        int | None, typer.Option("--canvas", metavar="PX", help="Longer side of the canvas [that of --init, or 320].")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", help="Highest learning rate [0.003; 0.0015 where all of --init learns]."),
    ] = None,
    no_flip: Annotated[
        bool, typer.Option("--no-flip", help="Do not mirror images: left and right mean something.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of split, order, variation and weights [0].")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu or gpu [auto].")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes that share each batch, on CPUs, by Ray Train [1].")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="A running Ray for the workers: auto or HOST:PORT; default: one here."),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="TEXT", help="Of the new model [that of --init].")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in --out.")] = False,
    as_json: Json = False,
) -> None:
    """Train a detector on images with boxes, measure it, and export it to ONNX with a card."""
    from batchdet.train import train as run_training

    settings = {
        "data": data,
        "images": images,
        "val": val,
        "init": init,
        "backbone": backbone,
        "neck": neck,
        "head": head,
        "width": width,
        "freeze": freeze,
        "epochs": epochs,
        "minutes": minutes,
        "batch_rows": batch_rows,
        "canvas_px": canvas,
        "rate": rate,
        "flip": False if no_flip else None,
        "seed": seed,
        "device": device,
        "workers": workers,
        "licence": licence,
    }
    done = run_training(out, settings, resume, address)
    if as_json:
        _print_json(done.to_dict())
        return
    report = done.report
    print(
        f"{done.steps} steps in {done.train_s:.1f} s; on {report.images} images that were held back: "
        f"AP {report.ap:.3f}  AP50 {report.ap50:.3f}  AP75 {report.ap75:.3f}"
    )
    _print_facts([(f"AP50 {label}", f"{ap50:.3f}") for label, ap50 in report.ap50_by_label.items()])
    print("next:")
    for command in done.commands:
        print(f"  {_plain(command)}")


@app.command(rich_help_panel=_SET_UP)
def sample(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Where to write; a path or any fsspec URI.")],
    images: Annotated[int, typer.Option("--images", min=1, help="How many images.")] = 2000,
    format_: Annotated[
        Literal["webdataset", "folder", "parquet"], typer.Option("--format", help="How to pack them.")
    ] = "webdataset",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, other images.")] = 1,
    kinds: Annotated[
        Literal["known", "new"],
        typer.Option(
            "--kinds", help="known to builtin:sample, or three new ones, to train on (snowman, kite, anchor)."
        ),
    ] = "known",
) -> None:
    """Make a labelled set of generated images, with ground truth in COCO JSON."""
    from batchdet.progress import counting
    from batchdet.sample.dataset import write_sample

    with counting("drawing", images) as progress:
        made = write_sample(folder, images, format_, seed, progress=progress, kinds=kinds)
    print(f"{images} images: {made.source_uri}\nground truth: {made.instances_uri}")


@app.command(rich_help_panel=_SET_UP)
def schema(
    table: Annotated[bool, typer.Option("--table", help="Print a Markdown table of all keys instead.")] = False,
) -> None:
    """Print the JSON Schema of job specs, for editors."""
    from batchdet.spec import JobSpec
    from batchdet.spec_reference import spec_table

    print(spec_table(), end="") if table else _print_json(JobSpec.model_json_schema())


@app.command(rich_help_panel=_SET_UP)
def doctor(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Also check what this job needs.")] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Check this machine: packages, processors, memory, runtimes, credentials, output."""
    from batchdet.cluster.doctor import doctor as examine
    from batchdet.cluster.doctor import render_doctor

    checks = examine(_load(job, set_) if job else None)
    _print_json([check.to_dict() for check in checks]) if as_json else render_doctor(checks, _console())
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(5)


@app.command(rich_help_panel=_CLUSTER)
def submit(
    job: Job,
    address: Annotated[str, typer.Option("--address", help="The cluster's dashboard, such as http://head:8265.")],
    set_: Set = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return once it is submitted.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Label everything again.")] = False,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME", help="Pass this environment variable on to the job."),
    ] = None,
    pip: Annotated[bool, typer.Option("--pip", help="Let the cluster install batchdet's packages first.")] = False,
    as_json: Json = False,
) -> None:
    """Run a job on a Ray cluster, follow its log, and exit as it does."""
    from batchdet.cluster.submit import submit_job

    _beside(job)
    note = lambda text: print(text, file=sys.stderr)  # noqa: E731
    done = submit_job(
        job,
        address,
        set_ or (),
        wait=not no_wait,
        env=env or (),
        pip=pip,
        run_options=["--fresh"] if fresh else [],
        on_log=note if as_json else None,
        on_note=note,
    )
    if as_json:
        _print_json({"job_id": done.job_id, "status": done.status, "exit_status": done.exit_status})
    elif no_wait:
        print(f"{done.job_id}\nfollow: {done.follow_command}\nstop:   {done.stop_command}")
    raise typer.Exit(done.exit_status)


@app.command(rich_help_panel=_CLUSTER)
def render(
    job: Job,
    target: Annotated[Literal["rayjob", "raycronjob"], typer.Option("--target", help="Once, or on a schedule.")],
    set_: Set = None,
    image: Annotated[str, typer.Option("--image", help="Image of all pods; default: the one of infra/README.md.")] = "",
    namespace: Annotated[str, typer.Option("--namespace", help="Kubernetes namespace.")] = "",
    schedule: Annotated[str, typer.Option("--schedule", metavar="CRON", help="Five cron fields; raycronjob.")] = "",
    time_zone: Annotated[str, typer.Option("--time-zone", help="Of the schedule, such as Europe/Berlin.")] = "",
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Worker pods; default: by actors.")] = None,
    max_workers: Annotated[int | None, typer.Option("--max-workers", min=1, help="Autoscale up to this many.")] = None,
    worker_cpus: Annotated[int, typer.Option("--worker-cpus", min=1, help="CPUs of a worker pod.")] = 4,
    worker_memory: Annotated[str, typer.Option("--worker-memory", help="Memory of a worker pod.")] = "8Gi",
    head_cpus: Annotated[int, typer.Option("--head-cpus", min=1, help="CPUs of the head pod.")] = 2,
    head_memory: Annotated[str, typer.Option("--head-memory", help="Memory of the head pod.")] = "8Gi",
    secret: Annotated[str, typer.Option("--secret", help="Secret with the job's variables.")] = "",
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="NAME", help="A further variable to take from the Secret.")
    ] = None,
    service_account: Annotated[str, typer.Option("--service-account", help="Service account of the pods.")] = "",
    deadline_s: Annotated[
        int, typer.Option("--deadline", metavar="SECONDS", min=1, help="KubeRay ends the job after this time.")
    ] = 24 * 3600,
    ttl_s: Annotated[
        int, typer.Option("--ttl", metavar="SECONDS", min=0, help="The cluster stays this long after the job.")
    ] = 600,
    retries: Annotated[int, typer.Option("--retries", min=0, help="New clusters to try on; each goes on.")] = 1,
) -> None:
    """Write KubeRay manifests (ray.io/v1) for a job to standard output."""
    from batchdet.cluster.render import RenderOptions
    from batchdet.cluster.render import render as write

    options = RenderOptions(
        image=image,
        namespace=namespace,
        schedule=schedule,
        time_zone=time_zone,
        workers=workers,
        max_workers=max_workers,
        worker_cpus=worker_cpus,
        worker_memory=worker_memory,
        head_cpus=head_cpus,
        head_memory=head_memory,
        secret=secret,
        env=tuple(env or ()),
        service_account=service_account,
        deadline_s=deadline_s,
        ttl_s=ttl_s,
        retries=retries,
    )
    print(write(job, target, set_ or (), options), end="")


def _fail(error: BatchdetError) -> NoReturn:
    text = error.message
    for line in text.splitlines() or [""]:
        print(f"error: {_plain(line)}", file=sys.stderr)
    sys.stdout.flush()
    sys.exit(error.exit_status)


def _plain(text: str) -> str:
    """Show control characters as escapes, so that a name in a message cannot drive the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _on_signal(number: int, frame: object) -> None:
    """Turn the first SIGINT or SIGTERM into an error that unwinds; another one of either ends the process at once."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda again, _: os._exit(128 + again))
    failpoint("cli.interrupted")
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    raise Interrupted(f"stopped by {name}; what was staged is kept, the same command goes on", 128 + number)


def main() -> None:
    """Run the command line and exit with the status that DESIGN.md names."""
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)
    try:
        app()
    except BatchdetError as error:
        _fail(error)
