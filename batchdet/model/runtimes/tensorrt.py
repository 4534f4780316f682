"""TensorRT as ONNX Runtime's provider: its settings, and where the engines that it builds are kept."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from batchdet.errors import ClusterError
from batchdet.machine import run_limited
from batchdet.model.runtimes.canvas_graph import canvases_of, on_the_way
from batchdet.packages import missing_extra

PROVIDER: Final = "TensorrtExecutionProvider"
_DEFAULT_STRIDE: Final = 32
_QUERY: Final = ("nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader")


def version() -> str:
    """Return TensorRT's version; importing it also loads its libraries, which ONNX Runtime needs.

    Raises:
        MissingExtra: The package is not installed.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise missing_extra("model.runtime: tensorrt needs", "tensorrt", "tensorrt-cu13") from error
    return str(tensorrt.__version__)


def gpu() -> str:
    """Return name and compute capability of the GPU that this process was given.

    Raises:
        ClusterError: ``nvidia-smi`` does not tell.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    status, text = run_limited([*_QUERY, *(["-i", given] if given else [])], timeout_s=20)
    if status or not text.strip():
        raise ClusterError(f"model.runtime: tensorrt must know which GPU this is, and nvidia-smi fails ({status})")
    return text.strip().splitlines()[0]


@dataclass(frozen=True)
class Profile:
    """Which canvases an engine takes, each as images, height and width.

    Args:
        least: The smallest.
        usual: What it is tuned for.
        most: The largest.
    """

    least: tuple[int, int, int]
    usual: tuple[int, int, int]
    most: tuple[int, int, int]

    @staticmethod
    def around(
        largest: tuple[int, int, int], declared: tuple[int | None, ...], largest_batch: int, stride: int | None
    ) -> "Profile":
        """Reach from one canvas of one stride to the largest batch of the largest canvas, where axes are free.

        Args:
            largest: Images, height and width of the first run; no canvas has a longer side.
            declared: ``(N, 3, H, W)`` as the model says.
            largest_batch: No run has more images.
            stride: The model's, in pixels; None takes the usual one.
        """
        rows, height, width = largest
        side, step = max(height, width), stride or _DEFAULT_STRIDE
        free = [declared[axis] is None for axis in (0, 2, 3)]

        def bounded(n: int, h: int, w: int) -> tuple[int, int, int]:
            n, h, w = (a if is_free else given for a, given, is_free in zip((n, h, w), largest, free, strict=True))
            return n, h, w

        batch = max(rows, largest_batch)
        return Profile(bounded(1, step, step), bounded(batch, height, width), bounded(batch, side, side))


def engine_key(graph: bytes, precision: str, versions: Iterable[str], profile: Profile) -> str:
    """Name the engines of a graph: another GPU, version, precision or profile has others.

    Args:
        graph: The model's bytes.
        precision: Of the arithmetic.
        versions: Of whatever the engine depends on, the GPU included.
        profile: What it takes.
    """
    facts = "\0".join((precision, *versions, repr(profile)))
    return hashlib.sha256(hashlib.sha256(graph).digest() + facts.encode()).hexdigest()[:32]


def settings(folder: str, half: bool, name: str, others: Iterable[str], profile: Profile) -> dict[str, Any]:
    """Return the provider's settings.

    The profile names the tensors on the way to the model, too, because TensorRT may leave the first steps to CUDA.

    Args:
        folder: Where engines and timings are kept.
        half: Compute in fp16.
        name: The model's input for images.
        others: Inputs ``(N, 2)`` beside it.
        profile: What the engine is to take.
    """
    as_float, planes = on_the_way(name)
    beside = tuple(others)

    def shapes(n: int, h: int, w: int) -> str:
        axes: dict[str, tuple[int, ...]] = dict.fromkeys((canvases_of(name), as_float), (n, h, w, 3))
        axes |= {planes: (n, 3, h, w)} | dict.fromkeys(beside, (n, 2))
        return ",".join(f"{tensor}:{'x'.join(map(str, shape))}" for tensor, shape in axes.items())

    return {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": folder,
        "trt_fp16_enable": half,
        "trt_profile_min_shapes": shapes(*profile.least),
        "trt_profile_opt_shapes": shapes(*profile.usual),
        "trt_profile_max_shapes": shapes(*profile.most),
    }
