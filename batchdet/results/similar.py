"""Nearest images, or nearest detections, by the cosine of their vectors."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from batchdet.results.open import readable
from batchdet.results.pictures import Chosen, OtherFile
from batchdet.results.vectors import Asked, Vectors, ask_file, ask_row, is_image_id, open_vectors
from batchdet.spec import JobSpec
from batchdet.text import escape

if TYPE_CHECKING:
    from rich.console import Console

TOP: Final = 10


@dataclass(frozen=True)
class Neighbour:
    """A row of the tables near what was asked about.

    Args:
        similarity: Cosine of the vectors, in [-1, 1].
        run_id: Its run.
        image_id: Its image.
        uri: Where the image is.
        detection_index: Rank of the detection within its image; None where images are compared.
        label: The detection's class; None likewise.
        score: The detection's score; None likewise.
    """

    similarity: float
    run_id: str
    image_id: str
    uri: str
    detection_index: int | None = None
    label: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class Similar:
    """What was found.

    Args:
        asked: The image id or file.
        box: Rank of the detection that was asked about; None where images are compared.
        compared: Vectors looked at.
        neighbours: The nearest first.
        passed_over: Runs whose vectors are of another model or made otherwise.
        query: What was asked about; no part of the JSON.
    """

    asked: str
    box: int | None
    compared: int
    neighbours: tuple[Neighbour, ...]
    passed_over: tuple[str, ...]
    query: Asked

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = asdict(self)
        del values["query"]
        return values

    def pictures(self) -> list[Chosen | OtherFile]:
        """Return what a contact sheet shows: what was asked about, then the neighbours with their similarity."""
        asked, box = self.query, self.box
        first: Chosen | OtherFile = Chosen(asked.run_id, asked.image_id, box, "query")
        if not asked.run_id:
            first = OtherFile(asked.uri, () if asked.detection is None else (asked.detection,), "query")
        return [
            first,
            *(Chosen(n.run_id, n.image_id, n.detection_index, f"{n.similarity:.3f}") for n in self.neighbours),
        ]


def find_similar(
    uri: str,
    asked: str,
    box: int = 0,
    top: int = TOP,
    run: str | None = None,
    settings: str | JobSpec | None = None,
) -> Similar:
    """Look through all vectors of an output for the nearest ones.

    The vectors of a run with ``model.features: image`` are those of images; with ``boxes`` those of detections. An
    image of the tables is not its own neighbour, nor are its own detections those of one of them.

    Args:
        uri: The output's folder.
        asked: An image id of the tables, or a file (path or URI), which the run's own model is shown.
        box: Where detections are compared: the rank by score, from 0, of the one that is asked about.
        top: At most so many neighbours.
        run: Only this run; null takes every run of the settings with vectors made as in the newest one that has any.
        settings: Whose settings; as in :func:`batchdet.open_results`.

    Raises:
        OutputError: There is no such output or run, or it holds no vectors.
        SpecError: There is no such image, file or detection.
        ModelError: The run's model is not there any more.
    """
    vectors = open_vectors(uri, run, settings)
    known = is_image_id(asked)
    query = ask_row(vectors, asked, box) if known else ask_file(vectors, asked, box)
    con = vectors.results.connection
    type_ = f"FLOAT[{vectors.size}]"
    further = ", detection_index, label, score" if vectors.kind == "boxes" else ""
    itself = "AND image_id <> $asked" if known else ""
    with readable(vectors.results.uri):
        rows = con.execute(
            f"""
            WITH nearest AS (
                SELECT run_id, image_id{further},
                    array_cosine_similarity(features::{type_}, $vector::{type_}) AS similarity
                FROM {vectors.table} WHERE {vectors.condition} {itself}
                ORDER BY similarity DESC, image_id LIMIT $top
            )
            SELECT similarity, run_id, image_id, uri{further} FROM nearest
            JOIN (SELECT run_id, image_id, uri FROM images) USING (run_id, image_id)
            ORDER BY similarity DESC, image_id
            """,
            {"vector": query.vector.tolist(), "top": top} | ({"asked": asked} if known else {}),
        ).fetchall()
    neighbours = tuple(Neighbour(*row) for row in rows)
    return Similar(
        asked, box if vectors.kind == "boxes" else None, count_vectors(vectors), neighbours, vectors.passed_over, query
    )


def render_similar(found: Similar, console: "Console") -> None:
    """Print the neighbours, the nearest first."""
    from rich.table import Table
    from rich.text import Text

    of = "images" if found.box is None else "boxes"
    table = Table(box=None, title=f"nearest of {found.compared:,} {of}", title_justify="left")
    table.add_column("similarity", justify="right")
    headings = ("image_id", "uri") if found.box is None else ("label", "score", "box", "image_id", "uri")
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading == "image_id")
    for n in found.neighbours:
        of_box: list[Text | str] = (
            [] if found.box is None else [Text(escape(str(n.label))), f"{n.score:.2f}", str(n.detection_index)]
        )
        table.add_row(f"{n.similarity:.4f}", *of_box, n.image_id, Text(escape(n.uri)))
    console.print(table)


def count_vectors(vectors: Vectors) -> int:
    """Count the vectors of the tables."""
    with readable(vectors.results.uri):
        return int(
            vectors.results.sql(f"SELECT count(*) FROM {vectors.table} WHERE {vectors.condition}").fetchall()[0][0]
        )
