"""``python -m batchdet``."""

from batchdet.cli import main_of_process

main_of_process()
