"""Places that a job names: written out in full, apart from each other, and fit to be written."""

import os
import uuid
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from batchdet import storage
from batchdet.errors import OutputError, SpecError
from batchdet.machine import free_bytes
from batchdet.results.units import format_bytes
from batchdet.source.inventory import Inventory
from batchdet.spec import JobSpec
from batchdet.table.manifest import TABLES

_LEAST_FREE_BYTES: Final = 16_000_000
"""Records of a run, however small it is."""
_STAGED_FACTOR: Final = 2.0
"""Until the commit, staged segments lie beside the part files; they are not compressed, so at least as large."""


def in_full(spec: JobSpec) -> JobSpec:
    """Write places out in full, so that they mean the same in every process of a cluster."""
    model = {"uri": spec.model.uri if spec.model.uri.startswith("builtin:") else storage.normalize(spec.model.uri)}
    if spec.model.labels is not None:
        model["labels"] = storage.normalize(spec.model.labels)
    if storage.scheme(spec.output.uri) == "memory" or storage.scheme(spec.source.uri) == "memory":
        raise SpecError("memory:// is another place in each process of a cluster; give a folder or an object store")
    return spec.model_copy(
        update={
            "source": spec.source.model_copy(update={"uri": storage.normalize(spec.source.uri)}),
            "model": spec.model.model_copy(update=model),
            "output": spec.output.model_copy(update={"uri": storage.normalize(spec.output.uri)}),
        }
    )


def check_apart(spec: JobSpec, out: str) -> None:
    """Refuse an output that is the source or lies in it, and a source that lies among the output's tables."""
    uri = spec.source.uri
    parts = uri.split("/")
    fixed = _real("/".join(parts[: next((i for i, p in enumerate(parts) if storage.is_glob(p)), len(parts))]))
    real = _real(out)
    if not storage.is_glob(uri) and (real == fixed or real.startswith(fixed.rstrip("/") + "/")):
        raise OutputError(f"output.uri: {out} lies in source.uri {uri}; give the tables a folder of their own")
    if storage.scheme(out) == "file":
        for place in (out, *(storage.join(out, name) for name in (*TABLES, "_batchdet"))):
            if os.path.islink(place):
                raise OutputError(f"output.uri: {place} is a symbolic link; name the folder that it leads to")
    if any((fixed + "/").startswith(f"{real.rstrip('/')}/{table}/") for table in TABLES):
        raise OutputError(f"source.uri: {uri} lies among the tables of output.uri {out}; give those their own folder")


def check_not_own_tables(inventory: Inventory, out: str) -> None:
    """Refuse a glob that reaches into the output: the next run would read this one's tables."""
    prefix = _real(out).rstrip("/") + "/"
    uris = inventory.objects["uri"]
    if storage.scheme(out) == storage.scheme(inventory.root) == "file":  # a link may lead there
        folders = pc.unique(pc.replace_substring_regex(uris.drop_null(), r"/[^/]*$", "/"))
        uris = pa.array([_real(folder) + "/" for folder in folders.to_pylist()], pa.string())
    if pc.any(pc.starts_with(uris, prefix)).as_py():
        raise OutputError(
            f"output.uri: {out} lies in what source.uri {inventory.root} names; give the tables a folder of their own"
        )


def check_writable(out: str, leave_nothing: bool = False) -> None:
    """Find out whether an output can be written, and by one run at a time, before any work is done.

    Args:
        out: The output's URI.
        leave_nothing: Make no local folder; else a small object is written there and deleted.

    Raises:
        OutputError: It cannot be written, or its store ignores the condition on which the lease and commits rest.
    """
    probe = storage.join(out, "_batchdet", f".writable-{uuid.uuid4().hex}")
    try:
        if leave_nothing and storage.scheme(out) == "file":
            _check_folder(Path(out), probe)
            return
        storage.create(probe, b"first")
        twice = storage.create(probe, b"second")
        storage.delete([probe])
    except storage.StorageError as error:
        why = error.message.removeprefix(f"{probe}: cannot write").strip(" :")
        raise OutputError(
            f"output.uri: {out} cannot be written: {why}; name a folder or bucket that can",
            code="output.not_writable",
            key="output.uri",
        ) from error
    if twice:
        store = storage.endpoint(out) or f"{storage.scheme(out)}://"
        raise OutputError(
            f"output.uri: {out}: the store at {store} replaces an object although it is asked not to (If-None-Match), "
            "so two runs could write here at once; use a store with conditional writes",
            code="output.no_conditional_writes",
            key="output.uri",
        )


def _check_folder(folder: Path, probe: str) -> None:
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise storage.StorageError(f"{probe}: cannot write: {folder} is a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise storage.StorageError(f"{probe}: cannot write: permission denied for {folder}")


def check_space(out: str, tables_bytes: float = 0) -> None:
    """Compare what a run is going to write with what is free on a local disk.

    Args:
        out: The output's URI.
        tables_bytes: Predicted size of the part files; 0 if nothing is predicted.

    Raises:
        OutputError: It does not fit.
    """
    if storage.scheme(out) != "file":
        return
    needed = max(_LEAST_FREE_BYTES, tables_bytes * _STAGED_FACTOR)
    free, _ = free_bytes(out)
    if free < needed:
        raise OutputError(
            f"output.uri: {out} needs at least {format_bytes(round(needed))} while the run is under way, and only "
            f"{format_bytes(free)} are free; make room, or name another folder",
            code="output.no_space",
            key="output.uri",
        )


def _real(uri: str) -> str:
    return os.path.realpath(uri) if storage.scheme(uri) == "file" else uri
