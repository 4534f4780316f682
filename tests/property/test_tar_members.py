"""Whatever the order of a tar's members, each is an image, a sidecar that an image has, or counted as passed over."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.source.corpus import read_all, write_tar

_KEYS = st.sampled_from(["a", "b", "d/a", "./d/a", "__MACOSX/d/a", "c.1"])
_ENDS = st.sampled_from(["jpg", "png", "json", "txt", "cls", ""])
_NAMES = st.tuples(st.sampled_from(["", "", "._", "."]), _KEYS, _ENDS).map(
    lambda t: "/".join([*t[1].split("/")[:-1], f"{t[0]}{t[1].split('/')[-1]}{'.' if t[2] else ''}{t[2]}"])
)


@pytest.mark.timeout(120)
@settings(max_examples=150)
@example(names=["._a.jpg", "a.jpg", "._a.json", "a.json"], segment_rows=1)
@example(names=["a.jpg", "b.jpg", "a.json", "b.json"], segment_rows=2)
@example(names=["./d/a.jpg", "d/a.json"], segment_rows=2)
@given(names=st.lists(_NAMES, unique=True, max_size=14), segment_rows=st.integers(1, 4))
def test_every_member_is_accounted_for(names: list[str], segment_rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_tar(Path(folder, "s.tar"), [(name, name.encode()) for name in names])
        got = read_all(path, segment_rows=segment_rows)
        whole = read_all(path)
    assert (got.rows, got.passed_over) == (whole.rows, whole.passed_over)
    carried = {text for row in got.rows for text in (row["json"], row["txt"]) if text is not None}
    assert carried <= set(names)
    assert len(got.rows) + len(carried) + got.passed_over.total() == len(names)


@pytest.mark.parametrize(
    ("names", "passed_over"),
    [
        (["a.jpg", "b.jpg", "a.json", "b.json"], {".json with no image next to it": 2}),
        (["a.txt"], {".txt with no image next to it": 1}),
        (["._a.jpg", "a.jpg", "__MACOSX/._a.jpg", "__MACOSX/a.json"], {"AppleDouble": 3}),
        (["a.jpg", "a.json", "a.cls", "README"], {".cls": 1, "without extension": 1}),
    ],
)
def test_kinds(tmp_path: Path, names: list[str], passed_over: dict[str, int]) -> None:
    got = read_all(write_tar(tmp_path / "s.tar", [(name, b"x") for name in names]))
    assert got.passed_over == passed_over
