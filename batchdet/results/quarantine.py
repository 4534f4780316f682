"""The quarantine of an output: tar and Parquet files whose newest rows say that they were not read to their end."""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from batchdet import storage
from batchdet.errors import SourceError
from batchdet.source.inventory import Inventory
from batchdet.table.manifest import Manifest, run_folder
from batchdet.text import counted

_READERS: Final = 8
_NAMED: Final = 3
"""Shards that a warning names."""
_LISTED: Final = 20
"""Shards that ``--json`` lists."""
_REASON_MAX: Final = 120


@dataclass(frozen=True)
class Quarantined:
    """A shard in quarantine.

    Args:
        uri: The tar or Parquet file.
        code: One of :data:`batchdet.records.schema.SHARD_CODES`.
        message: What was found there.
        run_id: The run that read it last.
        since: When it was committed as bad for the first time, and has not been read to its end since; ISO 8601, UTC.
    """

    uri: str
    code: str
    message: str
    run_id: str
    since: str


def find_quarantine(out: str, runs: Sequence[Manifest]) -> list[Quarantined]:
    """Find the shards that are in quarantine: no newer run has read them to their end.

    Args:
        out: The output's URI.
        runs: Committed runs of one fingerprint, oldest first.
    """
    first = next((place for place, manifest in enumerate(runs) if manifest.quarantine), len(runs))
    later = runs[first:]
    ever = pa.array(sorted({shard.uri for manifest in later for shard in manifest.quarantine}), pa.string())
    with ThreadPoolExecutor(_READERS) as pool:
        held = list(pool.map(lambda manifest: _held(out, manifest, ever), later))
    found: dict[str, Quarantined] = {}
    for manifest, uris in zip(later, held, strict=True):
        before = {uri: found.pop(uri) for uri in uris if uri in found}
        for shard in manifest.quarantine:
            since = before[shard.uri].since if shard.uri in before else manifest.created_at
            found[shard.uri] = Quarantined(shard.uri, shard.code, shard.message, manifest.run_id, since)
    return sorted(found.values(), key=lambda shard: shard.uri)


def current_quarantine(out: str, committed: Sequence[Manifest]) -> list[Quarantined]:
    """Find the shards that are in quarantine at the output's current settings, those of its newest committed run.

    Args:
        out: The output's URI.
        committed: Committed runs, oldest first.
    """
    return find_quarantine(out, [m for m in committed if m.fingerprint == committed[-1].fingerprint])


def quarantine_warning(found: Collection[Quarantined]) -> str:
    """Say which shards are in quarantine, and why; "" when none is."""
    if not found:
        return ""
    named = "; ".join(f"{shard.uri} ({_reason(shard)})" for shard in list(found)[:_NAMED])
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    are = "is" if len(found) == 1 else "are"
    return f"{counted(len(found), 'shard')} {are} in quarantine, not read to the end: {named}{more}"


def quarantine_to_dict(found: Collection[Quarantined]) -> dict[str, Any]:
    """Return plain values for ``--json``: how many, and the first of them."""
    first = [asdict(shard) for shard in list(found)[:_LISTED]]
    return {"shards": len(found), "first": first, "warning": quarantine_warning(found)}


def _reason(shard: Quarantined) -> str:
    text = f"{shard.code}: {shard.message}" if shard.message else shard.code
    return text if len(text) <= _REASON_MAX else f"{text[: _REASON_MAX - 3]}..."


def _held(out: str, manifest: Manifest, uris: pa.Array) -> list[str]:
    """Return those of some shards that a run has labelled; none where its inventory is gone or damaged."""
    try:
        keys = Inventory.read_keys(storage.join(run_folder(out, manifest.run_id), "inventory.parquet"))
    except (storage.NotFound, SourceError):
        return []
    found: list[str] = keys["uri"].filter(pc.is_in(keys["uri"], uris)).to_pylist()
    return found
