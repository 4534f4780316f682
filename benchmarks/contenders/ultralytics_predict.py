"""Ultralytics as its guide on prediction shows it: a folder, stream=True, results read one by one; one Parquet file.

The batch is the default of one, so that canvases are rectangular and fit the photograph: on a CPU that is faster than
square ones in batches. The model is a checkpoint, an ONNX file, or the folder of an OpenVINO export.
"""

import sys
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
from steps import SCHEMA, SCORE_THRESHOLD, SIZE_PX, arguments, tick
from ultralytics import YOLO


def main() -> None:
    """Label the folder."""
    # For more than 1,000 images it imports torchvision, whose NMS an end-to-end head never calls; there is no build of
    # it for torch's CPU wheels.
    sys.modules.setdefault("torchvision", ModuleType("torchvision"))
    options = arguments()
    model = YOLO(options.model, task="detect")
    rows: list[dict[str, object]] = []
    for result in model.predict(options.images, stream=True, imgsz=SIZE_PX, conf=SCORE_THRESHOLD, verbose=False):
        image = Path(result.path).name
        for *xyxy, score, class_id in result.boxes.data.tolist():
            box = dict(zip(("x_min", "y_min", "x_max", "y_max"), xyxy, strict=True))
            rows.append({"image": image, "class_id": int(class_id), "score": score} | box)
        tick(1)
    options.output.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), options.output / "detections.parquet")


if __name__ == "__main__":
    main()
