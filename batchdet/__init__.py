"""Label very large image sets with an object detector, on a cluster, so that the result can be trusted.

The public face is the names in ``__all__``. They are loaded on first use, so that ``import batchdet``
costs milliseconds and pulls in neither ray nor torch.
"""

import importlib

TYPE_CHECKING = False  # importing it from typing would load a typing.py of the working directory under `python -m`
if TYPE_CHECKING:
    from typing import Any

    from batchdet.errors import BatchdetError
    from batchdet.job import Run, run_job
    from batchdet.plan import plan_job
    from batchdet.results.open import Results, open_results
    from batchdet.spec import JobSpec
    from batchdet.specfile import load_job

__version__ = "0.1.0"

_HOMES = {
    "BatchdetError": "batchdet.errors",
    "JobSpec": "batchdet.spec",
    "Results": "batchdet.results.open",
    "Run": "batchdet.job",
    "load_job": "batchdet.specfile",
    "open_results": "batchdet.results.open",
    "plan_job": "batchdet.plan",
    "run_job": "batchdet.job",
}

__all__ = [
    "BatchdetError",
    "JobSpec",
    "Results",
    "Run",
    "__version__",
    "load_job",
    "open_results",
    "plan_job",
    "run_job",
]


def __getattr__(name: str) -> "Any":
    """Load a public name from the module that holds it."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'batchdet' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
