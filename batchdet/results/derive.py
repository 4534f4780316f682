"""Derivation: rows of a job whose settings only filter more, made from committed rows without running the model.

A higher ``model.score_threshold`` is exact for every image: families compare float32 scores with the threshold, keep
the highest ones, and suppress overlaps from the highest score down, so that what is cut off never decided what stays.
A subset of ``model.classes`` is exact for images with fewer detections than ``model.max_detections``: classes never
suppress each other, but at the limit others may have taken the places of wanted ones.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchdet.errors import ConservationError, OutputError
from batchdet.model.labels import class_numbers
from batchdet.records.schema import schema_of
from batchdet.records.segment import LabelledSegment
from batchdet.results.history import OBJECT_KEY, compare, count_images
from batchdet.results.open import readable
from batchdet.results.record import read_spec
from batchdet.results.settings import fingerprint_of
from batchdet.results.tables import TABLE_NAMES, RunTables, connect, quote_name
from batchdet.source.inventory import Inventory
from batchdet.source.shards import SLICED, ShardPlan
from batchdet.spec import JobSpec
from batchdet.table.lineage import Lineage
from batchdet.table.manifest import Manifest

if TYPE_CHECKING:
    import duckdb

_BATCH_ROWS: Final = 8192
_CHUNK_IMAGES: Final = 1_000_000
"""About as many images are sorted and joined at once, so that memory does not grow with the run."""
_MEMORY: Final = "2GB"
"""What DuckDB keeps of sorts and joins in memory; the rest goes to its temporary folder."""


@dataclass(frozen=True, eq=False)
class Derivation:
    """Objects whose rows can be derived, and how.

    Args:
        runs: The runs that hold the objects, oldest first; all have the same fingerprint.
        exact: Per object that was asked about, whether its rows can be derived.
        holders: Per object, the place of its run in ``runs``; -1 for none.
        score_threshold: Lowest score that is kept.
        class_ids: The classes that are kept; None keeps all.
        changes: What the job changes, as in ``score_threshold 0.25 -> 0.4``.
    """

    runs: tuple[Manifest, ...] = field(repr=False)
    exact: npt.NDArray[np.bool_] = field(repr=False)
    holders: npt.NDArray[np.int64] = field(repr=False)
    score_threshold: float
    class_ids: tuple[int, ...] | None
    changes: str

    @property
    def run_ids(self) -> tuple[str, ...]:
        """The runs that hold the objects, oldest first."""
        places = np.unique(self.holders[self.exact])
        return tuple(self.runs[place].run_id for place in places)


def find_derivation(
    spec: JobSpec, inventory: Inventory, committed: Sequence[Manifest], model_sha256: str, fingerprint: str
) -> Derivation | None:
    """Find rows of which the rows of a job can be derived, for some objects.

    Args:
        spec: The job.
        inventory: The objects that no run of the job's settings holds.
        committed: Every committed run, oldest first.
        model_sha256: Digest of the job's model.
        fingerprint: The job's.

    Returns:
        The derivation from the newest settings that hold some of the objects and filter less; None if there are none.
    """
    others = dict.fromkeys(m.fingerprint for m in reversed(committed) if m.fingerprint != fingerprint)
    for other in others if inventory.objects.num_rows else ():
        runs = tuple(m for m in committed if m.fingerprint == other)
        found = _from_settings(spec, inventory, runs, model_sha256)
        if found is not None and found.exact.any():
            return found
    return None


def _from_settings(
    spec: JobSpec, inventory: Inventory, runs: tuple[Manifest, ...], model_sha256: str
) -> Derivation | None:
    out = spec.output.uri
    try:
        before = read_spec(out, runs[-1].run_id).model
        lineage = Lineage.read(out, runs[-1].run_id)
    except OutputError:
        return None
    filters = {"score_threshold": before.score_threshold, "classes": before.classes}
    widened = spec.model_copy(update={"model": spec.model.model_copy(update=filters)})
    if lineage is None or fingerprint_of(widened, inventory.format, model_sha256) != runs[-1].fingerprint:
        return None
    labels = tuple(lineage.model.get("labels") or ())
    if (before.classes, spec.model.classes) != (None, None) and not labels:
        return None  # an earlier version has not written down which classes there are
    wanted, had = (
        None if classes is None else class_numbers(classes, labels) for classes in (spec.model.classes, before.classes)
    )
    if spec.model.score_threshold < before.score_threshold or not _is_subset(wanted, had):
        return None
    usable = tuple(m for m in runs if _same_names(out, m, spec, inventory))
    standing = compare(out, inventory, usable, False)
    exact = standing.known.copy()
    if wanted != had:
        full = pc.field("detection_count") >= spec.model.max_detections
        for place in np.unique(standing.holders[exact]):
            of_run = standing.holders == place
            exact[of_run] &= count_images(out, usable[place], inventory, full)[of_run] == 0
    if exact.any() and not _has_columns(
        out, [usable[place] for place in np.unique(standing.holders[exact])], inventory
    ):
        return None
    return Derivation(usable, exact, standing.holders, spec.model.score_threshold, wanted, _changes(before, spec.model))


def _is_subset(wanted: tuple[int, ...] | None, had: tuple[int, ...] | None) -> bool:
    return had is None or (wanted is not None and set(wanted) <= set(had))


def _same_names(out: str, manifest: Manifest, spec: JobSpec, inventory: Inventory) -> bool:
    """Tell whether a run gave images the names that the job would give; in a folder they depend on its root."""
    if inventory.format != "folder":
        return True
    try:
        return read_spec(out, manifest.run_id).source.uri == spec.source.uri
    except OutputError:
        return False


def _has_columns(out: str, runs: Sequence[Manifest], inventory: Inventory) -> bool:
    """Tell whether the runs have every column that the job carries over."""
    try:
        schema = RunTables(out, runs, "images").schema
    except OutputError:
        return False
    return all(name in schema.names for name in inventory.carried.names)


def _changes(before: Any, after: Any) -> str:
    changed = (name for name in ("score_threshold", "classes") if getattr(before, name) != getattr(after, name))
    return ", ".join(f"{name} {_text(getattr(before, name))} -> {_text(getattr(after, name))}" for name in changed)


def _text(value: Any) -> str:
    if value is None:
        return "all"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"


def derived_segments(
    derivation: Derivation, inventory: Inventory, shards: ShardPlan, lineage: Lineage, out: str
) -> Iterator[LabelledSegment]:
    """Make the rows of a run from those of others, shard by shard, in bounded memory.

    Args:
        derivation: Where the rows are, and what is kept of them.
        inventory: The objects that are derived: those that are exact, in their order.
        shards: The plan of these objects.
        lineage: Of the run that is made.
        out: The output's URI.

    Yields:
        The segments of each shard, in the plan's order; a shard without images gives one without rows.

    Raises:
        ConservationError: The tables hold fewer detections than images say.
        OutputError: A part file cannot be read.
    """
    each = 1.0
    if inventory.format not in SLICED:
        held = [m for m in derivation.runs if m.run_id in derivation.run_ids]
        each = max(1.0, sum(m.images_listed for m in held) / max(1, inventory.objects.num_rows))
    ends = np.cumsum(shards.object_counts)
    first = 0
    while first < len(shards):
        begun = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, begun + _CHUNK_IMAGES / each, "right")))
        yield from _derived(derivation, inventory, shards[first:last], lineage, out)
        first = last


def _derived(
    derivation: Derivation, inventory: Inventory, shards: ShardPlan, lineage: Lineage, out: str
) -> Iterator[LabelledSegment]:
    """Make the rows of some shards that follow one another; see :func:`derived_segments`."""
    features = lineage.model.get("features") or {}
    images = pa.schema([*schema_of("images", features), *inventory.carried])
    detections = schema_of("detections", features)
    with readable(out):
        query = _Query(out, derivation, inventory, shards)
        boxes = _Rows(_batches(query.connect(), query.detections(detections), detections))
        by_shard = itertools.groupby(_pieces(query.connect(), query.images(images), images), key=lambda piece: piece[0])
        following = next(by_shard, None)
        for shard in shards:
            own: Iterator[pa.Table] = iter(())
            if following is not None and following[0] == shard.shard_index:
                own = (rows for _, rows in following[1])
            for index, (rows, last) in enumerate(_with_last(own, images.empty_table())):
                counts = rows["detection_count"].to_numpy()
                found = boxes.take(int(counts.sum()))
                starts = np.repeat(np.cumsum(counts) - counts, counts)
                ranks = (np.arange(len(starts)) - starts).astype(np.int32)
                made = {"run_id": pa.repeat(lineage.run_id, found.num_rows), "detection_index": pa.array(ranks)}
                yield LabelledSegment(
                    shard_index=shard.shard_index,
                    shard_id=shard.shard_id,
                    segment_index=index,
                    last=last,
                    images=_replaced(rows, {"run_id": pa.repeat(lineage.run_id, rows.num_rows)}),
                    detections=_replaced(found, made),
                    times_s={},
                )
            if following is not None and following[0] == shard.shard_index:
                following = next(by_shard, None)


class _Query:
    """SQL for the rows that are kept, in the plan's order.

    ``wanted`` holds the objects: ``place`` in the inventory, ``shard_index``, the run that holds the object, and what
    its images are known by.
    """

    def __init__(self, out: str, derivation: Derivation, inventory: Inventory, shards: ShardPlan) -> None:
        chosen = {place: derivation.runs[place] for place in np.unique(derivation.holders[derivation.exact])}
        # shards that follow one another hold objects that follow one another
        first, counts = shards[0].shard_index, shards.object_counts
        start = shards.first_object
        places = np.arange(start, start + int(counts.sum()))
        objects = inventory.objects.slice(start, len(places))
        self._tables = {name: RunTables(out, [chosen[place] for place in sorted(chosen)], name) for name in TABLE_NAMES}
        self._sliced = inventory.format in SLICED
        self._keys = OBJECT_KEY[inventory.format]
        ids = {place: manifest.run_id for place, manifest in chosen.items()}
        listed = ("list_uri", "member") if inventory.format == "uri_list" else ("uri",)
        columns = {key: objects[name] for key, name in zip(self._keys, listed, strict=True)}
        self._wanted = pa.table(
            {
                "place": pa.array(places),
                "shard_index": pa.array(np.repeat(np.arange(first, first + len(shards)), counts)),
                "run_id": pa.array(
                    [ids[place] for place in derivation.holders[derivation.exact][places].tolist()], pa.string()
                ),
                **columns,
            }
        )
        kept = [f"score >= {float(np.float32(derivation.score_threshold))!r}::DOUBLE::FLOAT"]
        if derivation.class_ids is not None:
            kept.append(f"class_id IN ({', '.join(map(str, derivation.class_ids)) or 'NULL'})")
        self._kept = " AND ".join(kept)

    def connect(self) -> "duckdb.DuckDBPyConnection":
        """Open a connection with the views ``base_images`` and ``base_detections`` and the table ``wanted``."""
        con = connect(tuple(self._tables.values()))
        con.execute(f"SET memory_limit = '{_MEMORY}'")
        con.execute("SET preserve_insertion_order = false")
        for name, table in self._tables.items():
            table.create_view(con, f"base_{name}")
        con.register("listed", self._wanted)
        con.execute("CREATE TABLE wanted AS FROM listed")
        return con

    def _joined(self) -> str:
        return f"base_images i JOIN wanted w USING (run_id, {', '.join(self._keys)})"

    def images(self, schema: pa.Schema) -> str:
        """Return SQL for the rows of ``images``, with ``shard_index`` behind the columns of the schema."""
        made = {
            "detection_count": "if(i.status = 'ok', coalesce(k.boxes, 0), 0)::INTEGER",
            "max_score": "if(i.status = 'ok', k.highest, NULL)",
        } | ({"position": "w.place"} if self._sliced else {})
        columns = (f"{made.get(name, f'i.{quote_name(name)}')} AS {quote_name(name)}" for name in schema.names)
        return (
            f"SELECT {', '.join(columns)}, w.shard_index AS {quote_name(_SHARD)} FROM {self._joined()} LEFT JOIN "
            "(SELECT run_id, image_id, count(*) AS boxes, max(score) AS highest FROM base_detections "
            f"WHERE {self._kept} GROUP BY ALL) k ON k.run_id = i.run_id AND k.image_id = i.image_id "
            "ORDER BY w.place, i.position"
        )

    def detections(self, schema: pa.Schema) -> str:
        """Return SQL for the rows of ``detections``."""
        columns = ", ".join(f"d.{quote_name(name)}" for name in schema.names)
        return (
            f"WITH ok AS (SELECT run_id, image_id, w.place, i.position FROM {self._joined()} WHERE i.status = 'ok') "
            f"SELECT {columns} FROM base_detections d JOIN ok USING (run_id, image_id) WHERE {self._kept} "
            "ORDER BY ok.place, ok.position, d.detection_index"
        )


class _Rows:
    """Takes so many rows at a time from a stream of tables."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._rest = next(tables)

    def take(self, count: int) -> pa.Table:
        """Return the next rows.

        Raises:
            ConservationError: There are fewer.
        """
        parts = []
        while count > self._rest.num_rows:
            parts.append(self._rest)
            count -= self._rest.num_rows
            following = next(self._tables, None)
            if following is None:
                raise ConservationError("the tables of earlier runs hold fewer detections than their images say")
            self._rest = following
        parts.append(self._rest.slice(0, count))
        self._rest = self._rest.slice(count)
        return pa.concat_tables(parts)


def _batches(con: "duckdb.DuckDBPyConnection", sql: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield a table without rows, and then the rows of a query."""
    yield schema.empty_table()
    with con.sql(sql).to_arrow_reader(_BATCH_ROWS) as reader:
        for batch in reader:
            yield _cast(pa.Table.from_batches([batch]), schema)


def _pieces(con: "duckdb.DuckDBPyConnection", sql: str, schema: pa.Schema) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of a query in pieces of one shard each, with its ``shard_index``."""
    with con.sql(sql).to_arrow_reader(_BATCH_ROWS) as reader:
        for batch in reader:
            shard = batch.column(_SHARD).to_numpy()
            rows = _cast(pa.Table.from_batches([batch]).select(schema.names), schema)
            starts = np.flatnonzero(np.diff(shard, prepend=-1)).tolist()
            for start, end in itertools.pairwise([*starts, len(shard)]):
                yield int(shard[start]), rows.slice(start, end - start)


def _cast(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give rows the types of a schema; DuckDB has lists in the place of vectors of one length."""
    columns = []
    for column, wanted in zip(rows.combine_chunks().columns, schema, strict=True):
        if pa.types.is_fixed_size_list(wanted.type):
            columns.append(_vectors(column.combine_chunks(), wanted.type))
        else:
            columns.append(column.cast(wanted.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _vectors(lists: pa.Array, type_: pa.DataType) -> pa.Array:
    room = np.zeros((len(lists), type_.list_size), np.float32)
    valid = lists.is_valid().to_numpy(zero_copy_only=False)
    flat = lists.drop_null().flatten().to_numpy(zero_copy_only=False)
    room[valid] = flat.reshape(-1, type_.list_size)
    values = pa.array(room.ravel().astype(type_.value_type.to_pandas_dtype()))
    mask = None if valid.all() else pa.array(~valid)
    return pa.FixedSizeListArray.from_arrays(values, type=type_, mask=mask)


def _with_last(pieces: Iterator[pa.Table], nothing: pa.Table) -> Iterator[tuple[pa.Table, bool]]:
    """Yield each piece, and whether it is the last; ``nothing`` if there is none."""
    waiting = next(pieces, nothing)
    for piece in pieces:
        yield waiting, False
        waiting = piece
    yield waiting, True


def _replaced(rows: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    for name, values in columns.items():
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.schema.field(place), values)
    return rows


_SHARD: Final = "batchdet.shard_index"
