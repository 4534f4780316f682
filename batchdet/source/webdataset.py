"""WebDataset: tar shards, gzipped or not. Members of one key belong together; sidecars are carried over.

The key is the path up to the first dot of the base name. A sample's members stand next to each other, as
WebDataset writes them; its ``.json`` and ``.txt`` may come before or behind the images. Names that begin with a
dot are passed over, as in folders (macOS puts ``._x.jpg`` beside ``x.jpg``). What is neither an image nor carried over
is counted, and the counts go with the segments.

A tar that is gone, forbidden, changed, cut or corrupt ends with one failed row. A store that fails in a way that may
pass, at opening or in the middle, ends the reading with :class:`~batchdet.storage.TransientError` instead: a row would
be committed and stand for all images behind it. Nothing more is staged then, and the same command goes on.
"""

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import pyarrow as pa

from batchdet.errors import ImageError
from batchdet.records.segment import Segment
from batchdet.source.columns import carry, require_columns, select_columns
from batchdet.source.listing import is_image_name
from batchdet.source.range_file import lasting_shard_code
from batchdet.source.rows import ImageRow, assemble, failed_shard, while_unchanged
from batchdet.source.shards import Shard
from batchdet.source.stream import Stream, StreamCorrupt, StreamTruncated, open_stream
from batchdet.source.tar import TarMember, TarWalker
from batchdet.spec import SourceSpec
from batchdet.storage import StorageError, StoredObject

_SIDECARS: Final = ("json", "txt")
_MAX_SIDECAR_BYTES: Final = 1024 * 1024
_MAX_SAMPLE_IMAGES: Final = 64
_MAX_SAMPLE_BYTES: Final = 64 * 1024 * 1024


def _hidden(name: str) -> str:
    """Return the kind of a member that is passed over by its name, or "".

    It does not end a sample: macOS writes ``._a.jpg`` before ``a.jpg``, and ``._a.json`` before ``a.json``.
    """
    folder, _, base = name.rpartition("/")
    if base.startswith("._") or "__MACOSX" in folder.split("/"):
        return "AppleDouble"
    return "hidden" if base.startswith(".") else ""


def carried_schema(source: SourceSpec) -> pa.Schema:
    """Return the columns of the sidecars that are carried over."""
    types = {name: pa.string() for name in _SIDECARS}
    where = "a WebDataset source"
    require_columns(source.columns, list(types), where)
    return carry(select_columns(types, source.columns, (), where))[0]


def read_segments(
    shard: Shard, source: SourceSpec, carried: pa.Schema, segment_rows: int, segment_bytes: int, done: frozenset[int]
) -> Iterator[Segment]:
    """Cut one tar into segments; see :func:`batchdet.source.reader.read_segments`."""
    try:
        stream = open_stream(shard.objects[0])
    except StorageError as error:
        code = lasting_shard_code(error)
        if 0 not in done:
            yield failed_shard(shard, carried, code, error.message)
        return
    try:
        reader = _TarRows(shard, source, carried.names)
        rows = reader.rows(stream)
        segments = assemble(shard, carried, rows, segment_rows, segment_bytes, done, reader.passed_over)
        yield from while_unchanged(shard, carried, segments, stream.check)
    finally:
        stream.close()


class _TarRows:
    """The rows of one tar, each with its weight in the cut."""

    def __init__(self, shard: Shard, source: SourceSpec, sidecars: list[str]) -> None:
        self._uri = shard.shard_uri
        self._max_image_bytes = source.max_image_bytes
        self._sidecars = sidecars
        self._position = 0
        self._seen: set[str] = set()
        self.passed_over: Counter[str] = Counter()
        """Members so far that are neither images nor carried over, by kind; :func:`assemble` empties it."""

    def rows(self, stream: Stream) -> Iterator[tuple[ImageRow, int]]:
        sample: list[ImageRow] = []
        texts: dict[str, str] = {}
        key = None
        held = images = 0
        failure: tuple[str, str] | None = None
        walker = TarWalker(stream)
        try:
            for member in walker:
                if member.is_folder:
                    continue
                if kind := _hidden(member.name):
                    self.passed_over[kind] += 1
                    continue
                folder, _, base = member.name.rpartition("/")
                member_key = (posixpath.normpath(folder), base.partition(".")[0])
                if member_key != key or len(sample) >= _MAX_SAMPLE_IMAGES or held >= _MAX_SAMPLE_BYTES:
                    yield from _weighed(sample, texts)
                    sample, held = [], 0
                    if member_key != key:
                        self._count_alone(texts, images)
                        texts, key, images = {}, member_key, 0
                if is_image_name(member.name):
                    sample.append(self._image(member, walker))
                    held += len(sample[-1].data or b"")
                    images += 1
                else:
                    self._sidecar(member, walker, texts)
        except StreamTruncated as error:
            failure = "shard_truncated", str(error)
        except StreamCorrupt as error:
            failure = "shard_corrupt", str(error)
        except StorageError as error:
            failure = lasting_shard_code(error), error.message
        yield from _weighed(sample, texts)
        self._count_alone(texts, images)
        if failure is not None:
            code, message = failure
            name = self._unused(f"#{self._position}")
            yield self._row(name, -1).fail(code, f"{self._uri}: {message}"), 0

    def _row(self, member: str, size_bytes: int) -> ImageRow:
        row = ImageRow(f"{self._uri}#{member}", self._uri, member, self._position, size_bytes)
        self._position += 1
        return row

    def _unused(self, name: str) -> str:
        while name in self._seen:
            name = f"{name}#{self._position}"
        self._seen.add(name)
        return name

    def _image(self, member: TarMember, walker: TarWalker) -> ImageRow:
        name = member.name.replace("\0", "\\x00")
        repeated = name in self._seen
        row = self._row(self._unused(f"{name}#{self._position}" if repeated else name), member.size_bytes)
        if member.problem:
            return row.fail("unsafe_member", f"{name}: {member.problem}")
        if repeated:
            return row.fail("duplicate_member", f"{name}: the name occurs a second time")
        if member.size_bytes > self._max_image_bytes:
            limit = self._max_image_bytes
            return row.fail("too_large", f"{name}: {member.size_bytes} bytes, source.max_image_bytes is {limit}")
        try:
            row.data = walker.read()
        except BaseException:
            # the row of the shard's failure stands for this one
            self._seen.discard(row.member)
            self._position -= 1
            raise
        return row

    def _sidecar(self, member: TarMember, walker: TarWalker, texts: dict[str, str]) -> None:
        extension = posixpath.basename(member.name).partition(".")[2].lower()
        if extension not in self._sidecars or member.problem or extension in texts:
            self.passed_over[f".{extension.rpartition('.')[2]}" if extension else "without extension"] += 1
            return
        if member.size_bytes > _MAX_SIDECAR_BYTES:
            self.passed_over[f".{extension} above {_MAX_SIDECAR_BYTES} bytes"] += 1
            return
        texts[extension] = walker.read().decode("utf-8", "replace")

    def _count_alone(self, texts: Mapping[str, str], images: int) -> None:
        """Count the sidecars of a sample in which no image stands: before it, behind it, or without any."""
        if not images:
            self.passed_over.update(f".{extension} with no image next to it" for extension in texts)


def _weighed(sample: list[ImageRow], texts: dict[str, str]) -> Iterator[tuple[ImageRow, int]]:
    texts = dict(texts)
    weight = sum(len(text) for text in texts.values())
    for row in sample:
        row.carried = texts
        yield row, weight + (len(row.data) if row.data is not None else 0)


def read_image(obj: StoredObject, member: str) -> bytes:
    """Read one member again.

    Raises:
        ImageError: It is not there, or cannot be read.
    """
    try:
        stream = open_stream(obj)
        try:
            walker = TarWalker(stream)
            for found in walker:
                if found.name == member and not found.problem and not found.is_folder:
                    return walker.read()
        finally:
            stream.close()
    except (StorageError, StreamCorrupt, StreamTruncated) as error:
        raise ImageError("unreadable", f"{obj.uri}#{member}: {error}") from error
    raise ImageError("unreadable", f"{obj.uri}: no member {member!r}")
