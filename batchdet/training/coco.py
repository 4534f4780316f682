"""A data set to learn from: ground truth in COCO's format with its image files, checked box by box, split.

Also takes what review tools export: Label Studio (``result.json``) and CVAT (``annotations/instances_default.json``).
"""

import posixpath
import urllib.parse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from batchdet import storage
from batchdet.errors import SpecError
from batchdet.truth import Faults, NamedImage, Truth, read_truth, some

_USUAL_NAMES: Final = (
    "instances.json",
    "annotations/instances.json",
    "annotations/instances_default.json",
    "annotations/instances_train.json",
    "result.json",
    "_annotations.coco.json",
)
_OUTSIDE_PX: Final = 1.0
"""A box may reach so far outside its image, as rounding tools write them; it is clipped."""


@dataclass(frozen=True, eq=False)  # arrays have no single answer
class TruthImage:
    """One image and what it shows.

    Attributes:
        name: As the truth names the file.
        uri: Where its bytes are.
        width_px: Width of the upright image, as the truth says.
        height_px: Its height.
        boxes_xyxy: ``(M, 4)`` float32 pixels, inside the image.
        class_ids: ``(M,)`` int64, positions in the labels.
        crowd: ``(M,)`` bool: a region of many objects, not one to learn.
    """

    name: str
    uri: str
    width_px: int
    height_px: int
    boxes_xyxy: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CocoData:
    """A data set with its truth.

    Attributes:
        uri: The JSON file.
        sha256: Its digest.
        labels: Class texts, in the order of the category ids.
        images: In the truth's order.
        folder: Below it the images were looked for.
        licences: What the file says of its images' licences.
    """

    uri: str
    sha256: str
    labels: tuple[str, ...]
    images: tuple[TruthImage, ...]
    folder: str
    licences: tuple[str, ...]

    @property
    def objects(self) -> int:
        """Boxes of all images, crowd regions left out."""
        return sum(int((~image.crowd).sum()) for image in self.images)

    def split(self, fraction: float, seed: int) -> tuple["CocoData", "CocoData"]:
        """Cut into training and validation, by chance, the same for the same seed.

        Args:
            fraction: Share of the images for validation; at least one image goes to each side.
            seed: Of the choice.

        Raises:
            SpecError: There are fewer than two images.
        """
        count = len(self.images)
        if count < 2:
            raise SpecError(
                f"{self.uri}: {count} image cannot be split into training and validation; name a --val file"
            )
        order = np.random.default_rng([seed, 2]).permutation(count)
        held = set(order[: min(count - 1, max(1, round(fraction * count)))].tolist())
        train = tuple(image for i, image in enumerate(self.images) if i not in held)
        val = tuple(image for i, image in enumerate(self.images) if i in held)
        return replace(self, images=train), replace(self, images=val)

    def to_coco(self) -> dict[str, Any]:
        """Return the truth as pycocotools takes it; ``category_id`` is the class's number, ``id`` the position."""
        annotations: list[dict[str, Any]] = []
        for image_id, image in enumerate(self.images):
            for box, class_id, crowd in zip(image.boxes_xyxy.tolist(), image.class_ids, image.crowd, strict=True):
                x, y, width, height = box[0], box[1], box[2] - box[0], box[3] - box[1]
                shape = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": int(crowd)}
                place = {"id": len(annotations) + 1, "image_id": image_id, "category_id": int(class_id)}
                annotations.append(place | shape)
        return {
            "info": {},
            "images": [
                {"id": i, "file_name": image.name, "width": image.width_px, "height": image.height_px}
                for i, image in enumerate(self.images)
            ],
            "annotations": annotations,
            "categories": [{"id": i, "name": label} for i, label in enumerate(self.labels)],
        }


def read_coco(data: str, images: str | None = None, labels: Sequence[str] | None = None) -> CocoData:
    """Read and check a truth.

    Args:
        data: The JSON file, or a folder that holds one under a usual name; a path or any fsspec URI.
        images: Folder of the images; the data's own folder by default.
        labels: The classes in their order, of the data that this one goes with; the file's own by default.

    Raises:
        SpecError: Something is missing or wrong; the message names the file and up to ten entries.
    """
    uri, folder = _find(storage.normalize(data))
    truth = read_truth(uri)
    if truth.strays:
        raise SpecError(
            f"{uri}: {truth.first_stray}: no image of the file has its image_id; so it is with {truth.strays} in all",
            code="truth.unknown_image",
            key=f"{uri}: {truth.first_stray}",
        )
    class_of, names = _classes(truth, labels)
    folder = storage.normalize(images) if images else folder
    files, faults = _Files(folder), Faults(uri)
    sides = [_sides(image, faults) for image in truth.images]
    faults.raise_if_any()
    boxes: dict[int, list[tuple[list[float], int, bool]]] = defaultdict(list)
    for one in truth.boxes:
        image, (width, height) = truth.images[one.image], sides[one.image]
        words, box = _box(one.xywh, width, height)
        if words:
            place = f"{one.place}, on {image.name} ({width} x {height} px)"
            faults.add(place, f"bbox is {list(one.xywh)}{words}", "truth.box")
        boxes[one.image].append((box, class_of[one.category], one.crowd))
    faults.raise_if_any()
    found = []
    for n, (image, (width, height)) in enumerate(zip(truth.images, sides, strict=True)):
        at, own = files.find(image, faults), boxes[n]
        found.append(
            TruthImage(
                image.name,
                at,
                width,
                height,
                np.array([box for box, _, _ in own], np.float32).reshape(-1, 4),
                np.array([class_id for _, class_id, _ in own], np.int64),
                np.array([crowd for _, _, crowd in own], np.bool_),
            )
        )
    faults.raise_if_any()
    done = CocoData(uri, truth.sha256, names, tuple(found), folder, truth.licences)
    if not done.objects:
        raise SpecError(
            f"{uri}: not one of its {len(found)} images has a box; a detector needs objects to learn from",
            code="truth.no_objects",
            key=uri,
        )
    return done


class _Files:
    """The files below a folder, found by the names that truths give them."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        prefix = folder.rstrip("/") + "/"
        self._by_path = {obj.uri.removeprefix(prefix): obj.uri for obj in storage.find_all(folder)}
        self._by_last: dict[str, list[str]] = defaultdict(list)
        for path in self._by_path:
            self._by_last[posixpath.basename(path)].append(path)

    def find(self, image: NamedImage, faults: Faults) -> str:
        """Return the URI: by the whole name, else by as much of its end as tells one file from the others.

        If none or several fit, this is noted as a fault, and the URI is "".
        """
        for spelling in dict.fromkeys((image.name, urllib.parse.unquote(image.name))):
            path = spelling.replace("\\", "/").removeprefix("./").lstrip("/")
            if path in self._by_path:
                return self._by_path[path]
            parts = path.split("/")
            paths = self._by_last.get(parts[-1], [])
            for taken in range(2, len(parts) + 1):
                if len(paths) <= 1:
                    break
                end = "/" + "/".join(parts[-taken:])
                paths = [one for one in paths if f"/{one}".endswith(end)] or paths
            if len(paths) == 1:
                return self._by_path[paths[0]]
            if paths:
                words = f"file_name {image.name!r} may be any of {some(paths)} below {self._folder}"
                faults.add(image.place, words, "truth.image_ambiguous")
                return ""
        faults.add(
            image.place,
            f"file_name {image.name!r} is not below {self._folder}, which holds {len(self._by_path)} files; "
            "name the folder of the images with --images",
            "truth.image_missing",
        )
        return ""


def _find(uri: str) -> tuple[str, str]:
    """Return the JSON file, and the folder below which its images are."""
    if not storage.is_folder(uri):
        if not storage.exists(uri):
            raise SpecError(f"{uri}: there is no such file or folder; --data takes a COCO JSON or a folder with one")
        folder = uri.rpartition("/")[0]
        return uri, folder.rpartition("/")[0] if storage.basename(folder) == "annotations" else folder
    found = [one for one in (storage.join(uri, name) for name in _USUAL_NAMES) if storage.exists(one)]
    if len(found) == 1:
        return found[0], uri
    if found:
        raise SpecError(f"{uri} holds several truths ({', '.join(map(storage.basename, found))}); name one with --data")
    raise SpecError(f"{uri} holds none of {', '.join(_USUAL_NAMES)}; name the COCO JSON with --data")


def _classes(truth: Truth, wanted: Sequence[str] | None) -> tuple[list[int], tuple[str, ...]]:
    """Number the classes: by the order of the category ids, or as ``wanted`` has them."""
    names = truth.categories if wanted is None else tuple(wanted)
    unknown = [name for name in truth.categories if name not in names]
    if unknown:
        raise SpecError(
            f"{truth.uri}: the category {unknown[0]!r} is not one of the training's: {some(names)}",
            code="truth.other_category",
            key=truth.uri,
        )
    return [names.index(name) for name in truth.categories], names


def _sides(image: NamedImage, faults: Faults) -> tuple[int, int]:
    """Read width and height in pixels; a fault is noted."""
    width, height = _side(image.entry.get("width")), _side(image.entry.get("height"))
    if width is None or height is None:
        faults.add(image.place, "width and height must be two positive numbers of pixels", "truth.image")
    return width or 0, height or 0


def _box(xywh: Sequence[float], width: int, height: int) -> tuple[str, list[float]]:
    """Turn ``x, y, width, height`` into xyxy inside the image; say what is wrong with it, "" for nothing."""
    x, y, w, h = xywh
    clipped = [max(0.0, x), max(0.0, y), min(float(width), x + w), min(float(height), y + h)]
    if w <= 0 or h <= 0:
        return "; its width and height must be above 0", clipped
    if min(x, y) < -_OUTSIDE_PX or x + w > width + _OUTSIDE_PX or y + h > height + _OUTSIDE_PX:
        return ", which reaches outside the image", clipped
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        return ", of which nothing lies inside the image", clipped
    return "", clipped


def _side(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and value >= 1 else None
