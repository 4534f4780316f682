"""The command line, run in this process: mistakes that end before any work need no process each."""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from batchdet.cli import main


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Args:
        status: Its exit status.
        stdout: What it printed.
        stderr: What it printed there.
    """

    status: int
    stdout: str
    stderr: str

    @property
    def error(self) -> dict[str, Any]:
        """The one JSON object on standard output, of which this is ``error``."""
        found: dict[str, Any] = json.loads(self.stdout)["error"]
        return found


Command = Callable[..., Ended]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run ``batchdet`` with some arguments."""

    def run(*arguments: object) -> Ended:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                main([str(argument) for argument in arguments])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        printed = capfd.readouterr()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Ended(code or 0, printed.out, printed.err)

    return run
