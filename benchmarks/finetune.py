"""Fine-tuning against training from scratch: three new classes, the same images and the same number of steps.

``python benchmarks/finetune.py`` draws a training set and a validation set of kinds that ``builtin:sample``
does not know, trains once from its weights with a frozen backbone and once from fresh weights, by ``batchdet train``,
and writes ``results/finetune.json``. CPU time is that of the whole command, export and measurement included.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from batchdet.sample.dataset import write_sample
from batchdet.training.loop import processor

RESULT = Path(__file__).parent / "results" / "finetune.json"
WAYS = {
    "builtin:sample, frozen backbone": ["--init", "builtin:sample", "--freeze", "backbone"],
    "from scratch": [],
}


def train(options: list[str], folder: Path) -> dict[str, object]:
    """Run one training and return what it says, with its wall and CPU time."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "batchdet", "train", *options, "--out", str(folder), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = json.loads(done.stdout)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    keys = ("ap", "ap50", "ap75", "ap50_by_label", "images", "objects")
    return {
        "options": " ".join(options[4:]),
        "steps": said["steps"],
        "train_s": round(said["train_s"], 1),
        "wall_s": round(time.monotonic() - began, 1),
        "cpu_s": round(cpu_s, 1),
        "report": {key: said["report"][key] for key in keys},
    }


def main() -> None:
    """Draw, train both ways, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=float, nargs="+", default=[4.0, 12.0])
    parser.add_argument("--images", type=int, default=600, help="to train on")
    parser.add_argument("--val-images", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
        data, val = f"{folder}/train", f"{folder}/val"
        write_sample(data, options.images, "folder", seed=5, kinds="new")
        write_sample(val, options.val_images, "folder", seed=6, kinds="new")
        for epochs in options.epochs:
            for way, more in WAYS.items():
                out = Path(folder) / "out"
                row = train(["--data", data, "--val", val, *more, "--epochs", f"{epochs:g}", "--seed", "1"], out)
                found.append({"way": way, "epochs": epochs, **row})
                shutil.rmtree(out)
                report = found[-1]["report"]
                print(f"{way}, {epochs:g} epochs: AP50 {report['ap50']:.3f}  AP {report['ap']:.3f}  {row}", flush=True)
    facts = {
        "command": f"python benchmarks/finetune.py --epochs {' '.join(f'{epochs:g}' for epochs in options.epochs)}",
        "images": options.images,
        "val_images": options.val_images,
        "processor": processor(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "unset"),
        "load_at_end": os.getloadavg()[0],
        "trainings": found,
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
