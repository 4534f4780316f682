"""Nearest images and near-duplicates, by the vectors of committed runs."""

import json
import tempfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from batchdet.errors import ModelError, OutputError, SpecError
from batchdet.geometry.letterbox import Letterbox
from batchdet.model.cache import LocalModel
from batchdet.model.child import in_child
from batchdet.records.detections import Detections
from batchdet.records.schema import image_id
from batchdet.results import duplicates, vectors
from batchdet.results.duplicates import find_duplicates, render_duplicates
from batchdet.results.similar import find_similar, render_similar
from batchdet.results.verify import inspect_output
from batchdet.spec import ModelSpec
from batchdet.storage import DiskFull
from tests.small_disk import small_disk

FIRST, SECOND, THIRD = "20261122-100000-aaaa", "20261123-100000-bbbb", "20261124-100000-cccc"
SHARD = "/data/photos"


def member(neighbour):
    return neighbour.uri.removeprefix(f"{SHARD}/")


def printed(render, found):
    console = Console(width=120, no_color=True, force_terminal=False)
    with console.capture() as capture:
        render(found, console)
    return capture.get()


def test_the_nearest_images_by_falling_cosine(output, fake_image):
    given = {"a": (1, 0, 0), "b": (2, 0.2, 0), "c": (0, 1, 0), "d": (-1, 0, 0)}
    failed = fake_image("broken[red].jpg", error_code="truncated")
    output.add_run(FIRST, [*(fake_image(name, vector=v) for name, v in given.items()), failed])
    found = find_similar(output.uri, image_id(SHARD, "a"), top=2)
    assert [member(n) for n in found.neighbours] == ["b", "c"]
    assert found.neighbours[0].similarity == pytest.approx(2 / np.hypot(2, 0.2))
    assert found.compared == 4
    assert json.loads(json.dumps(found.to_dict()))["neighbours"][1]["similarity"] == pytest.approx(0)
    assert "nearest of 4 images" in printed(render_similar, found)


def test_only_vectors_made_alike_are_compared(output, fake_image):
    output.add_run(FIRST, [fake_image(name, vector=(1, 0)) for name in "ab"])
    output.add_run(SECOND, [fake_image(name, vector=(1, 0, 0)) for name in "cd"])
    output.add_run(THIRD, [fake_image(name, vector=(1, 0.1, 0)) for name in "ef"])
    found = find_similar(output.uri, image_id(SHARD, "c"))
    assert [member(n) for n in found.neighbours] == ["d", "e", "f"]
    assert found.passed_over == (FIRST,)
    assert [member(n) for n in find_similar(output.uri, image_id(SHARD, "a"), run=FIRST).neighbours] == ["b"]
    with pytest.raises(SpecError, match="there is no vector of an image"):
        find_similar(output.uri, image_id(SHARD, "a"))
    assert not inspect_output(output.uri).problems


def test_another_model_of_the_same_length_is_another(output, fake_image):
    output.add_run(FIRST, [fake_image(name, vector=(1, 0)) for name in "ab"], model_sha256="cd" * 32)
    output.add_run(SECOND, [fake_image(name, vector=(1, 0)) for name in "cd"])
    assert find_duplicates(output.uri).passed_over == (FIRST,)


def test_no_vectors(output, fake_image, tmp_path):
    output.add_run(FIRST, [fake_image("a")])
    with pytest.raises(
        OutputError, match=r"no run of these settings holds features; run the job with --set model\.features=image"
    ):
        find_similar(output.uri, image_id(SHARD, "a"))
    output.add_run(SECOND, [fake_image("b", vector=(1, 0))])
    with pytest.raises(SpecError, match=r"x\.jpg is neither an image id .* nor an image"):
        find_similar(output.uri, str(tmp_path / "x.jpg"))


def test_groups_of_near_duplicates(output, fake_image, monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK_ROWS", 7)  # pairs within blocks, and across them
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 16))
    names = [f"{n:02d}" for n in range(40)]
    for group in ([3, 17, 38], [5, 6]):
        for other in group[1:]:
            vectors[other] = 3 * vectors[group[0]] + rng.normal(scale=0.05, size=16)
    output.add_run(FIRST, [fake_image(n, vector=tuple(v)) for n, v in zip(names, vectors, strict=True)])
    seen = []
    found = find_duplicates(output.uri, 0.97, progress=lambda done, of: seen.append((done, of)))
    groups = [{int(member(m)) for m in group} for group in found.groups]
    assert groups == [{3, 17, 38}, {5, 6}]
    assert found.surplus == 3
    assert seen[-1] == (40, 40)
    assert found.groups[0][0].similarity == pytest.approx(1)
    assert "2 groups of near-duplicates" in printed(render_duplicates, found)
    assert find_duplicates(output.uri, 0.9999999).groups == ()


def test_a_chain_is_one_group(output, fake_image):
    angles = np.deg2rad([0, 10, 20, 30, 90])
    output.add_run(FIRST, [fake_image(f"{n}", vector=(np.cos(a), np.sin(a))) for n, a in enumerate(angles)])
    (group,) = find_duplicates(output.uri, np.cos(np.deg2rad(11))).groups
    assert {member(m) for m in group} == {"0", "1", "2", "3"}


class OneVector:
    """Gives every image the same vector, and keeps what it is shown."""

    labels = ()

    def __init__(self, spec):
        self.spec, self.seen = spec, []

    def letterbox(self, width_px, height_px):
        return Letterbox.centred((width_px, height_px), (64, 64))

    def detect(self, canvases, letterboxes):
        self.seen.append(canvases[0].astype(float))
        return [replace(Detections.empty(), image_features=np.array([0, 1], np.float32))]


def test_another_image_is_computed_as_the_run_was(output, fake_image, tmp_path, monkeypatch):
    output.add_run(FIRST, [fake_image("a", vector=(1, 0)), fake_image("b", vector=(0, 1))])
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.jpg")
    record = next((tmp_path).rglob(f"{FIRST}/lineage.json"))
    lineage = json.loads(record.read_text())
    detectors = []

    def here(function, model, *arguments):
        assert function == "batchdet.results.vectors:detect_file"
        return vectors.detect_file(model, LocalModel("", "", 0), *arguments)

    monkeypatch.setattr(vectors, "in_child", here)
    monkeypatch.setattr(vectors, "Detector", lambda spec, *_: detectors.append(OneVector(spec)) or detectors[-1])
    how = {"runtime": "openvino", "precision": "bf16", "graphs": "64x64 64x32", "fit": "loose"}
    how |= {"silu": "rational", "decode": "full"}
    for changed in ({}, {"decode": "reduced"}):
        record.write_text(json.dumps(lineage | {"computed": how | changed}))
        assert member(find_similar(output.uri, str(tmp_path / "x.jpg")).neighbours[0]) == "b"
    full, reduced = detectors
    assert (full.spec.runtime, full.spec.precision, full.spec.silu) == ("openvino", "bf16", "rational")
    assert (full.spec.canvas.graphs, full.spec.canvas.fit) == (("64x64", "64x32"), "loose")
    assert full.spec.sha256 == lineage["model"]["sha256"]
    assert reduced.seen[0][8:56].std() < full.seen[0][8:56].std() / 2, "a DCT of few frequencies smooths noise"
    record.write_text(json.dumps(lineage | {"computed": how | {"silu": "polynomial"}}))
    unknown = rf"run {FIRST} cannot label another image: .* silu: polynomial, which this version does not know"
    with pytest.raises(ModelError, match=unknown):
        find_similar(output.uri, str(tmp_path / "x.jpg"))


def test_an_image_is_computed_in_a_process_of_its_own(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "x.jpg")
    model = ModelSpec(uri="builtin:sample", features="image")
    found, labels = in_child("batchdet.results.vectors:detect_file", model, (tmp_path / "x.jpg").read_bytes(), 10**6)
    assert found.image_features.ndim == 1
    assert labels


def test_a_full_disk_under_the_vectors_is_named(output, fake_image, tmp_path, monkeypatch):
    output.add_run(FIRST, [fake_image(f"{n}", vector=(1, n / 100)) for n in range(2000)])
    with small_disk(tmp_path / "disk", 3) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        with pytest.raises(DiskFull) as full:
            find_duplicates(output.uri, 0.9)
    assert full.value.key == str(disk)
