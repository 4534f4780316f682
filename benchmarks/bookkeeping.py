"""What it costs that a run can be killed: seconds of bookkeeping beside the seconds of the run.

make bench-bookkeeping

A job over the 120 photographs of the shared data, packed several times over, is run twice: once undisturbed, for the
seconds of the run; once killed before its commit, which leaves all staged segments. On those everything that a run does
only to survive a crash is done again, alone, and timed: notes of attempts, staging and listing, reading back, the
lease, and the plan of a resumed run. In a run most of it overlaps with labelling, so the share is an upper bound.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from batchdet import storage
from batchdet.pipeline.attempts import Attempts
from batchdet.plan import plan_job
from batchdet.specfile import load_job
from batchdet.table.lease import Lease
from batchdet.table.manifest import committed_runs, list_runs
from batchdet.table.staging import list_staged, read_staged, write_staged
from tests.e2e.conftest import write_shards
from tests.s3_server import s3_server

SHARED = Path(os.environ.get("BATCHDET_SHARED", Path(__file__).parents[2] / "shared"))
JOB = """name: bookkeeping
source: {{uri: "{folder}/in/shard-*.tar"}}
model: {{uri: "{model}"}}
output: {{uri: "{out}"}}
"""


def _run(job: Path, **env: str) -> int:
    command = [sys.executable, "-m", "batchdet", "run", str(job)]
    return subprocess.run(command, env=os.environ | env, stderr=subprocess.DEVNULL, check=False).returncode


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _hold(out: str) -> None:
    with Lease(out) as lease:
        lease.name_run("run")
        lease.check()
        lease.check()


def _costs(out: str, job: Path) -> dict[str, float]:
    """Time each thing that a run does to survive a crash, on the staged segments of a run that was killed."""
    (run_id,) = list_runs(out)
    staged = list_staged(out, run_id)
    uris = [uri for shard in staged.values() for uri in shard.segments.values()]
    segments = [read_staged(uri) for uri in uris]
    attempts, again = Attempts(run_id), storage.join(out, "_batchdet", "again")

    def note() -> None:
        for segment in segments:
            with attempts.of(f"{segment.shard_id}/{segment.segment_index}"):
                pass

    return {
        f"notes of attempts, {len(segments)} segments": _timed(note),
        "staging": _timed(lambda: [write_staged(again, segment) for segment in segments]),
        "listing what is staged": _timed(lambda: list_staged(out, run_id)),
        "reading it back": _timed(lambda: [read_staged(uri) for uri in uris]),
        "deleting it": _timed(lambda: storage.delete_folder(again)),
        "lease, run named, checked twice": _timed(lambda: _hold(storage.join(out, "leased"))),
        "plan of the resumed run": _timed(lambda: plan_job(load_job(str(job)))),
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2040)
    parser.add_argument("--model", default=str(SHARED / "models/yolo26n.onnx"))
    options = parser.parse_args()
    files = [(p.name, p.read_bytes()) for p in sorted((SHARED / "images/coco120/images").glob("*.jpg"))]
    times = -(-options.images // len(files))
    packed = [(f"{i:03d}-{name}", data) for i in range(times) for name, data in files][: options.images]
    with tempfile.TemporaryDirectory() as name, s3_server() as s3:
        folder = Path(name)
        outputs = {"local": str(folder / "killed"), "S3 on loopback": f"{s3.bucket('bookkeeping')}/killed"}
        write_shards(str(folder / "in"), packed, max(2, options.images // 500))
        job = folder / "job.yaml"
        job.write_text(JOB.format(folder=folder, model=options.model, out=folder / "whole"))
        wall_s = _timed(lambda: _run(job))
        (manifest,) = committed_runs(str(folder / "whole"))
        assert manifest.images_listed == options.images
        report = {"images": options.images, "run_s": round(wall_s, 2)}
        for where, out in outputs.items():
            job.write_text(JOB.format(folder=folder, model=options.model, out=out))
            _run(job, BATCHDET_FAILPOINT="commit.gather.before=kill")
            costs = _costs(out, job)
            report[f"bookkeeping_s, output {where}"] = {key: round(value, 4) for key, value in costs.items()}
            report[f"share of the run, output {where}"] = f"{sum(costs.values()) / wall_s:.2%}"
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
