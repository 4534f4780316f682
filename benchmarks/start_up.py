"""Time `import batchdet` and `batchdet --help`, each in a fresh process; prints the median of ten.

make bench-start
"""

import json
import platform
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import batchdet": [sys.executable, "-c", "import batchdet"],
    "batchdet --help": [sys.executable, "-m", "batchdet", "--help"],
    "batchdet validate": [sys.executable, "-m", "batchdet", "validate", "jobs/quickstart.yaml"],
}


def main() -> None:
    """Print one JSON object: command -> seconds."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(10):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - started)
    medians = {name: round(statistics.median(values), 3) for name, values in times.items()}
    print(json.dumps({"python": platform.python_version(), "median_s": medians}, indent=1))


if __name__ == "__main__":
    main()
