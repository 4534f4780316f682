"""The manifest: the list of part files of one run. A run is committed when its manifest exists."""

import functools
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Annotated, Final

from pydantic import Field, TypeAdapter, ValidationError

from batchdet import storage
from batchdet.errors import OutputError
from batchdet.records.schema import PASSING_SHARD_CODES

TABLES: Final = ("images", "detections")
RUNS_FOLDER: Final = "_batchdet/runs"
MANIFEST_DAMAGED: Final = "output.manifest_damaged"
"""Code of the error of a manifest that cannot be read."""
_READERS: Final = 8
_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MADE_RUN_ID: Final = r"\d{8}-\d{6}-[0-9a-f]{4}"
"""Pattern of the run ids that batchdet makes; it reads others, too."""
PART_NAME: Final = re.compile(rf"part-(?P<run>{MADE_RUN_ID})(?:-(?P<lease>\d{{6,}}))?-\d{{5,}}\.parquet")
"""A part file's name: its run, and the number of the lease that committed it, which earlier versions left out."""
Count = Annotated[int, Field(ge=0, lt=1 << 63)]


@dataclass(frozen=True)
class PartFile:
    """One committed Parquet file.

    Args:
        path: Relative to the output folder, ``images/run_date=2026-11-23/part-...parquet``.
        rows: Rows in it.
        size_bytes: Its size.
        sha256: 64 hex digits of its bytes.
    """

    path: str
    rows: Count
    size_bytes: Count
    sha256: str


@dataclass(frozen=True)
class BadShard:
    """A tar or Parquet file that a run could not read to its end; it is in quarantine until a later run can.

    Args:
        uri: The file.
        code: One of :data:`batchdet.records.schema.SHARD_CODES`.
        message: What was found there; "" where a manifest names very many.
    """

    uri: str
    code: str
    message: str = ""

    @property
    def may_pass(self) -> bool:
        """Whether every run tries it again; if not, only once the file has changed."""
        return self.code in PASSING_SHARD_CODES


def _damaged(uri: str, why: str) -> OutputError:
    return OutputError(
        f"{uri}: not a manifest of batchdet, or a damaged one ({' '.join(why.split())[:300]}); restore it from a copy",
        code=MANIFEST_DAMAGED,
        key=uri,
    )


@dataclass(frozen=True)
class Manifest:
    """What one run committed.

    Args:
        run_id: Sorts by time.
        name: The spec's name.
        created_at: ISO 8601, UTC.
        schema_version: Of the tables.
        fingerprint: Everything that changes results, as one digest.
        inventory_digest: What was labelled, as one digest.
        partition_by: Hive partition columns, outermost first.
        images_listed: Images that the source held.
        images_ok: Rows with status ok.
        images_failed: Rows with status failed.
        images: Part files of the images table.
        detections: Part files of the detections table.
        spec_sha256: Digest of ``spec.yaml``.
        stats_sha256: Digest of ``stats.json``.
        lineage_sha256: Digest of ``lineage.json``; "" in runs of versions that did not note it.
        inventory_sha256: Likewise of ``inventory.parquet``.
        bad_shards: Tar and Parquet files that were not read to their end. What was read of them is in the tables.
        empty_shards: Tar and Parquet files in which the run found no image, so that no row of the tables names them.
        lease_number: Of the lease when the run was committed; 0 in runs of versions that did not note it.
        unread_uris: What earlier versions wrote in place of ``bad_shards``: shards that could not be opened at all.
    """

    run_id: str
    name: str
    created_at: str
    schema_version: int
    fingerprint: str
    inventory_digest: str
    partition_by: tuple[str, ...]
    images_listed: Count
    images_ok: Count
    images_failed: Count
    images: tuple[PartFile, ...] = field(default=())
    detections: tuple[PartFile, ...] = field(default=())
    spec_sha256: str = ""
    stats_sha256: str = ""
    lineage_sha256: str = ""
    inventory_sha256: str = ""
    bad_shards: tuple[BadShard, ...] = ()
    empty_shards: tuple[str, ...] = ()
    lease_number: Count = 0
    unread_uris: tuple[str, ...] = ()

    @property
    def quarantine(self) -> tuple[BadShard, ...]:
        """The shards that this run put or left in quarantine."""
        return (*self.bad_shards, *(BadShard(uri, "shard_unreadable") for uri in self.unread_uris))

    def to_json(self) -> bytes:
        """Serialise, with keys in a fixed order."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @staticmethod
    def from_json(data: bytes, uri: str) -> "Manifest":
        """Read a manifest back.

        Raises:
            OutputError: It is not one; the message names ``uri``.
        """
        try:
            manifest = _adapter().validate_json(data, strict=True)
            for table in TABLES:
                for part in getattr(manifest, table):
                    manifest._check_path(table, part.path)
            return manifest
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            at = ".".join(map(str, first["loc"]))
            raise _damaged(uri, f"{at}: {first['msg']}" if at else first["msg"]) from error
        except ValueError as error:
            raise _damaged(uri, str(error)) from error

    def _check_path(self, table: str, path: str) -> None:
        """Refuse a part file that lies elsewhere than in its table's folder: others may have written the manifest.

        Raises:
            ValueError: It does.
        """
        folder, *slices = path.split("/")[:-1] or [""]
        fits = len(slices) == len(self.partition_by)
        fits = fits and all(s.startswith(f"{name}=") for s, name in zip(slices, self.partition_by, strict=True))
        if folder != table or not fits or "\0" in path:
            raise ValueError(f"{path!r} is no path of a part file of {table}")


@functools.cache
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def run_folder(out: str, run_id: str) -> str:
    """Return the folder of a run's records."""
    return storage.join(out, RUNS_FOLDER, run_id)


def draft_folder(out: str, run_id: str, number: int) -> str:
    """Return the folder of what a commit writes before its commit point.

    Args:
        out: The output's URI.
        run_id: The run.
        number: Of the lease, as the commit is going to take it.
    """
    return storage.join(run_folder(out, run_id), "parts", f"{number:06d}")


def list_runs(out: str) -> list[str]:
    """List the ids of all runs, committed or not, oldest first."""
    return [name for name in storage.list_names(storage.join(out, RUNS_FOLDER)) if _RUN_ID.fullmatch(name)]


def load_manifest(out: str, run_id: str) -> Manifest | None:
    """Read the manifest of a run, or return None when the run is not committed."""
    uri = storage.join(run_folder(out, run_id), "manifest.json")
    try:
        manifest = Manifest.from_json(storage.read_bytes(uri), uri)
    except storage.NotFound:
        return None
    if manifest.run_id != run_id:
        raise OutputError(f"{uri}: the manifest of another run, {manifest.run_id!r}")
    return manifest


def committed_runs(out: str) -> list[Manifest]:
    """Read the manifests of all committed runs, oldest first."""
    with ThreadPoolExecutor(_READERS) as pool:
        manifests = list(pool.map(lambda run_id: load_manifest(out, run_id), list_runs(out)))
    return [m for m in manifests if m is not None]
