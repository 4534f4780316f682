"""A real file system of a few pages, where one can be mounted."""

import itertools
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE_BYTES = 4096


@contextmanager
def small_disk(folder: Path, pages: int) -> Iterator[Path]:
    """Mount a file system of so many pages; the test is skipped where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={pages * PAGE_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, spare_pages: int = 0) -> Path:
    """Leave room for so many pages on a disk; return the file to delete when there shall be room again."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        with pytest.raises(OSError, match="No space left"):
            file.writelines(itertools.repeat(bytes(PAGE_BYTES)))
        file.truncate(file.tell() - spare_pages * PAGE_BYTES)
    return filler
