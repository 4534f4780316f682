"""A detector: a model file, loaded once, from canvases to detections in original pixels."""

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from batchdet.errors import ModelError, OutOfDeviceMemory, SpecError
from batchdet.geometry.letterbox import Letterbox
from batchdet.model import families, labels
from batchdet.model.anatomy import Anatomy
from batchdet.model.card import ModelCard
from batchdet.model.families import DecodeSettings, SenselessOutput, Signature
from batchdet.model.families.plugin import PluginFamily
from batchdet.model.features import Pooling, choose_pooling
from batchdet.model.fetch import fetch_asked
from batchdet.model.format import Format, format_of
from batchdet.model.labels_file import read_labels
from batchdet.model.licence import licences
from batchdet.model.onnx_file import OnnxInfo, read_onnx
from batchdet.model.placement import Placement
from batchdet.model.preprocess import Preprocess
from batchdet.model.rehearsal import Rehearsed, look, rehearse
from batchdet.model.runtimes import Device, Precision, Silu, Tensor, TensorInfo, load_runtime
from batchdet.records.detections import Detections
from batchdet.spec import ModelSpec

_DEFAULT_SIZE_PX: Final = 640
_DEFAULT_STRIDE: Final = 32
_MAX_SIDE_PX: Final = 8192
_MAX_BATCH: Final = 256
_USUAL_PHOTOGRAPH: Final = (4000, 3000)
_MAX_INPUT_PIXELS: Final = 256 * 1024 * 1024


class Detector:
    """A loaded model with the spec's settings. Used by one thread at a time.

    Args:
        spec: The model part of the job.
        path: The model file on this node, as :func:`batchdet.model.fetch.fetch_asked` gives it.
        sha256: Its digest, for the card.
        device: ``cpu`` or ``gpu``.
        threads: Threads of one inference on the CPU.
        largest_batch: :meth:`detect` is never given more images; an engine of TensorRT is built for so many.
        rehearsed: What the same model has shown elsewhere, with the same settings: it is not run on empty canvases
            again, which takes longer than all else. Of another runtime too, if outputs have the same names there.

    Raises:
        ModelError: The file cannot be loaded, or its outputs are those of no known family.
        SpecError: A setting does not fit the model; the message names its key.
        MissingExtra: The runtime's package is not installed.
        ClusterError: ``gpu`` is not to be had.
    """

    def __init__(
        self,
        spec: ModelSpec,
        path: str,
        sha256: str,
        device: Device = "cpu",
        threads: int = 1,
        largest_batch: int = 64,
        rehearsed: Rehearsed | None = None,
    ) -> None:
        self.spec = spec
        self._path, self._sha256 = path, sha256
        precision: Precision = "fp32" if spec.precision == "auto" else spec.precision
        silu: Silu = "exact" if spec.silu == "auto" else spec.silu
        graphs = spec.canvas.own_graphs
        if spec.canvas.fit == "loose" and spec.runtime != "openvino":
            raise SpecError("model.canvas.fit: loose needs model.runtime: openvino, or both auto")
        self._runtime = load_runtime(spec.runtime, path, device, threads, precision, graphs, largest_batch, silu)
        self._image = _image_input(self._runtime.inputs)
        metadata = self._runtime.metadata
        self.stride = _number(metadata.get("stride"), _DEFAULT_STRIDE)
        if self.stride > _MAX_SIDE_PX:
            raise ModelError(f"the model's metadata says a stride above {_MAX_SIDE_PX} px, which no detector has")
        self._dynamic_canvas = None in self._image.shape[2:]
        self.canvas = self._full_canvas()
        self._buffer: npt.NDArray[np.float32] = np.zeros(0, np.float32)
        self._most = 0
        if rehearsed and {info.name for info in rehearsed.outputs} != {info.name for info in self._runtime.outputs}:
            rehearsed = None
        outputs = rehearsed.outputs if rehearsed else look(self._runtime, self._image, self.canvas)
        self.signature = Signature(self._inputs, outputs, self.canvas)
        filed = () if spec.labels is None else read_labels(spec.labels)
        named = {**metadata, "names": json.dumps(filed)} if filed else metadata
        self.family, self._family_reason = families.find_family(spec.family, self.signature, named, spec.labels)
        count = self.family.class_count(self.signature)
        own = self.family.labels if isinstance(self.family, PluginFamily) else ()
        self.labels, self._labels_reason = labels.find_labels(
            (spec.labels, filed) if spec.labels else None,
            own or labels.parse_names(metadata.get("names", "")),
            count,
            assume_coco=self.family.name == "detr",
        )
        self.pooling = self._pooling()
        self._takes_canvases = self._runtime.take_canvases(self._image.name, self.preprocess)
        declared = Rehearsed(outputs, self._image.shape[0], *self._canvas_shape())
        self._settings = DecodeSettings(
            spec.score_threshold,
            spec.iou_threshold,
            spec.max_detections,
            None if spec.classes is None else labels.class_numbers(spec.classes, self.labels),
            len(self.labels),
            self._keeps_best_class(),
        )
        usual_batch = self._runtime.batch_rows or 2
        self.rehearsed = rehearsed or rehearse(declared, self._run_empty, usual_batch, self.canvas, self.stride)
        """What it has shown when it was loaded, here or elsewhere."""
        if spec.canvas.shape == "rectangle" and self.rehearsed.shape != "rectangle":
            raise SpecError("model.canvas.shape: the model declares a free canvas but fails on one; use square")

    @property
    def silus(self) -> int:
        """SiLUs of the model that may be computed by a rational function."""
        return self._runtime.silus

    @property
    def _inputs(self) -> tuple[TensorInfo, ...]:
        return tuple(self._runtime.inputs)

    @property
    def preprocess(self) -> Preprocess:
        """What the model is fed."""
        asked = self.spec.preprocess.model_dump(exclude_none=True)
        return replace(self._own_preprocess() or self.family.preprocess, **asked)

    @functools.cached_property
    def placement(self) -> Placement:
        """How it wants images placed; asked for each of them."""
        if self.rehearsed.shape != "rectangle":
            return Placement(self.preprocess, self.canvas, None)
        loose = sorted(self.spec.canvas.own_graphs) if self.spec.canvas.fit == "loose" else ()
        return Placement(self.preprocess, self.canvas, self.stride, tuple(loose))

    @property
    def anatomy(self) -> Anatomy:
        """The model's parts: backbone, neck, head, with what they cost on the canvas."""
        found = self._runtime.anatomy(self.canvas)
        seen = {info.name: info.shape for info in self.signature.outputs}
        return replace(found, outputs=tuple((name, seen.get(name, shape)) for name, shape in found.outputs))

    @property
    def features(self) -> dict[str, Any]:
        """What the vectors beside the boxes are, as the card says it; empty for none."""
        pooling = self.pooling
        if pooling is None:
            return {}
        return {
            "kind": pooling.kind,
            "type": self.spec.features_type,
            "size": pooling.size,
            "normalised": pooling.normalised,
            "by_size": pooling.by_size,
            "maps": [asdict(feature_map) for feature_map in pooling.maps],
        }

    def _own_preprocess(self) -> Preprocess | None:
        """What the file says, on a canvas as long as the spec asks for."""
        own, longest_px = self._runtime.preprocess, self.spec.canvas.size_px
        if own is None or own.letterbox != "edges" or longest_px is None:
            return own
        shortest_px = max(1, round(own.shortest_px * longest_px / own.longest_px))
        return replace(own, shortest_px=shortest_px, longest_px=longest_px)

    def label(self, class_id: int) -> str:
        """Return the text of a class, ``class_<n>`` when the model has none for it."""
        return labels.label(self.labels, class_id)

    def letterbox(self, width_px: int, height_px: int) -> Letterbox:
        """Choose the canvas for an image and place the image on it.

        Args:
            width_px: Width of the upright original.
            height_px: Its height.
        """
        return self.placement.letterbox(width_px, height_px)

    def detect(self, canvases: npt.NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> list[Detections]:
        """Find objects in images of one canvas shape.

        Args:
            canvases: ``(B, H, W, 3)`` uint8 RGB, painted by ``letterboxes``.
            letterboxes: One per canvas, from :meth:`letterbox`.

        Returns:
            One per image, in original pixels, by falling score.

        Raises:
            ModelError: The runtime failed; OutOfDeviceMemory where a smaller batch may fit.
            SenselessOutput: What the model gives for an image cannot be true.
            ValueError: Arrays and letterboxes do not go together.
        """
        count = len(letterboxes)
        if canvases.ndim != 4 or canvases.shape[0] != count or canvases.shape[3] != 3 or canvases.dtype != np.uint8:
            raise ValueError(f"canvases must be uint8 ({count}, H, W, 3), got {canvases.dtype} {canvases.shape}")
        size = (canvases.shape[2], canvases.shape[1])
        if any(box.canvas != size for box in letterboxes):
            raise ValueError(f"the canvases are {size}, a letterbox is for {letterboxes[0].canvas}")
        step = self.rehearsed.fixed_batch or self._runtime.batch_rows or count
        found: list[Detections] = []
        for start in range(0, count, max(step, 1)):
            boxes = letterboxes[start : start + step]
            outputs = self._infer(canvases[start : start + step], boxes)
            found += self._decode(outputs, boxes)
        return found

    def _decode(self, outputs: dict[str, Tensor], letterboxes: Sequence[Letterbox]) -> list[Detections]:
        names = () if self.pooling is None else self.pooling.names
        tapped = {name: outputs[name] for name in names}
        own = {name: array for name, array in outputs.items() if name not in tapped}
        with np.errstate(all="ignore"):  # what is not finite is dropped by the family
            found = self.family.decode(own, letterboxes, self._settings)
        return found if self.pooling is None else self.pooling.pool(tapped, letterboxes, found)

    def _pooling(self) -> Pooling | None:
        """Tap the maps that features are pooled from."""
        if self.spec.features == "none":
            return None
        pooling = choose_pooling(self.spec, self._runtime.anatomy(self.canvas))
        if pooling is not None:
            self._runtime.tap(pooling.names)
        return pooling

    def _keeps_best_class(self) -> bool:
        """Have class scores that nobody needs stay on the device, where the runtime can."""
        where, output = self.family.class_scores(self.signature), self.signature.output
        return where is not None and output is not None and self._runtime.keep_best_class(output.name, *where)

    @property
    def card(self) -> ModelCard:
        """What is known of the model."""
        kind, about = format_of(self._path), self._runtime.metadata
        info = read_onnx(self._path) if kind is Format.ONNX else OnnxInfo(0, about.get("producer", ""), {}, "", {}, 0)
        stated = licences(kind, about)
        stem = os.path.splitext(os.path.basename(self.spec.uri.rstrip("/")))[0]
        return ModelCard(
            name=about.get("name") or stem,
            uri=self.spec.uri,
            sha256=self._sha256,
            size_bytes=_size_bytes(self._path),
            format=kind.words,
            family=self.family.name,
            family_reason=self._family_reason,
            runtime=self._runtime.name,
            provider=self._runtime.provider,
            precision=self._runtime.precision,
            inputs=self._inputs,
            outputs=tuple(self._runtime.outputs),
            probed_outputs=self.signature.outputs,
            labels=self.labels,
            labels_reason=self._labels_reason,
            canvas_px=self.canvas,
            canvas_shape=self.rehearsed.shape,
            stride=self.stride,
            dynamic_batch=self.rehearsed.fixed_batch is None,
            dynamic_canvas=self._dynamic_canvas,
            colours=self.preprocess.colours,
            letterbox=self.preprocess.letterbox,
            licence=stated.weights,
            code_licence=stated.code,
            description=about.get("description", "").strip() or info.doc,
            author=about.get("author", ""),
            date=about.get("date", ""),
            backbone=about.get("backbone", ""),
            neck=about.get("neck", ""),
            head=about.get("head", ""),
            producer=info.producer,
            opset=info.opsets.get("", info.opsets.get("ai.onnx", 0)),
            nodes=info.node_count,
            notes=self.rehearsed.notes,
            features=self.features,
        )

    def _full_canvas(self) -> tuple[int, int]:
        """Return the canvas ``(width_px, height_px)`` before a rectangle is cut."""
        height, width = self._image.shape[2:]
        asked = self.spec.canvas.size_px
        own = self._own_preprocess()
        if own is not None and own.letterbox == "edges":
            return own.canvas(_USUAL_PHOTOGRAPH)
        if height is not None and width is not None:
            if asked is not None and asked != max(width, height):
                raise SpecError(
                    f"model.canvas.size_px: {asked}, but the model is made for {width} x {height} only; leave it out"
                )
            batch = self._image.shape[0] or 1
            too_large = width * height * batch > _MAX_INPUT_PIXELS
            if too_large or max(width, height) > _MAX_SIDE_PX or batch > _MAX_BATCH:
                raise ModelError(
                    f"the model wants {self._image}; sides of {_MAX_SIDE_PX} px, {_MAX_BATCH} images and "
                    f"{_MAX_INPUT_PIXELS} px in all are the limit"
                )
            return width, height
        sizes = labels.numbers(self._runtime.metadata.get("imgsz", ""))
        usual = min(max(sizes, default=_DEFAULT_SIZE_PX), _MAX_SIDE_PX)
        size = asked or max(usual // self.stride, 1) * self.stride
        if size % self.stride:
            near = max(self.stride, round(size / self.stride) * self.stride)
            raise SpecError(
                f"model.canvas.size_px: {size} is no multiple of the model's stride {self.stride}; take {near}"
            )
        return width or size, height or size

    def _canvas_shape(self) -> tuple[str, tuple[str, ...]]:
        """Return ``square``, ``rectangle``, ``fixed`` or ``own``, as file and spec say, and what is to note of it."""
        asked = self.spec.canvas.shape
        if self.preprocess.letterbox == "edges":
            if asked != "auto":
                raise SpecError(f"model.canvas.shape: {asked}, but the model gives each image its own; take auto")
            return "own", ()
        free = self._image.shape[2:] == (None, None) and self.preprocess.letterbox != "stretch"
        if asked == "rectangle" and not free:
            raise SpecError("model.canvas.shape: rectangle needs a model whose height and width are free; use square")
        if not self._dynamic_canvas:
            return "fixed", ()
        if free and asked == "auto" and self._runtime.one_shape:
            return "square", ("square canvases, as this runtime prepares itself anew for each other shape",)
        return "rectangle" if free and asked != "square" else "square", ()

    def _run_empty(self, batch: int, canvas: tuple[int, int]) -> bool:
        """Detect on empty canvases, and tell whether as many results came."""
        box = self.preprocess.place(canvas, canvas)
        canvases = np.zeros((batch, canvas[1], canvas[0], 3), np.uint8)
        outputs = self._infer(canvases, [box] * batch)
        try:
            return len(self._decode(outputs, [box] * batch)) == batch
        except SenselessOutput:  # an empty canvas is no image: what a model makes of it is nobody's concern
            return True

    def _infer(self, canvases: npt.NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> dict[str, Tensor]:
        count = len(canvases)
        if self._runtime.one_shape:
            self._most = max(self._most, count)
        batch = max(count, self._image.shape[0] or 0, self._most)
        tensor = self._padded(canvases, batch) if self._takes_canvases else self._planes(canvases, batch)
        padded = [*letterboxes, *[letterboxes[-1]] * (batch - count)]
        feeds = {self._image.name: tensor, **self.family.feeds(self.signature, padded)}
        try:
            outputs = self._runtime.run(feeds)
        except OutOfDeviceMemory:
            self._most = 0  # fewer come next
            raise
        return outputs if batch == count else {name: a[:count] for name, a in outputs.items()}

    @staticmethod
    def _padded(canvases: npt.NDArray[np.uint8], batch: int) -> Tensor:
        """Add empty canvases where the model wants more than there are."""
        count, height, width, _ = canvases.shape
        if count == batch:
            return np.ascontiguousarray(canvases)
        return np.concatenate([canvases, np.zeros((batch - count, height, width, 3), np.uint8)])

    def _planes(self, canvases: npt.NDArray[np.uint8], batch: int) -> Tensor:
        """Turn canvases into what the model declares: ``(batch, 3, H, W)`` float32, as its preprocessing says."""
        _, height, width, _ = canvases.shape
        size = batch * 3 * height * width
        if self._buffer.size < size:
            self._buffer = np.zeros(size, np.float32)
        tensor = self._buffer[:size].reshape(batch, 3, height, width)
        channels = slice(None) if self.preprocess.colours == "RGB" else slice(None, None, -1)
        factors, offsets = (part[:, None, None] for part in self.preprocess.affine())
        for canvas, planes in zip(canvases, tensor, strict=False):
            np.copyto(planes, canvas[:, :, channels].transpose(2, 0, 1))  # a third of the time of one np.multiply
            if (factors != 1).any():
                planes *= factors
            if offsets.any():
                planes += offsets
        return tensor


def open_detector(spec: ModelSpec, device: Device = "cpu", threads: int = 1) -> Detector:
    """Fetch and load a model.

    Args:
        spec: The model part of the job.
        device: ``cpu`` or ``gpu``.
        threads: Threads of one inference on the CPU.

    Raises:
        ModelError, SpecError, MissingExtra, ClusterError: See :class:`Detector`.
    """
    model = fetch_asked(spec)
    return Detector(spec, model.path, model.sha256, device, threads)


def _image_input(inputs: Sequence[TensorInfo]) -> TensorInfo:
    found = [i for i in inputs if len(i.shape) == 4 and i.shape[1] in (3, None) and i.dtype == "float32"]
    if len(found) != 1:
        have = ", ".join(map(str, inputs)) or "none"
        raise ModelError(f"a detector has one input float32 [N, 3, H, W] for images; the model's inputs are {have}")
    return found[0]


def _size_bytes(path: str) -> int:
    files = [os.path.join(path, name) for name in os.listdir(path)] if os.path.isdir(path) else [path]
    return sum(map(os.path.getsize, files))


def _number(text: Any, default: int) -> int:
    numbers = labels.numbers(text or "")
    return max(numbers) if numbers else default
