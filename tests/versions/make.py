"""Make outputs with the code of a commit, as they are left by whole runs and by drivers that were killed.

python tests/versions/make.py COMMIT NAME       writes tests/versions/NAME.tar.xz, of some 10 KB

Everything lies in a store in memory, so that URIs are the same wherever the outputs are read. The archive holds the
source and one output for each of:

whole          Two nights. In the first, shard ``b`` could not be read; the second labelled it, and the new ``c``.
first          The first night alone.
labelling      The second night's driver was killed while it labelled.
moved          It was killed in the commit, when the part files were in their place.
committing     It was killed before the manifest; of newer versions the lease had been taken for the commit.
committed      It was killed behind the manifest, before ``_SUCCESS``.
"""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

REPOSITORY: Final = Path(__file__).resolve().parents[2]
ROOT: Final = "versions://versions"
JOB: Final = f"""name: versions
source: {{uri: "{ROOT}/in/*.tar"}}
model: {{uri: "{ROOT}/model.onnx"}}
output: {{uri: "{ROOT}/out"}}
compute: {{segment_rows: 3}}
policy: {{max_failed_fraction: 0.5}}
"""
IMAGES: Final = 5
"""Of each shard; the fourth is bad, nothing is found in the third."""
STOPS: Final = {
    "run.staged@3": "labelling",
    "commit.stats.after": "moved",
    "commit.manifest.before": "committing",
    "commit.manifest.after": "committed",
}


class Store(MemoryFileSystem):  # type: ignore[misc]
    """A store in memory of its own; batchdet refuses ``memory://``, which is another place in each process."""

    protocol = "versions"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("versions://", "memory://")))


def open_store() -> Store:
    """Make ``versions://`` known to fsspec, with nothing in it."""
    fsspec.register_implementation("versions", Store, clobber=True)
    Store.store.clear()
    Store.pseudo_dirs[:] = [""]
    return Store()


def shard(name: str) -> bytes:
    """Return a tar of things that the labeller of :mod:`tests.without_ray` takes for images."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for n in range(IMAGES):
            data = f"image {n} of {name}{('', '', ' empty', ' bad', '')[n]}".encode()
            member = tarfile.TarInfo(f"{n}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def _record(archive: Path) -> None:
    """Run the two nights with the code that is imported, and keep what lies there at each stop."""
    from batchdet import failpoint
    from batchdet.job import run_job
    from batchdet.specfile import parse_job
    from tests import tiny_onnx
    from tests.without_ray import without_ray

    store = open_store()
    with tarfile.open(archive, "w:xz") as tar, tempfile.TemporaryDirectory() as folder:

        def keep(name: str, below: str = f"{ROOT}/out") -> None:
            for path in sorted(store.find(below)):
                member = tarfile.TarInfo(name + path.removeprefix(Store._strip_protocol(below)))
                data = store.cat_file(path)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

        def at(rules: str, **actions: Callable[[str], None]) -> None:
            failpoint._ACTIONS.update(actions)
            failpoint._RULES = failpoint._parse(rules)

        model = tiny_onnx.end2end(Path(folder) / "model.onnx")
        store.pipe_file(f"{ROOT}/model.onnx", model.read_bytes())
        for name in "ab":
            store.pipe_file(f"{ROOT}/in/{name}.tar", shard(name))
        with without_ray():
            at("run.lineage.after=lose", lose=lambda path: store.rm_file(f"{ROOT}/in/b.tar"))
            run_job(parse_job(JOB, "job.yaml"))
            keep("first")
            time.sleep(1.1)  # the first versions did not order runs that began within one second
            for name in "bc":
                store.pipe_file(f"{ROOT}/in/{name}.tar", shard(name))
            at(";".join(f"{point}=keep:{name}" for point, name in STOPS.items()), keep=keep)
            run_job(parse_job(JOB, "job.yaml"))
            keep("whole")
        keep("source", f"{ROOT}/in")
        keep("model", f"{ROOT}/model.onnx")


def main(commit: str, name: str) -> None:
    """Check a commit out, and have its code make the archive."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", tree, commit], cwd=REPOSITORY, check=True)
        try:
            archive = REPOSITORY / "tests/versions" / f"{name}.tar.xz"
            environment = os.environ | {"PYTHONPATH": str(tree), "HOME": folder}
            subprocess.run([sys.executable, __file__, archive], cwd=tree, env=environment, check=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=REPOSITORY, check=True)


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 3 else _record(Path(sys.argv[1]))
