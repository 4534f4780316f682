"""A process that reads an output again and again: ``python -m tests.fault.reader OUT LOG STOP``.

Each look is a line of JSON in LOG: the runs that were seen, and counts by both ways of reading. It ends when the file
STOP is there.
"""

import json
import sys
from pathlib import Path

from batchdet import open_results
from batchdet.results.query import query

_COUNTS = """
    SELECT count(*) AS images, sum(detection_count)::BIGINT AS claimed, (SELECT count(*) FROM detections) AS detections,
        count(*) FILTER (run_id NOT IN (SELECT run_id FROM runs)) AS strangers, count(DISTINCT image_id) AS ids,
        (SELECT sum(images_listed)::BIGINT FROM runs) AS listed, (SELECT list(run_id ORDER BY run_id) FROM runs) AS runs
    FROM images
"""


def look(out: str) -> dict[str, object]:
    results = open_results(out)
    images = results.images().to_arrow(["run_id", "image_id", "detection_count"])
    (asked,) = query(out, _COUNTS).to_pylist()
    opened = {
        "runs": [m.run_id for m in results.runs],
        "images": images.num_rows,
        "ids": len(images["image_id"].unique()),
        "claimed": sum(images["detection_count"].to_pylist()),
        "detections": results.detections().to_arrow(["image_id"]).num_rows,
        "listed": results.sql("SELECT count(*) FROM all_images").fetchall()[0][0],
    }
    return {"opened": opened, "asked": asked}


def main() -> None:
    out, log, stop = sys.argv[1:]
    with Path(log).open("a", buffering=1) as file:
        while not Path(stop).exists():
            file.write(json.dumps(look(out)) + "\n")


if __name__ == "__main__":
    main()
