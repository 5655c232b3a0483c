"""GRPO's logged completions, as the report pages through them: by task and step, with rewards and verdicts."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from jobs.common.errors import JobError
from jobs.common.files import numbered_jsonl

TEXT = {"step": int, "task_id": str, "completion": str}
APART = ("step", "task_id", "completion", "status", "advantage")


def completions(path: Path | None, tasks: Iterable[Mapping]) -> dict | None:
    """{columns, groups, prompts}: of each step and task one group, its completions with a value for each column.

    Columns are the rewards and whatever else of numbers a line has, the advantage last. tasks: where the prompts are found.
    Errors: JobError naming file, line and key of a line that `grpo` does not write.
    """
    if path is None:
        return None
    rows = numbered_jsonl(path)
    for number, row in rows:
        for key, kind in TEXT.items():
            if not isinstance(row.get(key), kind) or isinstance(row[key], bool):
                raise JobError(f"{path}: line {number} has no `{key}`, as `grpo` writes it")
    numbers = {k: None for _, row in rows for k, v in row.items() if k not in APART and isinstance(v, int | float)}
    columns = [*numbers, "advantage"]
    groups: dict[tuple[int, str], list[dict]] = {}
    for _, row in rows:
        shown = {
            "text": row["completion"],
            "status": str(row.get("status") or ""),
            "values": [row.get(c) for c in columns],
        }
        groups.setdefault((row["step"], row["task_id"]), []).append(shown)
    named = {task["task_id"]: task["prompt"] for task in tasks}
    return {
        "columns": columns,
        "groups": [{"step": step, "task": task, "rows": found} for (step, task), found in sorted(groups.items())],
        "prompts": {task: named[task] for _, task in groups if task in named},
    }
