"""A process of this machine in which a stranger's model is loaded and run, so that it can be ended.

A graph may hold a loop without end, or fold constants until memory is full. Native code then hears no signal and knows
no time limit; the process that waits for it hears both.
"""

import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, Any, Final

from batchdet.errors import BatchdetError, ClusterError, ModelError
from batchdet.machine import child_environment, die_with_parent, memory_bytes, private_bytes, python_command
from batchdet.spec import ModelSpec

if TYPE_CHECKING:
    from batchdet.model.inspection import Inspected

_LIMIT_S: Final = {"cpu": 60, "gpu": 180}
"""A GPU's libraries take gigabytes, which may come from a cold disk."""
_ENGINE_LIMIT_S: Final = 900
"""TensorRT builds an engine for minutes when it meets a model or a kind of GPU for the first time."""
_LOOK_S: Final = 0.1
_SHARE_OF_FREE: Final = 0.9
_LEAST_BYTES: Final = 1024**3
_LOADED: Final = b"+"


class Lost(ClusterError):
    """The process that tried the model has died, took too much memory, or hung in something else than the model."""

    code = "model.process_died"


def limit_s(model: ModelSpec, device: str) -> int:
    """Say how many seconds a model may take to be loaded and tried."""
    return _ENGINE_LIMIT_S if model.runtime == "tensorrt" else _LIMIT_S[device]


class Child:
    """A process for one call of one function; leave it as a context manager, and it is gone.

    It imports the function's module while it is not known yet what to call it with. It may take nine tenths of the
    memory that was free when it was asked, and ends with the process that started it.

    Args:
        function: ``module:name``; its arguments, result and errors pickle.
    """

    def __init__(self, function: str) -> None:
        self._process = subprocess.Popen(
            python_command("-m", __name__, function),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
            start_new_session=True,  # what it has started is ended with it
        )
        self._threads = ThreadPoolExecutor(1, "child")
        self._answer: Future[bytes] | None = None

    def ask(self, model: ModelSpec, device: str, *arguments: Any) -> None:
        """Call the function; once.

        Args:
            model: Is named by errors, and decides how long it may take.
            device: Likewise.
            arguments: Of the function.
        """
        self._answer = self._threads.submit(self._wait, pickle.dumps(arguments), model.uri, limit_s(model, device))

    def result(self) -> Any:
        """Wait for what the function returns, having asked.

        Raises:
            ModelError: With code ``model.timed_out``; or the function did.
            Lost: The process has ended, or took too much memory.
            BatchdetError: The function did.
        """
        assert self._answer is not None
        found = pickle.loads(self._answer.result())
        if isinstance(found, BatchdetError):
            raise found
        return found

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def end(self) -> None:
        """End the process, if it has not ended itself."""
        self._kill()
        self._threads.shutdown()
        self._process.communicate()  # nobody may have asked; this waits for its end and closes the pipes

    def _kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def _wait(self, asked: bytes, uri: str, limit_s: int) -> bytes:
        deadline = time.monotonic() + limit_s
        may_take = max(_LEAST_BYTES, int(memory_bytes()[1] * _SHARE_OF_FREE))
        sent: bytes | None = asked
        while True:
            try:
                answer, _ = self._process.communicate(sent, _LOOK_S)
                break
            except subprocess.TimeoutExpired as so_far:
                sent = None  # what is left of it is sent all the same
                if private_bytes(self._process.pid) > may_take:
                    self._kill()
                    gib = may_take / 1024**3
                    raise Lost(
                        f"{uri}: to load and try the model takes more than {gib:.1f} GiB of memory, "
                        "which is what this machine has free",
                        code="model.out_of_memory",
                        key=uri,
                    ) from None
                if time.monotonic() > deadline:
                    self._kill()
                    raise _late(uri, limit_s, bool(so_far.output)) from None
        if self._process.returncode:
            how = _ended(self._process.returncode)
            raise Lost(f"{uri}: the process that loaded and tried the model {how}", key=uri)
        return answer.lstrip(_LOADED)


def in_child(function: str, model: ModelSpec, *arguments: Any) -> Any:
    """Call a function that loads a model in a process of its own, while which starts the model is fetched here.

    Args:
        function: ``module:name``; it is given the spec, the :class:`batchdet.model.cache.LocalModel` and ``arguments``.
        model: The model part of a job.
        arguments: What else the function is given.

    Raises:
        BatchdetError: As of :meth:`Child.result`, or the model cannot be fetched.
    """
    with Child(function) as child:
        from batchdet.model.fetch import fetch_asked  # the process shall not wait for these imports

        child.ask(model, "cpu", model, fetch_asked(model), *arguments)
        importlib.import_module(function.partition(":")[0])  # meanwhile: what comes back is made of its classes
        return child.result()


def inspect_model(model: ModelSpec) -> "Inspected":
    """Say what a model is: see :func:`batchdet.model.inspection.inspect`, which a process of its own calls.

    Raises:
        BatchdetError: As of :func:`in_child`.
    """
    found: Inspected = in_child("batchdet.model.inspection:inspect", model)
    return found


def _late(uri: str, limit_s: int, loaded: bool) -> ClusterError:
    if loaded:
        return Lost(f"{uri}: to try the model on images took more than {limit_s} s", code="model.timed_out", key=uri)
    return ModelError(
        f"{uri}: the model was not loaded, or did not answer on an empty canvas, within {limit_s} s; its graph may "
        "hold a loop without end",
        code="model.timed_out",
        key=uri,
    )


def _ended(returncode: int) -> str:
    if returncode < 0:
        return f"was ended by {signal.Signals(-returncode).name}"
    return f"ended with status {returncode}"


_to_parent: IO[bytes] | None = None


def say_loaded() -> None:
    """Tell whoever waits for this process, if it is a child, that the model itself is not what takes so long."""
    if _to_parent is not None:
        _to_parent.write(_LOADED)
        _to_parent.flush()


def main() -> None:
    """Call the function that the command line names with what the parent sends; send back its result or error."""
    global _to_parent
    die_with_parent()
    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    asked = sys.stdin.buffer.read()
    if not asked:  # whoever started this process has ended
        return
    with os.fdopen(os.dup(1), "wb") as _to_parent:
        os.dup2(2, 1)  # native libraries may print
        arguments = pickle.loads(asked)
        try:
            found = function(*arguments)
        except BatchdetError as error:
            found = error
        except Exception as error:
            found = ModelError(f"the model does not load: {type(error).__name__}: {' '.join(str(error).split())}")
        _to_parent.write(pickle.dumps(found))
    os._exit(0)  # taking the runtimes apart would hold up the parent, and Ray's start beside it


if __name__ == "__main__":
    from batchdet.model.child import main as main_of_module  # not __main__'s own: say_loaded() is called by others

    main_of_module()
