"""Whether each task's own reference passes its tests, in the sandbox: for correctness alone, under limits none comes near.

Which tasks there are must not hang on the machine. So a reference that fails ends the job with the task's name, and one
that is slow is told of and kept: what is to be left out is listed in params, with its reason.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.common.errors import JobError
from jobs.plumbing.cli import log

if TYPE_CHECKING:
    from jobs.plumbing.params import Sandbox as Limits

PATIENCE = 60.0  # seconds of CPU for a reference; the slowest of MBPP+ takes a quarter of it on a machine of today
ROOM = 0.4  # of the time limit in training: a slower reference leaves too little for other right answers
NAMED = 10  # failures that a message lists


def has_inputs(task: dict) -> bool:
    """Whether it is judged by evalplus's inputs, and not by assertions."""
    return task.get("base_input") is not None or task.get("plus_input") is not None


def references(splits: dict[str, list[dict]], benchmarks: Sequence[str], limits: "Limits") -> None:
    """Runs every task's reference against its tests.

    limits: the params of the sandbox; of its times, only `timeout` decides, and only whether a warning is given.
    Errors: JobError naming each task whose reference does not pass, and the sandbox's word on it.
    """
    from jobs.sandbox import Sandbox

    generous = limits.model_copy(update={"timeout": PATIENCE, "min_limit": PATIENCE, "limit_factor": 1000.0})
    # A benchmark is scored with evalplus's memory limit, so its references are run under that one too.
    scored = [(split, t) for split, tasks in splits.items() if split in benchmarks for t in tasks if has_inputs(t)]
    others = [
        (split, t) for split, tasks in splits.items() for t in tasks if not (split in benchmarks and has_inputs(t))
    ]
    failed = []
    for rows, benchmark in ((scored, True), (others, False)):
        if not rows:
            continue
        with Sandbox.from_params(generous, benchmark=benchmark) as sandbox:
            verdicts = sandbox.run([(task, task["reference"]) for _, task in rows])
        for (split, task), verdict in zip(rows, verdicts, strict=True):
            if not verdict.passed:
                failed.append(f"{task['task_id']} ({split}): {verdict.status}, {verdict.error}")
            elif split not in benchmarks and verdict.seconds > ROOM * limits.timeout:
                log.warning(
                    "%s (%s): its reference took %.1f s here; in training an answer has %g s (sandbox.timeout)",
                    task["task_id"],
                    split,
                    verdict.seconds,
                    limits.timeout,
                )
    if failed:
        more = f"; and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        raise JobError(
            "a reference does not pass its own tests; list a training task under tasks.exclude with the reason: "
            + "; ".join(failed[:NAMED])
            + more
        )
