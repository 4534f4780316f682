"""Jobs in another process whose Ray sees S3 through a fault proxy; one start of Ray for many jobs.

The Ray that other tests share has the server's own address, so these jobs have one of their own::

    with S3Session(proxy, folder) as session:
        session.begin(job("s3://b/in", "s3://b/out"), hold=here)
        session.wait_for(here)                 # it has listed and planned, and reads nothing yet
        here.unlink()
        assert session.outcome().status == 0
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from batchdet.spec import JobSpec
from tests.driver import end_at_once, wait_until
from tests.e2e.conftest import REPOSITORY, clean_environment
from tests.fault_proxy import FaultProxy
from tests.ray_head import descendants

_MARK = "@@"


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Args:
        status: The exit status that the command line would have.
        message: The error's sentence, or "".
        ok: Labelled images.
        failed: Failed images.
        wall_s: Seconds that it took.
    """

    status: int
    message: str
    ok: int
    failed: int
    wall_s: float


class S3Session:
    """The process; see the module's docstring.

    Args:
        proxy: What it takes for S3.
        folder: Where what it prints goes.
        env: Further variables.
    """

    def __init__(self, proxy: FaultProxy, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self._ray_folder = tempfile.mkdtemp(prefix="bds-", dir="/tmp")
        self._errors = folder / "session.err"
        variables = clean_environment() | proxy.env | {"RAY_TMPDIR": self._ray_folder} | dict(env or {})
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fault.s3_session"],
                cwd=REPOSITORY,
                env=variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        family = descendants(self._process.pid)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        end_at_once(family)
        shutil.rmtree(self._ray_folder, ignore_errors=True)

    def begin(self, spec: JobSpec, hold: Path | None = None) -> None:
        """Start a job; with ``hold`` it makes that file before it reads the first image, and waits until it is gone."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"spec": spec.model_dump_json(), "hold": str(hold or "")}) + "\n")
        self._process.stdin.flush()

    def wait_for(self, file: Path) -> None:
        """Wait until the job makes its file."""
        wait_until(lambda: file.exists() or self._process.poll() is not None, str(file), 120)
        assert file.exists(), self._errors.read_text(errors="replace")[-2000:]

    def outcome(self) -> Outcome:
        """Wait for the end of the job that was begun."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_MARK):
                return Outcome(**json.loads(line.removeprefix(_MARK)))
        raise AssertionError(f"the session ended: {self._errors.read_text(errors='replace')[-2000:]}")

    def run(self, spec: JobSpec) -> Outcome:
        """Run a job to its end."""
        self.begin(spec)
        return self.outcome()


def _serve() -> None:
    """Be the process: a job a line, an outcome a line."""
    from batchdet.errors import BatchdetError
    from batchdet.job import Watcher, run_job
    from batchdet.pipeline.session import ray_session

    class Held(Watcher):
        def __init__(self, hold: str) -> None:
            self._hold = hold

        def start(self, total_images: int | None, total_bytes: int, done_images: int, doing: str = "labelling") -> None:
            if self._hold:
                Path(self._hold).touch()
                while os.path.exists(self._hold):
                    time.sleep(0.02)

    with ray_session(None):
        for line in sys.stdin:
            asked = json.loads(line)
            started = time.monotonic()
            try:
                run = run_job(JobSpec.model_validate_json(asked["spec"]), watcher=Held(asked["hold"]))
                result = 0, "", run.images_ok, run.images_failed
            except BatchdetError as error:
                result = error.exit_status, error.message, 0, 0
            print(_MARK + json.dumps(asdict(Outcome(*result, wall_s=time.monotonic() - started))), flush=True)


if __name__ == "__main__":
    _serve()
