"""Every error that batchdet raises on purpose.

::

    BatchdetError                 exit status
    ├── SpecError                 2   the job spec or an argument is wrong
    │   ├── SpecErrors            2   a job has several mistakes
    │   ├── SourceError           2   the source cannot be listed, or holds no image
    │   │   └── SourceEmpty       2   it holds no file at all, and no run of the output has ever labelled it
    │   └── OutputError           2   the output cannot be written or read
    ├── TooManyFailures           3   more images or shards failed than the spec allows
    ├── OutputLocked              4   another run holds the output
    ├── ClusterError              5   the cluster cannot do it (resources, time-outs, lost nodes)
    │   ├── ModelError            5   the model cannot be loaded or is not understood
    │   │   └── OutOfDeviceMemory 5   a batch does not fit the device; a smaller one may
    │   └── MissingExtra          5   a package that the spec needs is not installed
    ├── ConservationError         6   the counts of a run do not add up
    ├── VerificationError         6   committed files are not what their manifest says
    ├── Interrupted               130 or 143
    └── ImageError                -   one image is bad: becomes a row with its ``code``, never ends a run

A message has one or two sentences. They name the file, line or key, the value found, and what would be right.
Beside it an error has a stable ``code`` for programs and tests, such as ``source.empty``: that of its class, or a
narrower one given when it is raised. Every error pickles, because Ray carries errors between processes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong.

    Args:
        message: For a person.
        code: Stable and lower case, ``group.what``.
        key: The key, path or file with line that it is about.
        hint: What to do, if the message does not say it.
    """

    message: str
    code: str
    key: str | None = None
    hint: str | None = None


class BatchdetError(Exception):
    """The root of the tree; ``exit_status`` is what the command line returns.

    Args:
        message: For a person.
        code: Stable and lower case, ``group.what``; None takes that of the class.
        key: The key, path or file with line that it is about.
        hint: What to do, if the message does not say it: a command or a setting.
    """

    exit_status = 1
    code = "internal"

    def __init__(
        self, message: str, *, code: str | None = None, key: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.key = key
        self.hint = hint

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """What is wrong, one by one."""
        return (Mistake(self.message, self.code, self.key, self.hint),)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints of an error.

        Returns:
            ``error``: ``code``, ``key``, ``message``, ``hint`` and ``exit_status``. If there are several mistakes,
            ``errors`` has all of them in the same form, and ``error`` is the first.
        """
        plain = [asdict(mistake) | {"exit_status": self.exit_status} for mistake in self.mistakes]
        return {"error": plain[0]} | ({"errors": plain} if len(plain) > 1 else {})


class SpecError(BatchdetError):
    """The job spec or a command's argument is wrong."""

    exit_status = 2
    code = "spec.invalid"


class SpecErrors(SpecError):
    """A job has several mistakes.

    Args:
        mistakes: At least one; the first gives code, key and hint.
        exit_status: Of the first.
    """

    def __init__(self, mistakes: Sequence[Mistake], exit_status: int = 2) -> None:
        first = mistakes[0]
        text = "\n".join(mistake.message for mistake in mistakes)
        super().__init__(text, code=first.code, key=first.key, hint=first.hint)
        self.exit_status = exit_status
        self._mistakes = tuple(mistakes)

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """What is wrong, one by one."""
        return self._mistakes

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self._mistakes, self.exit_status))


class SourceError(SpecError):
    """The source cannot be listed, or holds no image."""

    code = "source.unreadable"


class SourceEmpty(SourceError):
    """What the source names exists, or may exist, and holds no file."""

    code = "source.empty"


class OutputError(SpecError):
    """The output cannot be written or read."""

    code = "output.unusable"


class TooManyFailures(BatchdetError):
    """More images failed than ``policy.max_failed_fraction`` allows, or more shards than ``max_bad_shard_fraction``.

    Nothing of that run was committed.
    """

    exit_status = 3
    code = "run.too_many_failures"


class OutputLocked(BatchdetError):
    """Another live run holds the output."""

    exit_status = 4
    code = "output.locked"


class ClusterError(BatchdetError):
    """The cluster cannot do what the spec asks for."""

    exit_status = 5
    code = "cluster.failed"


class ModelError(ClusterError):
    """The model cannot be fetched, loaded or understood."""

    code = "model.unusable"


class OutOfDeviceMemory(ModelError):
    """The device's memory does not hold a batch; a smaller one may fit."""

    code = "model.out_of_device_memory"


class MissingExtra(ClusterError):
    """A package that the spec needs is not installed; the message names it and the extra that brings it."""

    code = "package.missing"


class ConservationError(BatchdetError):
    """Images listed and images recorded differ."""

    exit_status = 6
    code = "run.counts_differ"


class VerificationError(BatchdetError):
    """A committed file is not what its manifest says."""

    exit_status = 6
    code = "output.damaged"


class Interrupted(BatchdetError):
    """The run was stopped by a signal.

    Args:
        message: What was kept and how to go on.
        exit_status: 130 (SIGINT) or 143 (SIGTERM).
    """

    code = "run.interrupted"

    def __init__(self, message: str, exit_status: int = 130) -> None:
        super().__init__(message)
        self.exit_status = exit_status

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.message, self.exit_status))


class ImageError(BatchdetError):
    """One image is bad. It is recorded as a failed row and its neighbours go on.

    Args:
        code: One of :data:`batchdet.records.schema.ERROR_CODES`.
        message: What was found, for a person.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.code, self.message))
