"""Near-duplicates: groups of images whose vectors are all but equal."""

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchdet import storage
from batchdet.results.open import readable
from batchdet.results.similar import count_vectors
from batchdet.results.vectors import Vectors, open_vectors
from batchdet.spec import JobSpec
from batchdet.text import counted, escape

if TYPE_CHECKING:
    from rich.console import Console

MIN_SIMILARITY: Final = 0.97
_BLOCK_ROWS: Final = 2048
"""Two blocks and their products take some 30 MiB."""
_READ_ROWS: Final = 8192
Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Member:
    """An image of a group.

    Args:
        run_id: Its run.
        image_id: Its id.
        uri: Where it is.
        similarity: To the group's first image, cosine.
    """

    run_id: str
    image_id: str
    uri: str
    similarity: float


@dataclass(frozen=True)
class Duplicates:
    """What was found.

    Args:
        compared: Images with a vector.
        min_similarity: What counts as all but equal.
        groups: Of two images and more, the largest first. Each image of a group is that near to at least one other of
            it, not to all.
        passed_over: Runs whose vectors are of another model or made otherwise.
    """

    compared: int
    min_similarity: float
    groups: tuple[tuple[Member, ...], ...]
    passed_over: tuple[str, ...]

    @property
    def surplus(self) -> int:
        """Images that could go if one of each group stayed."""
        return sum(len(group) - 1 for group in self.groups)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"surplus": self.surplus}


def find_duplicates(
    uri: str,
    min_similarity: float = MIN_SIMILARITY,
    run: str | None = None,
    settings: str | JobSpec | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Duplicates:
    """Compare every image with every other.

    Memory does not grow with the vectors, which wait in a temporary file; time grows with the square of their number,
    some minutes for 100,000.

    Args:
        uri: The output's folder.
        min_similarity: Lowest cosine of two vectors.
        run: Only this run; null takes every run of the settings with vectors made as in the newest one that has any.
        settings: Whose settings; as in :func:`batchdet.open_results`.
        progress: Called with (images compared, images).

    Raises:
        OutputError: There is no such output or run, or it holds no vectors of images.
    """
    vectors = open_vectors(uri, run, settings, "image")
    count = count_vectors(vectors)
    if not count:
        return Duplicates(0, min_similarity, (), vectors.passed_over)
    with storage.temporary_errors():
        spool = tempfile.TemporaryFile()  # noqa: SIM115
    with spool as file:
        with storage.temporary_errors():  # a map of a file without room ends the process
            os.posix_fallocate(file.fileno(), 0, count * vectors.size * np.dtype(np.float32).itemsize)
        rows = np.memmap(file, np.float32, "w+", shape=(count, vectors.size))
        names = _read(vectors, rows)
        links = _Links(count)
        for start in range(0, count, _BLOCK_ROWS):
            block = np.array(rows[start : start + _BLOCK_ROWS])
            for other in range(0, start + 1, _BLOCK_ROWS):
                near = block @ rows[other : other + _BLOCK_ROWS].T >= min_similarity
                for one, two in np.argwhere(np.tril(near, -1) if other == start else near):
                    links.join(start + int(one), other + int(two))
            progress(min(start + _BLOCK_ROWS, count), count)
        groups = [_members(names, rows, group) for group in links.groups()]
    groups.sort(key=lambda group: (-len(group), group[0].image_id))
    return Duplicates(count, min_similarity, tuple(groups), vectors.passed_over)


def render_duplicates(found: Duplicates, console: "Console", most: int = 20) -> None:
    """Print the groups, at most so many."""
    from rich.table import Table
    from rich.text import Text

    console.print(
        f"{counted(found.compared, 'image')} compared: {counted(len(found.groups), 'group')} of near-duplicates "
        f"(similarity {found.min_similarity:g} and up), {counted(found.surplus, 'image')} more than one of each"
    )
    for number, group in enumerate(found.groups[:most], start=1):
        table = Table(box=None, title=f"group {number}: {counted(len(group), 'image')}", title_justify="left")
        table.add_column("similarity", justify="right")
        table.add_column("image_id", no_wrap=True)
        table.add_column("uri", overflow="fold")
        for member in group[:most]:
            table.add_row(f"{member.similarity:.4f}", member.image_id, Text(escape(member.uri)))
        if len(group) > most:
            table.add_row("", "...", f"and {len(group) - most:,} more")
        console.print(table)
    if len(found.groups) > most:
        console.print(f"... and {counted(len(found.groups) - most, 'group', 'more')}; --json lists all")


def _read(vectors: Vectors, rows: Matrix) -> pa.Table:
    """Write all vectors, divided by their lengths, and return whose they are."""
    names, at = [], 0
    with readable(vectors.results.uri):
        relation = vectors.results.sql(
            f"SELECT run_id, image_id, uri, features::FLOAT[] AS features FROM images WHERE {vectors.condition} "
            "ORDER BY image_id, run_id"
        )
        for batch in relation.to_arrow_reader(_READ_ROWS):
            part = batch.column("features").flatten().to_numpy(zero_copy_only=False).reshape(-1, vectors.size)
            lengths = np.linalg.norm(part, axis=1, keepdims=True)
            rows[at : at + len(part)] = part / np.maximum(lengths, np.finfo(np.float32).tiny)
            names.append(batch.select(["run_id", "image_id", "uri"]))
            at += len(part)
    return pa.Table.from_batches(names)


def _members(names: pa.Table, rows: Matrix, group: list[int]) -> tuple[Member, ...]:
    similarities = np.array(rows[group]) @ np.array(rows[group[0]])
    whose = names.take(pa.array(group)).to_pylist()
    return tuple(Member(**one, similarity=float(s)) for one, s in zip(whose, similarities, strict=True))


class _Links:
    """Groups of numbers that are joined in pairs.

    Source: Tarjan, "Efficiency of a Good But Not Linear Set Union Algorithm", JACM 22 (1975).
    """

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def _root(self, one: int) -> int:
        while self._parent[one] != one:
            self._parent[one] = self._parent[self._parent[one]]
            one = self._parent[one]
        return one

    def join(self, one: int, two: int) -> None:
        low, high = sorted((self._root(one), self._root(two)))
        self._parent[high] = low

    def groups(self) -> list[list[int]]:
        """Return groups of two and more, each in rising order."""
        found = defaultdict(list)
        for one in range(len(self._parent)):
            found[self._root(one)].append(one)
        return [group for group in found.values() if len(group) > 1]
