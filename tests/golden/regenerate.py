"""Write the golden file again: ``python -m tests.golden.regenerate``. Look at the difference before committing it."""

import json
import sys
from pathlib import Path

from tests.golden.models import FILE, MODELS, compute


def main(shared: Path) -> None:
    """Compute every model's detections."""
    golden = {model: compute(shared, model) for model in MODELS}
    lines = []
    for model, photographs in golden.items():
        inner = []
        for name, rows in photographs.items():
            body = ",\n".join(f"      {json.dumps(row)}" for row in rows)
            inner.append(f"    {json.dumps(name)}: [\n{body}\n    ]")
        lines.append(f"  {json.dumps(model)}: {{\n" + ",\n".join(inner) + "\n  }")
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2].parent / "shared")
