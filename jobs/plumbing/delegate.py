"""One command that does two jobs' work, as `evaluate --model` samples first: by the other job's name, not by an import.

So the other job's code is no part of what the first one's results hang on (closure.code), and no stage may use it: a stage
reads what the other job wrote. closure.delegated tells which jobs a job delegates to.
"""

import importlib
from types import ModuleType


def delegate(job: str) -> ModuleType:
    """The module jobs/JOB.py, imported only now. job: written out as a string, so that it can be found in the code."""
    return importlib.import_module(f"jobs.{job}")
