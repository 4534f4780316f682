"""The trial of a model: a process loads it, chooses how the actors shall compute, and times some images of the job."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from batchdet.errors import BatchdetError, ClusterError, ImageError, ModelError
from batchdet.model.child import limit_s, say_loaded
from batchdet.model.detector import Detector
from batchdet.model.families import SenselessOutput
from batchdet.model.families.plugin import PluginError
from batchdet.model.fetch import fetch_asked
from batchdet.model.format import Format
from batchdet.model.labels import NUMBERS
from batchdet.model.placement import Placement
from batchdet.model.rehearsal import Rehearsed
from batchdet.model.runtimes import Device, one_line
from batchdet.pipeline.canary import IMAGE_TIMEOUT_S, MIN_BOXES, Agreement, Way, compare, is_slower
from batchdet.pipeline.canvases import choose_canvases
from batchdet.pipeline.resources import largest_batch
from batchdet.pipeline.samples import ReadSamples, Samples, clock_of, measure, rows_of
from batchdet.pipeline.watchdog import ended_after
from batchdet.roofline import Alone
from batchdet.spec import DecodeName, FitName, JobSpec, ModelSpec, PrecisionName, RuntimeName, SiluName
from batchdet.text import counted

_MEASURE_TIMEOUT_S: Final[dict[Device, int]] = {"cpu": 10, "gpu": 60}
"""A process that hangs in images that are measured is ended so soon, by itself."""
_PATIENCE_S: Final = 20.0
"""After that no further lossy way is tried: a trial has a minute, and comparing takes ten seconds with a slow model."""
_SPOILT: Final = ReadSamples(why_none="an image of the job ended or held up the process that tried it")


@dataclass(frozen=True)
class LoadedModel:
    """The model, as a trial loaded it.

    Args:
        runtime: What the actors run it with.
        precision: Number format of their arithmetic.
        graphs: Canvases with graphs of their own, ``WIDTHxHEIGHT``.
        fit: ``tight``, or ``loose`` when images may stand on one of those that is larger than their own.
        silu: ``exact``, or ``rational`` in those graphs.
        decode: ``full`` or ``reduced``.
        choices: What ``auto`` chose -> why.
        canary: ``arithmetic`` and ``decode`` -> what comparing a lossy way with the exact one gave, see
            :class:`batchdet.pipeline.canary.Agreement`; without those that were not compared.
        card: The model's card as plain values.
        labels: Class number -> label.
        placement: How it wants images placed.
        rehearsed: What it has shown, for actors on CPUs that load it the same way.
        alone: What images of the job take in that process alone; None when that could not be measured.
        why_not_alone: Why not; "" when it could.
    """

    runtime: RuntimeName
    precision: PrecisionName
    graphs: tuple[str, ...]
    fit: FitName
    silu: SiluName
    decode: DecodeName
    choices: dict[str, str]
    canary: dict[str, dict[str, Any]]
    card: dict[str, Any]
    labels: list[str]
    placement: Placement
    rehearsed: Rehearsed
    alone: Alone | None
    why_not_alone: str

    @property
    def computed(self) -> dict[str, str]:
        """How the model is computed, for ``lineage.json``."""
        return {
            "runtime": self.runtime,
            "precision": self.precision,
            "graphs": " ".join(self.graphs),
            "fit": self.fit,
            "silu": self.silu,
            "decode": self.decode,
        }


_Try = Callable[[str, Way, Way], Agreement]
"""Compares an exact and a lossy way, and notes under a name what it finds."""


@dataclass(frozen=True)
class Trial:
    """What to try.

    Args:
        spec: The job.
        sha256: Digest of the model's bytes.
        samples: Where to take images from; None when one of them has ended a worker.
        may_differ: Whether the job is large enough to try a faster, lossy way of computing.
        image_count: Images of the job; None when only reading can tell.
        size_bytes: What they take in the source.
        workers: How many share the work.
    """

    spec: JobSpec
    sha256: str
    samples: Samples | None
    may_differ: bool
    image_count: int | None
    size_bytes: int
    workers: int = 1

    def timeout_s(self, device: Device) -> int:
        """Say how many seconds it may take."""
        return limit_s(self.spec.model, device)

    def load(self, device: Device) -> LoadedModel:
        """Load the model in this process, the way the spec says or the canary allows, and take its time.

        Raises:
            ModelError: The model does not load, is not understood, or gives what cannot be true for images of the job.
            ClusterError: The device is not there.
        """
        images = self.samples.read(self.spec) if self.samples else _SPOILT
        choices: dict[str, str] = {}
        canary: dict[str, dict[str, Any]] = {}

        def tried(step: str, exact: Way, fast: Way) -> Agreement:
            data = images.by_turns(exact.detector, fast.detector)
            limits = self.spec.source.max_pixels, self.spec.model.score_threshold
            rows, timeout_s = rows_of(device, self.spec.compute), IMAGE_TIMEOUT_S[device]
            agreement = compare(exact, fast, data, *limits, clock_of(device), rows, timeout_s)
            canary[step] = agreement.to_dict()
            return agreement

        exact, detector, choices["model"] = self._choose(device, images, tried)
        way, choices["decode"] = self._choose_decoding(exact, detector, images, tried)
        alone, why_not = self._measure(way, device, images)
        if self.spec.model.canvas.shape == "auto":
            choices["canvas"] = _canvas_choice(detector)
        if detector.card.labels_reason == NUMBERS:
            choices["labels"] = "class_0, class_1, ...: the model names no classes; set model.labels to name them"
        model = detector.spec
        return LoadedModel(
            model.runtime,
            model.precision,
            () if model.canvas.graphs == "auto" else model.canvas.graphs,
            "tight" if model.canvas.fit == "auto" else model.canvas.fit,
            "exact" if model.silu == "auto" else model.silu,
            "reduced" if way.reduce else "full",
            {key: choice for key, choice in choices.items() if choice},
            canary,
            detector.card.to_dict(),
            list(detector.labels),
            detector.placement,
            detector.rehearsed,
            alone,
            why_not,
        )

    def _measure(self, way: Way, device: Device, images: ReadSamples) -> tuple[Alone | None, str]:
        """Take the time of images; say why not ("" when it could be taken).

        Raises:
            SenselessOutput: As of :func:`batchdet.pipeline.samples.measure`.
            PluginError: The head fails.
        """
        if not images.images:
            return None, images.why_none
        try:
            with ended_after(_MEASURE_TIMEOUT_S[device]):
                alone = measure(way, device, self.spec, images)
        except (SenselessOutput, PluginError):
            raise
        except Exception as error:  # a model that fails on an image fails no run: the actors make a row of it
            return None, f"the model fails on an image of the job: {one_line(error)}"
        return alone, "" if alone else f"none of {counted(len(images.images), 'image')} of the job can be decoded"

    def _choose(self, device: Device, images: ReadSamples, tried: _Try) -> tuple[Detector, Detector, str]:
        """Load the model exactly and as the actors shall; say why so ("" when the spec says it all)."""
        local = fetch_asked(self.spec.model, self.sha256)
        asked = self.spec.model

        def load(
            runtime: RuntimeName,
            precision: PrecisionName,
            like: Detector | None = None,
            silu: SiluName = asked.silu,
            fit: FitName = asked.canvas.fit,
        ) -> Detector:
            canvas = asked.canvas.model_copy(update={"fit": fit})
            update = {"runtime": runtime, "precision": precision, "silu": silu, "canvas": canvas}
            model = asked.model_copy(update=update)
            if runtime == "openvino" and model.canvas.graphs == "auto":
                like = like or Detector(model, local.path, local.sha256, device, 1)
                canvas = canvas.model_copy(update={"graphs": self._graphs(like, images, fit)})
                model = model.model_copy(update={"canvas": canvas})
            shown = None if like is None else like.rehearsed
            loaded = Detector(model, local.path, local.sha256, device, 1, largest_batch(self.spec.compute), shown)
            say_loaded()
            return loaded

        if local.format is not Format.ONNX and asked.runtime == "auto":
            exact = load("torch", "fp32" if asked.precision == "auto" else asked.precision)
            return exact, exact, f"torch: nothing else runs {local.format.words}"
        own = _openvinos_own(asked)
        usual: RuntimeName = "openvino" if own else "onnxruntime"
        runtime = usual if asked.runtime == "auto" else asked.runtime
        exact = load(runtime, "fp32" if asked.precision == "auto" else asked.precision)
        if asked.precision != "auto" or asked.runtime in ("onnxruntime", "torch"):
            why = f"{own} is its own" if own else f"the spec asks for {asked.precision}"
            return exact, exact, f"{runtime}: {why}" if asked.runtime == "auto" else ""
        unchanged = f"{runtime} in {_words(exact.spec)}"
        if objection := self._untried(images):
            return exact, exact, f"{unchanged}: {'fp16' if device == 'gpu' else 'bf16'} {objection}"
        end = time.perf_counter() + _PATIENCE_S
        try:
            for fast in self._on_gpu(load, exact) if device == "gpu" else self._quicker(load, exact, images):
                agreement = tried("arithmetic", Way(exact), Way(fast))
                how = _words(fast.spec)
                if not agreement.objection:
                    gain = f"{agreement.gain:.1f} times as fast as {unchanged}"
                    return exact, fast, f"{fast.spec.runtime} in {how}: {gain}; {agreement.words}"
                objection = f", because of {how}: {agreement.objection}"
                if agreement.boxes < MIN_BOXES or time.perf_counter() > end:
                    break  # another way has no more boxes, or no time
        except (ClusterError, ModelError) as error:  # no package, no bf16, an image that it fails on
            objection = f": {error.message}"
        return exact, exact, unchanged + objection

    def _on_gpu(self, load: Callable[..., Detector], exact: Detector) -> Iterator[Detector]:
        """Load the model in half the width; TensorRT would build a second engine for minutes, only to compare.

        Raises:
            ModelError: It has no such form.
        """
        if exact.spec.runtime == "tensorrt":
            raise ModelError("fp16 is not tried, as another engine takes minutes to build; the spec may ask for it")
        yield load(exact.spec.runtime, "fp16", exact)

    def _quicker(self, load: Callable[..., Detector], exact: Detector, images: ReadSamples) -> Iterator[Detector]:
        """Load the model in quicker, lossy ways, the quickest first.

        Raises:
            ClusterError: OpenVINO, or bf16 arithmetic, is not to be had.
            ModelError: It fails on an image.
        """
        may_approximate = self.spec.model.silu == "auto"
        silu: SiluName = "exact" if may_approximate else self.spec.model.silu
        fits = self._fits(exact, images)
        try:
            plain = load("openvino", "bf16", exact, silu, fits[0])
        except ClusterError:
            if not may_approximate and len(fits) == 1:
                raise
            plain = load("openvino", "fp32", exact, silu, fits[0])
        quickest, precision = plain, plain.spec.precision
        if may_approximate and plain.silus and (image := images.on_canvas(plain, plain.spec.canvas.graphs)) is not None:
            rational = load("openvino", precision, exact, "rational", fits[0])
            with contextlib.suppress(ImageError):
                ways = Way(rational), Way(plain)
                if not is_slower(*ways, image, self.spec.source.max_pixels, clock_of("cpu")):
                    quickest = rational
        yield quickest
        if len(fits) > 1:
            yield load("openvino", precision, exact, quickest.spec.silu, fits[-1])
        if quickest is not plain:
            yield plain if len(fits) == 1 else load("openvino", precision, exact, "exact", fits[-1])

    def _fits(self, exact: Detector, images: ReadSamples) -> tuple[FitName, ...]:
        """Say how images may be put on canvases, the quickest first; loosely only where that moves some of them."""
        asked = self.spec.model.canvas
        if asked.fit != "auto":
            return (asked.fit,)
        graphs = self._graphs(exact, images, "loose") if asked.graphs == "auto" else asked.graphs
        canvases = asked.model_copy(update={"graphs": graphs}).own_graphs
        tight, loose = exact.placement, replace(exact.placement, loose=tuple(sorted(canvases)))
        moved = any(tight.letterbox(*size).canvas != loose.letterbox(*size).canvas for size in images.sizes())
        return ("loose", "tight") if moved else ("tight",)

    def _choose_decoding(
        self, exact: Detector, detector: Detector, images: ReadSamples, tried: _Try
    ) -> tuple[Way, str]:
        """Decide whether JPEGs are decoded smaller; say why ("" when the spec says it, or none is large enough)."""
        asked = self.spec.model.canvas.decode
        if asked != "auto":
            return Way(detector, asked == "reduced"), ""
        sizes = images.sizes()
        if not any(detector.letterbox(*size).reduction > 1 for size in sizes):
            return Way(detector), ""
        if objection := self._untried(images):
            return Way(detector), f"full: reduced decoding {objection}"
        try:
            agreement = tried("decode", Way(exact), Way(detector, True))
        except ModelError as error:
            return Way(detector), f"full: {error.message}"
        if agreement.objection:
            return Way(detector), f"full, because of reduced decoding: {agreement.objection}"
        return Way(detector, True), f"reduced: {agreement.gain:.1f} times as fast as in full; {agreement.words}"

    def _untried(self, images: ReadSamples) -> str:
        """Say why no lossy way is tried, as the rest of a sentence; "" when it may be."""
        if not self.may_differ:
            return "is not tried for a job so small"
        return "" if images.images else f"cannot be tried, {images.why_none}"

    def _graphs(self, detector: Detector, images: ReadSamples, fit: FitName) -> tuple[str, ...]:
        """Choose the canvases that get graphs of their own, see :func:`batchdet.pipeline.canvases.choose_canvases`."""
        if not images.images:
            return ()
        sampled = sum(sample.stored_bytes for sample in images.images) / len(images.images)
        total = self.image_count or self.size_bytes / max(sampled, 1.0)
        each = total / self.workers / len(images.images)  # images of an actor for which one of the samples stands
        wanted = {canvas: count * each for canvas, count in images.canvases(detector).items()}
        return tuple(f"{w}x{h}" for w, h in choose_canvases(wanted, detector.canvas, loose=fit == "loose"))


def _openvinos_own(model: ModelSpec) -> str:
    """Name what a spec asks for that only OpenVINO does; "" for nothing."""
    if model.silu == "rational":
        return "a rational function for SiLU"
    if model.canvas.fit == "loose":
        return "a loose fit of canvases"
    return "bf16" if model.precision == "bf16" else ""


def _words(model: ModelSpec) -> str:
    """Say how a model is computed the quick way."""
    rational = ", SiLU by a rational function" if model.silu == "rational" else ""
    return f"{model.precision}{rational}{', canvases loose' if model.canvas.fit == 'loose' else ''}"


def _canvas_choice(detector: Detector) -> str:
    card = detector.card
    width, height = card.canvas_px
    reasons = {
        "fixed": "the model is made for no other",
        "own": "as its image processor does, each image has one of its own; this is that of a photograph of 4:3",
        "square": next((note for note in card.notes if "square" in note), "the model's height and width are not free"),
        "rectangle": f"the longer side; the shorter one is rounded up to {card.stride} px, which saves the margins",
    }
    loose = ", ".join(f"{w} x {h}" for w, h in detector.placement.loose)
    few = f"; an image may stand on a larger one of {loose}, so that few graphs do" if loose else ""
    return f"{card.canvas_shape}, {width} x {height} px: {reasons[card.canvas_shape]}{few}"


def tried(trial: Trial, device: Device) -> LoadedModel:
    """Load a model as :meth:`Trial.load` does, for a process of its own.

    Raises:
        BatchdetError: Also where it fails in a way that no runtime foresees.
    """
    try:
        return trial.load(device)
    except BatchdetError:
        raise
    except Exception as error:
        raise unloadable(trial, error) from error


def unloadable(trial: Trial, error: BaseException) -> ModelError:
    """Return the error for a model that fails in a way that no runtime foresees."""
    return ModelError(f"{trial.spec.model.uri}: does not load: {type(error).__name__}: {one_line(error)}")
