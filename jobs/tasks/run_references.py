"""Whether each task's own reference passes its tests, in the sandbox: for correctness alone, under limits none comes near.

Which tasks there are must not hang on the machine. So a reference that fails ends the job with the task's name, and one
that is slow is told of and kept: what is to be left out is listed in params, with its reason.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.common.errors import JobError
from jobs.plumbing.cli import log

if TYPE_CHECKING:
    from jobs.common.task import Task
    from jobs.plumbing.params import Sandbox as Limits
    from jobs.sandbox import Sandbox, Verdict

PATIENCE = 60.0  # seconds of CPU for a reference; the slowest of MBPP+ takes a quarter of it on a machine of today
ROOM = 0.4  # of the time limit in training: a slower reference leaves too little for other right answers
NAMED = 10  # failures that a message lists


def of_benchmarks(task: "Task") -> bool:
    """Whether it is judged by evalplus's inputs or by test classes, and not as tasks are that an answer is rewarded for."""
    return any(task.get(name) is not None for name in ("base_input", "plus_input", "unittests"))


def patient(limits: "Limits", benchmark: bool = False) -> "Sandbox":
    """A sandbox under limits of time that no reference comes near, but for a task's own `timeout`."""
    from jobs.sandbox import Sandbox

    generous = limits.model_copy(update={"timeout": PATIENCE, "min_limit": PATIENCE, "limit_factor": 1000.0})
    return Sandbox.from_params(generous, benchmark=benchmark)


def judged(rows: "list[Task]", limits: "Limits", scored: bool) -> "list[Verdict]":
    """Verdicts on the tasks' references, in order; with a benchmark's limits for those that are scored so."""
    verdicts: dict[int, Verdict] = {}
    for benchmark in (True, False):
        part = [task for task in rows if (scored and of_benchmarks(task)) == benchmark]
        if part:
            with patient(limits, benchmark) as sandbox:
                found = sandbox.run([({**task, "timeout": PATIENCE}, task["reference"]) for task in part])
            verdicts |= {id(task): verdict for task, verdict in zip(part, found, strict=True)}
    return [verdicts[id(task)] for task in rows]


def failures(rows: "list[Task]", limits: "Limits") -> list[tuple[str, str]]:
    """(task id, the sandbox's word) of each training task whose reference does not pass."""
    return [
        (task["task_id"], f"{verdict.status}, {verdict.error}")
        for task, verdict in zip(rows, judged(rows, limits, scored=False), strict=True)
        if not verdict.passed
    ]


def require_passing(splits: "dict[str, list[Task]]", benchmarks: Sequence[str], limits: "Limits") -> None:
    """Runs every task's reference against its tests.

    limits: the params of the sandbox; of its times, only `timeout` decides, and only whether a warning is given.
    Errors: JobError naming each task whose reference does not pass, and the sandbox's word on it.
    """
    from jobs.sandbox.settings import limit

    failed = []
    for split, tasks in splits.items():
        for task, verdict in zip(tasks, judged(tasks, limits, split in benchmarks), strict=True):
            if not verdict.passed:
                failed.append(f"{task['task_id']} ({split}): {verdict.status}, {verdict.error}")
            elif split not in benchmarks and verdict.seconds > ROOM * (most := limit(task, limits.timeout)):
                log.warning(
                    "%s (%s): its reference took %.1f s here; in training an answer has %g s (%s)",
                    task["task_id"],
                    split,
                    verdict.seconds,
                    most,
                    "sandbox.timeout" if most == limits.timeout else "its own timeout",
                )
    if failed:
        more = f"; and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        raise JobError(
            "a reference does not pass its own tests; list a training task under tasks.exclude with the reason: "
            + "; ".join(failed[:NAMED])
            + more
        )
