"""What a submitted job begins with on the cluster: a check that batchdet's packages are there.

Without it a bare Ray image would answer with a traceback about the first package that it lacks.
"""

import sys

from batchdet.cluster.requirements import BASE, FLOOR_PYTHON, missing


def complaint() -> str:
    """Say in one sentence why batchdet cannot run in this Python, or return ""."""
    if sys.version_info < FLOOR_PYTHON:
        return f"the cluster runs Python {sys.version.split()[0]}; batchdet needs 3.11 or newer"
    wrong = missing(BASE)
    if wrong:
        return (
            f"the cluster's Python ({sys.executable}) lacks {', '.join(wrong)}: use an image that holds batchdet's "
            "packages (infra/Dockerfile.cpu) or submit with --pip"
        )
    return ""


def check_python() -> None:
    """Exit with status 5 and the reason if batchdet cannot run in this Python."""
    reason = complaint()
    if reason:
        print(f"batchdet: {reason}", file=sys.stderr, flush=True)
        sys.exit(5)
