"""Shards: the unit of planning. An object of its own, or a fixed slice of the inventory."""

import hashlib
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa
import pyarrow.compute as pc

from batchdet import storage
from batchdet.storage import StoredObject

if TYPE_CHECKING:
    from batchdet.source.inventory import Inventory


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
        return -1 if self.format in {"webdataset", "parquet"} else len(self.objects)

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


class ShardPlan(Sequence[Shard]):
    """The shards of an inventory, made when they are asked for.

    Args:
        inventory: What was listed.
        slice_rows: Images per shard of a folder or list.
    """

    def __init__(self, inventory: "Inventory", slice_rows: int = 1024) -> None:
        self._format = inventory.format
        self._root = inventory.root
        self._objects = inventory.objects
        self._slices: list[tuple[int, int]] | None = None
        rows = inventory.objects.num_rows
        if self._format == "folder":
            self._slices = [(a, min(a + slice_rows, rows)) for a in range(0, rows, slice_rows)]
        elif self._format == "uri_list":
            self._slices = []
            for first, last in _runs(inventory.objects["list_uri"]):
                self._slices += [(a, min(a + slice_rows, last)) for a in range(first, last, slice_rows)]

    def __len__(self) -> int:
        return self._objects.num_rows if self._slices is None else len(self._slices)

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> "list[Shard]": ...
    def __getitem__(self, index: int | slice) -> "Shard | list[Shard]":
        """Make one shard, or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"shard {index} of {len(self)}")
        return self._make(index % len(self))

    def _make(self, index: int) -> Shard:
        first, last = (index, index + 1) if self._slices is None else self._slices[index]
        rows = self._objects.slice(first, last - first)
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
        elif self._slices is None:
            shard_uri = objects[0].uri
        return Shard(
            shard_index=index,
            shard_id=_shard_id(self._format, shard_uri, objects, names),
            shard_uri=shard_uri,
            format=self._format,
            objects=objects,
            first_position=0 if self._slices is None else first,
            listed=listed,
        )


def plan_shards(inventory: "Inventory", slice_rows: int = 1024) -> Sequence[Shard]:
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
    if len(column) == 0:
        return []
    encoded = pc.run_end_encode(column.combine_chunks())
    chunks = encoded.chunks if isinstance(encoded, pa.ChunkedArray) else [encoded]
    ends = [0]
    for chunk in chunks:
        base = ends[-1]
        ends += [base + end for end in chunk.run_ends.to_pylist()]
    return list(pairwise(ends))
