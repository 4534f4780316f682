"""A loop in one process: decode, letterbox and one session with all threads, eight images at a time; one Parquet file.

What an engineer writes in an afternoon. No record of failures, no resume, no statistics.
"""

import cv2
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
from steps import BATCH_ROWS, SCHEMA, arguments, letterbox, tick, to_input, to_rows


def main() -> None:
    """Label the folder."""
    options = arguments()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    session = ort.InferenceSession(options.model, settings, providers=["CPUExecutionProvider"])
    files = sorted(options.images.glob("*.jpg"))
    options.output.mkdir(parents=True)
    with pq.ParquetWriter(options.output / "detections.parquet", SCHEMA) as writer:
        for start in range(0, len(files), BATCH_ROWS):
            batch = files[start : start + BATCH_ROWS]
            canvases = [letterbox(cv2.imread(str(file), cv2.IMREAD_COLOR_RGB)) for file in batch]
            (outputs,) = session.run(None, {"images": to_input(canvases)})
            each = zip(batch, outputs, canvases, strict=True)
            rows = [row for file, output, canvas in each for row in to_rows(file.name, output, canvas)]
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
            tick(len(batch))


if __name__ == "__main__":
    main()
