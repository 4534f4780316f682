"""A process of this machine that tries a model, because an image of the job may end it."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from batchdet.errors import BatchdetError, ClusterError
from batchdet.machine import child_environment, python_command

if TYPE_CHECKING:  # who starts a process shall not wait for what only the process needs
    from batchdet.model.runtimes import Device
    from batchdet.pipeline.trial import LoadedModel, Trial


class Lost(ClusterError):
    """The process that tried the model has ended or hangs."""


class TrialProcess:
    """A process of this machine that tries a model; it imports what that takes before it is known what to try."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            python_command("-m", __name__),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
        )
        self._threads = ThreadPoolExecutor(1, "trial")
        self._answer: Future[tuple[bytes, bytes]] | None = None
        self._timeout_s = 0

    def ask(self, trial: "Trial", device: "Device") -> None:
        """Say what to try, and where; once."""
        asked, self._timeout_s = pickle.dumps((trial, device)), trial.timeout_s(device)
        self._answer = self._threads.submit(self._process.communicate, asked, self._timeout_s)

    def __enter__(self) -> "TrialProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def end(self) -> None:
        """End the process, if it has not ended itself."""
        self._process.kill()
        self._threads.shutdown()
        self._process.communicate()  # nobody may have asked; this waits for its end and closes the pipes

    def result(self) -> "LoadedModel":
        """Wait for what it says, having been asked.

        Raises:
            Lost: It says nothing.
            BatchdetError: The model does not load, or the device is not there.
        """
        from batchdet.pipeline.trial import LoadedModel

        assert self._answer is not None
        try:
            answer, _ = self._answer.result()
        except subprocess.TimeoutExpired:
            raise Lost(f"trying the model on images of the job took more than {self._timeout_s} s") from None
        if self._process.returncode:
            raise Lost(f"the process that tried the model ended with {self._process.returncode}")
        found = pickle.loads(answer)
        if isinstance(found, BatchdetError):
            raise found
        assert isinstance(found, LoadedModel)
        return found


def main() -> None:
    """Try what the parent sends, and send back what was found or the error."""
    from batchdet.pipeline.trial import unloadable

    asked = sys.stdin.buffer.read()
    if not asked:  # whoever started this process has ended
        return
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)  # native libraries may print
        trial, device = pickle.loads(asked)
        try:
            found: LoadedModel | BatchdetError = trial.load(device)
        except BatchdetError as error:
            found = error
        except Exception as error:
            found = unloadable(trial, error)
        answer.write(pickle.dumps(found))
    os._exit(0)  # taking the runtimes apart would hold up the parent, and Ray's start beside it


if __name__ == "__main__":
    main()
