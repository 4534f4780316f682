"""The application that commands are added to, and what happens when one ends otherwise than well."""

import atexit
import os
import signal
import sys
from typing import Annotated, NoReturn

import typer

import batchdet
from batchdet.cli.output import plain
from batchdet.errors import BatchdetError, Interrupted
from batchdet.failpoint import failpoint

app = typer.Typer(
    name="batchdet",
    help="Label very large image sets with an object detector, on a cluster, so that the result can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done; 2 wrong spec or argument; 3 too many failed images; 4 output locked; "
    "5 the cluster cannot do it; 6 verification failed, or counts do not add up; 130/143 interrupted.",
)


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"batchdet {batchdet.__version__}")
        raise typer.Exit


def fail(error: BatchdetError) -> NoReturn:
    """Print an error and exit with its status."""
    text = error.message
    for line in text.splitlines() or [""]:
        print(f"error: {plain(line)}", file=sys.stderr)
    sys.stdout.flush()
    sys.exit(error.exit_status)


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
        fail(error)


def main_of_process() -> None:
    """Run the command line, and end the process with it."""
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, int):
            _leave(end.code)
        raise


def _leave(status: int) -> NoReturn:
    """Exit without taking all modules and objects apart, which takes 0.6 s after a run and changes nothing."""
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # its reader has seen enough
    except OSError as error:
        print(f"error: the output is not complete: {error.strerror}", file=sys.stderr)
        status = status or 1
    sys.stderr.flush()
    os._exit(status)
