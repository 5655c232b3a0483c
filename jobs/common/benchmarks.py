"""Benchmarks: how their tasks, samples and results are read, that all are there, and what is reported of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.common.errors import JobError, UsageError
from jobs.common.files import numbered_jsonl, read_json
from jobs.common.task import Task, read_tasks

# The keys of a row, each with its type, as far as jobs read them.
SAMPLE = {"task_id": str, "sample": int, "text": str, "tokens": int, "finish": str}
RESULT = {
    "task_id": str,
    "sample": int,
    "outcome": str,
    "error": str,
    "tests_passed": int,
    "tests_total": int,
    "passed": bool,
    "base_passed": bool | None,
    "plus_passed": bool | None,
}


def read_rows(path: Path, kinds: Mapping[str, Any]) -> list[dict]:
    """The rows of a file of samples or results. Errors: JobError naming the line, and the key missing or mistyped."""
    numbered = numbered_jsonl(path)
    for number, row in numbered:
        for key, kind in kinds.items():
            if key not in row or not isinstance(row[key], kind):
                raise JobError(f"{path}: line {number} has no {key!r} of type {getattr(kind, '__name__', kind)}")
    return [row for _, row in numbered]


def read_benchmarks(folder: Path, names: list[str]) -> dict[str, list[Task]]:
    """The tasks of each benchmark NAME, from `folder`/NAME.jsonl.

    Errors: UsageError naming one that is not there, JobError for one with another number of tasks than sizes.json says,
    or with a task that nothing can be judged by.
    """
    missing = [name for name in names if not (folder / f"{name}.jsonl").is_file()]
    if missing:
        raise UsageError(f"benchmark {missing[0]}: {folder / missing[0]}.jsonl does not exist")
    benchmarks = {name: read_tasks(folder / f"{name}.jsonl") for name in names}
    sizes = read_json(folder / "sizes.json") if (folder / "sizes.json").is_file() else {}
    for name, tasks in benchmarks.items():
        if len(tasks) != sizes.get(name, len(tasks)):
            raise JobError(
                f"{folder / name}.jsonl: has {len(tasks)} tasks, and {sizes[name]} are recorded in sizes.json"
            )
    return benchmarks


def require_all(where: str, tasks: list[Task], rows: list[dict]) -> None:
    """Errors: JobError unless `rows` has each sample of each task once: a metric over fewer would be another one."""
    found: dict[str, list[int]] = {task["task_id"]: [] for task in tasks}
    for row in rows:
        if row["task_id"] not in found:
            raise JobError(f"{where}: a sample of {row['task_id']}, which is not among the tasks")
        found[row["task_id"]].append(row["sample"])
    wanted = sorted({number for numbers in found.values() for number in numbers})
    odd = [task["task_id"] for task in tasks if sorted(found[task["task_id"]]) != wanted or not wanted]
    if odd:
        raise JobError(
            f"{where}: has not each sample of {odd[0]} once; all {len(tasks)} tasks are to have the same samples"
        )


def views(name: str, tasks: list[Task]) -> list[tuple[str, str]]:
    """What is reported of a benchmark: (name, the result's field that says whether a sample passes)."""
    if any(task.get("base_input") for task in tasks):
        return [(name, "base_passed"), (f"{name}+", "passed")]
    return [(name, "passed")]
