"""Why a run was not committed: ``refused.json`` and ``failed.csv`` in its folder, until it goes on or is committed."""

import json
from dataclasses import asdict, dataclass, field
from typing import Final

from pydantic import TypeAdapter

from batchdet import storage
from batchdet.spec import PolicySpec
from batchdet.table.lineage import now
from batchdet.table.manifest import run_folder

REFUSED: Final = "refused.json"
FAILED_LIST: Final = "failed.csv"
"""What failed, and why."""
REMOVED: Final = "removed.json"
"""Garbage collection writes it before it removes an unfinished run, so that no later owner resumes that run."""
LEFT_BY_REFUSAL: Final = frozenset({REFUSED, FAILED_LIST, REMOVED})


@dataclass(frozen=True)
class Refusal:
    """The reason why a run whose work is all done was not committed.

    Args:
        code: That of the error, such as ``run.too_many_failures``.
        message: That of the error.
        at: ISO 8601, UTC.
        counts: ``images``, ``images_failed``, ``shards`` and ``shards_bad``.
        key: The limit that was exceeded, such as ``policy.max_failed_fraction``.
        limits: The limits that the run was judged by; see :func:`limits_of`.
        lasting: Whether the same limits would refuse it again: no failure of it is one that another try may mend.
    """

    code: str
    message: str
    at: str = field(default_factory=now)
    counts: dict[str, int] = field(default_factory=dict)
    key: str = ""
    limits: dict[str, float] = field(default_factory=dict)
    lasting: bool = False

    def write(self, out: str, run_id: str) -> None:
        """Write ``refused.json`` into the run's folder."""
        data = (json.dumps(asdict(self), indent=1) + "\n").encode()
        storage.persist(lambda: storage.write_bytes(storage.join(run_folder(out, run_id), REFUSED), data))


def limits_of(policy: PolicySpec) -> dict[str, float]:
    """Return the limits that decide about a refusal."""
    return policy.model_dump(include={"max_failed_fraction", "max_bad_shard_fraction"})


def read_refusal(out: str, run_id: str) -> Refusal | None:
    """Read why a run was refused.

    Args:
        out: The output's URI.
        run_id: The run.

    Returns:
        None when it was not refused, has gone on since, or the record is damaged.
    """
    try:
        return TypeAdapter(Refusal).validate_json(storage.read_bytes(storage.join(run_folder(out, run_id), REFUSED)))
    except (storage.NotFound, ValueError):
        return None


def clear_refusal(out: str, run_id: str) -> None:
    """Delete what a refusal left in a run's folder: the run goes on, or its tables say it now."""
    folder = run_folder(out, run_id)
    left = LEFT_BY_REFUSAL & set(storage.persist(lambda: storage.list_names(folder)))
    if left:
        storage.persist(lambda: storage.delete([storage.join(folder, name) for name in sorted(left)]))
