"""Ground truth in COCO's format: read, checked entry by entry, split.

Also takes what review tools export: Label Studio (``result.json``) and CVAT (``annotations/instances_default.json``).

Source: the format, https://cocodataset.org/#format-data.
"""

import hashlib
import json
import posixpath
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from batchdet import storage
from batchdet.errors import SpecError

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
        SpecError: Something is missing or wrong; the message names the file and the entry.
    """
    uri, folder = _find(storage.normalize(data))
    raw = storage.read_bytes(uri)
    truth = _parse(raw, uri)
    class_of, names = _classes(truth["categories"], uri, labels)
    folder = storage.normalize(images) if images else folder
    files = _Files(folder)
    entries: dict[Any, tuple[str, int, int]] = {}
    for place, entry in enumerate(truth["images"]):
        where = _where(uri, "images", place, entry)
        name, width, height = entry.get("file_name"), _side(entry.get("width")), _side(entry.get("height"))
        if not isinstance(name, str) or not name or width is None or height is None:
            raise SpecError(f"{where}: file_name, width and height must be a text and two positive numbers of pixels")
        if "id" not in entry or entry["id"] in entries:
            raise SpecError(f"{where}: its id is missing or that of an earlier image")
        entries[entry["id"]] = (name, width, height)
    boxes: dict[Any, list[tuple[list[float], int, bool]]] = defaultdict(list)
    for place, entry in enumerate(truth["annotations"]):
        where = _where(uri, "annotations", place, entry)
        if entry.get("image_id") not in entries:
            raise SpecError(f"{where}: image_id is {entry.get('image_id')!r}, which no image of the file has")
        if entry.get("category_id") not in class_of:
            raise SpecError(f"{where}: category_id is {entry.get('category_id')!r}; known are {_some(class_of)}")
        name, width, height = entries[entry["image_id"]]
        box = _box(entry.get("bbox"), width, height, f"{where}, on {name} ({width} x {height} px)")
        boxes[entry["image_id"]].append((box, class_of[entry["category_id"]], bool(entry.get("iscrowd", 0))))
    found = []
    for place, (image_id, (name, width, height)) in enumerate(entries.items()):
        at = files.find(name, f"{uri}: images[{place}] (id {image_id})")
        own = boxes[image_id]
        found.append(
            TruthImage(
                name,
                at,
                width,
                height,
                np.array([box for box, _, _ in own], np.float32).reshape(-1, 4),
                np.array([class_id for _, class_id, _ in own], np.int64),
                np.array([crowd for _, _, crowd in own], np.bool_),
            )
        )
    licences = [
        str(one.get("name")) for one in truth.get("licenses") or [] if isinstance(one, dict) and one.get("name")
    ]
    done = CocoData(uri, hashlib.sha256(raw).hexdigest(), names, tuple(found), folder, tuple(dict.fromkeys(licences)))
    if not done.objects:
        raise SpecError(f"{uri}: not one of its {len(found)} images has a box; a detector needs objects to learn from")
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

    def find(self, name: str, where: str) -> str:
        """Return the URI: by the whole name, else by as much of its end as tells one file from the others."""
        for spelling in dict.fromkeys((name, urllib.parse.unquote(name))):
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
                raise SpecError(f"{where}: file_name {name!r} may be any of {_some(paths)} below {self._folder}")
        raise SpecError(
            f"{where}: file_name {name!r} is not below {self._folder}, which holds {len(self._by_path)} files; "
            "name the folder of the images with --images"
        )


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


def _parse(raw: bytes, uri: str) -> dict[str, Any]:
    try:
        truth: dict[str, Any] = json.loads(raw)
    except ValueError as error:
        raise SpecError(f"{uri}: not JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(truth, dict) or not isinstance(truth.get(key), list):
            raise SpecError(
                f"{uri}: not a COCO truth: it has no list {key!r}; right is images, annotations, categories"
            )
        for place, entry in enumerate(truth[key]):
            if not isinstance(entry, dict):
                raise SpecError(f"{uri}: {key}[{place}] is {entry!r:.60}; it must be an object")
    for key in ("images", "categories"):
        if not truth[key]:
            raise SpecError(f"{uri}: its list {key!r} is empty")
    return truth


def _classes(
    categories: list[dict[str, Any]], uri: str, wanted: Sequence[str] | None
) -> tuple[dict[int, int], tuple[str, ...]]:
    """Number the classes: by the order of the category ids, or as ``wanted`` has them."""
    for place, entry in enumerate(categories):
        if not isinstance(entry.get("id"), int) or not isinstance(entry.get("name"), str) or not entry["name"]:
            raise SpecError(f"{_where(uri, 'categories', place, entry)}: id and name must be a number and a text")
    for key in ("id", "name"):
        twice = [value for value, count in Counter(entry[key] for entry in categories).items() if count > 1]
        if twice:
            raise SpecError(f"{uri}: two categories have the {key} {twice[0]!r}")
    own = sorted(categories, key=lambda entry: int(entry["id"]))
    names = tuple(entry["name"] for entry in own) if wanted is None else tuple(wanted)
    unknown = [entry["name"] for entry in own if entry["name"] not in names]
    if unknown:
        raise SpecError(f"{uri}: the category {unknown[0]!r} is not one of the training's: {_some(names)}")
    return {entry["id"]: names.index(entry["name"]) for entry in own}, names


def _box(bbox: Any, width: int, height: int, where: str) -> list[float]:
    """Check COCO's ``[x, y, width, height]`` and return xyxy inside the image."""
    if (
        not isinstance(bbox, list)
        or len(bbox) != 4
        or not all(isinstance(v, int | float) and np.isfinite(v) for v in bbox)
    ):
        raise SpecError(f"{where}: bbox is {bbox!r:.80}; it must be four numbers, x, y, width and height")
    x, y, w, h = (float(value) for value in bbox)
    if w <= 0 or h <= 0:
        raise SpecError(f"{where}: bbox is {bbox}; its width and height must be above 0")
    if min(x, y) < -_OUTSIDE_PX or x + w > width + _OUTSIDE_PX or y + h > height + _OUTSIDE_PX:
        raise SpecError(f"{where}: bbox is {bbox}, which reaches outside the image")
    clipped = [max(0.0, x), max(0.0, y), min(float(width), x + w), min(float(height), y + h)]
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        raise SpecError(f"{where}: bbox is {bbox}, of which nothing lies inside the image")
    return clipped


def _side(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and value >= 1 else None


def _where(uri: str, key: str, place: int, entry: Mapping[str, Any]) -> str:
    return f"{uri}: {key}[{place}]" + (f" (id {entry['id']})" if "id" in entry else "")


def _some(values: Iterable[Any]) -> str:
    texts = [str(value) for value in values]
    return ", ".join(texts[:8]) + (", ..." if len(texts) > 8 else "")
