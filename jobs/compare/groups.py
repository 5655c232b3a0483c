"""Pass rates by what tasks are: where they come from, how hard they are, from which month. Optional fields of a task."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeGuard

from jobs.compare.rates import resampled

if TYPE_CHECKING:
    from jobs.plumbing.params import Compare

UNKNOWN = "not said"
MANY = 8  # different numbers from which on difficulties are put into four bins


def month(date: object) -> str:
    """YYYY-MM of a date that begins as ISO 8601's do, or what is there."""
    found = re.match(r"(\d{4})[-/](\d{2})(?!\d)", str(date))
    return f"{found[1]}-{found[2]}" if found else str(date)


def bins(values: Iterable[object]) -> Callable[[object], str]:
    """What a difficulty is called in the report: words as they are, few numbers likewise, many by quarters of their range.

    A grade between 0 and 1 is a pass rate, so its quarters are those of 0 to 1.
    """
    numbers = sorted({v for v in values if numeric(v)})
    if len(numbers) <= MANY:
        return lambda value: f"{value:g}" if numeric(value) else str(value)
    low, high = (0.0, 1.0) if numbers[0] >= 0 and numbers[-1] <= 1 else (numbers[0], numbers[-1])
    ends = [low + (high - low) * i / 4 for i in range(5)]

    def named(value: object) -> str:
        if not numeric(value):
            return str(value)
        i = min(3, max(0, math.floor(4 * (value - low) / (high - low))))
        return f"{ends[i]:g} to {ends[i + 1]:g}"

    return named


def numeric(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


FIELDS: dict[str, Callable[[Sequence[Mapping]], Callable[[object], str]]] = {
    "source": lambda tasks: str,
    "difficulty": lambda tasks: bins(field(task, "difficulty") for task in tasks),
    "month": lambda tasks: month,
}
KEYS = {"source": ("source",), "difficulty": ("difficulty", "pass_rate"), "month": ("date",)}


def field(task: Mapping, by: str) -> object:
    """The task's first field that says it. A difficulty that is written as a number is one."""
    value = next((task[key] for key in KEYS[by] if task.get(key) not in (None, "")), None)
    return float(value) if isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?", value) else value


def grouped(tasks: Sequence[Mapping]) -> dict[str, dict[str, list[str]]]:
    """By field and group, the ids of its tasks; only fields by which there are two groups or more."""
    found: dict[str, dict[str, list[str]]] = {}
    for by, naming in FIELDS.items():
        named = naming(tasks)
        groups: dict[str, list[str]] = {}
        for task in tasks:
            value = field(task, by)
            groups.setdefault(UNKNOWN if value is None else named(value), []).append(task["task_id"])
        if len(groups) > 1:
            found[by] = dict(sorted(groups.items(), key=lambda item: (item[0] == UNKNOWN, rank(item[0]))))
    return found


def rank(name: str) -> tuple[float, str]:
    """Easy before hard, numbers by size, the rest by name."""
    words = {"introductory": 0, "easy": 0, "medium": 1, "interview": 1, "hard": 2, "competition": 2}
    start = re.match(r"-?\d+(\.\d+)?(?= to |$)", name)
    return (float(start[0]) if start else float(words.get(name.lower(), 0)), name)


def by_group(
    tasks: Sequence[Mapping], models: Mapping[str, Mapping[str, float]], settings: "Compare"
) -> dict[str, list[dict]]:
    """models: each one's pass rate by task. By field: {name, tasks, models: intervals of mean pass@1 over the tasks}."""

    def interval(values: list[float]) -> dict:
        return asdict(resampled(values, settings, (0, 1), 1.0))

    return {
        by: [
            {
                "name": name,
                "tasks": len(ids),
                "models": {model: interval([rate[task] for task in ids]) for model, rate in models.items()},
            }
            for name, ids in groups.items()
        ]
        for by, groups in grouped(tasks).items()
    }
