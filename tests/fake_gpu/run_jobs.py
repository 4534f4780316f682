"""Run the jobs of a JSON file one after the other on a Ray that believes it has a GPU; print what was chosen."""

import json
import sys
from pathlib import Path

import ray

from batchdet.job import run_job
from batchdet.spec import JobSpec
from batchdet.table.lineage import Lineage


def main(path: str) -> None:
    """Run them."""
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, object_store_memory=300 * 2**20)
    chosen = []
    for plain in json.loads(Path(path).read_text()):
        run = run_job(JobSpec.model_validate_json(json.dumps(plain)))
        lineage = Lineage.read(run.output, run.run_id)
        if lineage is None:
            sys.exit(f"{run.output}: no lineage")
        chosen.append({"ok": run.images_ok, "choices": lineage.choices, "computed": lineage.computed})
    print(json.dumps(chosen))


if __name__ == "__main__":
    main(sys.argv[1])
