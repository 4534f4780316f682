"""Ground truth in COCO's format: the one reader, for training and for evaluation.

Source: the format, https://cocodataset.org/#format-data.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from batchdet import storage
from batchdet.errors import SpecError

_NAMED: Final = 10
"""At most this many faults of a file are named in one message."""


class Faults:
    """Collects what is wrong with the entries of a file, so that one message names all of it.

    Args:
        uri: The file.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._found: list[tuple[str, str, str]] = []

    def add(self, place: str, words: str, code: str) -> None:
        """Note a fault of the entry ``place``; ``words`` say what was found and what would be right."""
        self._found.append((place, words, code))

    def raise_if_any(self) -> None:
        """Raise what was noted: the number of entries, and the first ten, each with its place.

        Raises:
            SpecError: Something was noted. The code is that of the first fault, the key its place.
        """
        if not self._found:
            return
        place, words, code = self._found[0]
        message = f"{self._uri}: {place}: {words}"
        if len(self._found) > 1:
            lines = [f"  {place}: {words}" for place, words, _ in self._found[:_NAMED]]
            more = len(self._found) - len(lines)
            lines += [f"  and {more} more"] * bool(more)
            message = "\n".join([f"{self._uri}: {len(self._found)} entries are wrong", *lines])
        raise SpecError(message, code=code, key=f"{self._uri}: {place}")


@dataclass(frozen=True)
class NamedImage:
    """One image of a truth.

    Args:
        place: Its entry, for messages: ``images[3] (id 7)``.
        name: The file's name, with slashes as separators.
        entry: The entry as written.
    """

    place: str
    name: str
    entry: Mapping[str, Any]


@dataclass(frozen=True)
class TruthBox:
    """One box of a truth.

    Args:
        place: Its entry, for messages.
        image: Position of its image in `Truth.images`.
        category: Position of its category in `Truth.categories`.
        xywh: Left, top, width and height in pixels, finite.
        crowd: Whether it is a region of many objects.
        area: As written; width times height where it is not.
    """

    place: str
    image: int
    category: int
    xywh: tuple[float, float, float, float]
    crowd: bool
    area: float


@dataclass(frozen=True)
class Truth:
    """What a COCO JSON says.

    Args:
        uri: The file.
        sha256: Its digest.
        categories: Names, in the order of their ids.
        images: In the file's order.
        boxes: In the file's order.
        strays: Number of annotations whose image the file does not list; they are in no other field.
        first_stray: Place of the first of them; "" if there is none.
        licences: What the file says of its images' licences.
    """

    uri: str
    sha256: str
    categories: tuple[str, ...]
    images: tuple[NamedImage, ...]
    boxes: tuple[TruthBox, ...]
    strays: int
    first_stray: str
    licences: tuple[str, ...]


def read_truth(uri: str) -> Truth:
    """Read and check a COCO JSON.

    Args:
        uri: The file; a path or any fsspec URI.

    Raises:
        SpecError: It is no COCO JSON, or entries are wrong; the message names up to ten of them.
    """
    raw = storage.read_bytes(uri)
    truth = _parse(raw, uri)
    numbers, names = _categories(truth["categories"], uri)
    images = tuple(_image(uri, place, entry) for place, entry in enumerate(truth["images"]))
    positions = _positions(images, uri)
    faults = Faults(uri)
    boxes, strays = [], []
    for n, entry in enumerate(truth["annotations"]):
        place = _place("annotations", n, entry)
        image = positions.get(_key(entry.get("image_id")))
        if image is None:
            strays.append(place)
            continue
        category = numbers.get(_key(entry.get("category_id")))
        if category is None:
            known = some(one["id"] for one in truth["categories"])
            words = f"category_id is {entry.get('category_id')!r}; the file's categories are {known}"
            faults.add(place, words, "truth.unknown_category")
            continue
        xywh = _xywh(entry.get("bbox"))
        if xywh is None:
            words = f"bbox is {entry.get('bbox')!r:.80}; it must be four finite numbers: x, y, width and height"
            faults.add(f"{place}, on {images[image].name}", words, "truth.box")
            continue
        area = _number(entry.get("area"))
        crowd = entry.get("iscrowd") in (1, True, "1")
        boxes.append(TruthBox(place, image, category, xywh, crowd, xywh[2] * xywh[3] if area is None else area))
    faults.raise_if_any()
    licences = [str(one["name"]) for one in truth.get("licenses") or [] if isinstance(one, dict) and one.get("name")]
    return Truth(
        uri,
        hashlib.sha256(raw).hexdigest(),
        names,
        images,
        tuple(boxes),
        len(strays),
        strays[0] if strays else "",
        tuple(dict.fromkeys(licences)),
    )


def some(values: Iterable[Any]) -> str:
    """Write the first eight of some values, and dots if there are more."""
    texts = [str(value) for value in values]
    return ", ".join(texts[:8]) + (", ..." if len(texts) > 8 else "")


def _parse(raw: bytes, uri: str) -> dict[str, Any]:
    try:
        truth: dict[str, Any] = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{uri}: not JSON: {error}", code="truth.not_json", key=uri) from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(truth, dict) or not isinstance(truth.get(key), list):
            raise SpecError(
                f"{uri}: not a COCO truth: it has no list {key!r}; right is images, annotations, categories",
                code="truth.not_coco",
                key=uri,
            )
        for place, entry in enumerate(truth[key]):
            if not isinstance(entry, dict):
                where = f"{uri}: {key}[{place}]"
                raise SpecError(f"{where} is {entry!r:.60}; it must be an object", code="truth.not_coco", key=where)
    for key in ("images", "categories"):
        if not truth[key]:
            raise SpecError(f"{uri}: its list {key!r} is empty", code="truth.not_coco", key=uri)
    return truth


def _categories(categories: list[dict[str, Any]], uri: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """Number the categories by the order of their ids."""
    numbered = []
    for place, entry in enumerate(categories):
        number, name = _number(entry.get("id")), entry.get("name")
        if number is None or number != int(number) or not isinstance(name, str) or not name:
            where = f"{uri}: {_place('categories', place, entry)}"
            raise SpecError(f"{where}: id and name must be a number and a text", code="truth.category", key=where)
        numbered.append((int(number), name))
    numbered.sort()
    for key, values in (("id", [str(number) for number, _ in numbered]), ("name", [name for _, name in numbered])):
        twice = next((value for n, value in enumerate(values) if value in values[:n]), None)
        if twice is not None:
            raise SpecError(f"{uri}: two categories have the {key} {twice!r}", code="truth.category_twice", key=uri)
    return {str(number): n for n, (number, _) in enumerate(numbered)}, tuple(name for _, name in numbered)


def _image(uri: str, n: int, entry: Mapping[str, Any]) -> NamedImage:
    place, name = _place("images", n, entry), entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise SpecError(f"{uri}: {place}: file_name must be a text", code="truth.image", key=f"{uri}: {place}")
    return NamedImage(place, name.replace("\\", "/").removeprefix("./"), entry)


def _positions(images: tuple[NamedImage, ...], uri: str) -> dict[str, int]:
    """Map the images' ids to their positions, and refuse what is there twice."""
    positions: dict[str, int] = {}
    first: dict[str, str] = {}
    faults = Faults(uri)
    for n, image in enumerate(images):
        key = _key(image.entry.get("id"))
        if "id" not in image.entry or key in positions:
            faults.add(image.place, "its id is missing, or an earlier image has it", "truth.image_id")
        elif image.name in first:
            words = f"{image.name} is listed twice, first as {first[image.name]}; keep one of the two"
            faults.add(image.place, words, "truth.image_twice")
        positions.setdefault(key, n)
        first.setdefault(image.name, image.place)
    faults.raise_if_any()
    return positions


def _xywh(bbox: Any) -> tuple[float, float, float, float] | None:
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None
    x, y, w, h = (_number(value) for value in bbox)
    return None if x is None or y is None or w is None or h is None else (x, y, w, h)


def _number(value: Any) -> float | None:
    """Read a finite number, also one that is written as a text."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _key(value: Any) -> str:
    """Make ids comparable: 7, 7.0 and "7" are the same."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _place(key: str, n: int, entry: Mapping[str, Any]) -> str:
    return f"{key}[{n}]" + (f" (id {entry['id']})" if "id" in entry else "")
