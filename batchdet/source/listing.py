"""What a URI names, and in which format: decided from one listing, by extension."""

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from batchdet import storage
from batchdet.errors import MissingExtra, SourceEmpty, SourceError
from batchdet.source.shards import folder_root
from batchdet.spec import SourceSpec
from batchdet.storage import NotFound, StorageError, StoredObject

_READ: Final = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif")
_NOT_READ: Final = ("heic", "heif", "avif", "jxl", "jp2")
"""Photographs all the same. Each becomes a failed row that says so; passed over, nobody would miss them."""
IMAGE_EXTENSIONS: Final = (*_READ, *_NOT_READ)
_EXTENSIONS: Final[dict[str, tuple[str, ...]]] = {
    "webdataset": ("tar", "tar.gz", "tgz"),
    "parquet": ("parquet", "pq"),
    "uri_list": ("csv", "tsv", "jsonl", "ndjson", "txt", "parquet", "pq"),
    "folder": IMAGE_EXTENSIONS,
}
_FORMATS: Final = {
    "webdataset": "tar shards",
    "parquet": "Parquet files",
    "uri_list": "lists (csv, jsonl, txt)",
    "folder": "images",
}
_UNDER_UNDERSCORES: Final = (*IMAGE_EXTENSIONS, *_EXTENSIONS["webdataset"])
_OWN: Final = "/_batchdet/"
_TABLES: Final = frozenset({"images", "detections", "truth"})
_KINDS_SHOWN: Final = 6
_FOREIGN: Final = (
    (
        ("mp4", "mov", "avi", "mkv", "webm", "m4v", "mpg", "mpeg", "wmv"),
        "videos are not read, write their frames to images first (ffmpeg -i VIDEO FOLDER/%06d.jpg)",
    ),
    (("zip", "7z", "rar"), "unpack archives of this kind into a folder, or pack the images into tar shards"),
    (("bz2", "xz", "zst", "lz4"), "of packed archives only tar.gz is read, pack them anew"),
    (("feather", "arrow", "orc", "avro"), "write such tables as Parquet"),
    (("xlsx", "xls", "ods"), "save such sheets as CSV"),
)
"""What people give as a source: extensions, and what to do instead."""
_LITERAL_EXTENSION: Final = re.compile(r"\.[^.*?\[\]{}]+$")


def has_extension(name: str, extensions: Iterable[str]) -> bool:
    """Tell whether a file name ends with one of these extensions, in either case."""
    return name.lower().endswith(tuple(f".{e}" for e in extensions))


def is_image_name(name: str) -> bool:
    """Tell whether a file name has the extension of an image."""
    return has_extension(posixpath.basename(name), IMAGE_EXTENSIONS)


def kind_of(uri: str) -> str:
    """Return the format that a file name speaks for, or "" when it speaks for none."""
    name = posixpath.basename(uri)
    return next((kind for kind, extensions in _EXTENSIONS.items() if has_extension(name, extensions)), "")


def list_source(source: SourceSpec) -> tuple[list[StoredObject], Counter[str]]:
    """List what ``source.uri`` names, once.

    Returns:
        The files that count, and how many of which kind are passed over by their place: those whose path below the
        source has a part that begins with a dot; files other than images and tar shards where one begins with an
        underscore, because Spark, Arrow and Delta keep their own there; and outputs of batchdet.

    Raises:
        SourceEmpty: An empty folder, or a glob that matches nothing.
        SourceError: It does not exist, or the store refused.
    """
    try:
        found = storage.list_objects(source.uri)
    except NotFound as error:
        raise SourceError(
            f"source.uri: {source.uri} does not exist; {storage.what_exists(source.uri)}",
            code="source.not_found",
            key="source.uri",
        ) from error
    except MissingExtra as error:
        raise MissingExtra(f"source.uri: {error.message}") from error
    except StorageError as error:
        raise SourceError(f"source.uri: {error.message}") from error
    objects, hidden = _without_hidden(storage.normalize(source.uri), found)
    if not objects:
        empty = "matches no file" if storage.is_glob(source.uri) else "is an empty folder"
        what = f"holds nothing but {in_words(hidden)}" if hidden else empty
        raise SourceEmpty(
            f"source.uri: {source.uri} {what}; it should name images, tar shards, Parquet files or a list"
        )
    return objects, hidden


def _without_hidden(uri: str, objects: Sequence[StoredObject]) -> tuple[list[StoredObject], Counter[str]]:
    hidden: Counter[str] = Counter()
    if [obj.uri for obj in objects] == [uri]:
        return list(objects), hidden
    folder = uri.rstrip("/") + "/"
    below = not objects or objects[0].uri.startswith(folder)
    prefix = folder if below else f"{folder_root(uri).rstrip('/')}/"
    outputs = {
        name[: at + 1] for obj in objects if (at := (name := f"/{obj.uri.removeprefix(prefix)}").find(_OWN)) >= 0
    }
    kept = []
    for obj in objects:
        name = obj.uri.removeprefix(prefix)
        parts = name.split("/") if below else [posixpath.basename(name)]
        if outputs and _is_own(f"/{name}", outputs):
            hidden["of outputs of batchdet"] += 1
        elif any(part.startswith(".") for part in parts):
            hidden["hidden"] += 1
        elif any(part.startswith("_") for part in parts) and not has_extension(parts[-1], _UNDER_UNDERSCORES):
            hidden["beginning with _"] += 1
        else:
            kept.append(obj)
    return kept, hidden


def _is_own(name: str, outputs: set[str]) -> bool:
    """Tell whether a file is one that batchdet writes into an output."""
    for output in outputs:
        if name.startswith(output):
            inner = name.removeprefix(output)
            table, _, rest = inner.partition("/")
            part = posixpath.basename(rest)
            if table == "_batchdet" or inner == "_SUCCESS":
                return True
            if table in _TABLES and part.startswith("part-") and part.endswith(".parquet"):
                return True
    return False


def resolve_format(source: SourceSpec, objects: Sequence[StoredObject]) -> str:
    """Decide the source's format.

    Args:
        source: Its ``format`` wins unless it is auto.
        objects: What the URI names.

    Raises:
        SourceError: The names speak for several formats, or for none.
    """
    if source.format != "auto":
        return source.format
    kinds = Counter(kind_of(obj.uri) for obj in objects)
    alone = len(objects) == 1 and not _below_folder(source, objects)
    found = [kind for kind in ("folder", "webdataset", "parquet") if kinds[kind]]
    if len(found) == 1:
        return found[0]
    if not found and kinds["uri_list"] and (alone or (storage.is_glob(source.uri) and len(kinds) == 1)):
        return "uri_list"
    if found:
        counts = [f"{kinds[k]} {_FORMATS[k] if kinds[k] > 1 else _FORMATS[k].removesuffix('s')}" for k in found]
        raise SourceError(
            f"source.format: {source.uri} holds {_listed(counts, 'and')}; write source.format: "
            f"{_listed(found, 'or')}, or a source.uri that matches one kind"
        )
    if _is_named(storage.normalize(source.uri), objects) and not _foreign(objects):
        advice = "uri_list" if kinds["uri_list"] else "folder"
        raise SourceError(
            f"source.format: {source.uri} holds {in_words(count_kinds(objects))}, which does not tell the format; "
            f"write source.format: {advice} if that is what it is, or correct source.uri",
            code="source.format_unclear",
            key="source.format",
        )
    raise SourceError(
        f"source.uri: {source.uri} holds {in_words(count_kinds(objects))} and no images, tar shards or Parquet files"
        f"{_way_out(objects)}",
        code="source.no_images",
        key="source.uri",
    )


def _is_named(uri: str, objects: Sequence[StoredObject]) -> bool:
    """Tell whether the URI names files whatever their extension: one file, or a glob such as ``*.dat``."""
    literal = storage.is_glob(uri) and _LITERAL_EXTENSION.search(posixpath.basename(uri)) is not None
    return literal or (len(objects) == 1 and objects[0].uri == uri)


def _foreign(objects: Sequence[StoredObject]) -> str:
    """Say what to do with files of a kind that is not read; "" if there are none."""
    names = [posixpath.basename(obj.uri) for obj in objects]
    if len(names) == 1 and has_extension(names[0], ["json"]):
        return "write one JSON object with a uri on each line, and name the file .jsonl"
    return next((advice for ends, advice in _FOREIGN if any(has_extension(name, ends) for name in names)), "")


def _way_out(objects: Sequence[StoredObject]) -> str:
    """Say as half a sentence what to do with files that are not images by their names; "" if nothing can be done."""
    names = [posixpath.basename(obj.uri) for obj in objects]
    if foreign := _foreign(objects):
        return f"; {foreign}"
    if all(kind_of(name) == "uri_list" for name in names):
        return "; if they are lists of images, write source.format: uri_list"
    if any(kind_of(name) == "uri_list" for name in names):
        return "; if one of them is a list of images, name that file in source.uri"
    if any("." not in name for name in names):
        return "; if those without an extension are images, write source.format: folder"
    return ""


def _listed(words: Sequence[str], last: str) -> str:
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def _below_folder(source: SourceSpec, objects: Sequence[StoredObject]) -> bool:
    return objects[0].uri != storage.normalize(source.uri)


def pick_objects(
    source: SourceSpec, format_: str, objects: Sequence[StoredObject]
) -> tuple[list[StoredObject], list[StoredObject]]:
    """Part the objects that the format is about from the others.

    A file that the URI names by itself, or through a glob that ends in an extension (``*.dat``), counts whatever
    its name; otherwise the extension decides.

    Raises:
        SourceError: None is left.
    """
    if _is_named(storage.normalize(source.uri), objects):
        return list(objects), []
    kept: list[StoredObject] = []
    others: list[StoredObject] = []
    bare = source.format == "folder"  # who writes it means images, and names without extension may be some
    for obj in objects:
        name = posixpath.basename(obj.uri)
        fits = has_extension(name, _EXTENSIONS[format_]) or (bare and not posixpath.splitext(name)[1])
        (kept if fits else others).append(obj)
    if not kept:
        raise SourceError(
            f"source.uri: {source.uri} holds no {_FORMATS[format_]} ({', '.join(_EXTENSIONS[format_])}) "
            f"but {in_words(count_kinds(objects))}{_way_out(objects)}",
            code="source.no_images",
            key="source.uri",
        )
    return kept, others


def count_kinds(objects: Iterable[StoredObject]) -> Counter[str]:
    """Count files by extension."""
    return Counter(posixpath.splitext(obj.uri)[1].lower() or "without extension" for obj in objects)


def in_words(counts: Mapping[str, int]) -> str:
    """Say for a person what kinds of file there are: ``3 .json, 1 .md``."""
    shown = [f"{n} {kind}" for kind, n in Counter(counts).most_common(_KINDS_SHOWN)]
    return ", ".join(shown) + (", ..." if len(counts) > _KINDS_SHOWN else "")
