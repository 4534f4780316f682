"""Training a Hugging Face detector by the library's own loss, from a folder to a folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from batchdet.decode.canvas import Pixels, painted
from batchdet.errors import SpecError
from batchdet.geometry.boxes import xyxy_to_xywh
from batchdet.geometry.letterbox import Letterbox, Size
from batchdet.model.detector import Detector, open_detector
from batchdet.model.huggingface import CONFIG, FAMILIES, PREPROCESSOR, WEIGHTS, card_licence, read_folder
from batchdet.model.loaders.huggingface import load
from batchdet.model.preprocess import Preprocess
from batchdet.model.runtimes import Device
from batchdet.packages import missing_extra
from batchdet.spec import CanvasSpec, ModelSpec
from batchdet.training.assignment import Truth
from batchdet.training.trainee import Exported

TRAINED: Final = ("rt_detr", "rt_detr_v2", "d_fine", "detr", "yolos")
"""Values of ``model_type`` whose training is tested."""
_BACKBONES: Final = ("model.backbone", "vit")
_SHAPES: Final = ((1, 1), (4, 3), (3, 4))
_MOST_DETECTIONS: Final = 100


@dataclass(frozen=True)
class HuggingFaceDetector:
    """A detector of the package transformers as a trainee; see `Trainee`.

    Args:
        folder: The folder that it begins with.
        labels: The classes that it shall have.
        config: ``config.json`` of that folder.
        processor: ``preprocessor_config.json``, with the size that the training uses.
        preprocess: The same as batchdet understands it.
        size: ``(height_px, width_px)`` of the canvas, if all images get the same.
        licence: What the folder's README says; "" for nothing.
    """

    folder: str
    labels: tuple[str, ...]
    config: dict[str, Any]
    processor: dict[str, Any]
    preprocess: Preprocess
    size: tuple[int, int] | None
    licence: str

    rate: float = 1e-4
    decay: float = 1e-4
    clip_norm: float = 0.1  # as these detectors are trained by their authors

    @property
    def name(self) -> str:
        """Its type, and where it is from."""
        return f"{self.config['model_type']} of {self.folder}"

    @property
    def canvases(self) -> tuple[Size, ...]:
        """The one canvas, or those that images of usual shapes get."""
        if self.size is not None:
            return ((self.size[1], self.size[0]),)
        found = [self.preprocess.canvas((width * 1000, height * 1000)) for width, height in _SHAPES]
        return tuple(sorted(found, key=max, reverse=True))

    @property
    def began_with(self) -> tuple[str, str] | None:
        """URI and licence of the first weights."""
        return self.folder, self.licence

    def place(self, source: Size, canvas: Size) -> Letterbox:
        """Stretch, if labelling does; else keep the aspect, because the images of a batch share one canvas."""
        if self.preprocess.letterbox == "stretch":
            return self.preprocess.place(source, canvas)
        return replace(Letterbox.centred(source, canvas), resample=self.preprocess.resample)

    def build(self) -> nn.Module:
        """Make the model that the configuration describes, for the new classes."""
        return _model(self.config, self.labels)

    def begin(self, net: nn.Module, batch: Callable[[int], Tensor]) -> str:
        """Take over all weights but those of classes that the folder does not know."""
        before = load(self.folder).module
        known = [before.config.id2label[i] for i in sorted(before.config.id2label)]
        common = [label for label in self.labels if label in known]
        axes = _class_axes(self.config, self.labels)
        old, fresh = before.state_dict(), 0
        with torch.no_grad():
            for name, value in net.state_dict().items():
                if name not in axes:
                    value.copy_(old[name])
                    continue
                into, source = value.movedim(axes[name], 0), old[name].movedim(axes[name], 0)
                fresh += 1
                for label in common:
                    into[self.labels.index(label)] = source[known.index(label)]
                into[len(self.labels) :] = source[len(known) :]  # DETR's "no object"
        count = len(net.state_dict())
        return (
            f"{self.name}: {count - fresh} of {count} tensors whole, {fresh} of the class head by label "
            f"({len(common)} of {len(self.labels)} classes known)"
        )

    def part(self, net: nn.Module, name: str) -> nn.Module:
        """Return the backbone; of YOLOS that is all but the two heads."""
        inside = {path for path, _ in net.named_modules()}
        return net.get_submodule(next(path for path in _BACKBONES if path in inside))

    def loss(self, net: nn.Module, images: Tensor, truth: Truth, score_power: float) -> Tensor:
        """Compute the library's loss, in float32."""
        factor, shift = (torch.from_numpy(x).to(images.device).view(1, 3, 1, 1) for x in self.preprocess.affine())
        height, width = images.shape[-2:]
        sides = torch.tensor([width, height] * 2, device=images.device)
        low, high = truth.boxes_xyxy[..., :2], truth.boxes_xyxy[..., 2:]
        boxes = torch.cat([(low + high) / 2, high - low], dim=-1) / sides
        labels = [
            {"class_labels": ids[there], "boxes": of_image[there]}
            for ids, of_image, there in zip(truth.class_ids, boxes, truth.present, strict=True)
        ]
        found: Tensor = net(pixel_values=images.float() * factor + shift, labels=labels).loss
        return found

    def record(self) -> dict[str, Any]:
        """Return the type and the classes."""
        return {"model_type": self.config["model_type"], "labels": list(self.labels)}

    def texts(self) -> dict[str, str]:
        """Describe the model."""
        width, height = self.canvases[0]
        return {
            "description": f"trained by batchdet train: {self.config['model_type']} of Hugging Face transformers",
            "imgsz": str([height, width]),
        }

    def export(self, net: nn.Module, folder: Path, texts: Mapping[str, str], facts: Mapping[str, Any]) -> Exported:
        """Write a Hugging Face folder."""
        model: Any = net
        model.save_pretrained(folder)
        (folder / PREPROCESSOR).write_text(json.dumps(self.processor, indent=1) + "\n")
        spec = ModelSpec(
            uri=str(folder), score_threshold=0.0, max_detections=_MOST_DETECTIONS, canvas=CanvasSpec(), runtime="torch"
        )
        device: Device = "gpu" if next(net.parameters()).is_cuda else "cpu"
        about = (
            ("files", f"`{CONFIG}`, `{PREPROCESSOR}`, `{WEIGHTS}`: a folder of Hugging Face transformers"),
            ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
            ("canvas", f"{texts['imgsz']} at most"),
        )
        return Exported(str(folder), about, _detect_by(open_detector(spec, device, torch.get_num_threads())))


def holds_detector(uri: str) -> bool:
    """Say whether a path is a folder whose configuration is that of a detector."""
    try:
        config = json.loads((Path(uri) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") in FAMILIES


def open_folder(folder: str, labels: Sequence[str], canvas_px: int | None) -> HuggingFaceDetector:
    """Read what a folder says, to train the model in it.

    Args:
        folder: A local folder of a detector.
        labels: The classes that the model shall have.
        canvas_px: Longer side of the canvas in place of the folder's own.

    Raises:
        SpecError: It is of a type that is not trained here.
        ModelError: The folder is not understood, or not safe.
        MissingExtra: A package is not installed.
    """
    absent = [package for package in ("transformers", "scipy") if find_spec(package) is None]
    if absent:
        raise missing_extra("training a Hugging Face detector needs", "huggingface", *absent)
    info = read_folder(folder)
    if info.model_type not in TRAINED:
        raise SpecError(
            f"--init {folder}: model_type is {info.model_type}; batchdet trains {', '.join(TRAINED)}",
            code="train.init_model_type",
            key="--init",
        )
    config = json.loads((Path(folder) / CONFIG).read_text())
    processor = json.loads((Path(folder) / PREPROCESSOR).read_text())
    preprocess, size = info.preprocess, info.size
    if canvas_px is not None and size is not None:
        longest = max(size)
        size = (round(size[0] * canvas_px / longest), round(size[1] * canvas_px / longest))
        processor["size"] = {"height": size[0], "width": size[1]}
    elif canvas_px is not None:
        shortest_px = max(1, round(preprocess.shortest_px * canvas_px / preprocess.longest_px))
        preprocess = replace(preprocess, shortest_px=shortest_px, longest_px=canvas_px)
        processor["size"] = {"shortest_edge": shortest_px, "longest_edge": canvas_px}
        processor.pop("max_size", None)
    return HuggingFaceDetector(
        str(Path(folder).resolve()), tuple(labels), config, processor, preprocess, size, card_licence(folder)
    )


def _model(config: Mapping[str, Any], labels: Sequence[str]) -> nn.Module:
    """Make a model with fresh weights; nothing is downloaded."""
    import transformers

    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    library: Any = transformers
    wanted = library.AutoConfig.for_model(**config)
    wanted.id2label = dict(enumerate(labels))
    wanted.label2id = {label: i for i, label in enumerate(labels)}
    if hasattr(wanted, "use_pretrained_backbone"):
        wanted.use_pretrained_backbone = False
    model: nn.Module = library.AutoModelForObjectDetection.from_config(wanted)
    return model


def _class_axes(config: Mapping[str, Any], labels: Sequence[str]) -> dict[str, int]:
    """Find the tensors with an axis for the classes: those that another number of classes gives another shape.

    Returns:
        The axis by the tensor's name.
    """
    with torch.device("meta"):
        shapes = [
            {name: tuple(value.shape) for name, value in _model(config, names).state_dict().items()}
            for names in (labels, [*labels, "one more class"])
        ]
    return {
        name: next(axis for axis, (a, b) in enumerate(zip(shape, shapes[1][name], strict=True)) if a != b)
        for name, shape in shapes[0].items()
        if shape != shapes[1][name]
    }


def _detect_by(detector: Detector) -> Callable[[Pixels], list[dict[str, Any]]]:
    """Return what finds objects as a run of batchdet does."""

    def detect(rgb: Pixels) -> list[dict[str, Any]]:
        letterbox = detector.letterbox(rgb.shape[1], rgb.shape[0])
        (found,) = detector.detect(painted(rgb, letterbox)[None], [letterbox])
        boxes = xyxy_to_xywh(found.boxes_xyxy).tolist()
        return [
            {"bbox": box, "score": score, "category_id": int(class_id)}
            for box, score, class_id in zip(boxes, found.scores.tolist(), found.class_ids.tolist(), strict=True)
        ]

    return detect
