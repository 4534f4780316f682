"""Ray Data as its guides on images and on batch inference show it: read_images, a class in map_batches, write_parquet.

Two actors with one thread each: of the settings that leave the readers a share of two cores, the fastest.
"""

from pathlib import Path
from typing import Any

import onnxruntime as ort
import ray
from steps import BATCH_ROWS, arguments, letterbox, tick, to_input, to_rows


class Detector:
    """The model, loaded once per actor."""

    def __init__(self, model: str) -> None:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        self.session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Label a batch; a row in is as many rows out as there are boxes."""
        canvases = [letterbox(image) for image in batch["image"]]
        (outputs,) = self.session.run(None, {"images": to_input(canvases)})
        each = zip(batch["path"], outputs, canvases, strict=True)
        rows = [row for path, output, canvas in each for row in to_rows(Path(path).name, output, canvas)]
        tick(len(canvases))
        names = ("image", "class_id", "score", "x_min", "y_min", "x_max", "y_max")
        return {name: [row[name] for row in rows] for name in names}


def main() -> None:
    """Label the folder."""
    options = arguments()
    ray.init(address="local", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    images = ray.data.read_images(str(options.images), mode="RGB", include_paths=True)
    pool = ray.data.ActorPoolStrategy(size=options.threads)
    labelled = images.map_batches(
        Detector,
        fn_constructor_args=[str(options.model)],
        batch_size=BATCH_ROWS,
        compute=pool,
        num_cpus=0.5,
    )
    labelled.write_parquet(str(options.output))


if __name__ == "__main__":
    main()
