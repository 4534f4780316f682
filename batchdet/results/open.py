"""Committed results as tables: whole runs only, and by default the rows of one setting only."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.dataset as ds

from batchdet import storage
from batchdet.errors import OutputError, SpecError
from batchdet.results.settings import find_settings
from batchdet.results.tables import TABLE_NAMES, ColumnsDiffer, RunTables, TableName, connect, quote_name
from batchdet.table.manifest import TABLES, Manifest, committed_runs, list_runs
from batchdet.text import counted

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

    from batchdet.spec import JobSpec

RUNS: Final = pa.schema(
    [
        ("run_id", pa.string()),
        ("name", pa.string()),
        ("created_at", pa.string()),
        ("images_listed", pa.int64()),
        ("images_ok", pa.int64()),
        ("images_failed", pa.int64()),
        ("detections", pa.int64()),
        ("part_files", pa.int64()),
        ("size_bytes", pa.int64()),
        ("fingerprint", pa.string()),
    ]
)
"""One row per committed run: the ``runs`` view of a query."""


def open_results(uri: str, run: str | None = None, settings: "str | JobSpec | None" = None) -> "Results":
    """Open the tables of an output.

    The views hold the rows of one setting: each image from its newest run of that setting, and of a tar or Parquet
    file the rows of its newest run only, so that no image stays that the file lost.

    Args:
        uri: The output's folder.
        run: Only this run; null takes every committed run.
        settings: Whose settings the views show: a run's id, a job or its file. Null takes the current settings, those
            of the newest committed run.

    Raises:
        OutputError: There is no output, no committed run, or no run of this id or these settings.
        SpecError: Both a run and settings are given, or the job's file is not one.
    """
    if run is not None and settings is not None:
        raise SpecError("give a run or settings, not both", code="results.run_and_settings", key="settings")
    out = storage.normalize(uri)
    manifests = committed_runs(out)
    if not manifests:
        begun = list_runs(out)
        if begun:
            raise OutputError(
                f"{out}: run {begun[-1]} is not committed; give the same batchdet run command again to finish it"
            )
        raise OutputError(f"{out}: no results here (no {storage.join('_batchdet', 'runs')}); batchdet run makes them")
    if run is not None:
        return Results(out, manifests).only(run)
    return Results(out, manifests, None if settings is None else find_settings(out, manifests, settings))


class Results:
    """The committed runs of one output, and a view of the rows of one setting.

    Args:
        uri: The output's folder, normalised.
        manifests: The runs, oldest first.
        fingerprint: The settings that the views show; None takes those of the newest run.

    Example:
        >>> results = open_results("s3://bucket/labels")  # doctest: +SKIP
        >>> results.detections().to_pandas()  # doctest: +SKIP
        >>> results.sql("SELECT label, count(*) FROM detections GROUP BY ALL")  # doctest: +SKIP
    """

    def __init__(self, uri: str, manifests: Sequence[Manifest], fingerprint: str | None = None) -> None:
        self.uri = uri
        self.runs = tuple(manifests)
        self.fingerprint = self.runs[-1].fingerprint if fingerprint is None else fingerprint
        self.viewed = tuple(m for m in self.runs if m.fingerprint == self.fingerprint)
        self._hides_rows = False

    @property
    def manifest(self) -> Manifest:
        """The manifest of the newest run whose rows the views hold."""
        return self.viewed[-1]

    def only(self, run: str) -> "Results":
        """Return the results of one of these runs.

        Raises:
            OutputError: There is no run of this id.
        """
        chosen = [m for m in self.runs if m.run_id == run]
        if not chosen:
            known = ", ".join(m.run_id for m in self.runs)
            raise OutputError(
                f"{self.uri}: no committed run {run!r}; there are: {known}", code="output.unknown_run", key=run
            )
        return Results(self.uri, chosen)

    def images(self) -> "TableView":
        """Return the images: one row per listed image."""
        return TableView(self, "images")

    def detections(self) -> "TableView":
        """Return the detections: one row per detected object."""
        return TableView(self, "detections")

    def runs_table(self) -> pa.Table:
        """Return one row per run, oldest first; see :data:`RUNS`."""
        rows = []
        for m in self.runs:
            parts = (*m.images, *m.detections)
            counts = {"detections": sum(p.rows for p in m.detections), "part_files": len(parts)}
            shared = {name: getattr(m, name) for name in RUNS.names if hasattr(m, name)}
            rows.append({**shared, **counts, "size_bytes": sum(p.size_bytes for p in parts)})
        return pa.Table.from_pylist(rows, RUNS)

    def sql(self, query: str) -> Any:
        """Return a DuckDB relation of an SQL query over the views; see :attr:`connection`.

        This is for one's own SQL; :func:`batchdet.results.query.query` runs SQL that others wrote.
        """
        return self.connection.sql(query)

    @cached_property
    def connection(self) -> "duckdb.DuckDBPyConnection":
        """A DuckDB connection with views.

        ``images`` and ``detections`` hold the rows of :attr:`viewed`, each image from its newest run; ``all_images``
        and ``all_detections`` hold every row of every run; ``runs`` has one row per run.
        """
        con = connect(tuple(self.tables.values()))
        for name, table in self.all_tables.items():
            table.create_view(con, f"all_{name}")
        same = len(self.viewed) == len(self.runs)
        for name, table in () if same else self.tables.items():
            table.create_view(con, f"viewed_{name}")
        prefix = "all" if same else "viewed"
        con.register("emptied", self._emptied())
        self._hides_rows = self._tabulate_superseded(con, f"{prefix}_images")
        hidden = " ANTI JOIN superseded USING (run_id, image_id)" if self._hides_rows else ""
        for name in TABLES:
            con.execute(f"CREATE VIEW {name} AS FROM {prefix}_{name}{hidden}")
        con.register("runs", self.runs_table())
        return con

    @property
    def hides_rows(self) -> bool:
        """Whether several viewed runs hold the same image or file, so that older rows of it are hidden."""
        return len(self.viewed) > 1 and self.connection is not None and self._hides_rows

    @cached_property
    def tables(self) -> dict[TableName, RunTables]:
        """Both tables, with every row of the viewed runs."""
        return {name: RunTables(self.uri, self.viewed, name) for name in TABLE_NAMES}

    @cached_property
    def all_tables(self) -> dict[TableName, RunTables]:
        """Both tables, with every row of every run.

        If columns that were carried over have different types under other settings, only the columns of the schema are
        here.
        """
        if len(self.viewed) == len(self.runs):
            return self.tables
        try:
            return {name: RunTables(self.uri, self.runs, name) for name in TABLE_NAMES}
        except ColumnsDiffer:
            return {name: RunTables(self.uri, self.runs, name, only_schema=True) for name in TABLE_NAMES}

    @cached_property
    def left_out(self) -> int:
        """Images that only runs of other settings hold, so that the views leave them out.

        An image that a viewed run found gone from its tar or Parquet file does not count.
        """
        if not any(m.images_listed for m in self.runs if m.fingerprint != self.fingerprint):
            return 0
        with readable(self.uri):
            rows = self.connection.sql(
                f"""
                WITH placed AS (
                    SELECT run_id, image_id, {_REPLACEABLE} AS replaceable,
                        run_id IN (SELECT unnest($viewed)) AS viewed
                    FROM all_images
                ),
                newest AS (
                    SELECT replaceable, max(run_id) AS run_id
                    FROM (
                        SELECT replaceable, run_id, viewed FROM placed
                        UNION ALL SELECT shard_uri, run_id, true FROM emptied
                    )
                    GROUP BY ALL HAVING NOT bool_or(viewed)
                )
                SELECT count(*) FROM placed SEMI JOIN newest USING (replaceable, run_id)
                """,
                params={"viewed": [m.run_id for m in self.viewed]},
            )
            return int(rows.fetchall()[0][0])

    def left_out_note(self) -> str:
        """Say which images the views leave out, as a sentence without its full stop; "" if there are none."""
        if not self.left_out:
            return ""
        others = [m.run_id for m in self.runs if m.fingerprint != self.fingerprint and m.images_listed]
        were, are = ("was", "is") if self.left_out == 1 else ("were", "are")
        return (
            f"{counted(self.left_out, 'image')} {were} labelled with other settings only and {are} left out; "
            f"--settings RUN shows them (RUN: a run's id, such as {others[-1]})"
        )

    def _emptied(self) -> pa.Table:
        """Return the tar and Parquet files in which viewed runs found no image: their older rows hold no longer."""
        pairs = [(m.run_id, uri) for m in self.viewed for uri in m.empty_shards]
        columns = [pa.array([pair[place] for pair in pairs], pa.string()) for place in (0, 1)]
        return pa.table(columns, names=["run_id", "shard_uri"])

    def _tabulate_superseded(self, con: "duckdb.DuckDBPyConnection", images: str) -> bool:
        """Tabulate the rows of images that a newer run took the place of, and tell whether there are any.

        A tar or Parquet file is labelled whole, so the newest run that holds it takes the place of all its older rows:
        a new version of the file may have lost images, or lost the row that said where it was broken. Its images are
        those whose URI is the file's with a ``#`` behind it, or the file's own where not one could be read. Any other
        image stands for itself.

        Only shards that several runs hold are looked at: with incremental runs that is none.
        """
        if len(self.viewed) < 2:
            return False
        with readable(self.uri):
            con.execute(
                f"""
                CREATE TABLE superseded AS
                WITH held AS (SELECT run_id, shard_uri FROM {images} UNION ALL SELECT run_id, shard_uri FROM emptied),
                shared AS (SELECT shard_uri FROM held GROUP BY ALL HAVING min(run_id) < max(run_id)),
                labelled AS (
                    SELECT run_id, image_id, {_REPLACEABLE} AS replaceable
                    FROM {images} SEMI JOIN shared USING (shard_uri)
                ),
                newest AS (
                    SELECT replaceable, max(run_id) AS newest_run_id
                    FROM (
                        SELECT run_id, replaceable FROM labelled UNION ALL SELECT run_id, shard_uri FROM emptied
                    )
                    GROUP BY ALL
                )
                SELECT run_id, image_id FROM labelled JOIN newest USING (replaceable) WHERE run_id < newest_run_id
                """
            )
            return bool(con.sql("SELECT count(*) FROM superseded").fetchall()[0][0])


_REPLACEABLE: Final = "if(uri = shard_uri OR starts_with(uri, shard_uri || '#'), shard_uri, image_id)"
"""SQL for what a newer run takes the place of: a tar or Parquet file as a whole, else the image."""


class TableView:
    """One table of some results, read when asked for.

    Partition columns are strings, ``run_date`` too.
    """

    def __init__(self, results: Results, name: TableName) -> None:
        self._results = results
        self._name = name

    @property
    def schema(self) -> pa.Schema:
        """Columns and Arrow types."""
        return self._results.tables[self._name].schema

    def to_duckdb(self) -> "duckdb.DuckDBPyRelation":
        """Return a DuckDB relation on a live connection; filters and columns reach down into the files."""
        return self._results.connection.view(self._name)

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read rows into an Arrow table; with several runs, their order is not fixed.

        Args:
            columns: Only these; null takes all.
        """
        names = list(columns) if columns is not None else self.schema.names
        schema = pa.schema([self.schema.field(name) for name in names])
        with readable(self._results.uri):
            relation = self.to_duckdb().select(", ".join(quote_name(name) for name in names))
            return relation.to_arrow_table().cast(schema)

    def to_pandas(self, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """Read rows into a pandas frame."""
        frame: pd.DataFrame = self.to_arrow(columns).to_pandas()
        return frame

    def to_dataset(self) -> ds.Dataset:
        """Return an Arrow dataset; where older rows are hidden it is read into memory first."""
        if self._results.hides_rows:
            return ds.dataset(self.to_arrow())
        return self._results.tables[self._name].dataset()


@contextmanager
def readable(out: str) -> Iterator[None]:
    """Turn what DuckDB says of a file that it cannot read into one sentence.

    Raises:
        OutputError: DuckDB failed.
    """
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        about_files = isinstance(error, duckdb.IOException | duckdb.HTTPException) or ".parquet" in str(error)
        if not about_files or isinstance(error, duckdb.PermissionException):
            raise
        raise OutputError(
            f"{out}: the tables cannot be read: {reason(error)}; batchdet verify {out} names the damaged files"
        ) from error


def reason(error: Exception) -> str:
    """Return what DuckDB found wrong, as one line without its excerpt of the query."""
    text = str(error).split("\n\nLINE ")[0].split("\n\nTraceback")[0]
    return " ".join(text.split()).rstrip(".")
