"""A trial of a model in a process of this machine, and again without images if one of them ends it."""

from dataclasses import replace
from typing import TYPE_CHECKING

from batchdet.errors import ModelError
from batchdet.model.child import Child, Lost

if TYPE_CHECKING:  # who starts a process shall not wait for what only the process needs
    from batchdet.model.runtimes import Device
    from batchdet.pipeline.trial import LoadedModel, Trial


class TrialProcess:
    """A process of this machine that tries a model; it imports what that takes before it is known what to try."""

    def __init__(self) -> None:
        self._child = Child("batchdet.pipeline.trial:tried")
        self._asked: tuple[Trial, Device] | None = None

    def ask(self, trial: "Trial", device: "Device") -> None:
        """Say what to try, and where; once."""
        self._asked = trial, device
        self._child.ask(trial.spec.model, device, trial, device)

    def __enter__(self) -> "TrialProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def end(self) -> None:
        """End the process, if it has not ended itself."""
        self._child.end()

    def result(self) -> "LoadedModel":
        """Wait for what it says, having been asked.

        Raises:
            BatchdetError: The model does not load, or the device is not there.
        """
        assert self._asked is not None
        try:
            found: LoadedModel = self._child.result()
        except Lost as error:  # an image of the job may have ended the process, or held it up
            trial, device = self._asked
            if trial.samples is None:
                raise ModelError(f"{error.message}, with the model alone", code=error.code, key=error.key) from None
            with TrialProcess() as again:
                again.ask(replace(trial, samples=None), device)
                return again.result()
        return found
