"""What the runs of an output hold: which objects of a listing are labelled, which failed, which run may go on."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchdet import storage
from batchdet.errors import OutputError, SourceError
from batchdet.records.schema import STATUS_FAILED
from batchdet.results.tables import RunTables
from batchdet.source.inventory import Inventory
from batchdet.table.lineage import Lineage
from batchdet.table.manifest import Manifest, list_runs, run_folder
from batchdet.table.refusal import REMOVED

OBJECT_KEY: Final = {
    "webdataset": ("shard_uri",),
    "parquet": ("shard_uri",),
    "folder": ("uri",),
    "uri_list": ("shard_uri", "member"),
}
"""Columns of the images table that name the source object of an image, by format."""

_READERS: Final = 8
_MOST_TOGETHER: Final = 64
"""Inventories are read 1, 2, 4, ... at a time up to this many: few joins, and at most twice as many as needed."""


@dataclass(frozen=True, eq=False)
class Standing:
    """How a listing stands against committed runs. Where several hold an object, the newest of them counts.

    Args:
        known: Per object, whether a run holds it.
        holders: Per object, the place in the list of runs of the one that holds it; -1 for none.
        failed_images: Per object, the images that failed in that run; all 0 when nobody asked.
    """

    known: npt.NDArray[np.bool_]
    holders: npt.NDArray[np.int64]
    failed_images: npt.NDArray[np.int64]


def compare(out: str, listed: Inventory, runs: Sequence[Manifest], with_failures: bool) -> Standing:
    """Look up a listing in committed runs, newest first, and no further back than needed.

    A shard in quarantine that another try may read is not held: it is tried again. Any other one is held as it is.

    Args:
        out: The output's URI.
        listed: What the source holds now.
        runs: Committed runs of one fingerprint, oldest first.
        with_failures: Also count failed images; the tables of runs without any are not read.

    Raises:
        OutputError: A part file cannot be read.
        SourceError: The inventory of a run is damaged.
    """
    count = listed.objects.num_rows
    known, undecided = np.zeros(count, bool), np.ones(count, bool)
    found = np.full(count, -1, np.int64)
    failed_images = np.zeros(count, np.int64)
    left = list(reversed(runs))
    together = 1
    while left and undecided.any():
        newest, left = left[:together], left[together:]
        together = min(2 * together, _MOST_TOGETHER)
        holders = np.where(undecided, listed.first_holder(_read_keys(out, newest)), -1)
        undecided &= holders < 0
        for place, manifest in enumerate(newest):
            held = holders == place
            passing = [shard.uri for shard in manifest.quarantine if shard.may_pass]
            if passing:
                held &= ~pc.is_in(listed.objects["uri"], pa.array(passing, pa.string())).to_numpy()
            known |= held
            found[held] = len(left) + len(newest) - 1 - place
            if with_failures and manifest.images_failed and held.any():
                failed_images[held] = count_images(out, manifest, listed, _FAILED)[held]
    return Standing(known, found, failed_images)


def _read_keys(out: str, runs: Sequence[Manifest]) -> list[pa.Table]:
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda m: Inventory.read_keys(_inventory_uri(out, m.run_id)), runs))


_FAILED: Final = pc.field("status") == STATUS_FAILED


def count_images(out: str, manifest: Manifest, listed: Inventory, which: pc.Expression) -> npt.NDArray[np.int64]:
    """Count, per listed object, some of the images that a run has of it.

    Args:
        out: The output's URI.
        manifest: The run.
        listed: The objects.
        which: What holds for the rows of ``images`` that count.
    """
    names = OBJECT_KEY[listed.format]
    rows = RunTables(out, [manifest], "images").dataset()
    rows_of = rows.to_table(columns=list(names), filter=which)
    columns = ("list_uri", "member") if listed.format == "uri_list" else ("uri",)
    counts = pc.value_counts(_joined(rows_of, names))
    where = pc.index_in(_joined(listed.objects, columns), counts.field("values"))
    found: npt.NDArray[np.int64] = pc.fill_null(counts.field("counts").take(where), 0).to_numpy(zero_copy_only=False)
    return found


def _joined(table: pa.Table, names: Sequence[str]) -> pa.Array:
    return pc.binary_join_element_wise(*(table[name].combine_chunks() for name in names), "\0")


@dataclass(frozen=True)
class Unfinished:
    """A run that is not committed. Its records are read when they are asked for.

    Args:
        out: The output's URI.
        run_id: The run.
        newer: Committed runs that are newer.
    """

    out: str
    run_id: str
    newer: tuple[Manifest, ...]

    @cached_property
    def lineage(self) -> Lineage | None:
        """What made it; None when that was not written, is damaged, or the run is being removed."""
        if storage.exists(storage.join(run_folder(self.out, self.run_id), REMOVED)):
            return None
        try:
            return Lineage.read(self.out, self.run_id)
        except OutputError:
            return None

    @cached_property
    def inventory(self) -> Inventory | None:
        """What it was to label; None when that was not written, is damaged, or is not what its lineage says."""
        try:
            found = Inventory.read(_inventory_uri(self.out, self.run_id))
        except (storage.NotFound, SourceError):
            return None
        return found if self.lineage and found.digest == self.lineage.inventory_digest else None

    @cached_property
    def ended(self) -> str:
        """Why no command can ever go on with it, as half a sentence; "" when one might.

        A run's id says when it began, and of an image's rows those of the newest run count. So a run that went on after
        a newer one had labelled the same images would be hidden behind it.
        """
        if self.lineage is None or self.inventory is None:
            return "its lineage.json or inventory.parquet is missing or damaged"
        if self.lineage.derived_from and self.newer:
            return f"run {self.newer[-1].run_id} is newer, and what it was to derive is derived again"
        for manifest in self.newer:
            if self.inventory.shares_places_with(Inventory.read_keys(_inventory_uri(self.out, manifest.run_id))):
                return f"run {manifest.run_id}, which is newer, has labelled its images"
        return ""


def unfinished_runs(out: str, committed: Sequence[Manifest]) -> list[Unfinished]:
    """List the runs that are not committed, newest first.

    Args:
        out: The output's URI.
        committed: Every committed run, oldest first.
    """
    done = {m.run_id for m in committed}
    return [
        Unfinished(out, run_id, tuple(m for m in committed if m.run_id > run_id))
        for run_id in reversed(list_runs(out))
        if run_id not in done
    ]


def _inventory_uri(out: str, run_id: str) -> str:
    return storage.join(run_folder(out, run_id), "inventory.parquet")
