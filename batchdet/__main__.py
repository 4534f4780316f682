"""``python -m batchdet``."""

from batchdet.cli import main

main()
