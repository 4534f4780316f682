"""The application that commands are added to, and what it says when one fails."""

import atexit
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperGroup

import batchdet
from batchdet.attendant import KEPT, attend, is_attended, tell
from batchdet.cli.output import print_json
from batchdet.errors import BatchdetError, ClusterError, Interrupted, SpecError
from batchdet.failpoint import failpoint
from batchdet.machine import tight_limits
from batchdet.text import did_you_mean, escape

_UsageError: Final[Any] = typer.BadParameter.__bases__[0]
"""Where typer keeps this class depends on its version."""
_OTHER_NAMES: Final = dict.fromkeys(("predict", "detect", "infer", "inference", "start"), "run")
"""What the commands are called elsewhere."""
_ATTENDED: Final = ("run", "label")
"""Commands that start a Ray, which may end their process."""
_SAME_SIGNAL_S: Final = 1.0
_END_S: Final = 15.0
"""Exit handlers may take this long."""


class Commands(TyperGroup):
    """The group of all commands; of an unknown one it names the nearest."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command.

        Raises:
            SpecError: There is none of that name.
        """
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            other = _OTHER_NAMES.get(name)
            near = f"did you mean {other!r}?" if other else did_you_mean(name, self.commands)
            raise SpecError(
                f"there is no command {name!r}; {near or 'batchdet --help lists the commands'}",
                code="argument.unknown_command",
                key=name,
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="batchdet",
    cls=Commands,
    help="Label very large image sets with an object detector, on a cluster, so that the result can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done; 2 wrong spec or argument; 3 a run was refused, too much failed; 4 output locked; "
    "5 the cluster cannot do it; 6 verification failed, or counts do not add up; 130/143 interrupted.",
)


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"batchdet {batchdet.__version__}")
        raise typer.Exit


def fail(error: BatchdetError, as_json: bool = False, report: Mapping[str, Any] | None = None) -> NoReturn:
    """Print an error and exit with its status.

    Args:
        error: What happened.
        as_json: Also print it as a JSON object on standard output, see :meth:`BatchdetError.to_dict`.
        report: What the command has found all the same; it goes into the same object.
    """
    for line in error.message.splitlines() or [""]:
        print(f"error: {escape(line)}", file=sys.stderr)
    if error.hint:
        print(f"hint: {escape(error.hint)}", file=sys.stderr)
    if as_json:
        print_json(dict(report or {}) | error.to_dict())
    sys.stdout.flush()
    sys.exit(error.exit_status)


def _on_signal(number: int, frame: object) -> None:
    """Turn the first SIGINT or SIGTERM into an error that unwinds; another one of either ends the process at once.

    A terminal sends Ctrl-C to this process and to its attendant, which passes it on: that is the same one.
    """
    first = time.monotonic()

    def again(number: int, _: object) -> None:
        if not is_attended() or time.monotonic() - first > _SAME_SIGNAL_S:
            tell(status=128 + number)
            os._exit(128 + number)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, again)
    failpoint("cli.interrupted")
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    raise Interrupted(f"stopped by {name}; what was staged is kept, and the same command resumes the run", 128 + number)


def _take_signals() -> None:
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the status that DESIGN.md names.

    Args:
        arguments: Without the program's name; None takes those of the process.
    """
    _take_signals()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        sys.exit(app(arguments, prog_name="batchdet", standalone_mode=False))
    except BatchdetError as error:
        fail(error, "--json" in arguments)
    except _UsageError as error:
        if not error.format_message():  # no arguments at all: it has printed the help
            sys.exit(2)
        fail(_unusable(error), "--json" in arguments)
    except MemoryError:
        hint = "; ".join(tight_limits()) or None
        fail(ClusterError(f"out of memory; {KEPT}", code="cluster.out_of_memory", hint=hint), "--json" in arguments)
    except typer.Abort:
        sys.exit(1)


def _unusable(error: Any) -> SpecError:
    """Say what is wrong with the arguments of a command in a sentence, given what typer says."""
    context = error.ctx
    command = context.command_path if context else "batchdet"
    see = f"{command} --help lists what it takes"
    if type(error).__name__ == "NoSuchOption":
        option = error.option_name
        known = [name for parameter in context.command.params for name in parameter.opts] if context else []
        near = did_you_mean(option, [name for name in known if name.startswith("--")])
        return SpecError(
            f"{command}: there is no option {option}; {near or see}", code="argument.unknown_option", key=option
        )
    parameter = getattr(error, "param", None)
    key = (parameter.metavar or parameter.opts[0]) if parameter else getattr(error, "option_name", None)
    missing = "Missing" in type(error).__name__
    what = (
        error.format_message()
        .partition(", unable")[0]
        .replace("Input should", "it should")
        .replace("Value error, ", "")
    )
    return SpecError(
        f"{command}: {what[:1].lower()}{what[1:].rstrip('.')}; {see}",
        code="argument.missing" if missing else "argument.invalid",
        key=key,
    )


def main_of_process() -> None:
    """Run the command line, and end the process with it."""
    if sys.argv[1:2] and sys.argv[1] in _ATTENDED:
        _take_signals()
        attend(lambda error: fail(error, "--json" in sys.argv))
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, int):
            _leave(end.code)
        tell(status=1 if end.code else 0, within_s=_END_S)
        raise
    except BaseException:
        tell(status=1, within_s=_END_S)
        raise


def _leave(status: int) -> NoReturn:
    """Exit without taking all modules and objects apart, which takes 0.6 s after a run and changes nothing."""
    tell(status=status, within_s=_END_S)
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # its reader has seen enough
    except OSError as error:
        print(f"error: the output is not complete: {error.strerror}", file=sys.stderr)
        status = status or 1
        tell(status=status)
    sys.stderr.flush()
    os._exit(status)
