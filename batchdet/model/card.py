"""The model card: what was found in a model file, as plain data."""

from dataclasses import asdict, dataclass, field
from typing import Any

from batchdet.model.licence import Licences
from batchdet.model.runtimes import TensorInfo


@dataclass(frozen=True)
class ModelCard:
    """What is known of a loaded model.

    Args:
        name: A short name, from the metadata or the file.
        uri: Where it came from.
        sha256: Digest of its bytes; of a folder see :func:`batchdet.model.cache.digest_of`.
        size_bytes: Its size.
        family: How its outputs become detections.
        family_reason: By what the family is known.
        runtime: What runs it, with version.
        provider: What computes.
        precision: Number format of the arithmetic.
        inputs: As declared.
        outputs: As declared.
        probed_outputs: Shapes that came out of a run with one image on ``canvas_px``.
        labels: Class texts by number.
        labels_reason: Where the labels come from.
        canvas_px: ``(width, height)`` that it is run on by default, before a rectangle is cut.
        canvas_shape: ``square``, ``rectangle``, ``fixed``, or ``own``: each image has one of its own.
        stride: Sides of the canvas are multiples of it.
        dynamic_batch: Whether it takes several images at once.
        dynamic_canvas: Whether height and width are free.
        colours: Order of the channels that it is fed.
        letterbox: How images are put on the canvas.
        licence: Of its weights, as its metadata says, else "".
        code_licence: Of the code that made it, else "".
        description: As its metadata says, else "".
        author: Likewise.
        date: Likewise.
        backbone: Likewise.
        neck: Likewise.
        head: Likewise.
        producer: What wrote the file.
        format: What kind of file it is.
        opset: Version of ONNX's operator set; 0 where it is not ONNX.
        nodes: Nodes of the graph; likewise.
        features: Vectors beside the boxes: kind, type, size, the tensors (name, stride, channels) that they are pooled
            from and how; empty for none.
        notes: What a reader should know: assumptions, things that are declared but do not work.
    """

    name: str
    uri: str
    sha256: str
    size_bytes: int
    family: str
    family_reason: str
    runtime: str
    provider: str
    precision: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    probed_outputs: tuple[TensorInfo, ...]
    labels: tuple[str, ...]
    labels_reason: str
    canvas_px: tuple[int, int]
    canvas_shape: str
    stride: int
    dynamic_batch: bool
    dynamic_canvas: bool
    colours: str
    letterbox: str
    licence: str = ""
    code_licence: str = ""
    description: str = ""
    author: str = ""
    date: str = ""
    backbone: str = ""
    neck: str = ""
    head: str = ""
    producer: str = ""
    format: str = ""
    opset: int = 0
    nodes: int = 0
    notes: tuple[str, ...] = field(default_factory=tuple)
    features: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the card as JSON-ready data."""
        data = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}

    def describe(self) -> list[tuple[str, str]]:
        """Return the card as rows of a heading and a text, for a terminal; empty ones are left out."""
        width, height = self.canvas_px
        shown = ", ".join(self.labels[:12]) + (", ..." if len(self.labels) > 12 else "")
        graph = f", {self.nodes} nodes, opset {self.opset}" if self.nodes else ""
        free = [n for n, is_free in (("batch", self.dynamic_batch), ("canvas", self.dynamic_canvas)) if is_free]
        rows = [
            ("name", self.name),
            ("uri", self.uri),
            ("sha256", self.sha256),
            ("file", f"{self.format}, {self.size_bytes / 1e6:.1f} MB" + graph),
            ("family", f"{self.family} ({self.family_reason})"),
            ("backbone", self.backbone),
            ("neck", self.neck),
            ("head", self.head),
            ("runtime", f"{self.runtime}, {self.provider}, {self.precision}"),
            ("inputs", "; ".join(map(str, self.inputs))),
            ("outputs", "; ".join(map(str, self.probed_outputs))),
            ("canvas", f"{width} x {height} px, {self.canvas_shape}, stride {self.stride}, {self.letterbox} letterbox"),
            ("colours", self.colours),
            ("free axes", ", ".join(free) or "none"),
            ("features", self._features()),
            ("labels", f"{len(self.labels)} ({self.labels_reason}): {shown}" if self.labels else self.labels_reason),
            ("description", self.description),
            ("author", self.author),
            ("date", self.date),
            ("licence", str(Licences(self.licence, self.code_licence))),
            ("producer", self.producer),
            *(("note", note) for note in self.notes),
        ]
        return [(heading, text) for heading, text in rows if text]

    def _features(self) -> str:
        if not self.features:
            return ""
        maps = self.features["maps"]
        levels = "; ".join(f"{m['part']} stride {m['stride']} ({m['name']}, {m['channels']} channels)" for m in maps)
        each = "each from the level that fits its size: " if self.features["by_size"] and len(maps) > 1 else "from "
        return f"{self.features['kind']}, {self.features['size']} x {self.features['type']}, {each}{levels}"
