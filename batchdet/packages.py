"""Which packages an extra of batchdet brings, and how to say that one of them is missing."""

import re
import shlex
from importlib import metadata

from batchdet.errors import MissingExtra


def requirements_of(extras: str) -> dict[str, str]:
    """Return the requirements of extras of batchdet, such as ``{"openvino": "openvino>=2025.3"}``.

    They are read from the metadata of the installed batchdet. A package that was shipped to a cluster has none; then
    nothing is returned.

    Args:
        extras: Names with commas between them.
    """
    try:
        lines = metadata.requires("batchdet") or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        requirement, _, condition = line.partition(";")
        named = re.search(r"""\bextra == ["']([^"']+)["']""", condition)
        if named and named[1] in extras.split(","):
            found.setdefault(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0], requirement.strip())
    return found


def install_command(extras: str, *packages: str) -> str:
    """Return the pip command for what is missing of extras, by packages: no index has batchdet under our name.

    Args:
        extras: Names with commas between them.
        packages: Distributions that are missing in any case.
    """
    known = requirements_of(extras)
    absent = {name: line for name, line in known.items() if not _installed(name)}
    wanted = {package: known.get(package, package) for package in packages} | absent
    return "pip install " + " ".join(map(shlex.quote, (wanted or known).values()))


def missing_extra(what: str, extras: str, *packages: str) -> MissingExtra:
    """Make the error for packages that are not installed.

    Args:
        what: Who needs them, with its verb: ``model.runtime: openvino needs``.
        extras: The extras of batchdet that bring them, with commas between them.
        packages: The distributions that could not be imported.
    """
    are = "are" if len(packages) > 1 else "is"
    return MissingExtra(
        f"{what} {' and '.join(packages)}, which {are} not installed here: "
        f"{install_command(extras, *packages)} (or install batchdet with the extra {extras})",
        key=packages[0] if packages else None,
    )


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
