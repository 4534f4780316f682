"""Statistics of what the views of some results hold, over one run or several."""

from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa

from batchdet.records.schema import DETECTIONS, IMAGES
from batchdet.results.open import Results, readable
from batchdet.results.record import read_record
from batchdet.results.tables import TableName
from batchdet.stats import RunStats

_BATCH_ROWS: Final = 128 * 1024


def totals(results: Results) -> dict[str, Any]:
    """Return statistics of the views as ``stats.json`` holds them; of one run they are its own.

    The statistics of several runs are added up. If some of their rows are hidden behind newer ones, the rows are
    counted again.

    Args:
        results: Opened results; the rows of :attr:`Results.viewed` count.

    Returns:
        See :meth:`RunStats.to_dict`; empty when the only run's record is missing or damaged.
    """
    records = [read_record(results.uri, m.run_id, "stats.json") for m in results.viewed]
    if len(records) == 1:
        return records[0]
    times_s: dict[str, float] = {}
    for record in records:
        for step, seconds in record.get("time_by_step_s", {}).items():
            times_s[step] = times_s.get(step, 0.0) + seconds
    labels: list[str] = next((record["labels"] for record in reversed(records) if record.get("labels")), [])
    stats = None if results.hides_rows else _added(records)
    return (stats or _recounted(results, labels, times_s)).to_dict()


def _added(records: list[dict[str, Any]]) -> RunStats | None:
    """Add up the statistics of runs; None when one of them is not what batchdet writes."""
    try:
        first, *others = (RunStats.from_dict(record) for record in records)
        for other in others:
            first = first.merge(other)
    except (AttributeError, LookupError, TypeError, ValueError):
        return None
    return first


def _recounted(results: Results, labels: list[str], times_s: dict[str, float]) -> RunStats:
    stats = RunStats.empty(labels)
    stats.add_times(times_s)
    with readable(results.uri):
        for batch in _batches(results, "images", IMAGES, ""):
            stats.add(batch, DETECTIONS.empty_table())
        for batch in _whole_images(_batches(results, "detections", DETECTIONS, "ORDER BY run_id, image_id")):
            stats.add(IMAGES.empty_table(), batch)
    return stats


def _batches(results: Results, table: TableName, schema: pa.Schema, order: str) -> Iterator[pa.Table]:
    rows = results.sql(f"SELECT {', '.join(schema.names)} FROM {table} {order}")
    with rows.to_arrow_reader(_BATCH_ROWS) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch]).cast(schema)


def _whole_images(batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Cut batches anew, so that the detections of one image are in one of them: statistics count images by class."""
    rest = DETECTIONS.empty_table()
    for batch in batches:
        rows = pa.concat_tables([rest, batch]).combine_chunks()
        last = rows["image_id"][-1]
        ids = rows["image_id"]
        end = rows.num_rows
        while end and ids[end - 1] == last:
            end -= 1
        yield rows.slice(0, end)
        rest = rows.slice(end)
    yield rest
