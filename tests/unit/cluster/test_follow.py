import os
import signal
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from batchdet.cluster import follow
from batchdet.cluster.follow import Lines, follow_job, last_line
from batchdet.errors import ClusterError, Interrupted


class Status(str):
    def is_terminal(self) -> bool:
        return self in {"SUCCEEDED", "FAILED", "STOPPED"}


class Client:
    """Plays connections: each a list of pieces, or an error at its end; states of the job; and whole logs."""

    def __init__(self, connections: Sequence[Sequence[Any]], states: Sequence[Any], logs: Sequence[str] = ()) -> None:
        self.connections = list(connections)
        self.states = list(states)
        self.logs = list(logs)

    async def tail_job_logs(self, job_id: str) -> AsyncGenerator[str, None]:
        for piece in self.connections.pop(0):
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def get_job_info(self, job_id: str) -> Any:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        return SimpleNamespace(status=Status(state), driver_exit_code=0)

    def get_job_logs(self, job_id: str) -> str:
        if not self.logs:
            raise RuntimeError("no log")
        return self.logs.pop(0) if len(self.logs) > 1 else self.logs[0]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_PAUSE_S", 0)


def run(client: Client) -> tuple[Any, list[str]]:
    shown: list[str] = []
    return follow_job(client, "job", "http://head:8265", shown.append), shown  # type: ignore[arg-type]


def test_pieces_become_lines() -> None:
    info, shown = run(Client([["one\ntw", "o\n", "\nlast"]], ["SUCCEEDED"]))
    assert info.status == "SUCCEEDED"
    assert shown == ["one", "two", "", "last"]


def test_a_new_connection_says_nothing_twice() -> None:
    broken = ["one\ntwo\nth", RuntimeError("closed")]
    client = Client([broken, ["one\n", "two\nthree\nfo", "ur\n"]], ["RUNNING", "FAILED"])
    info, shown = run(client)
    assert info.status == "FAILED"
    assert shown == ["one", "two", "three", "four"]


def test_a_silent_head_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "GIVE_UP_S", 0.0)
    with pytest.raises(ClusterError, match="what became of the job job is unknown"):
        run(Client([[ConnectionError()]] * 3, [ConnectionError()]))


def test_an_outage_is_survived() -> None:
    client = Client(
        [["a\n", ConnectionError()], [ConnectionError()], ["a\nb\n"]], [ConnectionError(), OSError(), "SUCCEEDED"]
    )
    assert run(client)[1] == ["a", "b"]


def test_a_proxy_without_web_sockets() -> None:
    client = Client([[OSError()]] * 3, ["RUNNING", "RUNNING", "SUCCEEDED"], ["a\nb", "a\nbc\nd\n"])
    assert run(client)[1] == ["a", "bc", "d"]


def test_what_a_connection_left_out_at_the_end_is_fetched() -> None:
    assert run(Client([["a\n"]], ["FAILED"], ["a\nerror: why\n"]))[1] == ["a", "error: why"]


@pytest.mark.parametrize(("number", "exit_status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_following(number: signal.Signals, exit_status: int) -> None:
    class Endless(Client):
        async def tail_job_logs(self, job_id: str) -> AsyncGenerator[str, None]:
            import asyncio

            yield "begun\n"
            os.kill(os.getpid(), number)
            await asyncio.sleep(60)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as error:
        run(Endless([], ["RUNNING"]))
    assert error.value.exit_status == exit_status
    assert signal.getsignal(number) is before


def test_silence_ends_when_the_job_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "QUIET_S", 0.01)

    class Stuck(Client):
        async def tail_job_logs(self, job_id: str) -> AsyncGenerator[str, None]:
            import asyncio

            yield "begun\n"
            await asyncio.sleep(60)

    assert run(Stuck([], ["RUNNING", "RUNNING", "SUCCEEDED"]))[1] == ["begun"]


def test_lines_are_plain() -> None:
    shown: list[str] = []
    lines = Lines(shown.append)
    lines.add("\x1b[36mcolour\x1b[0m\tkept\r\n10%\r20%\r\n\x1b]0;title\x07text\x07\n\x9b31mred\n")
    lines.end()
    assert shown == ["colour\tkept", "20%", "text", "31mred"]


@pytest.mark.parametrize(
    ("message", "line"), [(None, "Ray gives no reason"), ("a\nb\n\n", "b"), ("x" * 600, "x" * 497 + "...")]
)
def test_last_line(message: str | None, line: str) -> None:
    assert last_line(message) == line
