"""The real ``run_job`` with a labeller that needs neither Ray nor a model: plans, staging and commits in milliseconds.

What is "found" in an image depends on its bytes alone. In a process of its own, with failpoints:
``python -m tests.without_ray JOB.yaml [KEY=VALUE ...]``, or the whole command line: ``python -m tests.without_ray cli
run JOB.yaml``.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from batchdet.failpoint import failpoint
from batchdet.model.labels import class_numbers
from batchdet.records.schema import DETECTIONS, IMAGES, image_id
from batchdet.records.segment import LabelledSegment, Segment
from batchdet.roofline import Pool
from batchdet.source.reader import read_segments
from batchdet.source.shards import ShardPlan
from batchdet.spec import JobSpec, ModelSpec
from batchdet.table.staging import staged_folder, write_staged

LABELS = ["car", "dog", "person"]
BAD = b"bad"
"""An image that holds this never succeeds."""
EMPTY = b"empty"
"""In an image that holds this nothing is found."""
broken: set[bytes] = set()
"""Images that hold one of these fail for now."""
labelled: list[str] = []
"""URIs of the images that were labelled in this process, in order."""


def job(source: Path | str, out: Path | str, **parts: Any) -> JobSpec:
    """Make a job spec; keyword parts such as ``policy={...}`` are merged in."""
    plain: dict[str, Any] = {
        "name": "fast",
        "source": {"uri": str(source), **parts.get("source_", {})},
        "model": {"uri": "builtin:sample", **parts.get("model_", {})},
        "output": {"uri": str(out), **parts.get("output_", {})},
        "compute": {"segment_rows": 3, **parts.get("compute", {})},
        "policy": {"max_failed_fraction": 0.5, **parts.get("policy", {})},
    }
    return JobSpec.model_validate_json(json.dumps(plain))


def _label(segment: Segment, run_id: str, model: ModelSpec) -> LabelledSegment:
    images, detections = [], []
    for row, data in zip(segment.members.to_pylist(), segment.data, strict=True):
        content = bytes(data) if data is not None else b""
        failpoint("decode", content)
        labelled.append(row["uri"])
        if row["error_code"] is None and (BAD in content or any(mark in content for mark in broken)):
            row |= {"error_code": "corrupt" if BAD in content else "crashed", "error_message": "it is bad"}
        ok = row["error_code"] is None
        digest = hashlib.sha256(content).digest()
        count = 0 if not ok or EMPTY in content else 1 + digest[0] % 3
        boxes = [(0.9 - n / 10, digest[n + 1] % 3, float(digest[n + 4])) for n in range(count)]
        boxes = [box for box in boxes if _is_kept(box[0], box[1], model)][: model.max_detections]
        found = len(boxes)
        key = {"run_id": run_id, "image_id": image_id(row["shard_uri"], row["member"])}
        images.append(
            key
            | row
            | {
                "status": "ok" if ok else "failed",
                "width_px": 640 if ok else None,
                "height_px": 480 if ok else None,
                "detection_count": found,
                "max_score": boxes[0][0] if found else None,
            }
        )
        detections += [
            key
            | {
                "detection_index": n,
                "class_id": class_id,
                "label": LABELS[class_id],
                "score": score,
                **dict.fromkeys(("x_min", "y_min"), corner),
                **dict.fromkeys(("x_max", "y_max"), 300.0),
            }
            for n, (score, class_id, corner) in enumerate(boxes)
        ]
    carried = list(segment.members.schema)[7:]
    return LabelledSegment(
        segment.shard_index,
        segment.shard_id,
        segment.segment_index,
        segment.last,
        pa.Table.from_pylist(images, schema=pa.schema([*IMAGES, *carried])),
        pa.Table.from_pylist(detections, schema=DETECTIONS),
        {"decode": 0.001},
        segment.passed_over,
    )


def _is_kept(score: float, class_id: int, model: ModelSpec) -> bool:
    wanted = model.classes is None or class_id in class_numbers(model.classes, LABELS)
    return wanted and bool(np.float32(score) >= np.float32(model.score_threshold))


def _label_segments(
    spec: JobSpec,
    out: str,
    run_id: str,
    plan: ShardPlan,
    left: Sequence[int],
    carried: pa.Schema,
    done: Mapping[str, frozenset[int]],
    *others: Any,
) -> Iterator[Any]:
    for shard in plan.subset(left):
        already = done.get(shard.shard_id, frozenset())
        compute = spec.compute
        for segment in read_segments(shard, spec.source, carried, compute.segment_rows, compute.segment_bytes, already):
            write_staged(staged_folder(out, run_id), _label(segment, run_id, spec.model))
            yield SimpleNamespace(images=len(segment.data), failed=0, size_bytes=segment.size_bytes, times_s={})


@contextlib.contextmanager
def _no_ray(*arguments: Any) -> Iterator[None]:
    yield None


def _probed(trial: Any) -> SimpleNamespace:
    model = SimpleNamespace(
        card={"sha256": trial.sha256, "labels": LABELS},
        labels=LABELS,
        placement=None,
        rehearsed=None,
        runtime="onnxruntime",
        precision="fp32",
        computed={
            "runtime": "onnxruntime",
            "precision": "fp32",
            "graphs": "",
            "fit": "tight",
            "silu": "exact",
            "decode": "full",
        },
        choices={},
        canary={},
        alone=None,
        why_not_alone="there is no model",
    )
    return SimpleNamespace(device="cpu", reason="", model=model)


class _Probe:
    """Finds at once what the model is not asked for."""

    def __init__(self, compute: Any) -> None:
        self._trial: Any = None

    def begin(self, trial: Any) -> None:
        self._trial = trial

    def __enter__(self) -> "_Probe":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def result(self, capacity: None) -> SimpleNamespace:
        return _probed(self._trial)


_WORKERS = SimpleNamespace(choices={}, device="cpu", actors=1, pool=Pool("cpu", 1, 0, 1))
_FAKES: dict[str, Any] = {
    "session": {"ray_session": _no_ray},
    "probe": {"Probe": _Probe},
    "trial": {"Trial": lambda spec, sha256, *others: SimpleNamespace(sha256=sha256, timeout_s=lambda device: 60)},
    "samples": {"Samples": SimpleNamespace(of=lambda *arguments: None)},
    "resources": {"plan_workers": lambda *arguments: _WORKERS},
    "attempts": {"AtWork": lambda run_id: SimpleNamespace(text=str, moved=bool)},
    "ray_data": {"label_segments": _label_segments, "get_ready": lambda own: None},
}


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Make ``run_job`` label in this process while the block runs."""
    before = {name: sys.modules.get(name) for name in ("batchdet.pipeline", *_modules())}
    sys.modules.setdefault("batchdet.pipeline", ModuleType("batchdet.pipeline"))
    sys.modules.update(_modules())
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def _modules() -> dict[str, ModuleType]:
    found = {}
    for name, contents in _FAKES.items():
        module = ModuleType(f"batchdet.pipeline.{name}")
        module.__dict__.update(contents)
        found[module.__name__] = module
    return found


def main() -> None:
    """Run the job that the arguments name, or a command line."""
    from batchdet.cli.application import fail, main_of_process
    from batchdet.errors import BatchdetError
    from batchdet.job import Watcher, run_job
    from batchdet.specfile import load_job

    class Printing(Watcher):
        def say(self, text: str) -> None:
            print(text, file=sys.stderr)

    if sys.argv[1] == "cli":
        del sys.argv[1]
        with without_ray():
            main_of_process()
    try:
        with without_ray():
            done = run_job(load_job(sys.argv[1], sys.argv[2:]), watcher=Printing())
    except BatchdetError as error:
        fail(error)
    print(done.run_id, done.status, done.images_ok, done.images_failed)


if __name__ == "__main__":
    main()
