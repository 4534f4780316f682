"""The job spec: what a user writes in YAML, as frozen, checked values.

Each field's text stands in its ``description``, from which ``batchdet schema`` and the README's table are made.
"""

import difflib
import importlib.metadata
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

Uri = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Positive = Annotated[float, Field(gt=0)]
_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
_CANVAS_SIZE: Final = r"^[1-9]\d{1,3}x[1-9]\d{1,3}$"
_SHA256: Final = r"^[0-9a-f]{64}$"
PATTERN_WORDS: Final = {
    _NAME: "use at most 63 letters, digits, '.', '_' and '-', and begin with a letter or a digit",
    _CANVAS_SIZE: "write it as WIDTHxHEIGHT in pixels, such as 640x480",
    _SHA256: "it should be a SHA-256 digest: 64 digits from 0 to 9 and a to f",
}
"""Pattern -> what a text that fits it looks like, as a sentence."""
PLACES: Final = ("source", "model", "output")
"""Groups of the spec that may be written as a text, which is their ``uri``."""
CanvasSize = Annotated[str, StringConstraints(pattern=_CANVAS_SIZE)]
SourceFormat = Literal["auto", "webdataset", "folder", "parquet", "uri_list"]
FAMILIES = (
    "yolo_end2end",
    "yolo_dense",
    "yolox",
    "yolo_anchors",
    "nanodet",
    "picodet",
    "ssd",
    "detr",
    "detr_focal",
    "detr_softmax",
)
FAMILY_GROUP = "batchdet.families"
"""The group of entry points by which installed packages offer families of their own."""
RuntimeName = Literal["auto", "onnxruntime", "openvino", "tensorrt", "torch"]
FeatureKind = Literal["none", "image", "boxes"]
SiluName = Literal["auto", "exact", "rational"]
DecodeName = Literal["auto", "full", "reduced"]
FitName = Literal["auto", "tight", "loose"]
PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]


def _family(name: str) -> str:
    """Check the name of a family: a built-in one, an entry point's, or MODULE:CLASS."""
    if _CLASS_PATH.fullmatch(name):
        return name
    offered = [point.name for point in importlib.metadata.entry_points(group=FAMILY_GROUP)]
    known = ["auto", *FAMILIES, *sorted(set(offered))]
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}, and MODULE:CLASS for your own"
    raise PydanticCustomError("family", "{hint}", {"hint": hint})


_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
FamilyName = Annotated[
    str,
    AfterValidator(_family),
    WithJsonSchema({"anyOf": [{"enum": ["auto", *FAMILIES]}, {"type": "string", "pattern": _CLASS_PATH.pattern}]}),
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class SourceSpec(_Part):
    """Where the images are."""

    uri: Uri = Field(
        description="Images to label: a folder, a glob, tar shards, Parquet files or a list. Any fsspec URI; symbolic "
        "links are followed."
    )
    format: SourceFormat = Field(
        "auto",
        description="webdataset (tar, tar.gz), folder, parquet or uri_list; auto decides by what the URI names. folder "
        "also labels files whose names have no extension.",
    )
    image_column: str | None = Field(
        None,
        description="parquet, uri_list: the column with the image (binary, {bytes, path} struct) or its URI; "
        "null finds it.",
    )
    id_column: str | None = Field(
        None,
        description="parquet, uri_list: a column whose values name the images within their file; "
        "null takes the row number (parquet) or the URI (uri_list).",
    )
    columns: tuple[str, ...] | None = Field(
        None,
        description="Columns carried over into the images table; null carries all but the image. Text of a csv "
        "becomes a number only if it comes back as it is written; 007 and 1.10 stay text.",
    )
    allow: tuple[str, ...] = Field(
        (),
        description="uri_list: URI prefixes that listed images may have; empty allows the schemes s3, gs, az, "
        "abfs, hf and, when the list itself is local, files below the list's own folder.",
    )
    max_pixels: int = Field(
        100_000_000, ge=1, description="An image with more pixels becomes a failed row (too_large)."
    )
    max_image_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1,
        description="An encoded image with more bytes becomes a failed row (too_large).",
    )


class CanvasSpec(_Part):
    """The plane that the model sees."""

    size_px: int | None = Field(
        None, ge=32, le=8192, description="Longer side in pixels; null takes what the model was made for."
    )
    shape: Literal["auto", "square", "rectangle"] = Field(
        "auto",
        description="square, or rectangle (shorter side rounded up to the stride; needs a model with free height "
        "and width); auto takes rectangle where the model allows it.",
    )
    graphs: Literal["auto"] | tuple[CanvasSize, ...] = Field(
        "auto",
        description="OpenVINO: canvases (WIDTHxHEIGHT) that get a graph of their own, a fifth faster and half a second "
        "later; auto takes those with which a larger job is done soonest.",
    )
    fit: FitName = Field(
        "auto",
        description="OpenVINO: loose puts an image on the smallest of the canvases with graphs that is at most half "
        "larger than its own, so that few graphs do for all; its scores move by about 0.02. auto takes it like bf16.",
    )
    decode: DecodeName = Field(
        "auto",
        description="reduced decodes JPEGs at 1/2, 1/4 or 1/8 where the canvas needs no more, which is quicker and "
        "moves scores a little; auto does so for larger jobs where its boxes agree on some of the job's own images.",
    )

    @property
    def own_graphs(self) -> frozenset[tuple[int, int]]:
        """``graphs`` as pairs of width and height; none for ``auto``."""
        graphs = () if self.graphs == "auto" else self.graphs
        pairs = (graph.split("x") for graph in graphs)
        return frozenset((int(width), int(height)) for width, height in pairs)


class PreprocessSpec(_Part):
    """What the model is fed: (pixel * scale - mean) / std."""

    colours: Literal["RGB", "BGR"] | None = Field(None, description="Order of the channels.")
    scale: float | None = Field(None, gt=0, description="What 0..255 is multiplied with, such as 0.00392156862745098.")
    mean: tuple[float, float, float] | None = Field(
        None, description="Of each channel, in the order of colours, after scaling."
    )
    std: tuple[Positive, Positive, Positive] | None = Field(None, description="Likewise.")
    letterbox: Literal["centred", "top_left", "stretch"] | None = Field(
        None, description="How the image is put on the canvas."
    )


class ModelSpec(_Part):
    """The detector and how its outputs are read."""

    uri: Uri = Field(
        description="The detector, any fsspec URI: an ONNX file, a Hugging Face folder (safetensors), a net of "
        "batchdet's own (safetensors), a TorchScript or torch.export file, an Ultralytics "
        "checkpoint; or builtin:sample, the embedded one."
    )
    sha256: str | None = Field(None, pattern=_SHA256, description="Refuse the model unless its bytes have this digest.")
    trusted: bool = Field(
        False,
        description="You trust whoever made the file: allows formats that can run code of their own while they are "
        "loaded (.pt, TorchScript, torch.export).",
    )
    head: Literal["auto", "end2end", "one_to_many"] = Field(
        "auto",
        description="Ultralytics checkpoints (.pt): the head that is exported; auto takes the end-to-end one where the "
        "checkpoint has it, as YOLO26's has.",
    )
    family: FamilyName = Field(
        "auto",
        description="How raw outputs become detections; auto reads the model's metadata and signature. MODULE:CLASS, "
        "or an installed package's entry point, names a head of your own.",
    )
    runtime: RuntimeName = Field(
        "auto",
        description="What runs the model; auto takes OpenVINO for bf16, ONNX Runtime otherwise, and torch for all "
        "that is not ONNX. tensorrt builds an engine for each kind of GPU at first, which takes minutes and is kept.",
    )
    precision: PrecisionName = Field(
        "auto",
        description="Number format of the arithmetic; bf16 (OpenVINO, on processors that have it) is faster and moves "
        "scores by about 0.01. auto takes it for larger jobs where its boxes agree on some of the job's own images; "
        "likewise fp16 on GPUs, by ONNX Runtime. fp32 is without TF32.",
    )
    silu: SiluName = Field(
        "auto",
        description="rational computes SiLU, the activation of most YOLOs, in OpenVINO's model.canvas.graphs by a "
        "rational function: a third faster, and scores move by about 0.002. auto takes it like bf16.",
    )
    preprocess: PreprocessSpec = Field(
        default_factory=PreprocessSpec,
        description="What the model is fed; null takes what its file says, or what is usual for its family.",
    )
    canvas: CanvasSpec = Field(default_factory=CanvasSpec, description="The plane that the model sees.")
    score_threshold: float = Field(0.25, ge=0, le=1, description="Detections below this score are dropped.")
    iou_threshold: float = Field(
        0.7, ge=0, le=1, description="NMS: of two boxes of one class that overlap more, the weaker goes."
    )
    max_detections: int = Field(300, ge=1, le=10_000, description="At most this many detections per image.")
    classes: Annotated[tuple[str | int, ...], Field(min_length=1)] | None = Field(
        None, description="Keep only these classes, by label or number; null keeps all."
    )
    features: FeatureKind = Field(
        "none",
        description="Vectors beside the boxes, pooled from a map inside the model: image adds one to each row of "
        "images, boxes one to each row of detections.",
    )
    features_from: Uri = Field(
        "auto",
        description="What features are pooled from: neck, backbone, or a tensor of the graph by its name; auto takes "
        "the backbone, which finds most again. `batchdet model URI` lists them.",
    )
    features_type: Literal["float32", "float16"] = Field(
        "float32",
        description="Number format of stored features; float16 takes half the room, and some readers do not know it.",
    )
    features_normalised: bool = Field(
        False, description="Divide each vector by its length, so that a dot product is the cosine."
    )
    labels: Uri | None = Field(
        None,
        description="A file with the labels of all classes: one label per line, a JSON or YAML list, a map from number "
        "to label, or Ultralytics' data.yaml; null takes the model's metadata, or COCO's 80 when the model has 80 "
        "classes and no names.",
    )

    def as_computed(self, how: Mapping[str, str]) -> "ModelSpec":
        """Fix how the model is computed.

        Args:
            how: As ``lineage.json`` notes it under ``computed``: ``runtime``, ``precision``, ``graphs``, ``fit``,
                ``silu`` and ``decode``; the last four are missing where there was no choice yet. See
                :func:`unknown_way`.
        """
        graphs = tuple(how.get("graphs", "").split())
        placed = {"graphs": graphs, "fit": how.get("fit", "tight"), "decode": how.get("decode", "full")}
        canvas = self.canvas.model_copy(update=placed)
        fixed = {"runtime": how["runtime"], "precision": how["precision"], "silu": how.get("silu", "exact")}
        return self.model_copy(update={**fixed, "canvas": canvas})


_WAYS = {
    "runtime": get_args(RuntimeName),
    "precision": get_args(PrecisionName),
    "fit": get_args(FitName),
    "silu": get_args(SiluName),
    "decode": get_args(DecodeName),
}


def unknown_way(how: Mapping[str, str]) -> str:
    """Say what this version does not know of how a model was computed, as half a sentence; "" when it can do the same.

    Args:
        how: As :meth:`ModelSpec.as_computed` takes it; another version may have written it.
    """
    for step, value in how.items():
        if step != "graphs" and value not in _WAYS.get(step, ()):
            return f"its model was computed with {step}: {value}, which this version does not know"
    missing = [step for step in ("runtime", "precision") if step not in how]
    return f"its lineage.json does not tell the {missing[0]} of its model" if missing else ""


class ComputeSpec(_Part):
    """Who does the work."""

    device: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="auto takes GPUs where the cluster and ONNX Runtime both have them."
    )
    actors: Literal["auto"] | Annotated[int, Field(ge=1, le=10_000)] = Field(
        "auto",
        description="Detector actors; auto is one per CPU core, or two per GPU (one with fewer than 4 cores per GPU).",
    )
    batch_rows: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = Field(
        "auto", description="Images given to the model at once; auto is 8 on CPU and 64 on GPU."
    )
    decode: Literal["auto", "actor", "stage"] = Field(
        "auto",
        description="Images are decoded by the detector actors, or by a stage of their own on any CPU cores, which "
        "ships canvases; auto takes the stage for GPUs when the cluster has twice the cores that their actors can use.",
    )
    segment_rows: Literal["auto"] | Annotated[int, Field(ge=1, le=100_000)] = Field(
        "auto",
        description="At most this many images per segment, the unit of retry and resume; auto takes what keeps an "
        "actor busy for about 1.5 s.",
    )
    segment_bytes: Annotated[int, Field(ge=1)] = Field(
        64 * 1024 * 1024, description="At most this many encoded bytes per segment (one image may exceed it)."
    )
    image_timeout_s: Annotated[int, Field(ge=1, le=86_400)] = Field(
        60, description="An image on which a worker hangs for longer becomes a failed row (timed_out)."
    )
    no_progress_timeout_s: Literal["auto"] | Annotated[int, Field(ge=1, le=604_800)] = Field(
        "auto",
        description="If no segment is staged and no phase begins for this long, the run ends with exit status 5 and "
        "says what it waited for. The trial of the model has its own limits on top, among them 15 minutes for a "
        "TensorRT engine; so has the start of the workers. It must be more than image_timeout_s and more than a new "
        "node needs to start; auto is 600, or three times image_timeout_s if that is more.",
    )
    image_memory_bytes: Annotated[int, Field(ge=64 * 1024 * 1024)] = Field(
        4 * 1024**3,
        description="An image for which a worker takes more memory than this becomes a failed row (out_of_memory).",
    )
    address: str | None = Field(
        None,
        description="A running Ray cluster, from one of its machines: auto or HOST:PORT; null starts one here.",
    )

    @field_validator("no_progress_timeout_s")
    @classmethod
    def _is_longer_than_an_image(cls, value: Any, info: ValidationInfo) -> Any:
        image_s = info.data.get("image_timeout_s", 0)
        if value != "auto" and value <= image_s:
            text = f"it should be more than compute.image_timeout_s ({image_s}), which one image may take"
            raise PydanticCustomError("no_progress", "{text}", {"text": text})
        return value

    @property
    def no_progress_s(self) -> int:
        """Seconds without progress that end the run."""
        asked = self.no_progress_timeout_s
        return max(600, 3 * self.image_timeout_s) if asked == "auto" else asked


class OutputSpec(_Part):
    """Where the tables go."""

    uri: Uri = Field(description="Folder of the tables; any fsspec URI that can be written.")
    partition_by: tuple[str, ...] = Field(
        ("run_date",),
        description="Hive partitions: run_date or columns carried over from the source. A value too long for the name "
        "of a folder (255 bytes) is refused if a list holds it, and otherwise cut and marked with ~ and a digest.",
    )
    part_rows: int = Field(1_000_000, ge=1000, description="At most this many rows per part file.")


class PolicySpec(_Part):
    """What counts as success."""

    incremental: bool = Field(
        True, description="Label only source objects that no committed run of the same fingerprint holds."
    )
    retry: Literal["none", "failed"] = Field(
        "none",
        description="failed: label images again that failed in committed runs (of a tar or Parquet file the whole "
        "file); meant for a run after mending: --set policy.retry=failed.",
    )
    on_settings_change: Literal["relabel", "refuse"] = Field(
        "relabel",
        description="What to do if the settings differ from the output's current ones and objects that these hold "
        "would be labelled again: relabel them, or refuse with exit status 2.",
    )
    when_locked: Literal["fail", "wait"] = Field(
        "fail", description="Another run holds the output: fail with exit status 4, or wait until it ends."
    )
    max_failed_fraction: float = Field(
        0.01, ge=0, le=1, description="The run is not committed when a larger share of its images failed."
    )
    max_bad_shard_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Tar and Parquet files that cannot be read to their end go into quarantine. The run is not "
        "committed when they are a larger share of its files. A run of fewer than 10 files counts as 10. Files that "
        "were in quarantine before do not count.",
    )


def _places_as_text(schema: dict[str, Any]) -> None:
    """Let editors accept what :mod:`batchdet.specfile` does: a text in the place of a group with a ``uri``."""
    for name in PLACES:
        schema["properties"][name] = {"anyOf": [{"type": "string"}, schema["properties"][name]]}


class JobSpec(_Part):
    """One labelling job."""

    model_config = ConfigDict(json_schema_extra=_places_as_text)

    name: Annotated[str, StringConstraints(pattern=_NAME)] = Field(
        description="Letters, digits, '.', '_' and '-'; names the job in logs and on clusters."
    )
    source: SourceSpec = Field(description="Where the images are.")
    model: ModelSpec = Field(description="The detector and how its outputs are read.")
    compute: ComputeSpec = Field(default_factory=ComputeSpec, description="Who does the work.")
    output: OutputSpec = Field(description="Where the tables go.")
    policy: PolicySpec = Field(default_factory=PolicySpec, description="What counts as success.")

    def as_computed(self, how: Mapping[str, str]) -> "JobSpec":
        """Fix how the model is computed, see :meth:`ModelSpec.as_computed`."""
        return self.model_copy(update={"model": self.model.as_computed(how)})
