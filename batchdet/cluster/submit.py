"""Submission of a job to a running Ray cluster, through its dashboard.

The cluster needs nothing of this machine: the package and the job travel along (see :mod:`batchdet.cluster.bundle`).
What stays here is the environment: no value of it is shipped unless it is named.
"""

import os
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchdet.cluster.bundle import Bundle, build_bundle
from batchdet.cluster.dashboard import CONNECT_TIMEOUT_S, cause, dashboard_address, greet, is_loopback
from batchdet.cluster.follow import follow_job, last_line
from batchdet.cluster.requirements import pins
from batchdet.errors import ClusterError, Interrupted, SpecError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

REQUEST_TIMEOUT_S = 60.0
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OVERRIDE_OF_ADDRESS = "RAY_API_SERVER_ADDRESS"


@dataclass(frozen=True)
class SubmittedJob:
    """A job on a cluster.

    Args:
        job_id: Ray's submission id.
        address: The cluster's dashboard.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED, when last asked.
        exit_status: What the job's own ``batchdet run`` returned; 0 when it was not waited for.
        with_token: The cluster wants a token.
    """

    job_id: str
    address: str
    status: str
    exit_status: int
    with_token: bool = False

    @property
    def follow_command(self) -> str:
        """The command that follows the job's log."""
        return f"{self._mode}ray job logs --follow --address {shlex.quote(self.address)} {self.job_id}"

    @property
    def stop_command(self) -> str:
        """The command that stops the job."""
        return f"{self._mode}ray job stop --address {shlex.quote(self.address)} {self.job_id}"

    @property
    def _mode(self) -> str:
        """Ray's own commands look for a token only if they are told."""
        return "RAY_AUTH_MODE=token " if self.with_token and not os.environ.get("RAY_AUTH_MODE") else ""


def submit_job(
    job_path: str,
    address: str,
    overrides: Sequence[str] = (),
    wait: bool = True,
    *,
    env: Sequence[str] = (),
    pip: bool = False,
    insecure: bool = False,
    run_options: Sequence[str] = (),
    on_log: Callable[[str], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> SubmittedJob:
    """Run a job on a Ray cluster.

    Args:
        job_path: The job's YAML.
        address: The cluster's dashboard, such as ``http://head:8265``.
        overrides: Settings on top of the YAML, each ``key.path=value``.
        wait: Follow the log until the job ends; otherwise return once it is submitted.
        env: Names of environment variables whose values go along. Who may use the cluster's dashboard can read them;
            better is what the cluster itself has (an IAM role, a Kubernetes secret).
        pip: Let the cluster install the versions of batchdet's packages that are installed here (Ray's excepted).
            Without it nothing is installed, and a cluster that lacks a package is told so.
        insecure: Submit although the cluster takes jobs of anybody and is not on this machine.
        run_options: Options of ``batchdet run`` to pass on, such as ``--fresh``.
        on_log: Called with each line of the job's log, without its line end; by default it is printed.
        on_note: Called with each remark for the person who submits; by default there are none.

    Returns:
        The job, with its own exit status when it was waited for.

    Raises:
        SpecError: The job, the address or a variable's name is wrong; or the cluster has no token, is not on this
            machine, and ``insecure`` is not set.
        ClusterError: The cluster does not answer, refuses, or could not start the job.
        Interrupted: Ctrl-C while following; the job goes on, and the message says how to follow it and how to stop it.
    """
    address = dashboard_address(address)
    values = _named_values(env)
    note = on_note or (lambda text: None)
    with tempfile.TemporaryDirectory(prefix="batchdet-submit-") as folder:
        bundle = build_bundle(Path(folder), job_path, overrides, env)
        for text in bundle.notes:
            note(text)
        headers = greet(address)
        _check_guarded(address, headers, insecure, note)
        client = connect(address, headers)
        job_id = _submit(client, bundle, values, pip, run_options, address)
    job = SubmittedJob(job_id, address, "PENDING", 0, bool(headers))
    note(f"submitted as {job_id}")
    if not wait:
        return job
    try:
        info = follow_job(client, job_id, address, on_log or _print_line)
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted(
            f"the job {job_id} goes on; follow it with '{job.follow_command}', stop it with '{job.stop_command}'",
            error.exit_status if isinstance(error, Interrupted) else 130,
        ) from None
    status = str(info.status)
    if status != "STOPPED" and info.driver_exit_code is None:
        raise ClusterError(f"{address}: the job {job_id} could not be run: {last_line(info.message)}")
    return replace(job, status=status, exit_status=_exit_status(status, info.driver_exit_code))


def _check_guarded(address: str, headers: dict[str, str], insecure: bool, note: Callable[[str], None]) -> None:
    """Refuse a far head that anybody may give jobs to, and warn of a token on an open line."""
    if is_loopback(address):
        return
    if not headers and not insecure:
        raise SpecError(
            f"{address}: this head has no token, so whoever reaches it can run code there; start it with "
            "RAY_AUTH_MODE=token, or reach it by a tunnel to 127.0.0.1, or say --insecure",
            code="cluster.no_token",
            key="--address",
        )
    if headers and address.startswith("http://"):
        note(f"the token goes to {address} unencrypted; use https:// or a tunnel")


def _print_line(line: str) -> None:
    # At once, into a pipe too: who follows a log wants to see it now.
    print(line, flush=True)


def _exit_status(status: str, code: int | None) -> int:
    if code is None:
        return 143 if status == "STOPPED" else 5
    # A negative code is the signal that ended the process.
    return 128 - code if code < 0 else code


def _named_values(names: Sequence[str]) -> dict[str, str]:
    values = {}
    for name in names:
        if not _NAME.fullmatch(name):
            # Not repeated: NAME=VALUE is the likely mistake, and the value may be secret.
            raise SpecError("--env: found something that is no name of a variable; give the name alone: --env NAME")
        if name not in os.environ:
            raise SpecError(f"--env {name}: the environment variable {name} is not set here; export it and try again")
        values[name] = os.environ[name]
    return values


@contextmanager
def _address_wins(address: str) -> Iterator[None]:
    """Keep ``RAY_ADDRESS`` and the like from overruling an address that was given: Ray's client prefers them."""
    before = os.environ.get(_OVERRIDE_OF_ADDRESS)
    os.environ[_OVERRIDE_OF_ADDRESS] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_OVERRIDE_OF_ADDRESS]
        else:
            os.environ[_OVERRIDE_OF_ADDRESS] = before


def connect(address: str, headers: dict[str, str] | None = None) -> "JobSubmissionClient":
    """Connect to a dashboard, within ten seconds or not at all.

    Args:
        address: As :func:`dashboard_address` returns it.
        headers: What :func:`greet` returned; None asks first.

    Raises:
        ClusterError: Nothing answers there, it is no Ray dashboard, or it wants another token.
    """
    import requests

    headers = greet(address) if headers is None else headers  # before Ray is imported, which takes seconds
    from ray.exceptions import AuthenticationError

    try:
        with _address_wins(address):
            return _client(address, headers)
    except AuthenticationError as error:
        raise SpecError(
            "RAY_AUTH_MODE is token, and no token was found; set RAY_AUTH_TOKEN, or RAY_AUTH_MODE=disabled for a head "
            "without one",
            code="cluster.token",
            key="RAY_AUTH_MODE",
        ) from error
    except requests.exceptions.RequestException as error:
        raise ClusterError(f"{address}: the connection broke ({cause(error)})", key=address) from error
    except (RuntimeError, ConnectionError) as error:
        raise ClusterError(f"{address}: {last_line(str(error))}", key=address) from error


def _client(address: str, headers: dict[str, str]) -> "JobSubmissionClient":
    import logging

    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):  # type: ignore[misc, unused-ignore]
        """Ray's client waits for ever on a head that has stopped; this one does not."""

        def _do_request(self, *args: Any, **kwargs: Any) -> Any:
            kwargs.setdefault("timeout", (CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S))
            return super()._do_request(*args, **kwargs)

    # Ray's client announces uploads and closed connections; what matters of that is said here, in one place.
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return Client(address, headers=headers or None)


def entrypoint(job_name: str, run_options: Sequence[str] = ()) -> str:
    """Return the shell command that the cluster runs in the job's working directory, and shows as the job's."""
    return "python3 -m " + shlex.join(["batchdet", "run", job_name, *run_options])


def _submit(
    client: "JobSubmissionClient",
    bundle: Bundle,
    values: dict[str, str],
    pip: bool,
    run_options: Sequence[str],
    address: str,
) -> str:
    import requests

    runtime_env: dict[str, Any] = {"working_dir": str(bundle.folder)}
    if values:
        runtime_env["env_vars"] = values
    if pip:
        runtime_env["pip"] = pins(bundle.job.spec.compute.device)
    try:
        return str(
            client.submit_job(
                entrypoint=entrypoint(bundle.job.name, run_options),
                runtime_env=runtime_env,
                metadata={"job_name": bundle.job.spec.name, "submitted_by": "batchdet"},
            )
        )
    except requests.exceptions.RequestException as error:
        raise ClusterError(f"{address}: the connection broke while the job was sent ({cause(error)})") from error
    except (RuntimeError, ValueError) as error:
        raise ClusterError(f"{address}: the cluster refused the job: {last_line(str(error))}") from error
