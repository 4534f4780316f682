import subprocess
import sys
from typing import NoReturn

import pytest

from batchdet.cli import application


class Left(Exception):
    pass


class Stream:
    def __init__(self, error: OSError | None) -> None:
        self.error = error

    def flush(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("error", "status", "want", "told"),
    [
        (None, 0, 0, ""),
        (None, 5, 5, ""),
        (BrokenPipeError(32, "Broken pipe"), 0, 0, ""),
        (OSError(28, "No space left on device"), 0, 1, "error: the output is not complete: No space left on device\n"),
        (OSError(28, "No space left on device"), 3, 3, "error: the output is not complete: No space left on device\n"),
    ],
)
def test_output_that_cannot_be_written_is_no_success(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: OSError | None,
    status: int,
    want: int,
    told: str,
) -> None:
    def leave(with_status: int) -> NoReturn:
        raise Left(with_status)

    monkeypatch.setattr(application.os, "_exit", leave)
    monkeypatch.setattr(application.atexit, "_run_exitfuncs", lambda: None)
    monkeypatch.setattr(application.sys, "stdout", Stream(error))
    with pytest.raises(Left) as left:
        application._leave(status)
    assert left.value.args == (want,)
    assert capsys.readouterr().err == told


def test_what_was_registered_for_the_exit_is_done_and_all_is_written() -> None:
    code = "import atexit; atexit.register(print, 'bye'); from batchdet.cli import main_of_process; main_of_process()"
    for arguments, status, last in ((["--version"], 0, "bye"), (["validate", "/nowhere.yaml"], 2, "bye")):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert done.stdout.splitlines()[-1] == last


@pytest.mark.acceptance("R38")
def test_memory_that_runs_out_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app(*_: object, **__: object) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(application, "app", app)
    monkeypatch.setattr(application, "_take_signals", lambda: None)
    with pytest.raises(SystemExit) as left:
        application.main(["run", "x.yaml"])
    assert left.value.code == 5
    assert capsys.readouterr().err.startswith("error: out of memory")
