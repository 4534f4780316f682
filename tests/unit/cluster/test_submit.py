import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray  # noqa: F401  # it reads RAY_AUTH_MODE when it is first imported

from batchdet.cluster import submit as submit_module
from batchdet.cluster.dashboard import auth_headers, dashboard_address, greet
from batchdet.cluster.submit import SubmittedJob, connect, entrypoint, submit_job
from batchdet.errors import ClusterError, SpecError


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://head:8265", "http://head:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("head:8265", "http://head:8265"),
        ("https://ray.example.org/team-a", "https://ray.example.org/team-a"),
        ("http://[fd00::2]:8265", "http://[fd00::2]:8265"),
        (" 127.0.0.1:8265 ", "http://127.0.0.1:8265"),
    ],
)
def test_addresses(given: str, address: str) -> None:
    assert dashboard_address(given) == address


@pytest.mark.parametrize(
    "given", ["auto", "ray://head:10001", "", "http://", "http://head:port", "http://head:99999", "http://head?x=1"]
)
def test_what_is_no_address(given: str) -> None:
    with pytest.raises(SpecError, match="it should look like http://HOST:8265"):
        dashboard_address(given)


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(SpecError, match="RAY_AUTH_TOKEN") as error:
        dashboard_address("http://me:hunter2@head:8265")
    assert "hunter2" not in str(error.value)


def test_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert auth_headers() == {}
    (tmp_path / "token").write_text("from-file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert auth_headers() == {"authorization": "Bearer from-file"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-env")
    assert auth_headers() == {"authorization": "Bearer from-env"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert auth_headers() == {}
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(SpecError) as error:
        auth_headers()
    assert (error.value.code, error.value.key) == ("cluster.token", "RAY_AUTH_TOKEN_PATH")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    with pytest.raises(SpecError) as error:
        auth_headers()
    assert (error.value.code, error.value.key) == ("cluster.token", "RAY_AUTH_MODE")


@pytest.mark.parametrize("mode", [None, "token", "TOKEN", "disabled"])
def test_the_default_file_is_read_as_ray_reads_it(
    mode: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "home/.ray").mkdir(parents=True)
    (tmp_path / "home/.ray/auth_token").write_text("from-home\n")
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    assert auth_headers() == ({} if mode == "disabled" else {"authorization": "Bearer from-home"})


def test_the_entrypoint_is_safe_in_a_shell() -> None:
    assert entrypoint("job.yaml", ["--fresh"]) == ("python3 -m batchdet run job.yaml --fresh")
    assert entrypoint("a", ["$(id)"]).endswith("'$(id)'")


@pytest.fixture
def job(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text("name: j\nsource: {uri: s3://b/s}\nmodel: {uri: 'builtin:sample'}\noutput: {uri: s3://b/o}\n")
    return str(path)


@pytest.mark.parametrize("name", ["HUSH=secret-value", "a-b", ""])
def test_env_takes_names_only(job: str, name: str) -> None:
    with pytest.raises(SpecError, match="give the name alone") as error:
        submit_job(job, "http://127.0.0.1:1", env=[name])
    assert "secret-value" not in str(error.value)


def test_env_must_be_set(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    with pytest.raises(SpecError, match="NOT_SET_HERE is not set here"):
        submit_job(job, "http://127.0.0.1:1", env=["NOT_SET_HERE"])


def test_a_wrong_job_is_refused_before_anything_is_sent(job: str) -> None:
    with pytest.raises(SpecError, match="did you mean 'name'"):
        submit_job(job, "http://127.0.0.1:1", ["nmae=x"])


def test_nobody_there(job: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"{address}: no Ray dashboard answers there .connection refused."):
            submit_job(job, address)


def test_no_such_host(job: str) -> None:
    with pytest.raises(ClusterError, match=r"http://no-such-host\.invalid:8265: no Ray dashboard answers"):
        submit_job(job, "no-such-host.invalid:8265")


def test_a_host_that_never_answers(job: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(ClusterError, match="timed out"):
            submit_job(job, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - began < 10


@contextmanager
def web_server(status: int, body: bytes) -> Iterator[tuple[str, list[str | None]]]:
    """A web server that answers all the same, and keeps the tokens that it was given."""
    tokens: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.append(self.headers.get("authorization"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", tokens
        finally:
            server.shutdown()
            thread.join()


def test_something_else_answers() -> None:
    with web_server(200, b"<html>hello") as (address, _), pytest.raises(ClusterError, match="but no Ray dashboard"):
        connect(address)
    with web_server(404, b"") as (address, _), pytest.raises(ClusterError, match="HTTP 404"):
        connect(address)


def test_a_token_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    with web_server(401, b"") as (address, tokens):
        with pytest.raises(ClusterError, match="wants a token and got none; set RAY_AUTH_TOKEN") as error:
            connect(address)
        assert (error.value.code, error.value.key) == ("cluster.token", address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "very-secret")
        with pytest.raises(ClusterError, match="refused the one given") as error:
            connect(address)
        assert "very-secret" not in str(error.value)
        assert tokens == [None, None, "Bearer very-secret"]


def test_a_token_goes_only_to_a_head_that_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "very-secret")
    with web_server(200, b'{"ray_version": "2.60.0", "version": "4"}') as (address, tokens):
        assert greet(address) == {}
    assert tokens == [None]


@pytest.mark.acceptance("S17")
@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("insecure", [False, True])
def test_a_far_head_without_a_token_is_refused(
    job: str, monkeypatch: pytest.MonkeyPatch, far: bool, insecure: bool
) -> None:
    monkeypatch.setattr(submit_module, "is_loopback", lambda address: not far)
    monkeypatch.setattr(submit_module, "connect", lambda *_: SimpleNamespace(submit_job=lambda **_: "raysubmit_1"))
    with web_server(200, b'{"ray_version": "2.60.0", "version": "4"}') as (address, _):
        if far and not insecure:
            with pytest.raises(SpecError) as error:
                submit_job(job, address, wait=False, insecure=insecure)
            assert (error.value.code, error.value.exit_status) == ("cluster.no_token", 2)
            assert "--insecure" in error.value.message
        else:
            assert submit_job(job, address, wait=False, insecure=insecure).job_id == "raysubmit_1"


@pytest.mark.parametrize(
    ("address", "told"), [("http://head:1", True), ("https://head:1", False), ("http://[::1]", False)]
)
def test_a_token_in_the_clear_is_told(address: str, told: bool) -> None:
    notes: list[str] = []
    submit_module._check_guarded(address, {"authorization": "Bearer very-secret"}, False, notes.append)
    assert notes == ([f"the token goes to {address} unencrypted; use https:// or a tunnel"] if told else [])


def test_the_dashboard_shows_the_jobs_name(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}
    client = SimpleNamespace(submit_job=lambda **given: sent.update(given) or "raysubmit_1")
    monkeypatch.setattr(submit_module, "connect", lambda *_: client)
    monkeypatch.setattr(submit_module, "greet", lambda _: {})
    submit_job(job, "http://127.0.0.1:1", wait=False)
    assert sent["metadata"]["job_name"] == "j"
    assert sent["entrypoint"] == "python3 -m batchdet run job.yaml"


def test_the_environment_does_not_overrule_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:2")
    with web_server(200, b'{"ray_version": "2.60.0", "version": "4"}') as (address, _):
        assert connect(address).get_address() == address
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:2"


def test_an_ancient_cluster_is_refused() -> None:
    with (
        web_server(200, b'{"ray_version": "1.0.0", "version": "4"}') as (address, _),
        pytest.raises(ClusterError, match=r"Ray version 1.0.0 is running"),
    ):
        connect(address)


def test_commands_of_a_job() -> None:
    job = SubmittedJob("raysubmit_1", "http://head:8265", "PENDING", 0)
    assert job.follow_command == "ray job logs --follow --address http://head:8265 raysubmit_1"
    assert job.stop_command == "ray job stop --address http://head:8265 raysubmit_1"
    guarded = SubmittedJob("raysubmit_1", "http://head:8265", "PENDING", 0, with_token=True)
    assert guarded.stop_command == f"RAY_AUTH_MODE=token {job.stop_command}"


@pytest.mark.parametrize(
    ("status", "code", "exit_status"),
    [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", -15, 143), ("STOPPED", None, 143), ("FAILED", None, 5)],
)
def test_exit_statuses(status: str, code: int | None, exit_status: int) -> None:
    assert submit_module._exit_status(status, code) == exit_status
