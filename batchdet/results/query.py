"""SQL over committed tables, walled in: it reads the output's own tables and nothing else, and writes nothing."""

import itertools
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from batchdet.errors import SpecError
from batchdet.results.open import Results, open_results, readable, reason
from batchdet.results.tables import quote_text
from batchdet.spec import JobSpec
from batchdet.text import counted, csv_cell, escape

if TYPE_CHECKING:
    import duckdb
    from rich.console import Console
    from rich.table import Table

VIEWS: Final = ("images", "detections", "all_images", "all_detections", "runs")
_EXPLAIN: Final = re.compile(r"\s*explain\s+(analyze\s+)?", re.IGNORECASE)
_BATCH_ROWS: Final = 8192
_MIN_COLUMN: Final = 16
"""A column of a printed result may be folded to this width; where that is not enough, records are printed."""


def query(
    uri: str,
    sql: str,
    run: str | None = None,
    settings: str | JobSpec | None = None,
    max_rows: int | None = None,
) -> pa.Table:
    """Run one SELECT over the views of an output.

    The views are ``images`` and ``detections`` (each image once, of one setting), ``all_images`` and
    ``all_detections`` (every row of every run), and ``runs``.

    The statement can open no file but the output's own part files, change no setting and write nothing.

    Args:
        uri: The output's folder.
        sql: One statement: SELECT, WITH, FROM, VALUES, DESCRIBE, SUMMARIZE, SHOW or EXPLAIN.
        run: Only this run; null takes every committed run.
        settings: Whose settings ``images`` and ``detections`` show; as in :func:`batchdet.open_results`.
        max_rows: Stop reading after this many rows; null takes all.

    Returns:
        The rows; a column whose name was there before is renamed, ``label`` to ``label_1``.

    Raises:
        OutputError: There is no such output or run, or its files cannot be read.
        SpecError: The statement is wrong, or is one that is refused.
    """
    return query_results(open_results(uri, run, settings), sql, max_rows)


def query_results(results: Results, sql: str, max_rows: int | None = None) -> pa.Table:
    """Run one SELECT over the views of opened results; see :func:`query`.

    Raises:
        OutputError, SpecError: As of :func:`query`.
    """
    import duckdb

    _check_statement(sql)
    con = _walled_in(results)
    try:
        with readable(results.uri):
            relation = con.sql(sql)
            table = relation.to_arrow_table() if max_rows is None else _first_rows(relation, max_rows)
            return table.rename_columns(_distinct(table.schema.names))
    except duckdb.Error as error:
        raise SpecError(f"query: {reason(error)}") from error


def _check_statement(sql: str) -> None:
    """Refuse everything but one SELECT, explained or not; EXPLAIN ANALYZE would run what it explains."""
    import duckdb

    try:
        statements = duckdb.extract_statements(_EXPLAIN.sub("", sql, count=1) if _EXPLAIN.match(sql) else sql)
    except duckdb.Error as error:
        raise SpecError(f"query: {reason(error)}") from error
    if len(statements) != 1:
        raise SpecError(f"query: {len(statements)} statements found; give one SELECT over {', '.join(VIEWS)}")
    kind = statements[0].type.name
    if kind != "SELECT":
        raise SpecError(f"query: {kind} is refused; give one SELECT over {', '.join(VIEWS)}")


def _walled_in(results: Results) -> "duckdb.DuckDBPyConnection":
    """Return the results' connection after shutting it off from everything but their part files."""
    con = results.connection
    files = ", ".join(quote_text(uri) for table in results.all_tables.values() for uri in table.uris())
    for setting in (
        f"allowed_paths = [{files}]",
        "enable_external_access = false",
        "python_enable_replacements = false",
        "lock_configuration = true",
    ):
        con.execute(f"SET {setting}")
    return con


def _distinct(names: Sequence[str]) -> list[str]:
    """Number repeated names as DuckDB does for tables, for a row with two equal keys loses a value."""
    taken, found = set(names), []
    for n, name in enumerate(names):
        new = name
        if name in names[:n]:
            new = next(one for k in itertools.count(1) if (one := f"{name}_{k}") not in taken)
        taken.add(new)
        found.append(new)
    return found


def _first_rows(relation: Any, max_rows: int) -> pa.Table:
    batches, missing = [], max_rows
    with relation.to_arrow_reader(_BATCH_ROWS) as reader:
        while missing > 0:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                break
            batches.append(batch.slice(0, missing))
            missing -= len(batches[-1])
        return pa.Table.from_batches(batches, reader.schema)


def to_json(table: pa.Table) -> str:
    """Return the rows as a JSON list of objects; dates and decimals are text, NaN is null."""
    return json.dumps([{k: _plain(v) for k, v in row.items()} for row in rows_of(table)], indent=1, default=str)


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows as Python values.

    Raises:
        SpecError: Python has no such value: a date behind the year 9999, an interval of a million years.
    """
    try:
        return table.to_pylist()  # type: ignore[no-any-return]
    except (OverflowError, ValueError) as error:
        raise SpecError(f"query: a value cannot be shown ({error}); cast its column to VARCHAR") from error


def to_csv(table: pa.Table) -> str:
    """Return the rows as CSV with a header; a text that a spreadsheet would run as a formula gets a leading quote."""
    import csv
    import io

    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow([csv_cell(name) for name in table.schema.names])
    for row in rows_of(table):
        writer.writerow([csv_cell(value) for value in row.values()])
    return sink.getvalue()


def render_table(table: pa.Table, max_rows: int, console: "Console") -> None:
    """Print the first rows of a result.

    Args:
        table: The result; control characters in it are shown as escapes.
        max_rows: Print at most this many rows, and say so when there are more.
        console: Where to.
    """
    from rich.text import Text

    names = [escape(name) for name in table.schema.names]
    rows = [[_cell(value) for value in row.values()] for row in rows_of(table.slice(0, max_rows))]
    widths = [max(map(len, (name, *column))) for name, column in zip(names, _columns(rows, names), strict=True)]
    if sum(min(width, _MIN_COLUMN) + 3 for width in widths) <= console.width:
        console.print(_grid(table.schema, names, rows))
    else:
        _print_records(names, rows, console)
    more = f"first {max_rows} rows; there are more" if table.num_rows > max_rows else counted(len(rows), "row")
    console.print(Text(f"({'1 row' if more == '1 rows' else more})", style="dim"))


def _columns(rows: list[list[str]], names: list[str]) -> list[tuple[str, ...]]:
    return list(zip(*rows, strict=True)) if rows else [() for _ in names]


def _grid(schema: pa.Schema, names: list[str], rows: list[list[str]]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name, field in zip(names, schema, strict=True):
        numeric = pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
        shown.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    return shown


def _print_records(names: list[str], rows: list[list[str]], console: "Console") -> None:
    """Print one line per value, for results with more columns than the terminal can hold."""
    from rich.text import Text

    margin = max(map(len, names))
    for number, row in enumerate(rows, 1):
        console.rule(Text(f"row {number}"), align="left", style="dim")
        for name, value in zip(names, row, strict=True):
            console.print(Text.assemble((name.rjust(margin), "bold"), "  ", value), soft_wrap=True)


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e15 else repr(value)
    text = str(_rounded(value))
    is_plan = text.startswith(("┌", "╭")) and "\n" in text
    return escape(text, keep_newlines=is_plan)


def _rounded(value: Any) -> Any:
    """Round the numbers within a list or struct as those of a column are."""
    if isinstance(value, float):
        return float(_cell(value))
    if isinstance(value, list | tuple):
        return type(value)(_rounded(one) for one in value)
    return {key: _rounded(one) for key, one in value.items()} if isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))) else value
