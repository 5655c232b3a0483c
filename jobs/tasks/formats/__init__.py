"""Formats of data sets: one small module each, with LICENSE and `convert(row)`, a task without its id, and what may be
its reference.

A row that nothing can be made of raises ValueError with the reason, which goes to left_out.jsonl.
"""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

NAMES = "taco", "leetcode", "deepcoder", "kodcode", "livecodebench", "bigcodebench"

Converted = tuple[
    dict, list[str]
]  # the task's fields, and whole programs of which the first that passes is the reference
Convert = Callable[[dict], Converted]


def module(name: str) -> ModuleType:
    """The module of a format in NAMES."""
    return import_module(f"jobs.tasks.formats.{name}")


def skips(name: str) -> bool:
    """Whether a benchmark of the format lacks the tasks that cannot be judged here: it says so itself, by SKIPS."""
    return getattr(module(name), "SKIPS", False)
