"""Memory of a run's processes as the number of images grows: 1,000, 10,000, 100,000.

make bench-memory

Tiny images, so that what grows with their number is seen and not what they hold. Memory is what a process has to itself
(resident less shared), sampled twice a second: the driver, and the largest of its actors.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from batchdet.machine import private_bytes
from tests.ray_head import descendants

JOB = """name: memory
source: {{uri: "{folder}/in/shard-*.tar"}}
model: {{uri: "builtin:sample", canvas: {{size_px: 32}}}}
output: {{uri: "{out}"}}
"""
_SHARD_IMAGES = 2000
_SAMPLE_S = 0.5


def _write(folder: Path, images: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(7)
    pictures = []
    for _ in range(64):
        sink = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(sink, "JPEG", quality=60)
        pictures.append(sink.getvalue())
    for shard in range(-(-images // _SHARD_IMAGES)):
        with tarfile.open(folder / f"shard-{shard:04d}.tar", "w") as tar:
            for i in range(shard * _SHARD_IMAGES, min(images, (shard + 1) * _SHARD_IMAGES)):
                info = tarfile.TarInfo(f"{i:08d}.jpg")
                data = pictures[i % len(pictures)]
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def _is_actor(pid: int) -> bool:
    try:
        return b"DetectorActor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _measure(images: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder / "in", images)
        (folder / "job.yaml").write_text(JOB.format(folder=folder, out=folder / "out"))
        started = time.perf_counter()
        command = [sys.executable, "-m", "batchdet", "run", str(folder / "job.yaml")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
        driver, actor = 0, 0
        while process.poll() is None:
            driver = max(driver, private_bytes(process.pid))
            actor = max([actor, *(private_bytes(pid) for pid in descendants(process.pid) if _is_actor(pid))])
            time.sleep(_SAMPLE_S)
        assert process.returncode == 0
        wall_s = time.perf_counter() - started
    return {
        "images": images,
        "wall_s": round(wall_s, 1),
        "images_per_s": round(images / wall_s, 1),
        "driver_mib": round(driver / 2**20),
        "largest_actor_mib": round(actor / 2**20),
    }


def main() -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    for images in parser.parse_args().images:
        print(json.dumps(_measure(images)), flush=True)


if __name__ == "__main__":
    main()
