"""The inventory: what a source holds, listed once and frozen in the run's folder."""

import hashlib
import io
import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchdet import storage
from batchdet.errors import SourceError
from batchdet.source import listing, parquet, uri_list, webdataset
from batchdet.source.shards import Shard, folder_root, plan_shards
from batchdet.spec import SourceSpec
from batchdet.storage import StoredObject

__all__ = ["Inventory", "Shard", "list_inventory", "plan_shards"]

_KEY = ("uri", "size_bytes", "etag")
_LISTED_KEY = ("list_uri", "member", "uri")
"""What an entry of a list is known by: its image_id comes from the first two, its bytes from the third."""


@dataclass(frozen=True, eq=False)
class Inventory:
    """The sorted listing of a source.

    Args:
        format: webdataset, folder, parquet or uri_list.
        root: The source's URI, normalised; for a folder the part before any wildcard.
        objects: ``uri``, ``size_bytes``, ``etag``, sorted by URI. For a URI list one row per listed image in the
            list's order, with ``list_uri``, ``member``, ``error_code`` and the columns carried over.
        carried: Columns that reach the images table.
        passed_over: What else was listed: kind (``.psd``, ``hidden``) -> how many; not stored.
        note: What a person should know of how it was read (no header line, renamed columns), or ""; not stored.
    """

    format: str
    root: str
    objects: pa.Table
    carried: pa.Schema
    passed_over: Mapping[str, int] = field(default_factory=dict)
    note: str = ""

    @cached_property
    def digest(self) -> str:
        """sha256 over format and objects, in hex."""
        root = self.root if self.format == "folder" else ""  # names within the folder depend on it
        digest = hashlib.sha256(f"{self.format}\0{root}\0{self.objects.schema.names}".encode())
        for batch in self.objects.to_batches(max_chunksize=65536):
            keys = pc.binary_join_element_wise(
                *[batch[n].cast(pa.string()) for n in _KEY], "\0", null_handling="replace"
            )
            digest.update("\n".join(keys.to_pylist()).encode())
            others = [c for c in batch.schema.names if c not in _KEY]
            if others:
                rows = batch.select(others).to_pylist()
                digest.update(json.dumps(rows, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def held_by(self, known: pa.Table) -> npt.NDArray[np.bool_]:
        """Say of each object whether another inventory holds it unchanged; see :meth:`first_holder`."""
        return self.first_holder([known]) >= 0

    def first_holder(self, others: Sequence[pa.Table]) -> npt.NDArray[np.int64]:
        """Say of each object which is the first of other inventories that holds it unchanged; -1 where none does.

        An object is known by URI, size and ETag; an entry of a list by the list, its name there and its URI, so that
        neither the same image in another list or under another name, nor an empty entry, is taken for a known one.

        Args:
            others: Their ``objects``. One of another kind (lists or objects) holds none of these.
        """
        return self._first_with(others, _LISTED_KEY if self.format == "uri_list" else _KEY)

    def shares_places_with(self, other: pa.Table) -> bool:
        """Tell whether another inventory's ``objects`` hold images that have the same ``image_id`` as some of these."""
        names = _LISTED_KEY[:2] if self.format == "uri_list" else _KEY[:1]
        return bool((self._first_with([other], names) >= 0).any())

    def _first_with(self, others: Sequence[pa.Table], names: Sequence[str]) -> npt.NDArray[np.int64]:
        mine = _without_nulls(self.objects, names)
        keys = [
            _without_nulls(other, names).cast(mine.schema).append_column("_place", pa.repeat(place, other.num_rows))
            for place, other in enumerate(others)
            if ("list_uri" in other.schema.names) == (self.format == "uri_list")
        ]
        found = np.full(mine.num_rows, -1, np.int64)
        if keys:
            theirs = pa.concat_tables(keys).group_by(names).aggregate([("_place", "min")])
            numbered = mine.append_column("_row", pa.array(np.arange(mine.num_rows)))
            both = numbered.join(theirs, keys=list(names), join_type="inner")
            found[both["_row"].to_numpy()] = both["_place_min"].to_numpy()
        return found

    def keep(self, chosen: npt.NDArray[np.bool_]) -> "Inventory":
        """Return the inventory of some of the objects, in their order."""
        return Inventory(self.format, self.root, self.objects.filter(pa.array(chosen)), self.carried)

    def without(self, known: pa.Table) -> "Inventory":
        """Drop the objects that another inventory holds unchanged; see :meth:`held_by`."""
        return self.keep(~self.held_by(known))

    def to_table(self) -> pa.Table:
        """Return ``objects`` with format, root and carried columns in its schema's metadata."""
        facts = {"format": self.format, "root": self.root}
        return self.objects.replace_schema_metadata(
            {"batchdet.inventory": json.dumps(facts), "batchdet.carried": self.carried.serialize().to_pybytes()}
        )

    @staticmethod
    def from_table(table: pa.Table) -> "Inventory":
        """Read back what :meth:`to_table` made.

        Raises:
            SourceError: The table is no inventory.
        """
        metadata = table.schema.metadata or {}
        try:
            facts = json.loads(metadata[b"batchdet.inventory"])
            carried = pa.ipc.read_schema(pa.py_buffer(metadata[b"batchdet.carried"]))
        except (KeyError, ValueError, pa.ArrowInvalid) as error:
            raise SourceError("this table is no inventory of batchdet: its metadata does not say so") from error
        return Inventory(facts["format"], facts["root"], table.replace_schema_metadata(None), carried)

    def to_bytes(self) -> bytes:
        """Return the content of ``inventory.parquet``."""
        sink = io.BytesIO()
        pq.write_table(self.to_table(), sink, compression="zstd")
        return sink.getvalue()

    def write(self, uri: str) -> None:
        """Write ``inventory.parquet``."""
        storage.write_bytes(uri, self.to_bytes())

    @staticmethod
    def read(uri: str) -> "Inventory":
        """Read what :meth:`write` wrote.

        Raises:
            SourceError: It is no inventory.
        """
        return Inventory.from_table(_open(uri).read())

    @staticmethod
    def read_keys(uri: str) -> pa.Table:
        """Read no more of ``objects`` than what they are known by.

        Raises:
            SourceError: It is no inventory.
        """
        file = _open(uri)
        return file.read([name for name in file.schema_arrow.names if name in {*_KEY, *_LISTED_KEY}])


def _open(uri: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri)))
    except pa.ArrowInvalid as error:
        raise SourceError(f"{uri}: not a Parquet file: {error}") from error


def list_inventory(source: SourceSpec) -> Inventory:
    """List a source, once.

    The cost grows with objects: tar shards are not opened, and of Parquet files only the footers are read.

    Raises:
        SourceError: The source cannot be listed, holds no image, or its format or columns are not clear.
    """
    uri = storage.normalize(source.uri)
    found, hidden = listing.list_source(source)
    format_ = listing.resolve_format(source, found)
    objects, others = listing.pick_objects(source, format_, found)
    passed_over = listing.count_kinds(others) + hidden
    root = _folder_of(uri, objects)
    if format_ == "webdataset":
        return Inventory(format_, uri, objects_table(objects), webdataset.carried_schema(source), passed_over)
    if format_ == "parquet" and not parquet.holds_uris(source, objects):
        carried, note = parquet.carried_schema(source, objects, root)
        return Inventory(format_, uri, objects_table(objects), carried, passed_over, note)
    if format_ in {"parquet", "uri_list"}:
        table, carried, note = uri_list.read_lists(source, objects)
        return Inventory("uri_list", uri, table, carried, passed_over, note)
    if source.columns:
        raise SourceError(f"source.columns: a folder of images carries no columns, found {', '.join(source.columns)}")
    return Inventory(format_, root, objects_table(objects), pa.schema([]), passed_over)


def _without_nulls(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Select columns in which nulls are written as what is not known, because a join finds no null equal to another."""
    return pa.table({n: pc.fill_null(table[n], -1 if n == "size_bytes" else "") for n in names})


def _folder_of(uri: str, objects: list[StoredObject]) -> str:
    if objects[0].uri == uri:
        return posixpath.dirname(uri)
    is_literal = objects[0].uri.startswith(uri.rstrip("/") + "/")  # a folder may be called x[1]
    return uri if is_literal or not storage.is_glob(uri) else folder_root(uri)


def objects_table(objects: list[StoredObject]) -> pa.Table:
    """Return a listing as a table."""
    columns: dict[str, Any] = {
        # a name that is no UTF-8 cannot stand in a table; it is written escaped and will be found unreadable
        "uri": pa.array([o.uri.encode("utf-8", "backslashreplace").decode() for o in objects], pa.string()),
        "size_bytes": pa.array([o.size_bytes for o in objects], pa.int64()),
        "etag": pa.array([o.etag for o in objects], pa.string()),
    }
    return pa.table(columns)
