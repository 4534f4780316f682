"""Each command that takes ``--json`` prints its errors as one JSON object, too."""

from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from batchdet.cli import app
from tests.cli import Command, command

__all__ = ["command"]

COMMANDS: dict[str, Any] = getattr(get_command(app), "commands")  # noqa: B009  # of typer's own type
WITH_JSON = sorted(name for name, one in COMMANDS.items() if any("--json" in p.opts for p in one.params))
FIELDS = {"code", "key", "message", "hint", "exit_status"}


def _arguments(name: str, place: Path) -> list[str]:
    """Give each argument, and each option that a command cannot do without, a place that does not exist."""
    found = []
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "argument":
            found.append(str(place))
        elif parameter.required:
            found += [parameter.opts[0], str(place)]
    return found


def test_the_commands_are_known() -> None:
    assert {"run", "plan", "status", "model", "submit", "doctor"} <= set(WITH_JSON)


@pytest.mark.parametrize("name", WITH_JSON)
def test_a_command_that_fails(name: str, command: Command, tmp_path: Path) -> None:
    ended = command(name, *_arguments(name, tmp_path / "nothing-here"), "--json")
    assert set(ended.error) == FIELDS
    assert ended.error["exit_status"] == ended.status
    assert ended.status in {1, 2, 5}
    assert "." in ended.error["code"]
    assert ended.error["message"].splitlines()[0] in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", WITH_JSON)
def test_a_command_with_an_unknown_option(name: str, command: Command) -> None:
    ended = command(name, "--jsn", "--json")
    assert (ended.status, ended.error["code"], ended.error["key"]) == (2, "argument.unknown_option", "--jsn")
    assert "'--json'" in ended.error["message"]


def test_no_command_of_that_name(command: Command) -> None:
    ended = command("plann", "job.yaml", "--json")
    assert (ended.status, ended.error["code"], ended.error["key"]) == (2, "argument.unknown_command", "plann")
    assert "'plan'" in ended.error["message"]


def test_without_json_nothing_is_on_standard_output(command: Command) -> None:
    ended = command("plann", "job.yaml")
    assert (ended.status, ended.stdout) == (2, "")


def test_all_mistakes_of_a_spec_are_in_it(command: Command, tmp_path: Path) -> None:
    import json

    path = tmp_path / "job.yaml"
    path.write_text("name: a b\nsource: photos\noutput: out\nextra: 1\n")
    ended = command("validate", path, "--json")
    assert [one["key"] for one in json.loads(ended.stdout)["errors"]] == ["name", "model", "extra"]
    assert ended.stderr.count("error: ") == 3
