import re
import subprocess
import sys
from pathlib import Path

import batchdet


def test_public_names() -> None:
    assert batchdet.__all__ == sorted(batchdet.__all__)
    for name in ["JobSpec", "load_job", "plan_job", "run_job", "open_results", "BatchdetError"]:
        assert name in batchdet.__all__
    assert all(getattr(batchdet, name) is not None for name in batchdet.__all__)


def test_import_and_help_load_nothing_heavy() -> None:
    heavy = "{'ray', 'torch', 'onnxruntime', 'openvino', 'cv2', 'pyarrow', 'pandas', 'duckdb', 'numpy'}"
    code = (
        "import sys, batchdet; found = sorted(set(sys.modules) & " + heavy + "); assert not found, found\n"
        "import batchdet.cli; found = sorted(set(sys.modules) & " + heavy + "); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_loses_no_words_to_markup() -> None:
    """Rich takes words in square brackets for styles, and shows nothing in their place."""
    for path in (Path(batchdet.__file__).parent / "cli").glob("*.py"):
        swallowed = re.findall(r'help="[^"]*\[[a-z/][^"\]]*\]', path.read_text())
        assert not swallowed, f"{path.name}: {swallowed}"
