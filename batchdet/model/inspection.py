"""What a model is, found by loading it; for a process of its own (:mod:`batchdet.model.child`)."""

from dataclasses import dataclass

from batchdet.errors import ModelError
from batchdet.model.anatomy import Anatomy
from batchdet.model.cache import LocalModel
from batchdet.model.card import ModelCard
from batchdet.model.detector import Detector
from batchdet.spec import ModelSpec


@dataclass(frozen=True)
class Inspected:
    """What a model is.

    Args:
        card: What is known of it.
        anatomy: Its parts; None if the file does not show them.
        no_anatomy: Why not; "" if it does.
    """

    card: ModelCard
    anatomy: Anatomy | None
    no_anatomy: str = ""


def inspect(model: ModelSpec, local: LocalModel) -> Inspected:
    """Load a model on the CPU and say what it is.

    Args:
        model: The model part of a job.
        local: The model on this node.

    Raises:
        ModelError, SpecError, MissingExtra, ClusterError: See :class:`batchdet.model.detector.Detector`.
    """
    detector = Detector(model, local.path, local.sha256)
    try:
        return Inspected(detector.card, detector.anatomy)
    except ModelError as error:  # a file that does not show its parts is a model all the same
        return Inspected(detector.card, None, error.message)
