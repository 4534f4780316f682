"""What a submitted job starts with on the cluster: see that batchdet's packages are there, then become ``batchdet``.

Without this look a bare Ray image would answer with a traceback about the first package that it lacks.
"""

import os
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


def main() -> None:
    """Run ``batchdet`` with this process's arguments, or exit with status 5 and the reason."""
    reason = complaint()
    if reason:
        print(f"batchdet: {reason}", file=sys.stderr, flush=True)
        sys.exit(5)
    # exec keeps the process id, so that signals of `ray job stop` reach batchdet itself.
    os.execv(sys.executable, [sys.executable, "-m", "batchdet", *sys.argv[1:]])


if __name__ == "__main__":
    main()
