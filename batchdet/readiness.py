"""Whether a job can run from here: its source, model and output, looked at without labelling anything."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from batchdet import storage
from batchdet.errors import BatchdetError, Interrupted, SpecErrors
from batchdet.model.families.plugin import is_plugin
from batchdet.places import check_apart, check_not_own_tables, check_space, check_writable, in_full
from batchdet.plan import check_partitions
from batchdet.source.inventory import Inventory, list_inventory
from batchdet.spec import JobSpec
from batchdet.text import counted


@dataclass(frozen=True)
class Finding:
    """What was found of one thing that a job needs.

    Args:
        name: ``source``, ``model`` or ``output``.
        found: What it is, as half a sentence; "" if it cannot be used.
        error: Why it cannot be used, or None.
    """

    name: str
    found: str = ""
    error: BatchdetError | None = None


def look(spec: JobSpec) -> list[Finding]:
    """Look at source, model and output of a job.

    The source is listed and one object of it read, the model is loaded and its outputs understood, and a small object
    is written to the output and deleted.

    Args:
        spec: The job.
    """
    findings = []
    for name in _LOOKS:
        try:
            findings.append(Finding(name, look_at(name, spec)))
        except Interrupted:
            raise
        except BatchdetError as error:
            findings.append(Finding(name, error=error))
    return findings


def look_at(name: str, spec: JobSpec) -> str:
    """Look at one thing that a job needs, and return what it is as half a sentence.

    Args:
        name: ``source``, ``model`` or ``output``.
        spec: The job.

    Raises:
        BatchdetError: It cannot be used.
    """
    return _LOOKS[name](in_full(spec))


def check(spec: JobSpec) -> list[Finding]:
    """Look as :func:`look` does.

    Raises:
        BatchdetError: Something cannot be used; if there are several such things, SpecErrors names them all.
    """
    findings = look(spec)
    errors = [finding.error for finding in findings if finding.error is not None]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise SpecErrors(
            [mistake for error in errors for mistake in error.mistakes], errors[0].exit_status
        ) from errors[0]
    return findings


def _source(spec: JobSpec) -> str:
    listed = list_inventory(spec.source)
    check_not_own_tables(listed, spec.output.uri)
    check_partitions(spec, listed)
    count = listed.objects.num_rows
    what = f"{counted(count, 'object')} ({listed.format}) at {listed.root}"
    read = _read_one(listed)
    return f"{what}; {read} can be read" if read else what


def _read_one(listed: Inventory) -> str:
    """Read the first byte of one object, and return its name; "" if a list names none that is listed with its size."""
    for row in listed.objects.slice(0, 1).select(["uri", "size_bytes", "etag"]).to_pylist():
        if listed.format != "uri_list" and row["size_bytes"] > 0:
            storage.read_range(storage.StoredObject(row["uri"], row["size_bytes"], row["etag"] or ""), 0, 1)
            return storage.basename(row["uri"])
    return ""


def _model(spec: JobSpec) -> str:
    from batchdet.model.child import inspect_model

    card = inspect_model(spec.model).card
    head = spec.model.family if is_plugin(spec.model.family) else card.family
    return f"{card.format}, family {head}, {counted(len(card.labels), 'class')}, by {card.runtime} on the CPU"


def _output(spec: JobSpec) -> str:
    out = spec.output.uri
    check_apart(spec, out)
    check_writable(out, leave_nothing=True)
    check_space(out)
    return f"{out} can be written"


_LOOKS: Final[dict[str, Callable[[JobSpec], str]]] = {"source": _source, "model": _model, "output": _output}
