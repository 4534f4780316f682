"""Staged files: results of whole segments, not yet part of any table.

A staged file holds one segment and its name says which, so that a listing tells what is done, and a retried write
replaces the file by an equal one.
"""

import re
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from batchdet import storage
from batchdet.failpoint import failpoint
from batchdet.records.segment import LabelledSegment, table_from_ipc, table_to_ipc
from batchdet.table.manifest import run_folder

_NAME: Final = re.compile(r"(?P<shard>[0-9a-f]+)-(?P<segment>[0-9]{5,})(?P<last>-last)?\.arrow")


class DamagedSegment(storage.StorageError):
    """A staged file is not whole."""

    code = "run.staged_damaged"


def staged_folder(out: str, run_id: str) -> str:
    """Return the folder of a run's staged files."""
    return storage.join(run_folder(out, run_id), "staged")


def staged_name(shard_id: str, segment_index: int, last: bool) -> str:
    """Return the file name that says which segment is inside."""
    return f"{shard_id}-{segment_index:05d}{'-last' if last else ''}.arrow"


def write_staged(folder: str, segment: LabelledSegment) -> str:
    """Write one segment's results whole.

    Returns:
        The URI of the staged file.
    """
    uri = storage.join(folder, staged_name(segment.shard_id, segment.segment_index, segment.last))
    data = table_to_ipc(segment.to_row(), compression=None)
    failpoint("staged.before")
    storage.persist(lambda: storage.write_bytes(uri, data))
    failpoint("staged.after")
    return uri


def read_staged(uri: str) -> LabelledSegment:
    """Read one staged file back.

    Raises:
        StorageError: It is gone.
        DamagedSegment: It is not whole.
    """
    data = storage.read_bytes(uri)
    try:
        (segment,) = LabelledSegment.from_rows(table_from_ipc(data))
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
        raise DamagedSegment(f"{uri}: not a whole staged file ({error})", key=uri) from error
    return segment


@dataclass
class StagedShard:
    """The segments of one shard that are staged.

    Args:
        segments: Segment index -> URI.
        last_index: Index of the shard's last segment, or None while it is not staged.
    """

    segments: dict[int, str] = field(default_factory=dict)
    last_index: int | None = None

    @property
    def complete(self) -> bool:
        """Whether every segment of the shard is staged."""
        return self.last_index is not None and len(self.segments) == self.last_index + 1


def list_staged(out: str, run_id: str) -> dict[str, StagedShard]:
    """List a run's staged segments by shard id, from file names alone."""
    shards: dict[str, StagedShard] = {}
    folder = staged_folder(out, run_id)
    for name in storage.persist(lambda: storage.list_names(folder)):
        match = _NAME.fullmatch(name)
        if match:
            shard = shards.setdefault(match["shard"], StagedShard())
            shard.segments[int(match["segment"])] = storage.join(folder, name)
            if match["last"]:
                shard.last_index = int(match["segment"])
    return shards
