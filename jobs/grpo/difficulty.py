"""Which tasks GRPO trains on, by how often the SFT model solves them: `grade` writes that into the tasks."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.common.errors import UsageError

if TYPE_CHECKING:
    from jobs.common.task import Task


def chosen(rows: "list[Task]", span: Sequence[float] | None, path: Path) -> "list[Task]":
    """The tasks whose pass rate is in `span`, both ends included; all of them for None.

    Errors: UsageError naming the first task of `path` that was not graded, or the span where no task is left.
    """
    if span is None:
        return rows
    low, high = span
    for row in rows:
        if row.get("pass_rate") is None:
            raise UsageError(
                f"{path}: {row['task_id']} has no pass_rate, which grpo.difficulty chooses by; set grade.samples, "
                "or grpo.difficulty to null"
            )
    found = [row for row in rows if low <= row["pass_rate"] <= high]
    if not found:
        raise UsageError(f"{path}: none of {len(rows)} tasks has a pass_rate in grpo.difficulty, {low} to {high}")
    return found


def signal(row: "Task", size: int) -> float:
    """The chance that `size` answers to a task do not all fail and do not all pass; 1 for a task that was not graded.

    The rate is Laplace's (passes + 1) / (samples + 2), so that no task is ruled out by a few samples.
    """
    samples = row.get("graded")
    if row.get("pass_rate") is None or not samples:
        return 1.0
    rate = (row["pass_rate"] * samples + 1) / (samples + 2)
    return 1 - rate**size - (1 - rate) ** size


def draw(rng: random.Random, weights: Sequence[float], count: int) -> list[int]:
    """`count` different numbers, each as likely to come next as its weight says (Efraimidis and Spirakis 2006)."""
    keys = [rng.random() ** (1 / weight) for weight in weights]
    return sorted(range(len(keys)), key=lambda i: keys[i], reverse=True)[:count]
