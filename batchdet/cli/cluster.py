"""Commands for jobs on a cluster."""

import sys
from typing import Annotated, Literal

import typer

from batchdet.cli.application import app
from batchdet.cli.arguments import CLUSTER, Job, Json, Set
from batchdet.cli.output import print_json


@app.command(rich_help_panel=CLUSTER)
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
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Submit to a head that takes jobs of anybody and is not on this machine.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a job on a Ray cluster, follow its log, and exit as it does."""
    from batchdet.cluster.submit import submit_job

    note = lambda text: print(text, file=sys.stderr)  # noqa: E731
    done = submit_job(
        job,
        address,
        set_ or (),
        wait=not no_wait,
        env=env or (),
        pip=pip,
        insecure=insecure,
        run_options=["--fresh"] if fresh else [],
        on_log=note if as_json else None,
        on_note=note,
    )
    if as_json:
        print_json({"job_id": done.job_id, "status": done.status, "exit_status": done.exit_status})
    elif no_wait:
        print(f"{done.job_id}\nfollow: {done.follow_command}\nstop:   {done.stop_command}")
    raise typer.Exit(done.exit_status)


@app.command(rich_help_panel=CLUSTER)
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
