"""Daft as its guides on images and on models in classes show it: glob, download, decode, a class, Parquet.

One instance a core, one thread each, in Daft's own threads: the runtime lets go of the interpreter while it computes.
"""

from pathlib import Path
from typing import Any

import daft
import onnxruntime as ort
from daft import DataType, col
from daft.functions import decode_image, download
from steps import BATCH_ROWS, arguments, letterbox, tick, to_input, to_rows

BOX = DataType.struct(
    {"image": DataType.string(), "class_id": DataType.int32()}
    | {name: DataType.float32() for name in ("score", "x_min", "y_min", "x_max", "y_max")}
)


class Detector:
    """The model, loaded once per instance."""

    def __init__(self, model: str) -> None:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        self.session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])

    @daft.method.batch(return_dtype=DataType.list(BOX), batch_size=BATCH_ROWS)
    def detect(self, paths: daft.Series, images: daft.Series) -> list[list[dict[str, Any]]]:
        """Return each image's boxes."""
        canvases = [letterbox(image) for image in images.to_pylist()]
        (outputs,) = self.session.run(None, {"images": to_input(canvases)})
        tick(len(canvases))
        each = zip(paths.to_pylist(), outputs, canvases, strict=True)
        return [to_rows(Path(path).name, output, canvas) for path, output, canvas in each]


def main() -> None:
    """Label the folder."""
    options = arguments()
    detector = daft.cls(Detector, max_concurrency=options.threads, use_process=False)(str(options.model))
    frame = daft.from_glob_path(f"{options.images}/*.jpg")
    frame = frame.with_column("pixels", decode_image(download(col("path")), mode="RGB"))
    frame = frame.select(detector.detect(col("path"), col("pixels")).alias("box")).explode("box")
    frame = frame.where(col("box").not_null())
    names = ("image", "class_id", "score", "x_min", "y_min", "x_max", "y_max")
    frame.select(*(col("box")[name].alias(name) for name in names)).write_parquet(str(options.output))


if __name__ == "__main__":
    main()
