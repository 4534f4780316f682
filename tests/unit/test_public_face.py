import subprocess
import sys

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
