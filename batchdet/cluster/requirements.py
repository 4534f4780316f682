"""The packages that batchdet needs and which of them are here, found without importing any of them.

Only the standard library is used: a cluster that lacks everything must still be told so in one sentence.
The floors are those of ``pyproject.toml``; a test holds the two together.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

FLOOR_PYTHON = (3, 11)


@dataclass(frozen=True)
class Requirement:
    """One package that batchdet uses.

    Args:
        name: Its name on PyPI.
        floor: The oldest version that will do.
        extra: The extra that brings it, "" for what the base install brings.
    """

    name: str
    floor: str
    extra: str = ""


BASE = (
    Requirement("duckdb", "2.0"),
    Requirement("fsspec", "2025.9.0"),
    Requirement("numpy", "2.0"),
    Requirement("opencv-python-headless", "4.12"),
    Requirement("pandas", "2.3"),
    Requirement("pillow", "12.2"),
    Requirement("pyarrow", "23.0.1"),
    Requirement("pydantic", "2.11"),
    Requirement("pyyaml", "6.0.2"),
    Requirement("ray", "2.58"),
    Requirement("rich", "14.0"),
    Requirement("s3fs", "2025.9.0"),
    Requirement("simplejpeg", "1.8"),
    Requirement("typer", "0.16"),
)
RUNTIMES = (
    Requirement("onnxruntime", "1.20", "cpu"),
    Requirement("onnxruntime-gpu", "1.31", "gpu"),
    Requirement("onnx", "1.21", "gpu"),
    Requirement("openvino", "2025.3", "cpu"),
    Requirement("onnx", "1.21", "cpu"),
)
# A distribution that holds the same modules under another name.
_STANDS_IN = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")}


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution (or of one that stands in for it), or None."""
    for candidate in (name, *_STANDS_IN.get(name, ())):
        try:
            return metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
    return None


def is_older(version: str, floor: str) -> bool:
    """Tell whether a version stands below a floor, by the numbers before any letter or plus sign."""

    def numbers(text: str) -> tuple[int, ...]:
        found = re.match(r"\d+(\.\d+)*", text)
        return tuple(int(part) for part in found[0].split(".")) if found else ()

    have, need = numbers(version), numbers(floor)
    width = max(len(have), len(need))
    return have + (0,) * (width - len(have)) < need + (0,) * (width - len(need))


def missing(requirements: Iterable[Requirement]) -> list[str]:
    """List what is absent or too old, each in words such as ``"duckdb (1.2 found, 1.4 needed)"``."""
    wrong = []
    for requirement in requirements:
        version = installed_version(requirement.name)
        if version is None:
            wrong.append(requirement.name)
        elif is_older(version, requirement.floor):
            wrong.append(f"{requirement.name} ({version} found, {requirement.floor} needed)")
    return wrong


def pins(device: str) -> list[str]:
    """Pin what a cluster must install to what is installed here, so that both give the same results.

    Args:
        device: ``cpu``, ``gpu`` or ``auto``; gpu takes onnxruntime-gpu, the others what is installed here.

    Returns:
        Requirement lines such as ``duckdb==2.0.0``. Ray is left out: the cluster's own must stay.
    """
    lines = []
    runtimes = [r for r in RUNTIMES if (r.extra == "gpu") == (device == "gpu")]
    for requirement in (*(r for r in BASE if r.name != "ray"), *runtimes):
        version = installed_version(requirement.name)
        if version is not None:
            # A local label ("+cpu") names a build that no public index has.
            lines.append(f"{requirement.name}=={version.split('+')[0]}")
        elif requirement in BASE or device == "gpu":
            lines.append(f"{requirement.name}>={requirement.floor}")
    return lines
