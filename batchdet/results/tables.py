"""The committed part files of some runs as one table: its schema, an Arrow dataset, a DuckDB view.

Only files that a manifest lists are opened, never a glob, so that nothing uncommitted is ever seen.
Partition columns come from the path and are strings, ``run_date`` too.
"""

import itertools
import os
import secrets
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from batchdet import storage
from batchdet.errors import OutputError
from batchdet.records.hive import value_of
from batchdet.records.schema import DETECTIONS, FEATURES, IMAGES
from batchdet.table.manifest import Manifest, PartFile

if TYPE_CHECKING:
    import duckdb
    import pyarrow.dataset as ds

TableName = Literal["images", "detections"]
TABLE_NAMES: Final[tuple[TableName, ...]] = ("images", "detections")
_SCHEMAS: Final = {"images": IMAGES, "detections": DETECTIONS}
_READERS: Final = 8
_READ_AHEAD_BYTES: Final = 1024 * 1024


def parts_of(manifest: Manifest, table: TableName) -> tuple[PartFile, ...]:
    """Return the part files of a table."""
    return manifest.images if table == "images" else manifest.detections


def partition_values(path: str) -> dict[str, str | None]:
    """Read the Hive partition values from a part file's path, outermost first."""
    pairs = (part.split("=", 1) for part in path.split("/")[:-1] if "=" in part)
    return {name: value_of(value) for name, value in pairs}


class ColumnsDiffer(OutputError):
    """Columns of one name have types in different runs that have no common type."""


class RunTables:
    """One table over several runs.

    Args:
        out: The output's URI, normalised.
        manifests: The runs, oldest first.
        table: ``images`` or ``detections``.
        only_schema: Leave out the columns that were carried over from the source, and features.

    Raises:
        ColumnsDiffer: The runs' columns do not fit together.
        OutputError: A part file cannot be read.
    """

    def __init__(self, out: str, manifests: Sequence[Manifest], table: TableName, only_schema: bool = False) -> None:
        self.out, self.table, self.manifests = out, table, tuple(manifests)
        self._only_schema = only_schema
        with ThreadPoolExecutor(_READERS) as pool:
            self._in_files: list[pa.Schema] = list(pool.map(self._file_schema, self.manifests))
        self.partition_columns = tuple(dict.fromkeys(itertools.chain(*(m.partition_by for m in self.manifests))))
        self.schema = self._unified()

    def _file_schema(self, manifest: Manifest) -> pa.Schema:
        """Read the columns that stand in a run's files; all files of one run have the same."""
        for part in parts_of(manifest, self.table):
            uri = storage.join(self.out, part.path)
            try:
                with storage.open_read(uri) as file:
                    return pq.read_schema(file)
            except storage.NotFound as error:
                raise OutputError(
                    f"{uri}: the manifest of run {manifest.run_id} lists this file, and it is not there"
                ) from error
            except (pa.ArrowInvalid, storage.StorageError) as error:
                raise OutputError(f"{uri}: cannot be read ({error}); see batchdet verify {self.out}") from error
        return pa.schema([f for f in _SCHEMAS[self.table] if f.name not in manifest.partition_by])

    def _unified(self) -> pa.Schema:
        plain = [
            pa.schema([f for f in schema.remove_metadata() if self._is_shown(f.name)]) for schema in self._in_files
        ]
        vectors = {schema.field(FEATURES).type for schema in plain if FEATURES in schema.names}
        if len(vectors) > 1:  # of several models: none of their lengths is that of all
            plain = [_with_free_vectors(schema) for schema in plain]
        try:
            fields = pa.unify_schemas(_as_text_where_unequal(plain), promote_options="permissive")
        except pa.ArrowTypeError as error:
            raise ColumnsDiffer(
                f"{self.out}: the runs' columns have different types ({error}); choose one with --run",
                code="output.columns_differ",
            ) from error
        return pa.schema([*fields, *(pa.field(name, pa.string()) for name in self.partition_columns)])

    def _is_shown(self, name: str) -> bool:
        return name not in self.partition_columns and not (self._only_schema and name not in _SCHEMAS[self.table].names)

    def dataset(self) -> "ds.Dataset":
        """Return an Arrow dataset; filters on partition columns skip whole files."""
        import pyarrow.dataset as ds
        import pyarrow.fs as pafs

        fs, root = _columnar_filesystem(self.out)
        local = storage.scheme(self.out) == "file"
        arrow_fs = pafs.LocalFileSystem() if local else pafs.PyFileSystem(pafs.FSSpecHandler(fs))
        parquet = ds.ParquetFileFormat()
        fragments = []
        for manifest in self.manifests:
            for part in parts_of(manifest, self.table):
                known = None
                for name, value in partition_values(part.path).items():
                    one = ds.field(name).is_null() if value is None else ds.field(name) == value
                    known = one if known is None else known & one
                path = storage.join(root, part.path)
                fragments.append(parquet.make_fragment(path, arrow_fs, known, file_size=part.size_bytes))
        return ds.FileSystemDataset(fragments, self.schema, parquet, arrow_fs)

    def create_view(self, con: "duckdb.DuckDBPyConnection", name: str) -> None:
        """Make a DuckDB view of the table.

        DuckDB reads the part files itself, which is several times faster than through Arrow, except where it would
        take a path for a glob or the output's own path for partitions.
        """
        if self.uris() and self._plain_paths():
            groups = itertools.groupby(self._per_run(), key=lambda run: run[:2])
            selects = [self._select(key[0], [uri for *_, uris in runs for uri in uris]) for key, runs in groups]
            con.execute(f"CREATE VIEW {name} AS {' UNION ALL '.join(selects)}")
        else:
            con.register(name, self.dataset())

    def uris(self) -> list[str]:
        """List the URIs of all part files."""
        return [storage.join(self.out, p.path) for m in self.manifests for p in parts_of(m, self.table)]

    def _plain_paths(self) -> bool:
        return not storage.is_glob(self.out) and "=" not in self.out

    def _per_run(self) -> list[tuple[tuple[str, ...], tuple[str, ...], list[str]]]:
        """Return, for each run that has files, its column expressions, their types in the files, and the files.

        DuckDB reads all files of one call with the types of the first, and would round what does not fit.
        """
        runs = []
        for manifest, in_files in zip(self.manifests, self._in_files, strict=True):
            uris = [storage.join(self.out, part.path) for part in parts_of(manifest, self.table)]
            if uris:
                columns = tuple(self._expression(f, in_files, manifest.partition_by) for f in self.schema)
                runs.append((columns, tuple(str(field.type) for field in in_files), uris))
        return runs

    def _expression(self, field: pa.Field, in_files: pa.Schema, partition_by: Sequence[str]) -> str:
        name = quote_name(field.name)
        if field.name in partition_by:
            return name
        if field.name not in in_files.names:
            return f"NULL AS {name}"
        if field.name in self.partition_columns:
            return f"CAST({name} AS VARCHAR) AS {name}"
        return name  # UNION ALL widens numbers by itself

    @staticmethod
    def _select(columns: Sequence[str], uris: Sequence[str]) -> str:
        files = ", ".join(quote_text(uri) for uri in uris)
        options = "hive_partitioning = true, hive_types_autocast = false"
        return f"SELECT {', '.join(columns)} FROM read_parquet([{files}], {options})"


def _as_text_where_unequal(schemas: Sequence[pa.Schema]) -> list[pa.Schema]:
    """Make text of a column that is text in one run and numbers, dates or truth values in another.

    A list whose ids are all whole numbers has them as int64, and as text from the night on which one of them is 007.
    """
    found: dict[str, set[pa.DataType]] = {}
    for field in itertools.chain(*schemas):
        found.setdefault(field.name, set()).add(field.type)
    text = {
        name
        for name, types in found.items()
        if len(types) > 1
        and any(map(_is_text, types))
        and not any(pa.types.is_nested(t) or (_is_bytes(t) and not _is_text(t)) for t in types)
    }
    return [pa.schema([f.with_type(pa.string()) if f.name in text else f for f in schema]) for schema in schemas]


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _is_bytes(type_: pa.DataType) -> bool:
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(kind(type_) for kind in kinds)


def _with_free_vectors(schema: pa.Schema) -> pa.Schema:
    if FEATURES not in schema.names:
        return schema
    free = schema.field(FEATURES).with_type(pa.list_(pa.float32()))
    return schema.set(schema.get_field_index(FEATURES), free)


def _columnar_filesystem(uri: str) -> tuple[Any, str]:
    """Open the file system of a URI for reading single columns.

    s3fs reads 50 MiB ahead by default; with 1 MiB, queries on S3 take a third of the time.
    """
    fs, path = storage.filesystem(uri)
    if storage.scheme(uri) in {"s3", "s3a"}:
        fs = type(fs)(**{**fs.storage_options, "default_block_size": _READ_AHEAD_BYTES})
    return fs, path


def quote_name(name: str) -> str:
    """Quote an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """Quote an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def connect(tables: Sequence[RunTables]) -> "duckdb.DuckDBPyConnection":
    """Open a DuckDB in memory that can read the tables' file system and fetches no extension."""
    import duckdb

    options: dict[str, Any] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "temp_directory": os.path.join(tempfile.gettempdir(), f"batchdet-duckdb-{secrets.token_hex(8)}"),
    }
    con = duckdb.connect(":memory:", config=options)
    for out in {table.out for table in tables}:
        if storage.scheme(out) != "file":
            con.register_filesystem(_columnar_filesystem(out)[0])
    return con
