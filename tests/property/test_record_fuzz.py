"""Specs, manifests and lineages of any shape: values or typed errors, nothing else (ACCEPTANCE S24)."""

import contextlib
import copy
import json
import time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from batchdet import storage
from batchdet.credentials import find_secret, masked
from batchdet.errors import OutputError, SpecError
from batchdet.spec import JobSpec
from batchdet.specfile import dump_job, parse_job
from batchdet.table.lineage import Lineage
from batchdet.table.manifest import Manifest, PartFile

pytestmark = [pytest.mark.timeout(120), pytest.mark.acceptance("S24")]
FUZZ = settings(max_examples=100)
_PART = PartFile("images/run_date=2026-11-23/part-0.parquet", 3, 100, "0" * 64)
_MANIFEST = Manifest("r", "n", "t", 1, "f", "i", ("run_date",), 3, 2, 1, (_PART,), (), "s", "t")
_ANYTHING: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@FUZZ
@given(st.sampled_from(sorted(json.loads(_MANIFEST.to_json()))), _ANYTHING)
def test_manifests(key: str, value: Any) -> None:
    raw = json.loads(_MANIFEST.to_json()) | {key: value}
    with contextlib.suppress(OutputError):
        found = Manifest.from_json(json.dumps(raw).encode(), "x")
        assert all(part.path.startswith("images/run_date=") for part in found.images)
        assert found.images_listed >= 0


@FUZZ
@given(st.binary(max_size=200) | _ANYTHING.map(lambda value: json.dumps(value).encode()))
def test_lineages(data: bytes) -> None:
    storage.write_bytes("memory://record-fuzz/_batchdet/runs/r/lineage.json", data)
    with contextlib.suppress(OutputError):
        Lineage.read("memory://record-fuzz", "r")


_PIECES = st.sampled_from(
    ["name: x\n", "source: ", "{uri: a}\n", "model: {uri: m}\n", "output:\n", "  uri: b\n", "- ", "[", "]", "{", "}",
     "&a", "*a", "!!int", "? ", ": ", "|\n", ">\n", "'", '"', "\\ud800", "${HOME}", "${",
     "#", "---\n", "%YAML 1.1\n", "1e3",
     "0x1", ".nan", "~", "\t", "\0", "\x85", "é", "<<: ", "name: y\n", "  ",
     "source: {uri: a}\n", "compute: {actors: "]
)  # fmt: skip


@FUZZ
@given(st.lists(_PIECES, max_size=14).map("".join))
def test_specs_of_pieces(text: str) -> None:
    with contextlib.suppress(SpecError):
        assert isinstance(parse_job(text, "fuzz"), JobSpec)


def _keys(values: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in values.items():
        found += [(*above, key), *(_keys(value, (*above, key)) if isinstance(value, dict) else ())]
    return found


_SPEC: dict[str, Any] = JobSpec.model_validate(
    {"name": "x", "source": {"uri": "in"}, "model": {"uri": "m.onnx"}, "output": {"uri": "out"}}
).model_dump(mode="json")
_AWKWARD = st.sampled_from(
    [-1, 0, 1 << 63, 10**400, 1e308, -0.0, float("inf"), float("nan"), "", " ", "auto", "no", "-", "a" * 5000, "s3://",
     "s3://b/../c", "file://", "memory://x", "\x1b[2J", "\ud7ff", "${HOME}", "a,b", [], [[]], {}, {"": ""}, None, True]
)  # fmt: skip


@FUZZ
@given(st.lists(st.tuples(st.sampled_from(_keys(_SPEC)), _AWKWARD | _ANYTHING), min_size=1, max_size=3))
def test_a_whole_spec_with_other_values(changes: list[tuple[tuple[str, ...], Any]]) -> None:
    """Each key takes any value: a spec that is read can be written and read again, all others are typed errors."""
    values = copy.deepcopy(_SPEC)
    for (*above, key), value in changes:
        place: Any = values
        for each in above:
            place = place[each] if isinstance(place, dict) and isinstance(place.get(each), dict) else {}
        place[key] = value
    began = time.process_time()
    with contextlib.suppress(SpecError):
        spec = parse_job(yaml.safe_dump(values), "fuzz")
        assert parse_job(dump_job(spec), "again") == spec
    assert time.process_time() - began < 2


@FUZZ
@given(st.lists(st.sampled_from(["?", "&", "=", "sig", "token", "a", "://", ":", "@", "s3", "*", " "]), max_size=14))
def test_what_is_masked_holds_no_secret(pieces: list[str]) -> None:
    text = masked("".join(pieces))
    assert masked(text) == text
    assert "password" not in find_secret(text)
