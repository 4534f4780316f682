"""What a URI names, and in which format: decided from one listing, by extension."""

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from batchdet import storage
from batchdet.errors import MissingExtra, SourceEmpty, SourceError
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
_VIDEOS: Final = ("mp4", "mov", "avi", "mkv", "webm", "m4v", "mpg", "mpeg", "wmv")
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


def list_source(source: SourceSpec) -> list[StoredObject]:
    """List what ``source.uri`` names, once.

    Files and folders whose names begin with a dot or an underscore are passed over, except pictures such as
    ``_DSC0001.JPG``.

    Raises:
        SourceEmpty: An empty folder, or a glob that matches nothing.
        SourceError: It does not exist, or the store refused.
    """
    try:
        objects = storage.list_objects(source.uri, keep_underscore=is_image_name)
    except NotFound as error:
        raise SourceError(f"source.uri: {source.uri} does not exist; {storage.what_exists(source.uri)}") from error
    except MissingExtra as error:
        raise MissingExtra(f"source.uri: {error.message}") from error
    except StorageError as error:
        raise SourceError(f"source.uri: {error.message}") from error
    if not objects:
        what = "matches no file" if storage.is_glob(source.uri) else "is an empty folder"
        raise SourceEmpty(
            f"source.uri: {source.uri} {what}; it should name images, tar shards, Parquet files or a list"
        )
    return objects


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
    if _is_named(storage.normalize(source.uri), objects):
        advice = "uri_list" if kinds["uri_list"] else "folder"
        raise SourceError(
            f"source.format: {source.uri} holds {count_extensions(objects)}, which does not tell the format; "
            f"write source.format: {advice} if that is what it is, or correct source.uri",
            code="source.format_unclear",
            key="source.format",
        )
    raise SourceError(
        f"source.uri: {source.uri} holds {count_extensions(objects)} and no images, tar shards or Parquet files"
        f"{_way_out(objects)}",
        code="source.no_images",
        key="source.uri",
    )


def _is_named(uri: str, objects: Sequence[StoredObject]) -> bool:
    """Tell whether the URI names files whatever their extension: one file, or a glob such as ``*.dat``."""
    literal = storage.is_glob(uri) and _LITERAL_EXTENSION.search(posixpath.basename(uri)) is not None
    return literal or (len(objects) == 1 and objects[0].uri == uri)


def _way_out(objects: Sequence[StoredObject]) -> str:
    """Say as half a sentence what to do with files that are not images by their names; "" if nothing can be done."""
    names = [posixpath.basename(obj.uri) for obj in objects]
    if any(has_extension(name, _VIDEOS) for name in names):
        return "; videos are not read, write their frames to images first"
    if all(kind_of(name) == "uri_list" for name in names):
        return "; if they are lists of images, write source.format: uri_list"
    if any(kind_of(name) == "uri_list" for name in names):
        return "; if one of them is a list of images, name that file in source.uri"
    if any("." not in name for name in names):
        return "; images without an extension are read if a list (txt, csv, jsonl) names them"
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
    for obj in objects:
        (kept if has_extension(posixpath.basename(obj.uri), _EXTENSIONS[format_]) else others).append(obj)
    if not kept:
        raise SourceError(
            f"source.uri: {source.uri} holds no {_FORMATS[format_]} ({', '.join(_EXTENSIONS[format_])}) "
            f"but {count_extensions(objects)}{_way_out(objects)}",
            code="source.no_images",
            key="source.uri",
        )
    return kept, others


def count_extensions(objects: Iterable[StoredObject]) -> str:
    """Say for a person what kinds of file there are: ``3 .json, 1 .md``."""
    counts = Counter(posixpath.splitext(obj.uri)[1].lower() or "without extension" for obj in objects)
    shown = [f"{n} {ext}" for ext, n in counts.most_common(4)]
    return ", ".join(shown) + (", ..." if len(counts) > 4 else "")
