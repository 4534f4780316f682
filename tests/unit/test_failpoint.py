"""Failpoints do what the environment says, where it says so, and nothing without it."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from batchdet import failpoint as module
from batchdet.failpoint import failpoint

REPOSITORY = Path(__file__).parents[2]


def run(rules: str, code: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"BATCHDET_FAILPOINT": rules, "PYTHONPATH": str(REPOSITORY)}
    program = f"from batchdet.failpoint import failpoint\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_without_the_variable_nothing_happens() -> None:
    assert module._RULES == ()
    failpoint("decode", b"anything")


def test_a_named_place_kills_its_process() -> None:
    done = run("b=kill", 'failpoint("a"); print("passed a", flush=True); failpoint("b"); print("passed b")')
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == "passed a\n"


def test_a_rule_may_wait_for_its_turn() -> None:
    done = run("a@3=abort", 'for i in range(9): print(i, flush=True); failpoint("a")')
    assert done.returncode == -signal.SIGABRT
    assert done.stdout.split() == ["0", "1", "2"]


def test_a_rule_may_ask_for_bytes(tmp_path: Path) -> None:
    run(
        f"decode?POISON=count:{tmp_path / 'n'}",
        'failpoint("decode", b"good"); failpoint("decode", memoryview(b"..POISON..")); failpoint("decode")',
    )
    assert (tmp_path / "n").stat().st_size == 1


def test_a_full_disk_is_an_error_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RULES", module._parse("w=disk_full"))
    with pytest.raises(OSError, match="No space left") as caught:
        failpoint("w")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("rule", ["decode", "decode=explode", "decode@x=kill"])
def test_a_rule_that_is_none_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="is no rule"):
        module._parse(rule)
