"""The command line. Each command reads its arguments, calls one function and prints what it returns."""

# isort: off
from batchdet.cli.application import app, main, main_of_process

# each adds its commands; help shows them in this order
from batchdet.cli import jobs, results, models, setup, cluster  # noqa: F401

__all__ = ["app", "main", "main_of_process"]
