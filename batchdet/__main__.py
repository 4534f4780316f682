"""``python -m batchdet``."""

import os
import sys

# `-m` puts the working directory first in the path: a random.py of a user's folder would be executed.
_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if sys.path[:1] == [os.getcwd()] and sys.path[0] != _HOME:
    del sys.path[0]

if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # a submitted job: the cluster's Python may lack batchdet's packages
    from batchdet.cluster.entrypoint import check_python

    check_python()

from batchdet.cli import main_of_process  # noqa: E402

main_of_process()
