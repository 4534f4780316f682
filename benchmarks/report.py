"""What the benchmarks share: a line on the screen, the machine, versions, a table in the README, a steady rate."""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from batchdet.machine import cpu_limit, memory_bytes

HERE = Path(__file__).parent
RESULTS, README = HERE / "results", HERE / "README.md"
QUIET = 0.1
"""Share of the machine that may be busy with something else."""
_END = "<!-- to here -->"


def say(text: str) -> None:
    """Print a line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """Describe the machine."""
    text = Path("/proc/cpuinfo").read_text()
    fields = dict(line.split("\t:", 1) if "\t:" in line else (line, "") for line in text.split("\n\n")[0].splitlines())
    flags = {key.strip(): value for key, value in fields.items()}.get("flags", "").split()
    return {
        "cpu": next((v.strip() for k, v in fields.items() if k.strip() == "model name"), platform.processor()),
        "cores": round(cpu_limit()[0]),
        "bf16": any("bf16" in flag for flag in flags),
        "memory_gib": round(memory_bytes()[0] / 2**30),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def one_line(host: dict[str, Any]) -> str:
    """Put what :func:`machine` found into a line, with the day."""
    bf16 = ", bf16" if host["bf16"] else ""
    return (
        f"{host['cpu']}, {host['cores']} cores{bf16}, {host['memory_gib']} GiB; Python {host['python']}; "
        f"{time.strftime('%Y-%m-%d')}"
    )


def versions(python: Path | str, packages: Sequence[str]) -> dict[str, str]:
    """Ask an interpreter for versions of packages."""
    code = (
        "import importlib.metadata as m, json, sys; have = {d.name: d.version for d in m.distributions()}; "
        "print(json.dumps({n: have[n] for n in sys.argv[1:] if n in have}))"
    )
    return dict(json.loads(subprocess.run([python, "-c", code, *packages], capture_output=True, check=True).stdout))


def busy_share(seconds: float = 1.0) -> float:
    """Return the share of all processors that is busy now, while this process sleeps."""

    def look() -> tuple[float, float]:
        fields = [float(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(fields), fields[3] + fields[4]

    total, idle = look()
    time.sleep(seconds)
    total_after, idle_after = look()
    return 1 - (idle_after - idle) / max(1.0, total_after - total)


def unquiet(shares: Sequence[float]) -> list[str]:
    """Return the lines that a report needs when the machine was busy with something else; none when it was quiet."""
    worst = max(shares, default=0.0)
    if worst <= QUIET:
        return []
    return ["", f"**The machine was not quiet**: before some run, {worst:.0%} of it was busy with something else."]


def steady(points: Sequence[tuple[float, int]]) -> float | None:
    """Fit a line through images over time, from the first tenth to the last.

    Args:
        points: When (seconds) and how many images were done then; in any order.

    Returns:
        Images/s; None with too few points.
    """
    ordered = np.array(sorted(points), np.float64).reshape(-1, 2)
    done = np.cumsum(ordered[:, 1])
    middle = (done >= 0.1 * done[-1]) & (done <= 0.9 * done[-1]) if len(done) else np.zeros(0, bool)
    if middle.sum() < 8:
        return None
    return round(float(np.polyfit(ordered[middle, 0] - ordered[0, 0], done[middle], 1)[0]), 2)


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a Markdown table; floats get what digits they deserve, None an empty cell."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

    lines = [header, ["---"] * len(header), *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Write a report down."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def write_readme(path: Path, script: str, text: str) -> None:
    """Put a table between its script's markers, or at the end if there are none."""
    begin = f"<!-- {script} writes from here -->"
    old = path.read_text() if path.exists() else ""
    if begin not in old:
        old = f"{old.rstrip()}\n\n{begin}\n{_END}\n"
    before, _, rest = old.partition(begin)
    path.write_text(f"{before}{begin}\n{text}\n{_END}{rest.partition(_END)[2]}")
