"""Shards: the unit of planning. An object of its own, or a fixed slice of the inventory."""

import hashlib
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchdet import storage
from batchdet.records.segment import table_from_ipc, table_to_ipc
from batchdet.storage import StoredObject

if TYPE_CHECKING:
    from batchdet.source.inventory import Inventory

SLICED: Final = frozenset({"folder", "uri_list"})
"""Formats whose shards are slices of the inventory; a shard of the others is one object."""


@dataclass(frozen=True, eq=False)
class Shard:
    """What one reader reads.

    Args:
        shard_index: Place in the run's plan, from 0.
        shard_id: 24 hex digits made from its objects, the same in every run.
        shard_uri: The tar or Parquet file, the folder, or the list; ``image_id`` is made from it and the member.
        format: webdataset, folder, parquet or uri_list.
        objects: One tar or Parquet file, or the images of a slice.
        first_position: Position of its first image: 0, or the slice's place in the inventory.
        listed: uri_list: one row per object with ``member``, ``error_code`` and the columns carried over.
    """

    shard_index: int
    shard_id: str
    shard_uri: str
    format: str
    objects: tuple[StoredObject, ...]
    first_position: int = 0
    listed: pa.Table | None = None

    @property
    def image_count(self) -> int:
        """Images in the shard; -1 when only reading it tells (tar, Parquet)."""
        return len(self.objects) if self.format in SLICED else -1

    @property
    def members(self) -> list[str]:
        """Names of a slice's images within ``shard_uri``."""
        if self.listed is not None:
            return self.listed["member"].to_pylist()  # type: ignore[no-any-return]
        return [member_of(self.shard_uri, obj.uri) for obj in self.objects]


def member_of(root: str, uri: str) -> str:
    """Return the path of a file relative to the folder that was listed."""
    return uri.removeprefix(root.rstrip("/") + "/")


def folder_root(uri: str) -> str:
    """Return the folder that a folder's, glob's or image's URI stands for: what comes before any wildcard."""
    parts = uri.split("/")
    for i, part in enumerate(parts):
        if i > 0 and storage.is_glob(part):
            return "/".join(parts[:i]) or "/"
    return posixpath.dirname(uri)


_Numbers = npt.NDArray[np.int64]


class ShardPlan(Sequence[Shard]):
    """The shards of an inventory, or some of them; each is made when it is asked for.

    Beside the inventory's table there are four numbers a shard. A part of a plan (``plan[i:j]``, :meth:`subset`)
    shares the table; when it is pickled, only the rows of its own shards go along. Its shards are those of the whole
    plan, with the same ``shard_index``, ``shard_id`` and ``first_position``.

    Args:
        inventory: What was listed.
        slice_rows: Images per shard of a folder or list.
    """

    def __init__(self, inventory: "Inventory", slice_rows: int = 1024) -> None:
        self._format = inventory.format
        self._root = inventory.root
        self._objects = inventory.objects
        rows = inventory.objects.num_rows
        if self._format == "folder":
            runs = [(0, rows)]
        elif self._format == "uri_list":
            runs = _runs(inventory.objects["list_uri"])
        else:
            runs, slice_rows = [(0, rows)], 1
        none = np.empty(0, np.int64)
        self._first: _Numbers = np.concatenate([none, *(np.arange(a, b, slice_rows) for a, b in runs)])
        """Row of a shard's first object in ``_objects``."""
        self._count: _Numbers = np.concatenate(
            [none, *(np.minimum(slice_rows, b - np.arange(a, b, slice_rows)) for a, b in runs)]
        )
        self._index: _Numbers = np.arange(len(self._first))
        self._position: _Numbers = self._first
        """The same in the inventory: a part that was pickled has a table of its own."""

    def __len__(self) -> int:
        return len(self._first)

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> "ShardPlan": ...
    def __getitem__(self, index: int | slice) -> "Shard | ShardPlan":
        """Make one shard, or a plan of some; the latter makes none and copies nothing."""
        if isinstance(index, slice):
            return self._part(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"shard {index} of {len(self)}")
        return self._make(index % len(self))

    def subset(self, indices: Iterable[int]) -> "ShardPlan":
        """Return the plan of some shards, in the order given.

        Args:
            indices: Their places in this plan, as for ``plan[i]``.

        Raises:
            IndexError: There is no such place.
        """
        chosen = np.fromiter(indices, np.int64)
        for index in chosen[(chosen < -len(self)) | (chosen >= len(self))]:
            raise IndexError(f"shard {index} of {len(self)}")
        return self._part(chosen)

    def _part(self, which: slice | _Numbers) -> "ShardPlan":
        part = object.__new__(ShardPlan)
        part.__dict__ |= self.__dict__
        part._first, part._count = self._first[which], self._count[which]
        part._index, part._position = self._index[which], self._position[which]
        return part

    @property
    def image_count(self) -> int | None:
        """Images in all shards; None when only reading them tells (tar, Parquet)."""
        return int(self._count.sum()) if self._format in SLICED else None

    @property
    def object_counts(self) -> _Numbers:
        """Objects of each shard, ``(len(self),)`` int64, in the plan's order."""
        return self._count

    @property
    def first_object(self) -> int:
        """Row of the first shard's first object in the inventory."""
        return int(self._first[0]) if len(self) else 0

    @property
    def size_bytes(self) -> int:
        """Listed bytes of all shards; what the listing does not say (URI lists) counts as none."""
        sizes = self._objects["size_bytes"]
        ranges = (sizes.slice(first, count) for first, count in self._ranges())
        return sum(pc.sum(pc.max_element_wise(part, 0), min_count=0).as_py() for part in ranges)

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """Yield first row and number of rows of runs of shards that stand next to each other in the table."""
        if not len(self):
            return
        breaks = np.flatnonzero(self._first[1:] != self._first[:-1] + self._count[:-1]) + 1
        starts = np.concatenate([[0], breaks])
        counts = np.add.reduceat(self._count, starts)
        yield from zip(self._first[starts].tolist(), counts.tolist(), strict=True)

    def __getstate__(self) -> dict[str, Any]:
        # Arrow pickles all of the buffers that a slice looks at; its IPC format writes the slice alone
        parts = [self._objects.slice(first, count) for first, count in self._ranges()]
        table = pa.concat_tables(parts) if parts else self._objects.slice(0, 0)
        first = np.cumsum(self._count) - self._count
        return self.__dict__ | {"_objects": table_to_ipc(table), "_first": first}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_objects": table_from_ipc(state["_objects"])}

    def _make(self, place: int) -> Shard:
        rows = self._objects.slice(int(self._first[place]), int(self._count[place]))
        columns: list[list[Any]] = [rows[name].to_pylist() for name in ("uri", "size_bytes", "etag")]
        objects = tuple(StoredObject(*values) for values in zip(*columns, strict=True))
        listed = None
        shard_uri = self._root
        names: Sequence[str] = ()
        if self._format == "uri_list":
            shard_uri = rows["list_uri"][0].as_py()
            # take() copies: a slice would pickle the whole inventory along
            listed = rows.drop_columns(["uri", "size_bytes", "etag", "list_uri"]).take(pa.array(range(len(rows))))
            names = listed["member"].to_pylist()
        elif self._format not in SLICED:
            shard_uri = objects[0].uri
        return Shard(
            shard_index=int(self._index[place]),
            shard_id=_shard_id(self._format, shard_uri, objects, names),
            shard_uri=shard_uri,
            format=self._format,
            objects=objects,
            first_position=int(self._position[place]) if self._format in SLICED else 0,
            listed=listed,
        )


def plan_shards(inventory: "Inventory", slice_rows: int = 1024) -> ShardPlan:
    """Divide an inventory into shards.

    Args:
        inventory: What was listed.
        slice_rows: Images per shard of a folder or list; a tar or Parquet file is a shard of its own.

    Returns:
        The shards in the inventory's order; each is made when it is asked for.
    """
    return ShardPlan(inventory, slice_rows)


def _shard_id(format_: str, shard_uri: str, objects: Sequence[StoredObject], names: Sequence[str]) -> str:
    digest = hashlib.blake2b(f"{format_}\0{shard_uri}".encode("utf-8", "surrogateescape"), digest_size=12)
    for obj in objects:
        digest.update(f"\n{obj.uri}\0{obj.size_bytes}\0{obj.etag}".encode("utf-8", "surrogateescape"))
    for name in names:
        digest.update(f"\n{name}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _runs(column: pa.ChunkedArray) -> list[tuple[int, int]]:
    """Return the half-open ranges of rows in which a column keeps its value."""
    runs: list[tuple[int, int]] = []
    before = None
    start = 0
    for chunk in column.chunks:  # one by one: together their text may be more than an array can hold
        encoded = pc.run_end_encode(chunk)
        for value, end in zip(encoded.values.to_pylist(), encoded.run_ends.to_pylist(), strict=True):
            first = runs.pop()[0] if runs and value == before else (runs[-1][1] if runs else 0)
            runs.append((first, start + end))
            before = value
        start += len(chunk)
    return runs
