"""The oracle: sees each change of the store at its moment, and says which rule of the protocol it breaks.

The lease is judged as a register of numbers. A number is taken if its object is created while no higher one is there.
Each number has one owner; numbers rise; a commit takes the number behind its owner's own. So the order of the numbers
is a total order of all that was acquired and committed.
"""

import hashlib
import io
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

OUT = "out"
_LEASE = re.compile(rf"{OUT}/_batchdet/lease/(\d+)\.json")
_RECORD = re.compile(rf"{OUT}/_batchdet/runs/([^/]+)/(spec\.yaml|inventory\.parquet|lineage\.json|stats\.json)")
_MANIFEST = re.compile(rf"{OUT}/_batchdet/runs/([^/]+)/manifest\.json")
_PART = re.compile(r"/part-(\d{8}-\d{6}-[0-9a-f]{4})-")
_FIXED = ("uri", "member", "size_bytes", "status", "error_code", "detection_count")


class Violation(AssertionError):
    """A rule of the protocol is broken."""


@dataclass
class Taken:
    """A number of the lease that was taken.

    Args:
        number: The number.
        owner: Who has it.
        run_id: The run that took it by its commit; "" if it was acquired.
        sha256: Digest of that run's manifest.
    """

    number: int
    owner: str
    run_id: str = ""
    sha256: str = ""


@dataclass
class Oracle:
    """Watches one store.

    Args:
        objects: The store's objects.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    taken: list[Taken] = field(default_factory=list)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    guarded: dict[str, str] = field(default_factory=dict)
    """Part files of commits -> their digest."""
    problems: list[str] = field(default_factory=list)

    def before_write(self, path: str, data: bytes) -> None:
        """Judge a write."""
        if match := _LEASE.fullmatch(path):
            self._lease(int(match[1]), data)
        elif match := _MANIFEST.fullmatch(path):
            self._manifest(match[1], path, data)
        elif path in self.guarded and _digest(data) != self.guarded[path]:
            self._note(f"{path}: a part file of a commit is overwritten with other bytes")
        elif (match := _RECORD.fullmatch(path)) and match[1] in self.manifests and self.objects.get(path) != data:
            self._note(f"{path}: a record of a committed run is overwritten with other bytes")

    def before_delete(self, path: str) -> None:
        """Judge a deletion."""
        if path in self.guarded:
            self._note(f"{path}: a part file of a commit is deleted")
        if (match := _RECORD.fullmatch(path) or _MANIFEST.fullmatch(path)) and match[1] in self.manifests:
            self._note(f"{path}: a record of a committed run is deleted")

    def _lease(self, number: int, data: bytes) -> None:
        said = json.loads(data)
        highest = max((int(m[1]) for path in self.objects if (m := _LEASE.fullmatch(path))), default=0)
        known = {one.number: one for one in self.taken}
        if number in known and f"{OUT}/_batchdet/lease/{number:06d}.json" in self.objects:
            if known[number].owner != said["owner"]:
                self._note(f"lease {number}: owned by {known[number].owner[:8]}, overwritten by {said['owner'][:8]}")
            return
        if highest > number:
            return  # its writer finds the higher one, and takes its object away
        before = self.taken[-1] if self.taken else Taken(0, "")
        commit = said.get("commit") or {}
        is_commit = commit.get("number") == number
        if number <= before.number:
            if before.number == number and before.owner == said["owner"]:
                return
            self._note(f"lease {number}: taken although {before.number} was taken before")
        if is_commit and before.owner != said["owner"]:
            self._note(f"lease {number}: run {commit['run_id']} commits, but {before.number} belongs to another owner")
        taken = Taken(number, said["owner"])
        if is_commit:
            taken = Taken(number, said["owner"], commit["run_id"], commit["sha256"])
            draft = self.objects.get(f"{OUT}/_batchdet/runs/{commit['run_id']}/parts/{number:06d}/manifest.json", b"")
            if _digest(draft) != commit["sha256"]:
                self._note(f"lease {number}: the draft of run {commit['run_id']} is not what its commit says")
            else:
                self._guard(json.loads(draft))
        self.taken.append(taken)

    def _guard(self, manifest: dict[str, Any]) -> None:
        for part in (*manifest["images"], *manifest["detections"]):
            path = f"{OUT}/{part['path']}"
            if _digest(self.objects.get(path, b"")) != part["sha256"]:
                self._note(f"{path}: not what the manifest of run {manifest['run_id']} says at its commit")
            self.guarded[path] = part["sha256"]

    def _manifest(self, run_id: str, path: str, data: bytes) -> None:
        if path in self.objects:
            if self.objects[path] != data:
                self._note(f"{path}: overwritten with another manifest")
            return
        if (run_id, _digest(data)) not in {(one.run_id, one.sha256) for one in self.taken}:
            self._note(f"{path}: written without a commit point")
        manifest = json.loads(data)
        self.manifests[run_id] = manifest
        self._guard(manifest)
        for name in ("spec", "stats", "lineage", "inventory"):
            suffix = {"spec": "yaml", "inventory": "parquet"}.get(name, "json")
            record = path.replace("manifest.json", f"{name}.{suffix}")
            if _digest(self.objects.get(record, b"")) != manifest[f"{name}_sha256"]:
                self._note(f"{record}: not what the manifest says when the run becomes visible")

    def check_numbers(self) -> None:
        """Check that the numbers are a total order: each is taken once, and each commit follows its owner's number."""
        numbers = [one.number for one in self.taken]
        if numbers != sorted(set(numbers)):
            self._note(f"the lease's numbers were taken in the order {numbers}")
        runs = Counter(one.run_id for one in self.taken if one.run_id and one.run_id in self.manifests)
        for run_id, times in runs.items():
            if times > 1:
                self._note(f"run {run_id} was committed {times} times")

    def check_rows(self, truth: dict[str, tuple[Any, ...]]) -> None:
        """Check that each listed image has one row, and each row is the truth's."""
        found: Counter[str] = Counter()
        for manifest in self.manifests.values():
            boxes = Counter(
                row["image_id"] for part in manifest["detections"] for row in self._rows(part, ["image_id"])
            )
            for part in manifest["images"]:
                for row in self._rows(part, [*_FIXED, "image_id", "run_id"]):
                    found[row["uri"]] += 1
                    if tuple(row[name] for name in _FIXED) != truth.get(row["uri"]):
                        self._note(f"{row['uri']}: its row is {row}, the truth is {truth.get(row['uri'])}")
                    if row["run_id"] != manifest["run_id"]:
                        self._note(f"{row['uri']}: its row in run {manifest['run_id']} names run {row['run_id']}")
                    if boxes[row["image_id"]] != row["detection_count"]:
                        self._note(
                            f"{row['uri']}: {boxes[row['image_id']]} boxes, {row['detection_count']} are counted"
                        )
        for uri in truth:
            if found[uri] != 1:
                self._note(f"{uri}: {found[uri]} rows")

    def _rows(self, part: dict[str, Any], columns: list[str]) -> list[dict[str, Any]]:
        data = self.objects.get(f"{OUT}/{part['path']}")
        if data is None:
            self._note(f"{part['path']}: missing, a manifest names it")
            return []
        return pq.read_table(io.BytesIO(data), columns=columns).to_pylist()

    def rows(self) -> dict[str, tuple[Any, ...]]:
        """Return the rows of all committed runs, as the truth for other schedules."""
        return {
            row["uri"]: tuple(row[name] for name in _FIXED)
            for manifest in self.manifests.values()
            for part in manifest["images"]
            for row in self._rows(part, list(_FIXED))
        }

    def check_files(self) -> None:
        """Check that nothing is left but what committed runs need.

        A part file may be left of a run whose folder was removed as unfinished while its driver was stopped: nobody
        can say whose it is, so that it is kept, and ``verify`` warns of it.
        """
        records = ("spec.yaml", "inventory.parquet", "lineage.json", "stats.json", "manifest.json", "_SUCCESS")
        needed = {f"{OUT}/_batchdet/runs/{run}/{name}" for run in self.manifests for name in records}
        needed |= {f"{OUT}/{p['path']}" for m in self.manifests.values() for p in (*m["images"], *m["detections"])}
        found = {path for path in self.objects if path.startswith(f"{OUT}/")}
        for path in sorted(needed - found):
            self._note(f"{path}: missing in the end")
        for path in sorted(found - needed - {f"{OUT}/_SUCCESS"}):
            if not _LEASE.fullmatch(path) and "/.writable-" not in path and not self._of_no_run(path):
                self._note(f"{path}: left after the garbage was collected")

    def _of_no_run(self, path: str) -> bool:
        match = _PART.search(path)
        return match is not None and not any(f"/runs/{match[1]}/" in other for other in self.objects)

    def _note(self, problem: str) -> None:
        self.problems.append(problem)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
