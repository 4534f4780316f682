"""Commands about models: what one is, and making one."""

import sys
from typing import Annotated, Literal

import typer

from batchdet.cli.application import app
from batchdet.cli.arguments import SET_UP, TRAIN, Json
from batchdet.cli.output import print_facts, print_json
from batchdet.errors import SpecError
from batchdet.text import counted, escape


@app.command(rich_help_panel=SET_UP)
def model(
    uri: Annotated[str, typer.Argument(help="A model file or folder, any fsspec URI, or builtin:sample.")],
    family: Annotated[str, typer.Option("--family", help="As model.family of a job.")] = "auto",
    trusted: Annotated[
        bool, typer.Option("--trusted", help="As model.trusted of a job: load files that can run code of their own.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what a model is: its anatomy, family, inputs, outputs, labels, canvas, licence."""
    from batchdet.model.child import inspect_model
    from batchdet.model.families.plugin import look_beside
    from batchdet.spec import ModelSpec

    look_beside("job.yaml")
    if not uri.strip():
        raise SpecError("the URI of the model is empty", code="model.not_found", key="URI")
    try:
        spec = ModelSpec(uri=uri, family=family, trusted=trusted)
    except ValueError as error:
        raise SpecError(f"--family {family}: {str(error).splitlines()[2].strip().partition(' [')[0]}") from error
    found = inspect_model(spec)
    card, anatomy = found.card, found.anatomy
    if anatomy is None:
        print(f"no anatomy: {escape(found.no_anatomy)}", file=sys.stderr)
    if as_json:
        print_json(card.to_dict() | {"anatomy": anatomy and anatomy.to_dict()})
    else:
        if anatomy is not None:
            print("\n".join(map(escape, anatomy.describe())), end="\n\n")
        print_facts(card.describe())


@app.command(rich_help_panel=TRAIN)
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
        typer.Option(
            "--init",
            metavar="WEIGHTS",
            help="Begin with these weights: a checkpoint of batchdet train; builtin:sample; a ResNet or ViT that has "
            "learned ImageNet (safetensors of timm, torchvision or Hugging Face), which becomes the backbone; or a "
            "Hugging Face folder of a detector (RT-DETR, RT-DETR v2, D-FINE, DETR, YOLOS), which is then trained.",
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="csp, resnet or vit; default: that of --init, or csp.")
    ] = None,
    neck: Annotated[str | None, typer.Option("--neck", help="pan or fpn; default: pan.")] = None,
    head: Annotated[str | None, typer.Option("--head", help="one_to_one, the default.")] = None,
    width: Annotated[
        float | None,
        typer.Option(
            "--width", help="Factor on the channels of all parts but a ResNet or ViT of --init, 0.25 to 8 [1]."
        ),
    ] = None,
    freeze: Annotated[
        str | None, typer.Option("--freeze", help="backbone: it keeps the weights of --init; or none, the default.")
    ] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the images [30].")] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Train for so long, in place of --epochs.")] = None,
    batch_rows: Annotated[
        int | None, typer.Option("--batch-rows", help="Images in a batch, over all workers [16].")
    ] = None,
    canvas: Annotated[
        int | None,
        typer.Option("--canvas", metavar="PX", help="Longer side of the canvas; default: --init's, or 320."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            help="Highest learning rate [0.003; 0.0015 if all of --init learns; 0.0001 for a Hugging Face detector].",
        ),
    ] = None,
    no_flip: Annotated[
        bool, typer.Option("--no-flip", help="Do not mirror images: left and right mean something.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of split, order, variation and weights [0].")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu or gpu; default: auto.")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes that share each batch, on CPUs, by Ray Train [1].")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="A running Ray for the workers: auto or HOST:PORT; default: one here."),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="TEXT", help="Of the new model; default: that of --init.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in --out.")] = False,
    as_json: Json = False,
) -> None:
    """Train a detector on images with boxes, measure it, and write its files with a card."""
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
        print_json(done.to_dict())
        return
    report = done.report
    print(
        f"{counted(done.steps, 'step')} in {done.train_s:.1f} s; on {counted(report.images, 'image')} held back: "
        f"AP {report.ap:.3f}  AP50 {report.ap50:.3f}  AP75 {report.ap75:.3f}"
    )
    print_facts([(f"AP50 {label}", f"{ap50:.3f}") for label, ap50 in report.ap50_by_label.items()])
    if report.ap50 > 0 and report.ap50_confident == 0:
        print(
            "no right box scores 0.25 yet, from which a run counts: train for longer, or lower model.score_threshold",
            file=sys.stderr,
        )
    print("next:")
    for command in done.commands:
        print(f"  {escape(command)}")


@app.command(rich_help_panel=SET_UP)
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
    print(f"{counted(images, 'image')}: {made.source_uri}\nground truth: {made.instances_uri}")
